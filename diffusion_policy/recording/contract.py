"""The interface between recordings and the converter, which a module for a new format implements.

Legend of shapes: N recorded steps, D numbers in a row of an array.
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
"""Key of an account: [width, height] of the frames, for a format whose policies are trained on one size."""


@dataclass(frozen=True)
class Picture:
    """One recorded frame on its way to the dataset.

    Attributes:
        name: its file, relative to the folder that holds the episode; for a file with many frames, with the
            frame's number after a "#".
        content: a JPEG or PNG as recorded, or a decoded frame (H, W, 3) RGB uint8.
    """

    name: Path
    content: bytes | ImageArray


class Frames(Protocol):
    """Frames of one camera at some steps of an episode, in step order.

    Objects are hashable and are sent to other threads, processes and machines, which see the same files.
    """

    def __len__(self) -> int:
        """The number of steps."""

    def pictures(self) -> Iterator[Picture]:
        """Yields a picture for each step, the same one (by name) for steps that show the same frame.

        Raises:
            TrajectoryError: a frame does not exist, or does not decode.
            PathError: its store cannot be reached.
        """


@dataclass(frozen=True)
class ArrayNames:
    """The arrays that a recording becomes in the dataset, and the names of their numbers.

    Attributes:
        states: by key of the dataset, the names of measured numbers.
        action: names of commanded numbers.
        units: units of names that do not themselves give one.
    """

    states: Mapping[str, tuple[str, ...]]
    action: tuple[str, ...]
    units: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def action_layout(self) -> ActionLayout:
        """The layout of the action."""
        return ActionLayout.of(self.action, self.units)

    def state_column(self, name: str) -> tuple[str, int] | None:
        """Returns the key and column under which a number of the action is measured; None if it is not measured."""
        for key, names in self.states.items():
            if name in names:
                return key, names.index(name)
        return None


class Recording(Protocol):
    """One recorded episode of N steps, checked, but with its frames not decoded."""

    @property
    def path(self) -> Path:
        """The episode's name: its folder or, in a format without one, a name below the folder that holds it."""

    @property
    def number(self) -> int:
        """The number at the end of its name, by which episodes are ordered."""

    @property
    def n_steps(self) -> int:
        """N."""

    @property
    def n_recorded(self) -> int:
        """N, plus the steps after them that were recorded without a command."""

    @property
    def names(self) -> ArrayNames:
        """The arrays and the names of their numbers, the same in all recordings of a folder."""

    @property
    def states(self) -> Mapping[str, NDArray[np.float32]]:
        """(N, D) measured numbers, by key of the dataset; grippers 0 closed to 1 open, quaternions xyzw."""

    @property
    def action(self) -> NDArray[np.float32]:
        """(N, D) commands, in the same conventions."""

    @property
    def timestamp(self) -> NDArray[np.float64]:
        """(N,) seconds."""

    @property
    def image_index(self) -> NDArray[np.int64]:
        """(N,) the number of the frame that a step shows; NO_IMAGE where it shows none."""

    @property
    def frame_numbers(self) -> Mapping[str, Collection[int]]:
        """The numbers of the recorded frames, by camera."""

    @property
    def metadata(self) -> EpisodeMetadata:
        """Tasks and flags."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Harmless irregularities."""

    def frames(self, steps: Sequence[int], camera: str, at_most: int) -> Iterator[Frames]:
        """Yields the frames of these steps, which all show one, in pieces to be decoded one by one.

        Args:
            steps: step numbers, increasing.
            camera: one of the cameras in `frame_numbers`.
            at_most: largest number of steps in a piece, for formats with one file per frame; others cut as it suits
                them.
        """

    def content_sha256(self) -> str:
        """Returns a hash that identifies the recording, whatever it is called."""

    def fingerprint(self) -> str:
        """Returns a fingerprint of the files' names, sizes and modification times, which changes when a file does."""


class Recordings(Protocol):
    """The episodes of an input, all in one format."""

    def find(self) -> list[Path]:
        """Returns the `path` of each episode, ordered by number, then name.

        Raises:
            TrajectoryError: there is none.
            PathError: its store cannot be reached.
        """

    def open(self, path: Path) -> Recording:
        """Opens and checks an episode.

        Raises:
            TrajectoryError: it is invalid.
            WorkspaceError: another kind of error, such as a pickle that asks for more than arrays.
            PathError: its store cannot be reached.
        """

    @property
    def account(self) -> Mapping[str, Any]:
        """The ledger's entry on the input as a whole, as plain JSON; empty if there is nothing to report."""


def image_runs(image_index: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Returns the longest runs of steps that all show a frame, as (start, exclusive end)."""
    return true_runs(image_index != NO_IMAGE)


def true_runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Returns the longest runs of steps whose flag (N,) is true, as (start, exclusive end)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
