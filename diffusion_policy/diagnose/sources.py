"""The inputs of report and doctor, each file opened once: the evidence in it, and what sections draw from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_policy.checkpoint import CheckpointError
from diffusion_policy.commands import command
from diffusion_policy.diagnose import ReportError
from diffusion_policy.diagnose.checkpoint_evidence import CheckpointEvidence, look_at_checkpoint
from diffusion_policy.diagnose.closed_loop_evidence import ClosedLoopEvidence, closed_loop_of
from diffusion_policy.diagnose.dataset_evidence import DatasetEvidence, evidence_of_dataset
from diffusion_policy.diagnose.findings import Finding
from diffusion_policy.diagnose.log_evidence import LogEvidence, look_at_log
from diffusion_policy.diagnose.playback import dataset_of_log
from diffusion_policy.diagnose.steps import ConvertedCamera, HeldNumbers, open_for_report, steps_of_dataset
from diffusion_policy.gripper_scale import parse_scales
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.run_folder.reading import RunFolder, open_run


@dataclass(frozen=True)
class Sources:
    """The inputs of a page; each may be missing. ``gripper_scale`` is the declared scale of datasets and logs."""

    datasets: tuple[Path, ...] = ()
    checkpoint: Path | None = None
    run: Path | None = None
    logs: tuple[Path, ...] = ()
    open_loop: tuple[Path, ...] = ()
    gripper_scale: str | None = None
    closed_loop: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        """Whether any input is given."""
        files = (self.datasets, self.checkpoint, self.run, self.logs, self.open_loop, self.closed_loop)
        return any(files)


@dataclass(frozen=True)
class OpenedDataset:
    """An open dataset.

    Attributes:
        path: the dataset's path.
        buffer: its arrays; numbers are read once.
        evidence: the evidence gathered from it.
        cameras: its cameras, which know the lost frames.
    """

    path: Path
    buffer: HeldNumbers
    evidence: DatasetEvidence
    cameras: Mapping[str, ConvertedCamera]


@dataclass(frozen=True)
class OpenedCheckpoint:
    """An open checkpoint.

    Attributes:
        path: the checkpoint's path.
        evidence: the evidence gathered from it; None if the file is not a checkpoint.
        trouble: the finding that it is not a checkpoint.
    """

    path: Path
    evidence: CheckpointEvidence | None
    trouble: Finding | None = None


@dataclass(frozen=True)
class OpenedSources:
    """All given inputs, and those that a run added."""

    given: Sources
    run: RunFolder | None = None
    datasets: tuple[OpenedDataset, ...] = ()
    checkpoint: OpenedCheckpoint | None = None
    logs: tuple[LogEvidence, ...] = ()
    open_loop: tuple[Mapping[str, Any], ...] = ()
    closed_loop: tuple[ClosedLoopEvidence, ...] = ()

    @property
    def deployable(self) -> Path | None:
        """The given checkpoint, or otherwise the run's."""
        return None if self.checkpoint is None else self.checkpoint.path


def open_sources(
    given: Sources,
    *,
    config_scale: str | None = None,
    logs_of_run: bool = True,
    on_progress: Progress = no_progress,
) -> OpenedSources:
    """Opens every file once; a run adds its datasets, checkpoint, closed-loop results and logs.

    Args:
        given: the named inputs.
        config_scale: the gripper scale that a config gives for its datasets; by default the run's.
        logs_of_run: whether to open the run's logs, and the dataset that logs name, even if not given.
        on_progress: called with the number of files opened, and the total.

    Raises:
        WorkspaceError: something given does not exist or cannot be read.
    """
    run = None if given.run is None else open_run(given.run)
    logs = given.logs or (run.logs if run is not None and logs_of_run else ())
    named = given.datasets or (run.datasets if run is not None else ())
    checkpoint = given.checkpoint or (run.deployable if run is not None else None)
    total = len(logs) + len(named) + (checkpoint is not None) + 1
    count = 0

    def opened(something: Any) -> Any:
        nonlocal count
        count += 1
        on_progress(count, max(total, count))
        return something

    scales = parse_scales(given.gripper_scale)
    looked = tuple(opened(look_at_log(path, scales)) for path in logs)
    if not named and logs_of_run:
        named_by_logs = (dataset_of_log(evidence.log) for evidence in looked)
        named = tuple({path: None for path in named_by_logs if path is not None})
    config_scale = config_scale or (run.gripper_scale if run is not None else None)
    datasets = tuple(opened(open_dataset(path, given.gripper_scale, config_scale)) for path in named)
    weights = None if checkpoint is None else opened(open_checkpoint(checkpoint))
    documents = tuple(document for path in given.open_loop for document in read_open_loop(path))
    rolled_out = opened(closed_loop_of(given.closed_loop, given.checkpoint, run))
    return OpenedSources(given, run, datasets, weights, looked, documents, rolled_out)


def open_dataset(path: Path, text: str | None = None, config_scale: str | None = None) -> OpenedDataset:
    """Opens a dataset; its gripper scale is the declared one (`text`), or the run's (`config_scale`) if ambiguous.

    Raises:
        DatasetError: there is no dataset, or some of its numbers are lost.
        SpecError: an unknown scale, or one that the numbers contradict.
        ReportError: it has no action, or no step.
    """
    buffer, faults = open_for_report(path, parse_scales(text), parse_scales(config_scale))
    steps = steps_of_dataset(buffer, faults)
    cameras = {key: camera for key, camera in steps.cameras.items() if isinstance(camera, ConvertedCamera)}
    return OpenedDataset(path, buffer, evidence_of_dataset(path, buffer, steps, faults), cameras)


def open_checkpoint(path: Path) -> OpenedCheckpoint:
    """Opens a checkpoint; a file that is not one becomes a finding, a missing file is an error."""
    try:
        return OpenedCheckpoint(path, look_at_checkpoint(path))
    except CheckpointError as error:
        if not path.is_file():
            raise
        remedy = "name a checkpoint of the policy, or adapt this file to one"
        look = error.command or command("adapt", "inspect", path)
        trouble = Finding("checkpoint-opens", "error", str(error), remedy, look, str(path))
        return OpenedCheckpoint(path, None, trouble)


def read_open_loop(path: Path) -> list[Mapping[str, Any]]:
    """Reads reports of scripts/evaluate_open_loop.py --json.

    Raises:
        ReportError: the file is missing, or is not such a report.
    """
    try:
        reports = json.loads(path.read_text(encoding="utf-8"))["reports"]
        for report in reports:
            for needed in ("checkpoint", "scores", "episodes", "shortcomings", "scheduler", "steps", "samples"):
                report[needed]
            report["scores"]["policy"]["per_horizon_step"]
            float(report.get("tolerance_s", 0)), dict((report.get("split") or {}).get("episodes", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{path}: not the JSON of scripts/evaluate_open_loop.py ({error})") from error
    return list(reports)
