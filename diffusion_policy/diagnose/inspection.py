"""The checks before training: of recordings, and of the dataset that is made from them.

One `Inspection` holds measurements and findings; it prints as text, writes as JSON, and its steps are
drawn by `inspection_pictures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diffusion_policy.dataset.chunk_files import ChunkFault
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, ReplayBuffer
from diffusion_policy.dataset.verification import verify_content
from diffusion_policy.diagnose.checkpoint_evidence import look_at_checkpoint
from diffusion_policy.diagnose.checkpoint_findings import together_findings
from diffusion_policy.diagnose.dataset_evidence import DatasetEvidence, evidence_of_dataset, look_at_recordings
from diffusion_policy.diagnose.dataset_findings import dataset_findings
from diffusion_policy.diagnose.doctor import STYLES
from diffusion_policy.diagnose.findings import Finding, exit_status
from diffusion_policy.diagnose.gravest import verdict_of
from diffusion_policy.diagnose.recorded_steps import steps_of_recordings
from diffusion_policy.diagnose.step_evidence import Dimension, StepEvidence, look_at_steps
from diffusion_policy.diagnose.step_findings import step_findings
from diffusion_policy.diagnose.steps import Steps, open_for_report, steps_of_dataset
from diffusion_policy.diagnose.unit_findings import PLACEHOLDER, for_recordings
from diffusion_policy.gripper_scale import parse_scales
from diffusion_policy.progress import Progress, no_progress, part_of
from diffusion_policy.spec import is_game
from diffusion_policy.tables import Column, Printable, Table, Text, numbers

# Findings of the summary that are replaced here by an inspection of every frame and step.
_REPLACED_BY_STEP_FINDINGS = {"images", "copycat-labels", "standing-still"}


@dataclass(frozen=True)
class Inspection:
    """What was inspected, the evidence, and the findings."""

    steps: Steps
    summary: DatasetEvidence
    details: StepEvidence
    findings: tuple[Finding, ...]

    @property
    def is_advisable(self) -> bool:
        """Whether nothing forbids training on it: no finding is an error."""
        return exit_status(self.findings) == 0

    @property
    def exit_status(self) -> int:
        """0 if nothing forbids training on it (warnings may remain), 1 if an error does."""
        return exit_status(self.findings)

    def verdict(self) -> str:
        """What was found, in one or two sentences: the number of findings, and the gravest."""
        return verdict_of(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: verdict, findings and all evidence."""
        return {
            "inspected": self.steps.where,
            "training_advisable": self.is_advisable,
            "findings": [finding.to_json() for finding in self.findings],
            "summary": asdict(self.summary),
            "details": asdict(self.details),
        }

    def table(self, pictures: Sequence[Path] = ()) -> list[Printable]:
        """Returns output for the terminal: counts, dimensions, findings, pictures that were drawn, verdict."""
        style = "green" if self.is_advisable else "red"
        dimensions, findings = _dimensions(self.details.dimensions), _findings(self.findings)
        drawn = [Text(f"drawn: {', '.join(map(str, pictures))}")] if pictures else []
        verdict = Text(self.verdict(), style=f"bold {style}")
        return [self._counts(), Text(), dimensions, Text(), findings, Text(), *drawn, verdict]

    def _counts(self) -> Text:
        lengths = self.summary.lengths
        events = [len(episode.events) for episode in self.details.episodes]
        lines = [
            f"{self.steps.where}: {_count(len(lengths), 'episode')}, {sum(lengths)} steps; shortest {min(lengths)}, "
            f"longest {max(lengths)}, mean {sum(lengths) / len(lengths):.0f}"
        ]
        if not is_game(self.details.action_names):
            more = " ..." if len(events) > 40 else ""
            lines.append(f"gripper events by episode: {' '.join(map(str, events[:40]))}{more}")
        for camera in self.details.cameras:
            sizes = ", ".join(f"{width} x {height}" for width, height in camera.sizes) or "no frame decodes"
            lines.append(f"camera {camera.name}: {sizes}; {camera.shown} frames, {camera.repeated} repeated")
        return Text("\n".join(lines))


def _count(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "s")


def _dimensions(dimensions: tuple[Dimension, ...]) -> Table:
    classes = is_game([one.name for one in dimensions if one.key == ACTION_KEY])  # of actions are not normalized
    measured = numbers("lowest", "highest", "mean", "deviation", *([] if classes else ["normalized"]))
    table = Table(Column("dimension", no_wrap=True), *measured)
    for one in dimensions:
        made = "constant: moved to 0" if one.is_constant else f"x {one.scale:.3g}"
        cells = (f"{value:.4f}" for value in (one.low, one.high, one.mean, one.deviation))
        table.add(f"{one.key}.{one.name}", *cells, *([] if classes else [made]))
    return table


