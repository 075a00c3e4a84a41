"""What a camera shows while a robot is served: decoded once, and judged before a policy sees it.

Damaged pictures, other formats and 16-bit depth are refused by the decoder (``images``), as the converter refuses them.
What decodes may still be no use: a camera that stopped sends the same picture for ever, a covered one a black picture,
another one pictures of another shape, which would be squeezed. Each camera of an observation is judged by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.geometry import geodesic_distance
from diffusion_policy.images import ImageNote, image_key
from diffusion_policy.serve.recent import Recent
from diffusion_policy.serve.settings import CameraSettings, ServeSettings
from diffusion_policy.serve.transport.images import decode_observed
from diffusion_policy.serve.transport.protocol import ErrorCode, MessageForm, Observation, ProtocolError
from diffusion_policy.spec import POSE_GRIPPER, ActionLayout, ImageArray
from diffusion_policy.storage import content_key

FloatArray = NDArray[np.float64]
Size = tuple[int, int]

# Every so many pixels a side are enough to tell pictures apart, and a black one from a dark one.
_STRIDE = 8
# Gray levels of 255 that nearly all pixels (98 %) of a picture without content lie within, per channel.
_NEARLY_UNIFORM = 10
# Two shapes are the same if width over height differs by less: 848x480 is used for 16:9.
_ASPECT_SLACK = 0.03
# Units of a joint that are as much motion as a radian; percent of a range of about half a turn. Unknown units count as
# radians, the smallest of them: a camera that shows one picture five times is rather refused than believed.
_JOINT_UNITS_IN_A_RADIAN = {"deg": 180 / np.pi, "%": 100 / np.pi}
# Notes of the decoder that change what a policy sees.
_TOLD = (ImageNote.GRAY, ImageNote.CMYK, ImageNote.TURNED)


@dataclass(frozen=True)
class Picture:
    """What is remembered of a decoded picture.

    Attributes:
        content: hash of its pixels (every ``_STRIDE``-th); equal for equal pictures however they were encoded.
        size: (width, height).
        level: mean gray level 0..255 if it is nearly uniform, else None.
        notes: of the decoder.
    """

    content: bytes
    size: Size
    level: float | None
    notes: tuple[ImageNote, ...] = ()


def look_at(frame: ImageArray, notes: tuple[ImageNote, ...] = ()) -> Picture:
    """Judge a decoded frame (H, W, 3) by itself."""
    sample = np.ascontiguousarray(frame[::_STRIDE, ::_STRIDE])
    low, high = np.percentile(sample.reshape(-1, 3), (1, 99), axis=0, method="nearest")
    uniform = bool((high.astype(int) - low < _NEARLY_UNIFORM).all())
    content = content_key(sample.data)
    return Picture(content, (frame.shape[1], frame.shape[0]), float(sample.mean()) if uniform else None, notes)


class CameraWatch:
    """One camera of one session.

    Args:
        name: of the camera, for messages.
        settings: limits, and whether a finding warns or refuses.
        sizes: (width, height) of the pictures that the policy was trained on, before they were resized; where a
            checkpoint does not say, the size that the policy reads.
        max_pixels: of one picture.
        n_frames: of one observation; so many are decoded side by side.
        layout: of the states of observations.
        where: how messages name its images.
    """

    def __init__(
        self,
        name: str,
        settings: CameraSettings,
        recorded: Sequence[Size],
        read: Size | None,
        max_pixels: int,
        n_frames: int,
        layout: ActionLayout | None = None,
        where: str = "images",
    ) -> None:
        self.name = name
        self._where = where
        self._motion = Motion(layout or ActionLayout.of(POSE_GRIPPER))
        self._settings = settings
        self._recorded, self._read = tuple(recorded), read
        self._max_pixels = max_pixels
        self._decoders = ThreadPoolExecutor(n_frames, "decode")
        self._recent: Recent[Picture] = Recent(4 * n_frames)  # by the bytes as they came
        self.reset()

    def reset(self) -> None:
        """Another episode: whether the camera has stopped is asked anew."""
        self._newest = -np.inf
        self._still: Picture | None = None
        self._first_time, self._frames = 0.0, 0

    def close(self) -> None:
        """End the threads."""
        self._decoders.shutdown(wait=False)

    def look(self, observation: Observation) -> tuple[Observation, list[str]]:
        """Decode what was not seen before, and judge the pictures.

        Returns:
            The observation with its decoded frames (None for those whose bytes were seen before), and warnings.

        Raises:
            ProtocolError: bad_image, oversized; or stale, if the camera has stopped.
        """
        keys = [image_key(image) for image in observation.images]
        known = {key: self._recent.get(key) for key in keys}
        unseen = {key: step for step, key in enumerate(keys) if known[key] is None}
        decoded = dict(zip(unseen, self._decode([(observation, step) for step in unseen.values()]), strict=True))
        judged = {key: picture for key, (_, picture) in decoded.items()}
        self._recent.update(judged)
        known |= judged
        pictures = [picture for key in keys if (picture := known[key]) is not None]
        frames = tuple(decoded[key][0] if key in decoded else None for key in keys)
        warnings = [*self._judge(pictures[-1]), *self._judge_motion(observation, pictures)]
        return replace(observation, decoded=frames), warnings

    def _decode(self, wanted: Sequence[tuple[Observation, int]]) -> list[tuple[ImageArray, Picture]]:
        def decode(entry: tuple[Observation, int]) -> tuple[ImageArray, Picture]:
            observation, step = entry
            frame, notes = decode_observed(observation.images[step], self._max_pixels, f"{self._where}[{step}]")
            return frame, look_at(frame, notes)

        return list(self._decoders.map(decode, wanted)) if len(wanted) > 1 else [decode(entry) for entry in wanted]

    def _judge(self, picture: Picture) -> list[str]:
        """One picture by itself."""
        width, height = picture.size
        found = [f"camera {self.name}: the picture is {note}" for note in picture.notes if note in _TOLD]
        if picture.level is not None:
            kind = "black" if picture.level < _NEARLY_UNIFORM else "of one color"
            said = (
                f"camera {self.name}: the picture is {kind} (mean level {picture.level:.0f} of 255): covered, or dead?"
            )
            found += self._find(self._settings.on_black, "bad_image", said)
        sizes = self._recorded or (() if self._read is None else (self._read,))
        if sizes and not any(_is_alike(picture.size, size) for size in sizes):
            known = " or ".join(f"{w}x{h}" for w, h in sizes)
            where = (
                f"than in training ({known})"
                if self._recorded
                else (
                    f"than the policy reads ({known}; what its training's pictures were, the checkpoint does not say)"
                )
            )
            said = f"camera {self.name}: the picture is {width}x{height}, of another shape {where}: it is squeezed"
            found += self._find(self._settings.on_aspect, "bad_image", said)
        return found

    def _judge_motion(self, observation: Observation, pictures: Sequence[Picture]) -> list[str]:
        """The same picture again and again while the arm moves."""
        times = observation.timestamps.tolist()
        for time, state, picture in zip(times, observation.states, pictures, strict=True):
            if time > self._newest:
                self._newest = time
                self._follow(time, state, picture)
        limits, seconds = self._settings, self._newest - self._first_time
        if self._frames >= limits.frozen_frames and self._motion.is_far(limits.frozen_m, limits.frozen_rad):
            said = (
                f"camera {self.name}: the same picture in {self._frames} frames ({seconds:.1f} s) while the arm moved "
                f"{self._motion.describe()}: it has stopped"
            )
            return self._find(limits.on_frozen, "stale", said)
        contents = [picture.content for picture in pictures]
        again = any(a == b and s < t for a, b, s, t in zip(contents, contents[1:], times, times[1:], strict=False))
        return [f"camera {self.name}: frames of different times are the same picture"] if again else []

    def _follow(self, time: float, state: FloatArray, picture: Picture) -> None:
        """One frame in the order of time; state (D,)."""
        if self._still is None or picture.content != self._still.content:
            self._still, self._first_time, self._frames = picture, time, 1
            self._motion.begin(state)
            return
        self._frames += 1
        self._motion.add(state)

    def _find(self, choice: str, code: ErrorCode, said: str) -> list[str]:
        if choice == "refuse":
            raise ProtocolError(code, said)
        return [said]


def joint_units_in_a_radian(unit: str) -> float:
    """How many units of a joint are as much motion as a radian."""
    return _JOINT_UNITS_IN_A_RADIAN.get(unit, 1.0)


class CameraWatches:
    """All cameras of one session, each judged by itself.

    Args:
        watches: in the order of an observation's images.
    """

    def __init__(self, watches: Sequence[CameraWatch]) -> None:
        self._watches = tuple(watches)

    @classmethod
    def of(cls, about: Mapping[str, Any], settings: ServeSettings, form: MessageForm) -> CameraWatches:
        """Of a policy's cameras; ``about``: what an engine says of its policy."""
        names = about.get("cameras", form.cameras)
        sizes = about.get("image_sizes", {name: about["image_size"] for name in names if "image_size" in about})
        watches = []
        for name in names:
            recorded = [(w, h) for w, h in about.get("trained_on", {}).get("frame_sizes", {}).get(name, [])]
            read = tuple(sizes[name]) if name in sizes else None
            where = "images" if len(names) == 1 else f"images.{name}"
            pixels = settings.limits.image_pixels
            watches.append(
                CameraWatch(name, settings.cameras, recorded, read, pixels, form.n_obs_steps, form.layout, where)
            )
        return cls(watches)

    def reset(self) -> None:
        """Another episode."""
        for watch in self._watches:
            watch.reset()

    def close(self) -> None:
        """End the threads."""
        for watch in self._watches:
            watch.close()

    def look(self, observation: Observation) -> tuple[Observation, list[str]]:
        """As :meth:`CameraWatch.look`, of all images."""
        n_steps = len(observation.timestamps)
        frames: list[ImageArray | None] = []
        warnings: list[str] = []
        for index, watch in enumerate(self._watches):
            own = observation.images[index * n_steps : (index + 1) * n_steps]
            seen, found = watch.look(replace(observation, images=own))
            frames += seen.decoded or ()
            warnings += found
        return replace(observation, decoded=tuple(frames)), warnings


