"""Readings of cameras and arm, each at its own rate, aligned by capture time to the steps that a policy observes.

The newest step is at the time up to which everything is known: the oldest of the newest frames and the newest state.
The steps before it are one period of the policy apart. A step has of each camera the frame captured nearest to it, and
the state interpolated to it. Before a camera's first frame, its first frame is repeated, as training pads the beginning
of an episode; within an episode nothing is made up: what is missing or too old is a ``DoubtError``, and the arm holds.

Legend of shapes: To observation steps, D numbers of a state.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.client.arm import Reading
from diffusion_policy.serve.client.interpolation import check_interpolable, interpolate
from diffusion_policy.spec import ActionLayout

FloatArray = NDArray[np.float64]
# Readings may be so much newer than the loop's clock: two clocks of one computer that are read one after the other.
_AHEAD_S = 0.05
DoubtCode = Literal[
    "no_reading",  # nothing was measured yet
    "camera_missing",  # a camera has not delivered any frame
    "camera_stale",  # a camera's newest frame is older than its limit
    "camera_uneven",  # no frame was captured near enough to one of the steps
    "state_stale",  # the newest state is older than its limit
    "state_invalid",  # NaN, or not as many numbers as the policy has names
    "clock",  # capture times that run backwards or are in the future
]


class DoubtError(WorkspaceError):
    """There is no observation that could be sent, so the arm holds; ``code`` says why."""

    def __init__(self, code: DoubtCode, message: str) -> None:
        super().__init__(message)
        self.code: DoubtCode = code


@dataclass(frozen=True)
class BufferSettings:
    """What is observed, and how old it may be.

    Attributes:
        layout: of a state.
        cameras: keys of the cameras.
        n_obs_steps: To.
        period_s: seconds between two steps that the policy observes.
        camera_max_age_s: largest age of a camera's newest frame.
        camera_max_ages_s: the same of single cameras, by key, where it differs.
        state_max_age_s: largest age of the newest state.
        max_skew_s: largest distance of a frame from the time of its step; None: one period.
    """

    layout: ActionLayout
    cameras: tuple[str, ...]
    n_obs_steps: int
    period_s: float
    camera_max_age_s: float = 0.3
    camera_max_ages_s: Mapping[str, float] = field(default_factory=dict)
    state_max_age_s: float = 0.2
    max_skew_s: float | None = None

    def __post_init__(self) -> None:
        """Refuses settings under which nothing could be observed."""
        check_interpolable(self.layout)
        limits = {"camera_max_age_s": self.camera_max_age_s, "state_max_age_s": self.state_max_age_s}
        limits |= {f"camera_max_ages_s.{key}": value for key, value in self.camera_max_ages_s.items()}
        for name, value in {**limits, "period_s": self.period_s, "max_skew_s": self.skew_s}.items():
            if not 0 < value < math.inf:
                raise WorkspaceError(f"{name} is {value}; expected seconds above 0")
        unknown = sorted(set(self.camera_max_ages_s) - set(self.cameras))
        if unknown:
            raise WorkspaceError(f"camera_max_ages_s names {unknown}; the policy's cameras are {list(self.cameras)}")

    @property
    def skew_s(self) -> float:
        """Largest distance of a frame from its step."""
        return self.period_s if self.max_skew_s is None else self.max_skew_s

    def max_age_s(self, camera: str) -> float:
        """Largest age of a camera's newest frame."""
        return self.camera_max_ages_s.get(camera, self.camera_max_age_s)


@dataclass(frozen=True)
class AlignedObservation:
    """The steps that a policy observes.

    Attributes:
        timestamps: (To,) seconds on the loop's clock, one period apart.
        states: (To, D) interpolated to them.
        images: To frames by camera, oldest first.
        ages_s: by camera, how old its newest frame is now.
        captured_at: by camera, when the frame of the newest step was captured.
    """

    timestamps: FloatArray
    states: FloatArray
    images: Mapping[str, list[Any]]
    ages_s: Mapping[str, float]
    captured_at: Mapping[str, float] = field(default_factory=dict)

    @property
    def observed_at(self) -> float:
        """The time of the newest step."""
        return float(self.timestamps[-1])


class _Track:
    """What one source delivered, oldest first."""

    def __init__(self, keep_s: float) -> None:
        self.times: list[float] = []
        self.values: list[Any] = []
        self._keep_s = keep_s

    def add(self, value: Any, moment: float) -> bool:
        """Keeps a value; returns False, and forgets the former ones, if it was captured before the last."""
        backwards = bool(self.times) and moment < self.times[-1]
        if backwards:
            self.clear()
        elif self.times and moment == self.times[-1]:
            return True
        self.times.append(moment)
        self.values.append(value)
        outdated = bisect.bisect_left(self.times, moment - self._keep_s) - 1  # one before the limit is kept
        if outdated > 0:
            del self.times[:outdated], self.values[:outdated]
        return not backwards

    def clear(self) -> None:
        self.times.clear()
        self.values.clear()

    def nearest(self, moment: float) -> int:
        """Index of the value captured nearest to a moment; the later one of two."""
        after = bisect.bisect_left(self.times, moment)
        if after == len(self.times):
            return after - 1
        return after if after == 0 or self.times[after] - moment <= moment - self.times[after - 1] else after - 1


