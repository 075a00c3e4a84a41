"""The page of a fine-tune, from whatever is given: dataset, checkpoint, run, logs, open-loop errors, closed loop.

A run adds its dataset, its best checkpoint, the ledger of its weights, and the logs and closed-loop results in its
folder, if they exist. The conclusion is at the top, in one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from diffusion_policy.commands import command
from diffusion_policy.diagnose.closed_loop_evidence import ClosedLoopEvidence, decisive
from diffusion_policy.diagnose.closed_loop_findings import CLOSED_LOOP, mostly_done, success_sentence
from diffusion_policy.diagnose.doctor import MACHINE, Examination, examine_sources
from diffusion_policy.diagnose.findings import Finding, level_of
from diffusion_policy.diagnose.log_evidence import LogEvidence
from diffusion_policy.diagnose.log_findings import open_loop_findings
from diffusion_policy.diagnose.playback import playbacks_of_episode, playbacks_of_log
from diffusion_policy.diagnose.sources import OpenedSources, Sources, open_sources, read_open_loop
from diffusion_policy.evaluate.gripper_table import UNJUDGED
from diffusion_policy.evaluate.verdicts import OPENS_AND_CLOSES, counted
from diffusion_policy.intervals import wilson_interval
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.report import ReportError
from diffusion_policy.report.ledger_page import ledger_section
from diffusion_policy.report.page import Section, render
from diffusion_policy.report.replay import replay_section
from diffusion_policy.report.sections import (
    data_section,
    findings_section,
    gripper_section,
    training_section,
)
from diffusion_policy.report.sections_of_closed_loop import closed_loop_section
from diffusion_policy.report.sections_of_errors import (
    guard_section,
    horizon_section,
    latency_section,
    open_loop_section,
    pooled,
    trajectory_section,
)
from diffusion_policy.run_folder.reading import RunFolder
from diffusion_policy.storage import write_text

__all__ = ["Conclusion", "Sources", "conclude", "make_report", "read_open_loop", "write_report"]

MOST_BYTES = 15 * 2**20
WOULD = "on recordings the gripper would open and close"
NOT_WHETHER = ", which tells when it would close, not whether it grasps"
# Number of recorded episodes that are played back if no log is given.
EPISODES = 4


@dataclass(frozen=True)
class Conclusion:
    """The sentence at the top, and its color: "good", "doubt" or "bad"."""

    level: str
    sentence: str


def write_report(path: Path, sources: Sources, on_progress: Progress = no_progress) -> Conclusion:
    """Writes the page atomically; returns the conclusion at its top.

    Raises:
        ReportError: nothing was given, or the page would exceed MOST_BYTES.
        WorkspaceError: a source does not exist or cannot be read.
    """
    verdict, page = make_report(sources, on_progress)
    if len(page) > MOST_BYTES:
        raise ReportError(f"{path}: the page would have {len(page) / 2**20:.0f} MB, more than 15; give it fewer logs")
    write_text(path, page)
    return verdict


def make_report(sources: Sources, on_progress: Progress = no_progress) -> tuple[Conclusion, str]:
    """Returns the conclusion and the page; `on_progress` gets the number of files opened, and the total."""
    if not sources:
        raise ReportError(
            "nothing to report on; give a dataset, a checkpoint, a run, logs, open-loop errors or closed loop"
        )
    opened = open_sources(sources, on_progress=on_progress)
    examination, machine = _examined(opened)
    verdict = conclude(examination, opened.logs, opened.run, decisive(opened.closed_loop, opened.deployable))
    groups = {**examination.groups, MACHINE: machine}
    return verdict, render(_title(sources), _lead(verdict, examination), _sections(groups, opened))


def _examined(opened: OpenedSources) -> tuple[Examination, Sequence[Finding]]:
    """Returns the doctor's findings and those on open-loop errors and, separately, those on this machine.

    The machine that makes the page has no bearing on the policy. No finding refers back to this page for details.
    """
    groups, documents = dict(examine_sources(opened).groups), opened.open_loop
    machine = groups.pop(MACHINE)
    looks = dict.fromkeys(groups, "")
    if opened.datasets:
        looks["dataset"] = command("verify_converted_data", "--zarr-path", opened.datasets[0].path)
    if opened.checkpoint is not None:
        looks["checkpoint"] = command("adapt", "inspect", opened.checkpoint.path)
    if opened.logs:
        looks["log"] = command("validate_gripper", *(evidence.log.path for evidence in opened.logs))
    if documents:
        findings = [
            finding for document in documents for finding in open_loop_findings(document, document["checkpoint"])
        ]
        groups["open loop"] = findings
        looks["open loop"] = command("doctor", "--checkpoint", documents[0]["checkpoint"])
    return Examination(groups, looks), machine


def _sections(groups: Mapping[str, Sequence[Finding]], opened: OpenedSources) -> list[Section]:
    """Returns the sections with content, in reading order."""
    run, logs = opened.run, opened.logs
    buffers = [dataset.buffer for dataset in opened.datasets]
    played = [of_log for evidence in logs for of_log in playbacks_of_log(evidence.log, *buffers)]
    if not played and opened.datasets:
        first = opened.datasets[0]
        count = min(EPISODES, first.buffer.n_episodes)
        episodes = (playbacks_of_episode(first.buffer, episode, first.cameras) for episode in range(count))
        played = [of_log for arms in episodes for of_log in arms]
    placed = [playback for playback in played if playback.positions is not None and playback.chunks is not None]
    gripping = [playback for playback in played if playback.commands is not None and (playback.predicted or not logs)]
    weights = None if opened.checkpoint is None else opened.checkpoint.evidence
    ledger = None if weights is None else weights.ledger
    stages = pooled([evidence.stages for evidence in logs])
    made: list[Section | None] = [findings_section(groups)]
    made.append(closed_loop_section(opened.closed_loop) if opened.closed_loop else None)
    for number, dataset in enumerate(opened.datasets):
        made.append(data_section(dataset.evidence, dataset.buffer, dataset.cameras, number))
    made.append(ledger_section(*ledger) if ledger is not None else None)
    made.append(training_section(run) if run is not None and run.metrics else None)
    made.append(gripper_section(gripping, _verdicts(logs)) if gripping else None)
    made.append(open_loop_section(opened.open_loop) if opened.open_loop else None)
    made.append(horizon_section(run) if run is not None and not opened.open_loop else None)
    made.append(trajectory_section(placed) if played else None)
    made.append(latency_section(stages) if stages else None)
    made.append(guard_section([evidence.log for evidence in logs]))
    made.append(replay_section(placed) if placed else None)
    return [section for section in made if section is not None]


def conclude(
    examination: Examination,
    logs: Sequence[LogEvidence],
    run: RunFolder | None,
    rolled_out: Sequence[ClosedLoopEvidence] = (),
) -> Conclusion:
    """Returns the conclusion: the cause if something is wrong, otherwise results in closed loop and of the gripper."""
    diagnosis = examination.diagnosis
    cause = diagnosis.cause
    where = f"{cause.about}: " if cause is not None and len(logs) > 1 and cause in examination.groups["log"] else ""
    text = f"{where}{diagnosis.sentence()}"
    deploys = bool(logs or run or {"checkpoint", "open loop", "closed loop"} & examination.groups.keys())
    level = level_of(examination.findings)
    done = "" if cause is not None and cause.code == CLOSED_LOOP else _closed_loop_result(rolled_out)
    if level == "bad":
        return Conclusion("bad", f"{'Do not deploy it' if deploys else 'Do not train on it yet'}: {done}{text}.")
    conclusion = f"{done}{_opens_and_closes(logs, bool(rolled_out))}"
    rarely = bool(rolled_out) and not mostly_done(rolled_out[0])
    level = "doubt" if rarely else level
    fails = rarely or any(finding.trouble for finding in examination.groups.get("closed loop", ()))
    may = (
        "It was rolled out"
        if fails
        else "It can be deployed"
        if rolled_out
        else "Nothing forbids a rollout"
        if deploys
        else "It can be trained on"
    )
    return Conclusion(level, f"{may}{', with doubts' if level == 'doubt' else ''}: {conclusion}{text}.")


def _closed_loop_result(rolled_out: Sequence[ClosedLoopEvidence]) -> str:
    """Returns in how many scenes the task is done, from the result with the most scenes."""
    return (
        f"in closed loop {rolled_out[0].of} does the task in {success_sentence(rolled_out[0])}; " if rolled_out else ""
    )


def _opens_and_closes(logs: Sequence[LogEvidence], is_rolled_out: bool) -> str:
    """Returns in how many logs the gripper is commanded to close and open, among those that can show it.

    Recordings show only when it would; they do not show whether it then holds anything.
    """
    judged = [evidence for evidence in logs if evidence.gripper.verdict not in UNJUDGED]
    text = ""
    for offline, does, unit in ((False, "the gripper opens and closes", "logs"), (True, WOULD, "recorded episodes")):
        verdicts = [evidence.gripper.verdict for evidence in judged if evidence.offline is offline]
        if verdicts:
            count = verdicts.count(OPENS_AND_CLOSES)
            low, high = wilson_interval(count, len(verdicts))
            unstored = NOT_WHETHER if offline and not is_rolled_out else ""
            text += f"{does} in {count} of {len(verdicts)} {unit} (95 % interval {low:.0%}-{high:.0%}){unstored}; "
    return text


def _lead(conclusion: Conclusion, examination: Examination) -> str:
    cause = examination.diagnosis.cause
    remedy = f'<p class="dim">What to do: {escape(cause.remedy)}</p>' if cause is not None and cause.remedy else ""
    following = examination.next_command
    shown = f'<p class="dim">next: <code>{escape(following)}</code></p>' if following else ""
    text = f"<p><strong>{escape(conclusion.sentence)}</strong></p>"
    return f'<div class="verdict {conclusion.level}" role="status">{text}{remedy}{shown}</div>'


def _verdicts(logs: Sequence[LogEvidence]) -> dict[str, str]:
    """Returns verdicts by playback name; those of a log with several arms under each arm's."""
    result = {}
    for evidence in logs:
        name, text = evidence.log.path.stem.removeprefix("inference_log_"), evidence.gripper
        for playback in [f"{name}, {arm}" for arm in text.arms] or [name]:
            result[playback] = f"{text.verdict}; {text.reason}"
    return result


def _title(sources: Sources) -> str:
    named = [path.name for path in (sources.run, sources.checkpoint, *sources.datasets) if path is not None]
    named += [counted(len(sources.logs), "log")] if sources.logs else []
    named += [path.name for path in (*sources.open_loop, *sources.closed_loop)] if not named else []
    return f"Report: {', '.join(named)}"