class Motion:
    """How far the arms have moved from where they were; the farthest of them counts.

    Args:
        layout: of states.
    """

    def __init__(self, layout: ActionLayout) -> None:
        self._layout = layout
        self._first: FloatArray | None = None
        self._meters, self._radians, self._joints = 0.0, 0.0, 0.0

    def begin(self, state: FloatArray) -> None:
        """From this state (D,) on."""
        self._first, self._meters, self._radians, self._joints = state, 0.0, 0.0, 0.0

    def add(self, state: FloatArray) -> None:
        """Another state (D,)."""
        assert self._first is not None
        layout = self._layout
        moved = np.linalg.norm(layout.positions(state) - layout.positions(self._first), axis=-1)
        turned = geodesic_distance(layout.rotations(state), layout.rotations(self._first))
        joints = np.abs(layout.joints(state) - layout.joints(self._first))
        self._meters = float(moved.max(initial=self._meters))
        self._radians = float(turned.max(initial=self._radians))
        self._joints = float(joints.max(initial=self._joints))

    def is_far(self, meters: float, radians: float) -> bool:
        """Whether an arm has moved at least so far; a joint counts as a rotation."""
        joint = radians * joint_units_in_a_radian(self._layout.joint_unit)
        return self._meters >= meters or self._radians >= radians or self._joints >= joint

    def describe(self) -> str:
        """How far, in words."""
        said = []
        if self._layout.has_pose:
            said.append(f"{self._meters * 1000:.0f} mm and {np.degrees(self._radians):.0f} degrees")
        if self._layout.has_joints:
            said.append(f"a joint by {self._joints:.3g} {self._layout.joint_unit}")
        return ", ".join(said)


def _is_alike(size: Size, other: Size) -> bool:
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) < _ASPECT_SLACK
