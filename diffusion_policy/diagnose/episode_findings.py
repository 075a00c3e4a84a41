"""The findings of a dataset's checks by episode and step: where to look, and what to leave out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffusion_policy.dataset.chunk_files import ChunkFault
from diffusion_policy.diagnose.findings import SEVERITIES, Severity
from diffusion_policy.diagnose.inspection import Inspection
from diffusion_policy.diagnose.step_evidence import StepEvidence, StepRange, look_at_steps
from diffusion_policy.diagnose.steps import Steps

# Number of findings listed per episode; a torn one may have thousands.
MOST_LISTED = 8


@dataclass(frozen=True)
class EpisodeFinding:
    """Something that was found in one episode.

    Attributes:
        severity: as in `Finding`.
        text: what was found, with its numbers.
        steps: the episode's steps, (first, exclusive end).
    """

    severity: Severity
    text: str
    steps: StepRange


@dataclass(frozen=True)
class EpisodeSummary:
    """One episode, as the checks see it.

    Attributes:
        steps: number of steps.
        seconds: from the first step to the last; None without time stamps.
        events: how often its grippers are commanded to open or close.
        idle: stretches of its steps in which arm and gripper stand still.
        findings: the gravest first, then by step; at most MOST_LISTED.
        n_findings: number of all findings.
    """

    steps: int
    seconds: float | None
    events: int
    idle: tuple[StepRange, ...]
    findings: tuple[EpisodeFinding, ...]
    n_findings: int

    @property
    def worst(self) -> Severity:
        """The gravest severity; ok without a finding."""
        return self.findings[0].severity if self.findings else "ok"


def episode_summaries(inspection: Inspection, faults: Sequence[ChunkFault]) -> list[EpisodeSummary]:
    """Returns (E,) summaries of a dataset's episodes.

    Args:
        inspection: inspection of the dataset; only what it covered is reported.
        faults: its lost frames, as `open_for_report` lists them.
    """
    # Parts of one recording share its name, so episodes are identified by number here.
    numbered = replace(inspection.steps, episode_names=tuple(map(str, range(len(inspection.steps.slices)))), cameras={})
    details = look_at_steps(numbered)
    findings: list[list[EpisodeFinding]] = [[] for _ in numbered.slices]
    for episode, finding in itertools.chain(_of_steps(details), _of_numbers(numbered)):
        findings[episode].append(finding)
    for rows, severity, text in itertools.chain(_of_files(inspection, faults), _of_cameras(inspection.details)):
        for episode, steps in _episodes_of(numbered, rows):
            findings[episode].append(EpisodeFinding(severity, text, steps))
    commands = numbered.commanded_grippers()
    for episode, one in enumerate(details.episodes):
        if commands is not None and not one.events:
            findings[episode].append(EpisodeFinding("note", "the gripper neither closes nor opens", (0, one.steps)))
    return [
        EpisodeSummary(
            steps=one.steps,
            seconds=one.seconds,
            events=len(one.events),
            idle=one.idle,
            findings=tuple(sorted(of_one, key=_order)[:MOST_LISTED]),
            n_findings=len(of_one),
        )
        for one, of_one in zip(details.episodes, findings, strict=True)
    ]


def _order(finding: EpisodeFinding) -> tuple[int, int]:
    return -SEVERITIES.index(finding.severity), finding.steps[0]


def _of_steps(details: StepEvidence) -> Iterator[tuple[int, EpisodeFinding]]:
    """Yields jumps, clock gaps and idle stretches; episodes have their numbers as names."""
    for jump in details.jumps:
        far = f"{jump.metres:.3g} m" if jump.metres >= 1e-3 else f"{jump.degrees:.0f} degrees"
        text = f"{jump.key} jumps by {far} in {jump.seconds:.2g} s"
        yield int(jump.episode), EpisodeFinding("warning", text, (jump.step, jump.step + 2))
    if details.times is not None and details.times.are_seconds:
        for name, step, seconds in details.times.gaps:
            yield int(name), EpisodeFinding("warning", f"{seconds:.3g} s to the next step", (step, step + 2))
    for episode, one in enumerate(details.episodes):
        for start, end in one.idle:
            yield episode, EpisodeFinding("note", f"stands still for {end - start} steps", (start, end))


def _of_numbers(steps: Steps) -> Iterator[tuple[int, EpisodeFinding]]:
    """Yields values that are not finite."""
    for key, values in steps.numbers.items():
        lost = ~np.isfinite(values if values.ndim == 1 else values.sum(axis=1))
        for episode, part in enumerate(steps.slices):
            rows = np.flatnonzero(lost[part])
            if len(rows):
                text = f"data/{key} is not finite at {len(rows)} steps"
                yield episode, EpisodeFinding("error", text, (int(rows[0]), int(rows[-1]) + 1))


def _of_files(inspection: Inspection, faults: Sequence[ChunkFault]) -> Iterator[tuple[StepRange, Severity, str]]:
    """Yields lost frames, and content that is not what was written, by rows of the dataset."""
    for fault in faults:
        yield fault.rows, "error", f"{fault.file} {fault.what}"
    content = inspection.summary.content
    for wrong in () if content is None or content.may_be_the_decoder else content.faults:
        if wrong.rows is not None:
            yield wrong.rows, "error", f"{wrong.array or 'its content'} {wrong.what}"


def _of_cameras(details: StepEvidence) -> Iterator[tuple[StepRange, Severity, str]]:
    """Yields what the frames show, by rows of the dataset; for an inspection of all frames."""
    for camera in details.cameras:
        for step, why in camera.undecodable:
            yield (step, step + 1), "error", f"{camera.name}: {why}"
        for start, end in _runs(camera.black):
            yield (start, end), "warning", f"{camera.name} is black for {end - start} steps"
        for start, end in camera.frozen:
            yield (
                (start, end),
                "warning",
                f"{camera.name} shows one picture for {end - start} steps while the arm moves",
            )


def _runs(steps: Iterable[int]) -> Iterator[StepRange]:
    """Yields stretches of consecutive numbers."""
    for _, group in itertools.groupby(enumerate(steps), key=lambda pair: pair[1] - pair[0]):
        run = [step for _, step in group]
        yield run[0], run[-1] + 1


def _episodes_of(steps: Steps, rows: StepRange) -> Iterator[tuple[int, StepRange]]:
    """Yields the episodes that contain these rows of the dataset, with the steps of each."""
    first, last = (int(np.searchsorted(steps.episode_ends, row, side="right")) for row in (rows[0], rows[1] - 1))
    for episode in range(first, min(last, len(steps.episode_ends) - 1) + 1):
        part = steps.slices[episode]
        yield episode, (max(rows[0], part.start) - part.start, min(rows[1], part.stop) - part.start)
