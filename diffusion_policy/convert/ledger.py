"""The account of a conversion: every episode, step and frame of the source, kept or dropped, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from diffusion_policy.images import FrameKind
from diffusion_policy.tables import Printable, Table, as_texts

METADATA_KEY = "told"  # of an entry in the file; ledgers of all versions have this key


@dataclass(frozen=True)
class Dropped:
    """A run of steps or frames of an episode that the dataset does not hold.

    Attributes:
        start: first of them; for frames, their number.
        end: exclusive end.
        why: in a few words.
    """

    start: int
    end: int
    why: str


@dataclass(frozen=True)
class EpisodeEntry:
    """What became of one episode folder.

    Attributes:
        name: of the folder.
        number: at the end of it.
        source: name of the folder that holds it.
        recording: hash of its content (SHA-256 of data.pkl), which tells recordings apart whatever they are called.
        kept: its steps that the dataset holds, as [start, exclusive end]; empty if the episode was left out.
        reason: why it was left out; None if it was not.
        steps: how many were recorded; None if data.pkl could not be read.
        dropped_steps: those left out of a kept episode.
        frames: per camera, how many files there are.
        dropped_frames: per camera, frames that no kept step shows.
        frame_size: per camera, (width, height) as recorded, of most of its frames.
        frame_kinds: per camera, the kinds of its frames that the dataset shows, the most frequent first.
        frame_notes: per camera, how many of these frames are odd, by what is odd about them.
        flipped: how many quaternions of the pose and the action changed sign.
        psnr_db: per camera, the lowest measured agreement with the exact frame; absent where it is exact.
        split_at: steps of the recording that are followed by a gap at which it was split, and the seconds of each.
        notes: what is odd about the recording.
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
        """Steps of it that the dataset holds."""
        return sum(end - start for start, end in self.kept)

    def left_out(self, reason: str) -> EpisodeEntry:
        """The entry of the same episode, left out."""
        return replace(self, kept=(), reason=reason, dropped_steps=(), dropped_frames={}, flipped={}, psnr_db={})


def entry_as_json(entry: EpisodeEntry) -> dict[str, Any]:
    """An entry as plain JSON; without the key of its metadata where the recording has none."""
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
    """What a conversion did.

    Attributes:
        output: the dataset.
        episodes: one entry per episode folder of the source, in order.
        settings: how it was made.
        tool: name and version of what made it.
        content_sha256: of everything in the dataset.
        account: of the input as a whole: its format, and what was left out; empty for folders of trajectories, which
            are converted completely.
    """

    output: Path
    episodes: tuple[EpisodeEntry, ...]
    settings: Mapping[str, Any]
    tool: Mapping[str, str]
    content_sha256: str
    account: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> tuple[EpisodeEntry, ...]:
        """Episodes that the dataset holds."""
        return tuple(entry for entry in self.episodes if entry.reason is None)

    @property
    def dropped(self) -> tuple[EpisodeEntry, ...]:
        """Episodes that it does not."""
        return tuple(entry for entry in self.episodes if entry.reason is not None)

    @property
    def n_steps(self) -> int:
        """Steps in the dataset."""
        return sum(entry.n_kept for entry in self.episodes)

    def totals(self) -> dict[str, Any]:
        """Sums over the episodes, as plain JSON."""
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
        """The ledger, as plain JSON."""
        return {
            "tool": dict(self.tool),
            "settings": dict(self.settings),
            "totals": self.totals(),
            "content_sha256": self.content_sha256,
            "episodes": [entry_as_json(entry) for entry in self.episodes],
            **({"recordings": dict(self.account)} if self.account else {}),
        }

    def table(self) -> list[Printable]:
        """What became of the source, to be printed: totals, and each episode that was left out or is odd."""
        totals = self.totals()
        lines = [
            f"{self.output}: {totals['episodes_kept']} of {totals['episodes']} episodes, {totals['steps_kept']} of "
            f"{totals['steps_recorded']} steps, {totals['frames_kept']} of {totals['frames_recorded']} frames"
        ]
        flipped = sum(totals["quaternions_flipped"].values())
        if flipped:
            lines.append(f"quaternions whose sign was changed: {flipped}")
        if totals["gaps_split"]:
            lines.append(f"gaps at which an episode was split: {totals['gaps_split']}")
        lines += [f"frames accepted with a note: {n} with {what}" for what, n in totals["frames_noted"].items()]
        lines += [f"not carried along: {name}: {why}" for name, why in self.account.get("left_out", {}).items()]
        measured = [value for entry in self.kept for value in entry.psnr_db.values()]
        if measured:
            lines.append(f"lowest PSNR against the exact frame: {min(measured):.1f} dB")
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
    """How many of an episode's frame files the dataset shows."""
    dropped = sum(run.end - run.start for runs in entry.dropped_frames.values() for run in runs)
    return sum(entry.frames.values()) - dropped


def runs(numbers: list[int], why: str) -> tuple[Dropped, ...]:
    """Increasing numbers as runs of neighbors, all dropped for one reason."""
    result: list[Dropped] = []
    for number in numbers:
        if result and result[-1].end == number:
            result[-1] = replace(result[-1], end=number + 1)
        else:
            result.append(Dropped(number, number + 1, why))
    return tuple(result)
