"""The account of a conversion: every episode, step and frame of the source, kept or dropped, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from diffusion_policy.images import FrameKind
from diffusion_policy.tables import Printable, Table, as_texts

METADATA_KEY = "told"  # key of an entry in the file, the same in ledgers of all versions


@dataclass(frozen=True)
class Dropped:
    """A run of steps or frames of an episode that is not in the dataset.

    Attributes:
        start: the first step; for frames, the number of the first.
        end: exclusive end.
        why: the reason, in a few words.
    """

    start: int
    end: int
    why: str


@dataclass(frozen=True)
class EpisodeEntry:
    """What became of one episode folder.

    Attributes:
        name: name of the folder.
        number: the number at the end of the name.
        source: name of the folder that contains it.
        recording: hash of its content (SHA-256 of data.pkl), which identifies recordings whatever they are called.
        kept: its steps in the dataset, as [start, exclusive end]; empty if the episode was left out.
        reason: why it was left out; None if it was not.
        steps: number of recorded steps; None if data.pkl could not be read.
        dropped_steps: steps left out of a kept episode.
        frames: per camera, number of files.
        dropped_frames: per camera, frames shown by no kept step.
        frame_size: per camera, (width, height) of most of its frames, as recorded.
        frame_kinds: per camera, the kinds of its frames in the dataset, the most frequent first.
        frame_notes: per camera, number of these frames that are odd, by what is odd about them.
        flipped: number of quaternions of pose and action that changed sign.
        psnr_db: per camera, the lowest PSNR compared with the exact frame; absent if exact.
        split_at: steps before gaps at which the recording was split, with the seconds of each gap.
        notes: irregularities of the recording.
        metadata: tasks, success and interventions, in formats that have them; see `dataset.episode_metadata`.
    """

    name: str
    number: int
    source: str = ""
    recording: str = ""
    kept: tuple[tuple[int, int], ...] = ()
    reason: str | None = None
    steps: int | None = None
    dropped_steps: tuple[Dropped, ...] = ()
    frames: Mapping[str, int] = field(default_factory=dict)
    dropped_frames: Mapping[str, tuple[Dropped, ...]] = field(default_factory=dict)
    frame_size: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    frame_kinds: Mapping[str, tuple[FrameKind, ...]] = field(default_factory=dict)
    frame_notes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    flipped: Mapping[str, int] = field(default_factory=dict)
    psnr_db: Mapping[str, float] = field(default_factory=dict)
    split_at: tuple[tuple[int, float], ...] = ()
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_kept(self) -> int:
        """Number of its steps in the dataset."""
        return sum(end - start for start, end in self.kept)

    def left_out(self, reason: str) -> EpisodeEntry:
        """Returns an entry for the same episode, left out."""
        return replace(self, kept=(), reason=reason, dropped_steps=(), dropped_frames={}, flipped={}, psnr_db={})


def entry_as_json(entry: EpisodeEntry) -> dict[str, Any]:
    """Returns an entry as plain JSON, without the metadata key if the recording has no metadata."""
    written = {METADATA_KEY if name == "metadata" else name: value for name, value in asdict(entry).items()}
    if not entry.metadata:
        del written[METADATA_KEY]
    return written


def entry_from_json(value: Mapping[str, Any]) -> EpisodeEntry:
    """The inverse of `entry_as_json` through JSON."""
    read = dict(value)
    read["metadata"] = read.pop(METADATA_KEY, {})
    read["kept"] = tuple((start, end) for start, end in value["kept"])
    read["dropped_steps"] = tuple(Dropped(**run) for run in value["dropped_steps"])
    read["dropped_frames"] = {
        camera: tuple(Dropped(**run) for run in runs) for camera, runs in value["dropped_frames"].items()
    }
    read["frame_size"] = {camera: (width, height) for camera, (width, height) in value["frame_size"].items()}
    read["frame_kinds"] = {
        camera: tuple(FrameKind(**kind) for kind in kinds) for camera, kinds in value.get("frame_kinds", {}).items()
    }
    read["split_at"] = tuple((step, seconds) for step, seconds in value.get("split_at", ()))
    read["notes"] = tuple(value["notes"])
    return EpisodeEntry(**read)


@dataclass(frozen=True)
class ConversionReport:
    """The report of a conversion.

    Attributes:
        output: the dataset.
        episodes: one entry per episode folder of the source, in order.
        settings: settings of the conversion.
        tool: name and version of the program that made it.
        content_sha256: hash of everything in the dataset.
        account: information on the input as a whole: format, and what was left out; empty for folders of trajectories,
            which are converted completely.
    """

    output: Path
    episodes: tuple[EpisodeEntry, ...]
    settings: Mapping[str, Any]
    tool: Mapping[str, str]
    content_sha256: str
    account: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> tuple[EpisodeEntry, ...]:
        """Episodes in the dataset."""
        return tuple(entry for entry in self.episodes if entry.reason is None)

    @property
    def dropped(self) -> tuple[EpisodeEntry, ...]:
        """Episodes that are not in the dataset."""
        return tuple(entry for entry in self.episodes if entry.reason is not None)

    @property
    def n_steps(self) -> int:
        """Number of steps in the dataset."""
        return sum(entry.n_kept for entry in self.episodes)

    def totals(self) -> dict[str, Any]:
        """Returns sums over the episodes, as plain JSON."""
        flipped, noted = Counter[str](), Counter[str]()
        for entry in self.episodes:
            flipped.update(entry.flipped)
        for entry in self.kept:
            for notes in entry.frame_notes.values():
                noted.update(notes)
        return {
            "episodes": len(self.episodes),
            "episodes_kept": len(self.kept),
            "episodes_dropped": len(self.dropped),
            "steps_recorded": sum(entry.steps or 0 for entry in self.episodes),
            "steps_kept": self.n_steps,
            "frames_recorded": sum(sum(entry.frames.values()) for entry in self.episodes),
            "frames_kept": sum(frames_kept(entry) for entry in self.kept),
            "quaternions_flipped": dict(flipped),
            "gaps_split": sum(len(entry.split_at) for entry in self.kept),
            "frames_noted": dict(noted),
        }

    def as_json(self) -> dict[str, Any]:
        """Returns the ledger as plain JSON."""
        return {
            "tool": dict(self.tool),
            "settings": dict(self.settings),
            "totals": self.totals(),
            "content_sha256": self.content_sha256,
            "episodes": [entry_as_json(entry) for entry in self.episodes],
            **({"recordings": dict(self.account)} if self.account else {}),
        }

    def table(self) -> list[Printable]:
        """Returns what became of the source, for printing: totals, and each episode that was left out or is odd."""
        totals = self.totals()
        lines = [
            f"{self.output}: {totals['episodes_kept']} of {totals['episodes']} episodes, {totals['steps_kept']} of "
            f"{totals['steps_recorded']} steps, {totals['frames_kept']} of {totals['frames_recorded']} frames"
        ]
        flipped = sum(totals["quaternions_flipped"].values())
        if flipped:
            lines.append(f"quaternions with changed sign: {flipped}")
        if totals["gaps_split"]:
            lines.append(f"gaps at which an episode was split: {totals['gaps_split']}")
        lines += [f"frames accepted with a note: {n} with {what}" for what, n in totals["frames_noted"].items()]
        lines += [f"not carried over: {name}: {why}" for name, why in self.account.get("left_out", {}).items()]
        measured = [value for entry in self.kept for value in entry.psnr_db.values()]
        if measured:
            lines.append(f"lowest PSNR compared with the exact frame: {min(measured):.1f} dB")
        table = Table("episode", "what became of it")
        for entry in self.episodes:
            remarks = [entry.reason] if entry.reason is not None else entry.notes
            for remark in remarks:
                table.add(entry.name, ("left out: " if entry.reason else "") + remark)
        return [*as_texts(lines), *([table] if table.rows else [])]


def report_from_json(output: Path, value: Mapping[str, Any]) -> ConversionReport:
    """The inverse of `ConversionReport.as_json`."""
    return ConversionReport(
        output=output,
        episodes=tuple(entry_from_json(entry) for entry in value["episodes"]),
        settings=value["settings"],
        tool=value["tool"],
        content_sha256=value["content_sha256"],
        account=value.get("recordings", {}),
    )


def frames_kept(entry: EpisodeEntry) -> int:
    """Returns how many of an episode's frame files are in the dataset."""
    dropped = sum(run.end - run.start for runs in entry.dropped_frames.values() for run in runs)
    return sum(entry.frames.values()) - dropped


def runs(numbers: list[int], why: str) -> tuple[Dropped, ...]:
    """Returns increasing numbers as runs of neighbors, all dropped for one reason."""
    result: list[Dropped] = []
    for number in numbers:
        if result and result[-1].end == number:
            result[-1] = replace(result[-1], end=number + 1)
        else:
            result.append(Dropped(number, number + 1, why))
    return tuple(result)
