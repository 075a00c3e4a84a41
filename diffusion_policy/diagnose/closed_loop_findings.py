"""Findings about closed loop: whether the task is done, in how many scenes, and by which checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffusion_policy.commands import command
from diffusion_policy.diagnose.closed_loop_evidence import ClosedLoopEvidence, decisive
from diffusion_policy.diagnose.findings import Finding, ok
from diffusion_policy.env_runner.document import ClosedLoop, environment_summary
from diffusion_policy.env_runner.results import REFUSED_BY_GUARD, reasons_of
from diffusion_policy.env_runner.simulator import words_for
from diffusion_policy.sim.tasks import POSE_ONLY
from diffusion_policy.spec import GRIPPER

CLOSED_LOOP = "closed-loop"
# A policy whose success share is surely smaller than this fails more often than not.
HALF = 0.5
# An interval wider than this says little.
WIDE = 0.4


def closed_loop_findings(looked: Sequence[ClosedLoopEvidence], deployable: Path | None = None) -> list[Finding]:
    """Returns findings on every result, in order; results of checkpoints other than the one to deploy are notes.

    If the policy does the task under some conditions, a failure under others is a warning.
    """
    deciding = decisive(looked, deployable)
    judged = {evidence.path: task_done(evidence) for evidence in looked if evidence.counts}
    works = any(judged[evidence.path].severity == "ok" for evidence in deciding)
    found = []
    for evidence in looked:
        finding = judged.get(evidence.path) or of_another(evidence)
        if finding.trouble and evidence not in deciding:
            finding = replace(finding, severity="note", remedy="", command="")
        elif finding.severity == "error" and works:
            finding = replace(finding, severity="warning")
        found.append(finding)
    return found


def success_sentence(evidence: ClosedLoopEvidence) -> str:
    """Returns ``26 of 40 scenes (95 % interval 50-78 %) of TabletopEnv, pick_and_place; referee physics``."""
    share, (low, high) = evidence.success, evidence.success.interval
    measured_in = environment_summary(evidence.found)
    return f"{share.count} of {share.of} scenes (95 % interval {low:.0%}-{high:.0%}; {measured_in})"


def mostly_done(evidence: ClosedLoopEvidence) -> bool:
    """Whether the task was done in more than half of the scenes; what fails more often is not ready to deploy."""
    return evidence.success.count > HALF * evidence.success.of


def task_done(evidence: ClosedLoopEvidence) -> Finding:
    """In how many scenes the policy does the task, and why it fails in the others."""
    found, share, (low, high) = evidence.found, evidence.success, evidence.success.interval
    reasons = ", ".join(f"{reason} {count}" for reason, count in reasons_of(found.results).items())
    text = f"closed loop: {evidence.of} does the task in {success_sentence(evidence)}"
    text += f"; failed: {reasons}" if reasons else ""
    if not found.is_complete:
        text = f"{text}; interrupted after {len(found.results)} of {found.scenes} scenes"
    about = evidence.path.name
    if not share.count and _cannot_grasp(found):
        remedy = "it commands no gripper, so it cannot grasp: --task pose_only measures how it moves"
        measure = command("evaluate_closed_loop", evidence.checkpoint or found.about["checkpoint"], "--task", POSE_ONLY)
        return Finding(CLOSED_LOOP, "note", text, remedy, measure, about)
    if high < HALF:
        return Finding(CLOSED_LOOP, "warning" if share.count else "error", text, _remedy(found), about=about)
    if not share.count:
        return Finding(CLOSED_LOOP, "warning", text, "too few scenes to tell: evaluate 40 or more", about=about)
    if high - low > WIDE:
        return Finding(CLOSED_LOOP, "note", text, "too few scenes to tell: evaluate 40 or more", about=about)
    return ok(CLOSED_LOOP, text, about)


def of_another(evidence: ClosedLoopEvidence) -> Finding:
    """A note on a result that does not count for the given checkpoints."""
    if not evidence.found.results:
        return Finding(CLOSED_LOOP, "note", "closed loop: no scene has ended", about=evidence.path.name)
    about = evidence.found.about
    text = f"closed loop: {evidence.path.name} is not counted: it belongs to another checkpoint ({about['checkpoint']})"
    checkpoint = evidence.among[0]
    simulator, result = words_for(about["simulator"]), evidence.path.with_name(f"closed_loop_{checkpoint.stem}.json")
    again = "" if simulator is None else command("evaluate_closed_loop", checkpoint, *simulator, "--json", result)
    remedy = f"its SHA-256 begins {about['checkpoint_sha256'][:12]}; evaluate {checkpoint.name}"
    return Finding("closed-loop-checkpoint", "note", text, remedy, again, evidence.path.name)


def _cannot_grasp(found: ClosedLoop) -> bool:
    """Whether a policy without a gripper was evaluated on a task that needs one."""
    held = any(str(note).startswith(f"the policy commands no {GRIPPER}:") for note in found.about["notes"])
    return held and found.about["task"] != POSE_ONLY


def _remedy(found: ClosedLoop) -> str:
    most = next(iter(reasons_of(found.results)), "")
    if most == REFUSED_BY_GUARD:
        return "the guard let no action through: look at what it refused, and at its limits"
    return "look at where it fails and at the videos (evaluate_closed_loop --video), and record demonstrations there"
