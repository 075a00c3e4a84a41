"""The doctor: runs all checks on the given files, in order, and ends with the most likely cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.adapt.settings_fit import SettingsError
from diffusion_policy.adapt.starting_point import ActionsError, plan_pretrained
from diffusion_policy.commands import command, setting
from diffusion_policy.diagnose.checkpoint_evidence import CheckpointEvidence
from diffusion_policy.diagnose.checkpoint_findings import checkpoint_findings, together_findings
from diffusion_policy.diagnose.closed_loop_findings import closed_loop_findings
from diffusion_policy.diagnose.dataset_evidence import DatasetEvidence
from diffusion_policy.diagnose.dataset_findings import dataset_findings
from diffusion_policy.diagnose.disk_need import disk_need
from diffusion_policy.diagnose.environment import environment_findings, look_at_environment
from diffusion_policy.diagnose.findings import SEVERITIES, Diagnosis, Finding, diagnose, exit_status, ok
from diffusion_policy.diagnose.log_findings import log_findings
from diffusion_policy.diagnose.pose_only import is_pose_only, without_grippers
from diffusion_policy.diagnose.run_kinds import findings_of_run
from diffusion_policy.diagnose.sources import OpenedSources, Sources, open_sources
from diffusion_policy.diagnose.training_evidence import ConfigEvidence, look_at_config
from diffusion_policy.diagnose.training_findings import config_findings
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_scale import CONFIG_KEY
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.run_folder.reading import open_run
from diffusion_policy.shape_meta import find_step_spec
from diffusion_policy.spec import StepSpec
from diffusion_policy.tables import Column, Printable, Table, Text

STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}
# The group of findings about the machine.
MACHINE = "environment"
Groups = Mapping[str, Sequence[Finding]]


@dataclass(frozen=True)
class Examination:
    """Findings by subject, in the order in which to act on them.

    Attributes:
        groups: findings by group.
        looks: by group, the command line that shows its subject.
    """

    groups: Groups
    looks: Mapping[str, str] = field(default_factory=dict)

    @property
    def next_command(self) -> str:
        """The command line of the cause; if it has none, the one that shows the cause's subject."""
        cause = self.diagnosis.cause
        if cause is None or cause.command:
            return "" if cause is None else cause.command
        group = next(name for name, findings in self.groups.items() if cause in findings)
        return self.looks.get(group, command("doctor"))

    @property
    def findings(self) -> list[Finding]:
        """All findings, in order."""
        return [finding for group in self.groups.values() for finding in group]

    @property
    def diagnosis(self) -> Diagnosis:
        """The cause."""
        return diagnose(self.findings)

    @property
    def exit_status(self) -> int:
        """0 no errors (there may be warnings), 1 errors."""
        return exit_status(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: findings by group, and the diagnosis."""
        diagnosis = self.diagnosis
        return {
            "groups": {name: [finding.to_json() for finding in group] for name, group in self.groups.items()},
            "worst": max((f.severity for f in self.findings), key=SEVERITIES.index, default="ok"),
            "cause": None if diagnosis.cause is None else diagnosis.cause.to_json(),
            "diagnosis": diagnosis.sentence(),
            "next_command": self.next_command,
        }

    def table(self) -> list[Printable]:
        """For the terminal: every finding, then the cause and the next command."""
        table = Table(Column(no_wrap=True), Column(no_wrap=True), "")
        for name, group in self.groups.items():
            for i, finding in enumerate(group):
                about = f" ({Path(finding.about).name})" if finding.about and finding.trouble else ""
                severity = Text(finding.severity, style=STYLES[finding.severity])
                table.add(name if i == 0 else "", severity, Text(finding.evidence, (about, "dim")))
        return [table, Text(), *_conclusion(self.diagnosis, self.next_command)]


def _conclusion(diagnosis: Diagnosis, following: str) -> list[Text]:
    cause = diagnosis.cause
    head = "" if cause is None else "The cause: " if cause.severity == "error" else "The likeliest cause: "
    lines = [Text(f"{head}{diagnosis.sentence()}.", style="green" if cause is None else STYLES[cause.severity])]
    if cause is not None and cause.remedy:
        lines.append(Text(f"What to do: {cause.remedy}"))
    if following:  # not folded, to be copied
        lines.append(Text("next: ", (following, "bold"), no_wrap=True))
    if diagnosis.others:
        count = len(diagnosis.others)
        lines.append(Text(f"Then look at the other {count} finding{'s' if count > 1 else ''} above.", style="dim"))
    return lines


def examine(
    datasets: Sequence[Path] = (),
    checkpoint: Path | None = None,
    config: tuple[Sequence[str], DictConfig] | None = None,
    run: Path | None = None,
    logs: Sequence[Path] = (),
    outputs: Path = Path(),
    gripper_scale: str | None = None,
    closed_loop: Sequence[Path] = (),
    on_progress: Progress = no_progress,
) -> Examination:
    """Examines whatever is given; a run adds its datasets and its checkpoint, if they exist.

    Args:
        datasets: converted datasets, of one policy.
        checkpoint: the policy's checkpoint.
        config: name with overrides, as words, and content of a config.
        run: folder of a training run.
        logs: inference logs.
        outputs: where runs are written, to check the free disk space.
        gripper_scale: scale of datasets and logs whose gripper is not 0..1, as in ``--gripper-scale``; by default, for
            a dataset that needs it, the scale in the run's config.
        closed_loop: documents of closed-loop evaluations; by default those in the run's folder.
        on_progress: called with the number of files opened, and the total.

    Raises:
        WorkspaceError: something given does not exist or cannot be read.
    """
    config_scale = None if config is None else OmegaConf.select(config[1], CONFIG_KEY, default=None)
    given = Sources(tuple(datasets), checkpoint, run, tuple(logs), (), gripper_scale, tuple(closed_loop))
    opened = open_sources(
        given,
        config_scale=config_scale if isinstance(config_scale, str) else None,
        logs_of_run=False,
        on_progress=on_progress,
    )
    return examine_sources(opened, config, outputs)


def examine_sources(
    opened: OpenedSources, config: tuple[Sequence[str], DictConfig] | None = None, outputs: Path = Path()
) -> Examination:
    """Does the same for sources that are already open; nothing is opened again."""
    run, checkpoint = opened.run, opened.deployable
    need = disk_need(None if config is None else config[1], run)
    machine = look_at_environment(outputs if run is None else run.path, need)
    groups: dict[str, list[Finding]] = {MACHINE: environment_findings(machine)}
    looked = [dataset.evidence for dataset in opened.datasets]
    if looked:
        groups["dataset"] = [finding for data in looked for finding in dataset_findings(data)]
    weights = None if opened.checkpoint is None else opened.checkpoint.evidence
    if opened.checkpoint is not None:
        trouble = opened.checkpoint.trouble
        groups["checkpoint"] = [trouble] if trouble else []
        groups["checkpoint"] += [] if weights is None else checkpoint_findings(weights)
    if weights is not None and looked:
        groups["together"] = [finding for data in looked for finding in together_findings(weights, data)]
    # A plan treats several datasets as one with all their episodes.
    data = replace(looked[0], lengths=tuple(length for each in looked for length in each.lengths)) if looked else None
    if config is not None:
        groups["config"] = _config(config, data, weights)
    if run is not None:
        groups["run"] = findings_of_run(run, data)
    if opened.closed_loop:
        groups["closed loop"] = closed_loop_findings(opened.closed_loop, checkpoint)
    if opened.logs:
        groups["log"] = [finding for evidence in opened.logs for finding in log_findings(evidence)]
    if is_pose_only(_spec_of(opened, config)):
        layouts = [data.layout for data in looked] + [evidence.log.layout for evidence in opened.logs]
        groups = without_grippers(groups, layouts)
    return Examination(groups, _looks(opened))


def _spec_of(opened: OpenedSources, config: tuple[Sequence[str], DictConfig] | None) -> StepSpec | None:
    """Returns the spec of the checkpoint, the config or the run, in this order; None if none has one."""
    weights = None if opened.checkpoint is None else opened.checkpoint.evidence
    if weights is not None and weights.spec is not None:
        return weights.spec
    content = config[1] if config is not None else None if opened.run is None else opened.run.config
    return None if content is None else find_step_spec(content)


def _looks(opened: OpenedSources) -> dict[str, str]:
    """Returns, by group, the command line that shows what was examined."""
    datasets, checkpoint = [dataset.path for dataset in opened.datasets], opened.deployable
    result: dict[str, str] = {}
    if datasets:
        result["dataset"] = command("report", "--out", "report.html", "--dataset", *datasets)
    if checkpoint is not None:
        result["checkpoint"] = command("adapt", "inspect", checkpoint)
    if datasets and checkpoint is not None:
        result["together"] = command(
            "report", "--out", "report.html", "--dataset", *datasets, "--checkpoint", checkpoint
        )
    if opened.run is not None:
        result["run"] = command("report", "--out", "report.html", "--run", opened.run.path)
    if opened.closed_loop:
        documents = [evidence.path for evidence in opened.closed_loop]
        result["closed loop"] = command("report", "--out", "report.html", "--closed-loop", *documents)
    if opened.logs:
        logs = [evidence.log.path for evidence in opened.logs]
        result["log"] = command("report", "--out", "report.html", "--log", *logs)
    return result


def examine_numbers(run: Path) -> Examination:
    """Examines only the config and numbers of a run; neither dataset nor checkpoint is opened.

    Raises:
        ReportError: there is no run, or its config or log is torn.
    """
    return Examination({"run": findings_of_run(open_run(run))})


def _config(
    named: tuple[Sequence[str], DictConfig], data: DatasetEvidence | None, weights: CheckpointEvidence | None
) -> list[Finding]:
    (name, *overrides), content = named
    evidence = look_at_config(content, name, started_with=(f"--config-name={name}", *overrides))
    findings = config_findings(evidence, data)
    starts = [evidence.pretrained] if evidence.pretrained_exists and evidence.load_weights else []
    if weights is not None and weights.path not in starts:
        starts.append(weights.path)
    return [*findings, *(fits_config(path, content, evidence) for path in starts if path is not None)]


def fits_config(path: str, content: DictConfig, evidence: ConfigEvidence) -> Finding:
    """Whether a run of a config can start from a checkpoint: `train.py`'s own plan, and its error if it refuses."""
    code, about = "checkpoint-fits-config", evidence.name
    try:
        ledger = plan_pretrained(Path(path), content)
    except SettingsError as error:
        again = evidence.again(setting("pretrained.path", path), *error.overrides) if error.overrides else ""
        return Finding(code, "error", error.found, error.remedy, again, about)
    except ActionsError as error:
        remedy = "grow the checkpoint" if error.command else "use the checkpoint's task"
        again = evidence.again(setting("pretrained.path", path), *error.overrides) if error.overrides else error.command
        return Finding(code, "error", f"size mismatch: {error}", remedy, again, about)
    except WorkspaceError as error:
        return Finding(code, "error", str(error), "adapt it first", command("adapt", "inspect", path), about)
    return ok(code, f"{Path(path).name} fits: {ledger.summary()}", about)
