"""The settings of a conversion."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from diffusion_policy.cpu import usable_cores
from diffusion_policy.dataset.image_codecs import ImageCodec, image_codec
from diffusion_policy.dataset.replay_buffer import ZARR_FORMATS
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_scale import parse_scales
from diffusion_policy.paths import as_path, is_remote
from diffusion_policy.recording import Recordings, open_recordings, read_mapping
from diffusion_policy.storage import local_cache, sha256
from diffusion_policy.timestamps import parse_timestamps

CHOICES: dict[str, tuple[tuple[str, ...], str]] = {
    "on_error": (("stop", "skip"), "at a bad episode: end with an error, or leave it out and note it in the ledger"),
    "gaps": (
        ("refuse", "split"),
        "steps without an image in the middle of an episode: refuse the episode, or split it",
    ),
    "mixed_frames": (
        ("refuse", "accept"),
        "frames of several sizes, aspect ratios or EXIF orientations in one set: end with an error, or stretch each",
    ),
    "decode": (("exact", "fast"), "decode JPEGs at full size, or at a fraction of it (45 dB or more, half the time)"),
    "quaternion_sign": (("continuous", "keep"), "choose between q and -q so that no sign flips, or leave them"),
    "null_actions": (
        ("keep", "drop"),
        "ticks of a Minecraft recording without any action: keep them, or leave them out and count them",
    ),
    "gripper_command": (("recorded", "next-measured"), "the command as recorded, or the measurement one step later"),
}
"""Settings with a few possible values, the default first, and what they decide."""


class ConversionError(WorkspaceError):
    """A conversion that cannot start or continue; the message states why and what to do."""


@dataclass(frozen=True)
class ConversionSettings:
    """One conversion.

    Attributes:
        source: folder with the episodes, or its URL in an object store.
        output: the dataset to create, or its URL.
        resolution: (width, height) of its images, pixels.
        start_episode: lowest episode number to convert.
        max_episodes: number of episodes to convert, from there on in order of number; all by default. Bad ones that are
            skipped count.
        codec: how frames are packed.
        zarr_format: 2 or 3.
        shard: frames per file (format 3 only); None for one file per frame.
        on_error: "stop" at a bad episode, or "skip" it and note it in the ledger.
        gaps: steps without an image at the beginning or end of an episode are left out; with such steps in between,
            "refuse" the episode, or "split" it there in two.
        mixed_frames: frames of one camera that differ in size, aspect ratio or EXIF orientation: "refuse" the
            episode or the set, or "accept" them; each is turned upright and stretched to the resolution.
        decode: "exact", the full image, or "fast", with the JPEG decoder's own down-scaling.
        quaternion_sign: "continuous" chooses between q and -q so that signs differ neither between steps nor between
            episodes without need; "keep" leaves them as recorded.
        gripper_command: "recorded", or "next-measured": the measured gripper of the next step.
        null_actions: ticks without any action in recordings of Minecraft: "keep" them, or "drop" frame and action.
        gripper_lead: number of steps by which gripper commands are issued earlier.
        gripper_scale: scale in which the gripper is recorded, if not 1 (open) and 0 (closed), as in
            ``--gripper-scale``; the dataset holds 0 (closed) to 1 (open).
        timestamps: unit in which time stamps are recorded, if not seconds, as in ``--timestamps``; the
            dataset holds seconds.
        mapping: a mapping file, or the name of one that comes with this package, for recordings whose format names
            their columns; by default derived from these names.
        split_at_gap: seconds between steps beyond which an episode is split; None leaves gaps in.
        overwrite: replace an existing dataset, once the new one is complete.
        resume: continue an unfinished conversion to the same output.
        append: add episodes to an existing dataset.
        workers: number of threads; by default one per core.
        scratch: if the output is a URL, the local folder for unfinished work; by default in the user's
            cache folder.
    """

    source: Path
    output: Path
    resolution: tuple[int, int] = (320, 180)
    start_episode: int = 0
    max_episodes: int | None = None
    codec: ImageCodec = field(default_factory=image_codec)
    zarr_format: int = 2
    shard: int | None = None
    on_error: Literal["stop", "skip"] = "stop"
    gaps: Literal["refuse", "split"] = "refuse"
    mixed_frames: Literal["refuse", "accept"] = "refuse"
    decode: Literal["exact", "fast"] = "exact"
    quaternion_sign: Literal["continuous", "keep"] = "continuous"
    gripper_command: Literal["recorded", "next-measured"] = "recorded"
    null_actions: Literal["keep", "drop"] = "keep"
    gripper_lead: int = 0
    gripper_scale: str | None = None
    timestamps: str | None = None
    mapping: str | None = None
    split_at_gap: float | None = None
    overwrite: bool = False
    resume: bool = False
    append: bool = False
    workers: int | None = None
    scratch: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", as_path(self.source))
        object.__setattr__(self, "output", as_path(self.output))
        for name, (choices, _) in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConversionError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        if min(self.resolution) < 1:
            raise ConversionError(f"resolution {self.resolution}: expected a positive width and height")
        if self.max_episodes is not None and self.max_episodes < 1:
            raise ConversionError(f"max_episodes is {self.max_episodes}; expected at least 1")
        if self.gripper_lead < 0:
            raise ConversionError(f"gripper_lead is {self.gripper_lead}; expected 0 or more steps")
        parse_scales(self.gripper_scale)
        parse_timestamps(self.timestamps)
        if self.split_at_gap is not None and not 0 < self.split_at_gap < math.inf:
            raise ConversionError(f"split_at_gap is {self.split_at_gap}; expected more than 0 seconds")
        if self.zarr_format not in ZARR_FORMATS:
            raise ConversionError(f"zarr format {self.zarr_format} does not exist; expected 2 or 3")
        if self.shard is not None and (self.zarr_format == 2 or self.shard < 1):
            raise ConversionError(f"shards of {self.shard} frames: they need zarr format 3 and at least 1 frame")
        if self.append and self.overwrite:
            raise ConversionError("append adds to a dataset and overwrite replaces it; choose one of them")
        if self.scratch is not None and not is_remote(self.output):
            raise ConversionError(
                f"scratch {self.scratch} is only for outputs that are URLs; this one is written next to {self.output}"
            )
        source, output = self.source.resolve(), self.output.resolve()
        if source == output or output in source.parents or source in output.parents:
            raise ConversionError(f"output {output} and input {source} contain one another; choose another output")

    @cached_property
    def recordings(self) -> Recordings:
        """Returns the source's recordings, read with these settings; see `open_recordings`."""
        return open_recordings(
            self.source,
            gripper_scale=self.gripper_scale,
            timestamps=self.timestamps,
            mapping=self.mapping,
            null_actions=self.null_actions,
        )

    @cached_property
    def mapping_content(self) -> dict[str, Any]:
        """Returns the mapping as plain JSON, under its name among the settings; empty without one."""
        return {} if self.mapping is None else {"mapping": read_mapping(self.mapping).content}

    @property
    def n_workers(self) -> int:
        """Number of threads to use; by default the cores that this process may run on."""
        return self.workers or usable_cores()

    @property
    def partial(self) -> Path:
        """The folder of unfinished work: next to the output, or on this machine if the output is in an object store."""
        if not is_remote(self.output):
            return self.output.with_name(self.output.name + ".partial")
        key = sha256(str(self.output).encode()).hex()[:12]
        return (self.scratch or local_cache() / "conversions") / f"{self.output.name}-{key}.partial"

    @property
    def ledger_file(self) -> Path:
        """`<output>.conversion.json`."""
        return self.output.with_name(self.output.name + ".conversion.json")

    def content(self) -> dict[str, Any]:
        """Returns the settings that decide an episode's content, as plain JSON: resuming and appending need these."""
        return {
            "resolution": list(self.resolution),
            "codec": self.codec.name,
            "level": self.codec.level,
            "zarr_format": self.zarr_format,
            "shard": self.shard,
            "gaps": self.gaps,
            "decode": self.decode,
            "gripper_command": self.gripper_command,
            "gripper_lead": self.gripper_lead,
            "gripper_scale": self.gripper_scale,
            "timestamps": self.timestamps,
            "split_at_gap": self.split_at_gap,
            **self.mapping_content,
            **({} if self.null_actions == "keep" else {"null_actions": self.null_actions}),
        }

    def as_json(self) -> dict[str, Any]:
        """Returns what a reader of the dataset may want to know about how it was made, as plain JSON."""
        return {
            "source": self.source.resolve().name,
            "start_episode": self.start_episode,
            "max_episodes": self.max_episodes,
            "on_error": self.on_error,
            "quaternion_sign": self.quaternion_sign,
            "mixed_frames": self.mixed_frames,
            **self.content(),
        }
