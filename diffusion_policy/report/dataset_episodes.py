"""What a dataset's page shows of an episode: pictures of each camera, grippers, paths or joints, flags, findings.

Legend: N steps of the dataset, n steps of an episode.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.episode_metadata import episode_metadata
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, TIMESTAMP_KEY, ReplayBuffer
from diffusion_policy.diagnose.arm_paths import arm_paths, buttons, camera_turns, joint_paths
from diffusion_policy.diagnose.episode_findings import EpisodeSummary
from diffusion_policy.diagnose.steps import ConvertedCamera, FloatArray, Steps
from diffusion_policy.gripper_events import gripper_events
from diffusion_policy.recording.contract import true_runs
from diffusion_policy.report.page import image_data
from diffusion_policy.spec.action_layout import is_gripper_name

# Number of steps of an episode that are drawn, in addition to those with a picture.
DRAWN = 200
# Approximate bytes that the numbers of an episode take in the page.
NUMBERS_BYTES = 50 * DRAWN
# Largest width of a picture, with one camera and with several.
WIDEST, NARROWER = 320, 240
# Number of steps whose pictures are used to estimate the size of one.
_SAMPLED = 5
_LONGEST_TEXT = 300


@dataclass(frozen=True)
class EpisodeView:
    """An episode, for the page's script.

    Attributes:
        data: the episode as plain JSON.
        frames: number of pictures in it.
        of_frames: number of pictures that the episode has.
    """

    data: dict[str, Any]
    frames: int
    of_frames: int


class EpisodeViews:
    """The episodes of one dataset.

    Attributes:
        cameras: the dataset's cameras, by name.
    """

    def __init__(self, buffer: ReplayBuffer, steps: Steps) -> None:
        self._steps = steps
        self._metadata = episode_metadata(buffer)
        self._paths = arm_paths(steps)
        self._commands, self._measured = steps.commanded_grippers(), steps.measured_grippers()
        self._lines, self._title = _lines_of(steps)
        self._buttons = buttons(steps)
        self.cameras = {name: one for name, one in steps.cameras.items() if isinstance(one, ConvertedCamera)}
        self.widest = WIDEST if len(self.cameras) < 2 else NARROWER

    def entry(self, number: int, summary: EpisodeSummary, source: int, tasks: dict[str, int]) -> dict[str, Any]:
        """Returns an episode's entry in the list; a new task is added to ``tasks`` with the next number."""
        metadata = self._metadata[number]
        driven = None if metadata.interventions is None else sum(end - start for start, end in metadata.interventions)
        return {
            "name": self._steps.episode_names[number][:_LONGEST_TEXT],
            "source": source,
            "steps": summary.steps,
            "seconds": None if summary.seconds is None else _rounded(summary.seconds, 1),
            "task": tasks.setdefault(metadata.task[:_LONGEST_TEXT], len(tasks)),
            "success": metadata.success,
            "driven": driven,
            "events": summary.events,
            "level": summary.worst,
            "findings": [{**asdict(one), "text": one.text[:_LONGEST_TEXT]} for one in summary.findings],
            "more": summary.n_findings - len(summary.findings),
        }

    def view(self, number: int, summary: EpisodeSummary, frames: int) -> EpisodeView:
        """Returns all that is shown of an episode, with at most ``frames`` pictures of each camera."""
        part, metadata = self._steps.slices[number], self._metadata[number]
        n = part.stop - part.start
        pictured = _spread(n, frames)
        at = np.unique(np.concatenate([_spread(n, DRAWN), pictured]))
        pictures = {name: [self._picture(name, part.start + int(step)) for step in pictured] for name in self.cameras}
        data = {
            "total": n,
            "at": at.tolist(),
            "seconds": self._seconds(part, at),
            "pictured": pictured.tolist(),
            "pictures": pictures,
            "arms": [{"name": arm, "positions": _listed(path[part][at], 4)} for arm, path in self._paths.items()],
            "lines": [{"name": name, "values": _listed(values[part][at], 4)} for name, values in self._lines.items()],
            "title": self._title,
            "buttons": [{"name": name, "held": true_runs(down[part])} for name, down in self._buttons.items()],
            "grippers": self._grippers(number, part, at),
            "idle": [list(run) for run in summary.idle],
            "interventions": [list(run) for run in metadata.interventions or ()],
        }
        return EpisodeView(data, len(pictured) * len(self.cameras), n * len(self.cameras))

    def picture_bytes(self) -> float:
        """Bytes that a picture takes in the page, estimated from a few; 0 without a camera."""
        rows = np.linspace(0, self._steps.n_steps - 1, _SAMPLED).astype(int).tolist()
        sampled = [self._picture(camera, row) for camera in self.cameras for row in rows]
        sizes = [len(picture) for picture in sampled if picture is not None]
        return float(np.mean(sizes)) if sizes else 0.0

    def _command_of(self, number: int) -> FloatArray:
        """Returns (G, n) commands of each gripper."""
        assert self._commands is not None
        return np.nan_to_num(self._commands[self._steps.slices[number]]).T

    def _grippers(self, number: int, part: slice, at: NDArray[np.int64]) -> list[dict[str, Any]]:
        if self._commands is None:
            return []
        measured = self._measured
        names = [name for name in self._steps.names[ACTION_KEY] if is_gripper_name(name)]
        return [
            {
                "name": name,
                "command": _listed(self._commands[part, column][at], 3),
                "measured": None if measured is None else _listed(measured[part, column][at], 3),
                "events": [list(event) for event in gripper_events(command)],
            }
            for column, (name, command) in enumerate(zip(names, self._command_of(number), strict=True))
        ]

    def _seconds(self, part: slice, at: NDArray[np.int64]) -> list[Any] | None:
        times = self._steps.numbers.get(TIMESTAMP_KEY)
        return None if times is None else _listed(times[part][at] - times[part.start], 2)

    def _picture(self, camera: str, row: int) -> str | None:
        frame = self.cameras[camera].whole(row)
        return None if frame is None else image_data(frame, self.widest)


def _lines_of(steps: Steps) -> tuple[dict[str, FloatArray], str]:
    """What is drawn over the steps where no arm has a path, and its title."""
    turns = camera_turns(steps)
    if turns:
        return turns, "turns of the camera (degrees a step)"
    joints, unit = ({}, "") if arm_paths(steps) else joint_paths(steps)
    return joints, f"joints ({unit})"


def _spread(n: int, at_most: int) -> NDArray[np.int64]:
    """Returns steps below n, evenly spread, including the first and the last."""
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).round().astype(np.int64))


def _rounded(value: float, decimals: int) -> float | None:
    return round(value, decimals) if np.isfinite(value) else None


def _listed(values: FloatArray, decimals: int) -> list[Any]:
    """Returns rounded values; None for a number that is not finite, or a vector that holds one."""
    known = np.asarray(np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    rounded = np.round(np.where(np.isfinite(values), values, 0.0), decimals).tolist()
    return [value if is_known else None for value, is_known in zip(rounded, known.tolist(), strict=True)]