class ObservationBuffer:
    """Takes in readings, and gives observations.

    Args:
        settings: what is observed.
    """

    def __init__(self, settings: BufferSettings) -> None:
        self.settings = settings
        # The steps, up to the largest lag of one source behind another.
        lag = max([settings.state_max_age_s, *map(settings.max_age_s, settings.cameras)])
        keep = settings.n_obs_steps * settings.period_s + lag + settings.skew_s
        self._states = _Track(keep)
        self._cameras = {camera: _Track(keep) for camera in settings.cameras}

    def reset(self) -> None:
        """Forgets everything: another episode begins."""
        for track in (self._states, *self._cameras.values()):
            track.clear()

    def add(self, reading: Reading, now: float) -> None:
        """Takes in a reading.

        Raises:
            DoubtError: state_invalid, or clock: its times are in the future, or before the last ones. What a source
                delivered before its clock went back is forgotten.
        """
        state = np.asarray(reading.state, dtype=np.float64)
        if state.shape != (len(self.settings.layout.names),) or not np.isfinite(state).all():
            names = " ".join(self.settings.layout.names)
            raise DoubtError("state_invalid", f"the arm's state is {state.tolist()}; expected finite numbers: {names}")
        times = {camera: picture.captured_at for camera, picture in reading.pictures.items()}
        for source, moment in {"the state": reading.measured_at, **times}.items():
            if not moment <= now + _AHEAD_S:  # also: not a number
                raise DoubtError("clock", f"{source} is of {moment:.3f} s, and it is {now:.3f} s on the loop's clock")
        backwards = [] if self._states.add(state.copy(), reading.measured_at) else ["the state"]
        for camera, track in self._cameras.items():
            picture = reading.pictures.get(camera)
            if picture is not None and not track.add(picture.data, picture.captured_at):
                backwards.append(camera)
        if backwards:
            raise DoubtError(
                "clock", f"capture times of {', '.join(backwards)} went back; what was before is forgotten"
            )

    def check(self, now: float) -> None:
        """Checks that every source is fresh.

        Raises:
            DoubtError: no_reading, camera_missing, camera_stale or state_stale.
        """
        if not self._states.times:
            raise DoubtError("no_reading", "the arm has not measured anything yet")
        age, limit = now - self._states.times[-1], self.settings.state_max_age_s
        if age > limit:
            raise DoubtError("state_stale", f"the newest state is {age:.3f} s old; the limit is {limit:g} s")
        for camera, track in self._cameras.items():
            if not track.times:
                raise DoubtError("camera_missing", f"camera {camera} has not delivered a frame")
            age, limit = now - track.times[-1], self.settings.max_age_s(camera)
            if age > limit:
                raise DoubtError(
                    "camera_stale", f"camera {camera}: the newest frame is {age:.3f} s old; the limit is {limit:g} s"
                )

    @property
    def known_until(self) -> float:
        """The time up to which everything is known: that of the newest step; minus infinity before that."""
        tracks = (self._states, *self._cameras.values())
        return min(track.times[-1] if track.times else -math.inf for track in tracks)

    @property
    def newest_state(self) -> FloatArray:
        """(D,) the newest measured state; there must be one."""
        found: FloatArray = self._states.values[-1]
        return found

    def observation(self, now: float) -> AlignedObservation:
        """Returns what the policy observes.

        Raises:
            DoubtError: something is missing, too old, or too far from a step.
        """
        self.check(now)
        newest, settings = self.known_until, self.settings
        times: FloatArray = newest + settings.period_s * np.arange(1.0 - settings.n_obs_steps, 1.0)
        images = {
            camera: [self._frame(camera, track, moment) for moment in times.tolist()]
            for camera, track in self._cameras.items()
        }
        states = np.stack([self._state(moment) for moment in times.tolist()])
        ages = {camera: now - track.times[-1] for camera, track in self._cameras.items()}
        captured = {camera: track.times[track.nearest(newest)] for camera, track in self._cameras.items()}
        return AlignedObservation(times, states, images, ages, captured)

    def _frame(self, camera: str, track: _Track, moment: float) -> Any:
        index = track.nearest(moment)
        before_the_first = index == 0 and moment < track.times[0]
        if not before_the_first and abs(track.times[index] - moment) > self.settings.skew_s:
            raise DoubtError(
                "camera_uneven",
                f"camera {camera} has no frame within {self.settings.skew_s:g} s of the step at {moment:.3f} s; the "
                f"nearest is of {track.times[index]:.3f} s",
            )
        return track.values[index]

    def _state(self, moment: float) -> FloatArray:
        times, values = self._states.times, self._states.values
        after = bisect.bisect_left(times, moment)
        if after == 0 or after == len(times):
            found: FloatArray = values[min(after, len(times) - 1)]
            return found
        fraction = (moment - times[after - 1]) / (times[after] - times[after - 1])
        between = interpolate(self.settings.layout, values[after - 1], values[after], fraction)
        nearer = values[after if fraction >= 0.5 else after - 1]
        columns = list(self.settings.layout.gripper_columns)
        between[columns] = nearer[columns]
        return between
