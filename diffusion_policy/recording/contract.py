"""The interface of recordings for the converter: a module for a new format implements it.

Legend of shapes: N recorded steps, D numbers of an array.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.episode_metadata import EpisodeMetadata
from diffusion_policy.spec import ActionLayout, ImageArray
from diffusion_policy.trajectory import NO_IMAGE

FRAME_SIZE_KEY = "frame_size"
"""In an account: [width, height] of the frames, of a format whose policies are trained on one size."""


@dataclass(frozen=True)
class Picture:
    """One recorded frame on its way to the dataset.

    Attributes:
        name: the file that holds it, below the folder that holds the episode; of a file of many frames, with the
            frame's number after a "#".
        content: a JPEG or PNG as recorded, or a decoded frame (H, W, 3) RGB uint8.
    """

    name: Path
    content: bytes | ImageArray


class Frames(Protocol):
    """Frames of one camera at some steps of an episode, in order of the steps.

    It is hashable and travels to other threads, processes and machines, which see the same files.
    """

    def __len__(self) -> int:
        """How many steps."""

    def pictures(self) -> Iterator[Picture]:
        """A picture for each step; the same one (by its name) where steps show the same frame.

        Raises:
            TrajectoryError: a frame does not exist, or does not decode.
            PathError: its store cannot be reached.
        """


@dataclass(frozen=True)
class ArrayNames:
    """The arrays of numbers that a recording becomes in the dataset, and what their numbers are.

    Attributes:
        states: per key of the dataset, the names of what was measured.
        action: names of what was commanded.
        units: of names whose unit the name itself does not tell.
    """

    states: Mapping[str, tuple[str, ...]]
    action: tuple[str, ...]
    units: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def action_layout(self) -> ActionLayout:
        """What the numbers of the action are."""
        return ActionLayout.of(self.action, self.units)

    def state_column(self, name: str) -> tuple[str, int] | None:
        """The key and the column under which a number of the action is measured; None if it is not."""
        for key, names in self.states.items():
            if name in names:
                return key, names.index(name)
        return None


class Recording(Protocol):
    """One recorded episode of N steps, checked, without its frames decoded."""

    @property
    def path(self) -> Path:
        """Names the episode: its folder, or of a format that has none, a name below the folder that holds it."""

    @property
    def number(self) -> int:
        """At the end of its name; episodes are ordered by it."""

    @property
    def n_steps(self) -> int:
        """N."""

    @property
    def n_recorded(self) -> int:
        """N, and the steps after them that were recorded without a command."""

    @property
    def names(self) -> ArrayNames:
        """The arrays, and what their numbers are: the same in all recordings of a folder."""

    @property
    def states(self) -> Mapping[str, NDArray[np.float32]]:
        """(N, D) what was measured, by key of the dataset; grippers 0 closed to 1 open, quaternions xyzw."""

    @property
    def action(self) -> NDArray[np.float32]:
        """(N, D) what was commanded, in the same conventions."""

    @property
    def timestamp(self) -> NDArray[np.float64]:
        """(N,) seconds."""

    @property
    def image_index(self) -> NDArray[np.int64]:
        """(N,) the number of the frame that a step shows; NO_IMAGE where it shows none."""

    @property
    def frame_numbers(self) -> Mapping[str, Collection[int]]:
        """Per camera, the numbers of the frames that were recorded."""

    @property
    def metadata(self) -> EpisodeMetadata:
        """Tasks and flags."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd about it, and harmless."""

    def frames(self, steps: Sequence[int], camera: str, at_most: int) -> Iterator[Frames]:
        """The frames of these steps, which all show one, in pieces to be decoded one by one.

        Args:
            steps: increasing.
            camera: one of `frame_numbers`.
            at_most: steps in a piece, of a format with one file a frame; others cut as it suits them.
        """

    def content_sha256(self) -> str:
        """Tells recordings apart, whatever they are called."""

    def fingerprint(self) -> str:
        """Changes when a file of the recording does: of names, sizes and times of modification."""


class Recordings(Protocol):
    """What an input holds: episodes of one format, found by looking at it."""

    def find(self) -> list[Path]:
        """The `path` of each episode, ordered by number, then name.

        Raises:
            TrajectoryError: there is none.
            PathError: its store cannot be reached.
        """

    def open(self, path: Path) -> Recording:
        """Open and check an episode.

        Raises:
            TrajectoryError: it is not as it must be.
            WorkspaceError: of another kind, such as a pickle that asks for more than arrays.
            PathError: its store cannot be reached.
        """

    @property
    def account(self) -> Mapping[str, Any]:
        """What the ledger says of the input as a whole, as plain JSON; empty if there is nothing to say."""


def image_runs(image_index: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Longest runs of steps that all show a frame, as (start, exclusive end)."""
    return true_runs(image_index != NO_IMAGE)


def true_runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Longest runs of steps whose flag (N,) is true, as (start, exclusive end)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