def _findings(findings: tuple[Finding, ...]) -> Table:
    table = Table(Column(no_wrap=True), "")
    for finding in findings:
        parts = [(finding.evidence, "")]
        if finding.remedy:
            parts.append((f"\n-> {finding.remedy}", "dim" if finding.severity == "note" else "bold"))
        if finding.trouble and finding.command and PLACEHOLDER not in finding.command:
            parts.append((f"\n   {finding.command}", ""))
        table.add(Text(finding.severity, style=STYLES[finding.severity]), Text(*parts))
    return table


def inspect_recordings(
    directory: Path,
    on_progress: Progress = no_progress,
    gripper_scale: str | None = None,
    timestamps: str | None = None,
    mapping: str | None = None,
) -> Inspection:
    """Inspects recordings of any format; they are not changed.

    Args:
        directory: holds episode_0000/ and so on, or is a LeRobot dataset.
        on_progress: called with the number of frames decoded, and the total.
        gripper_scale: scale in which the gripper is recorded, where it is not 0 and 1.
        timestamps: unit in which time stamps are recorded, where it is not seconds.
        mapping: what each column holds, for a format with named columns.

    Raises:
        TrajectoryError: there are no recordings, or none can be opened.
        WorkspaceError: their common description is invalid, or a mapping is missing.
    """
    steps = steps_of_recordings(directory, gripper_scale, timestamps, mapping)
    inspection = _inspect(steps, look_at_recordings(steps), [], on_progress)
    return replace(inspection, findings=tuple(for_recordings(inspection.findings, steps.where)))


def inspect_dataset(
    path: Path,
    checkpoint: Path | None = None,
    on_progress: Progress = no_progress,
    gripper_scale: str | None = None,
) -> Inspection:
    """Inspects a converted dataset, and whether a checkpoint's statistics fit it.

    Args:
        path: path of the dataset.
        checkpoint: checkpoint of a policy to be trained further on it.
        on_progress: called with the number of frames decoded, and the total.
        gripper_scale: scale in which the gripper is stored, where it is not 0..1.

    Raises:
        DatasetError, ReportError: there is no dataset, or it has no actions or steps.
        CheckpointError: the checkpoint cannot be read.
    """
    buffer, faults = open_for_report(path, parse_scales(gripper_scale))
    return inspect_opened(path, buffer, faults, all_frames=True, checkpoint=checkpoint, on_progress=on_progress)


def inspect_conversion(path: Path) -> Inspection:
    """Inspects a dataset that was just converted, like `inspect_dataset` but with only a few of its frames.

    Raises:
        DatasetError, ReportError: there is no dataset, or it has no actions or steps.
    """
    return inspect_opened(path, *open_for_report(path, None), all_frames=False)


def inspect_opened(
    path: Path,
    buffer: ReplayBuffer,
    faults: Sequence[ChunkFault],
    *,
    all_frames: bool,
    checkpoint: Path | None = None,
    on_progress: Progress = no_progress,
) -> Inspection:
    """Inspects an open dataset.

    Args:
        path: path of the dataset.
        buffer: the dataset, with the known scales of its grippers.
        faults: its lost frames, as `open_for_report` lists them.
        all_frames: whether every frame is read and compared with the recorded hashes; otherwise only a few are read.
        checkpoint: checkpoint of a policy to be trained further on it.
        on_progress: called with the number of frames decoded, and the total.

    Raises:
        ReportError: it has no action, or no step.
        CheckpointError: the checkpoint cannot be read.
    """
    steps = steps_of_dataset(buffer, faults)
    summary = evidence_of_dataset(path, buffer, steps, faults)
    if not all_frames:
        return replace(_inspect(replace(steps, cameras={}), summary, []), steps=steps)
    together: list[Finding] = []
    if checkpoint is not None:
        together = together_findings(look_at_checkpoint(checkpoint), summary)
    summary = replace(summary, content=verify_content(buffer, faults, part_of(on_progress, 0, 2)))
    return _inspect(steps, summary, together, part_of(on_progress, 1, 2))


def _inspect(
    steps: Steps, summary: DatasetEvidence, together: list[Finding], on_progress: Progress = no_progress
) -> Inspection:
    details = look_at_steps(steps, on_progress)
    seen = [camera for camera in details.cameras if camera.sizes]
    if seen:
        summary = replace(
            summary,
            image_size=seen[0].sizes[0],
            black_frames=sum(len(camera.black) for camera in seen),
            looked_at=sum(camera.shown for camera in seen),
        )
    images_count = summary.missing_frames > 0 or not details.cameras
    findings = [
        finding
        for finding in dataset_findings(summary)
        if finding.code not in _REPLACED_BY_STEP_FINDINGS or (finding.code == "images" and images_count)
    ]
    return Inspection(steps, summary, details, (*findings, *step_findings(details), *together))
