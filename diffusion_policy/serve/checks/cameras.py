"""Camera checks while serving: each image is decoded once and checked before it reaches the policy.

Damaged images, unsupported formats and 16-bit depth are refused by the decoder (``images``), as the converter refuses
them. Decoded images may still be useless: a stopped camera repeats the same image, a covered one sends a black image,
and another camera may have a different aspect ratio, which resizing would distort. Each camera is checked separately.
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

# Sampling stride in pixels, fine enough to tell images apart, and a black image from a dark one.
_STRIDE = 8
# Range of gray levels (of 255), per channel, that holds 98 % of the pixels of an image without content.
_NEARLY_UNIFORM = 10
# Relative difference below which two aspect ratios count as equal: 848x480 is used for 16:9.
_ASPECT_SLACK = 0.03
# Joint motion that counts as a radian, by unit; percent of a range of about half a turn. Unknown units count as
# radians, so that a camera that repeats an image is refused rather than accepted.
_JOINT_UNITS_IN_A_RADIAN = {"deg": 180 / np.pi, "%": 100 / np.pi}
# Decoder notes that cause a warning, since they change the policy's input.
_WARNED_NOTES = (ImageNote.GRAY, ImageNote.CMYK, ImageNote.TURNED)


@dataclass(frozen=True)
class ImageSummary:
    """Summary of a decoded image.

    Attributes:
        content: hash of its pixels (every ``_STRIDE``-th); equal for equal images in any encoding.
        size: (width, height).
        level: mean gray level 0..255 if it is nearly uniform, else None.
        notes: the decoder's notes.
    """

    content: bytes
    size: Size
    level: float | None
    notes: tuple[ImageNote, ...] = ()


def summarize(frame: ImageArray, notes: tuple[ImageNote, ...] = ()) -> ImageSummary:
    """Summarizes a decoded frame (H, W, 3)."""
    sample = np.ascontiguousarray(frame[::_STRIDE, ::_STRIDE])
    low, high = np.percentile(sample.reshape(-1, 3), (1, 99), axis=0, method="nearest")
    uniform = bool((high.astype(int) - low < _NEARLY_UNIFORM).all())
    content = content_key(sample.data)
    return ImageSummary(content, (frame.shape[1], frame.shape[0]), float(sample.mean()) if uniform else None, notes)


class CameraMonitor:
    """Checks one camera in one session.

    Args:
        name: name of the camera, for messages.
        settings: limits, and whether a finding warns or refuses.
        recorded: (width, height) of the training set's images before resizing; empty if not known.
        read: (width, height) of the policy's input, or None.
        max_pixels: size limit of one image.
        n_frames: number of images in an observation, which are decoded in parallel.
        layout: layout of the observations' states.
        where: what its images are called in messages.
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
        self._recent: Recent[ImageSummary] = Recent(4 * n_frames)  # keyed by the received bytes
        self.reset()

    def reset(self) -> None:
        """Starts an episode: the check for a stopped camera starts again."""
        self._newest = -np.inf
        self._still: ImageSummary | None = None
        self._first_time, self._frames = 0.0, 0

    def close(self) -> None:
        """Ends the decoder threads."""
        self._decoders.shutdown(wait=False)

    def check(self, observation: Observation) -> tuple[Observation, list[str]]:
        """Decodes new images, and checks all of them.

        Returns:
            The observation with its decoded frames (None for those decoded before), and warnings.

        Raises:
            ProtocolError: bad_image, oversized; or stale if the camera has stopped.
        """
        self._check_lag(observation)
        keys = [image_key(image) for image in observation.images]
        known = {key: self._recent.get(key) for key in keys}
        unseen = {key: step for step, key in enumerate(keys) if known[key] is None}
        decoded = dict(zip(unseen, self._decode([(observation, step) for step in unseen.values()]), strict=True))
        judged = {key: picture for key, (_, picture) in decoded.items()}
        self._recent.update(judged)
        known |= judged
        pictures = [picture for key in keys if (picture := known[key]) is not None]
        frames = tuple(decoded[key][0] if key in decoded else None for key in keys)
        warnings = [*self._check_image(pictures[-1]), *self._check_image_motion(observation, pictures)]
        return replace(observation, decoded=frames), warnings

    def _check_lag(self, observation: Observation) -> None:
        """Refuses a frame that does not belong to the newest step; ProtocolError (stale)."""
        captured = observation.camera_times.get(self.name)
        if captured is None:
            return
        lag, limit = float(observation.timestamps[-1]) - captured, self._settings.max_lag_s
        if abs(lag) > limit:
            raise ProtocolError(
                "stale",
                f"camera {self.name}: its newest frame was captured {lag:.3f} s before the newest step; the limit is "
                f"{limit:g} s (cameras.max_lag_s)",
            )

    def _decode(self, wanted: Sequence[tuple[Observation, int]]) -> list[tuple[ImageArray, ImageSummary]]:
        def decode(entry: tuple[Observation, int]) -> tuple[ImageArray, ImageSummary]:
            observation, step = entry
            frame, notes = decode_observed(observation.images[step], self._max_pixels, f"{self._where}[{step}]")
            return frame, summarize(frame, notes)

        return list(self._decoders.map(decode, wanted)) if len(wanted) > 1 else [decode(entry) for entry in wanted]

    def _check_image(self, picture: ImageSummary) -> list[str]:
        """Returns findings about one image."""
        width, height = picture.size
        result = [f"camera {self.name}: the picture is {note}" for note in picture.notes if note in _WARNED_NOTES]
        if picture.level is not None:
            kind = "black" if picture.level < _NEARLY_UNIFORM else "of one color"
            message = (
                f"camera {self.name}: the picture is {kind} (mean level {picture.level:.0f} of 255): covered, or dead?"
            )
            result += self._find(self._settings.on_black, "bad_image", message)
        sizes = self._recorded or (() if self._read is None else (self._read,))
        if sizes and not any(_is_alike(picture.size, size) for size in sizes):
            known = " or ".join(f"{w}x{h}" for w, h in sizes)
            where = (
                f"than in training ({known})"
                if self._recorded
                else (
                    f"than the policy reads ({known}; the checkpoint does not record the size of its training pictures)"
                )
            )
            message = f"camera {self.name}: the picture is {width}x{height}, a shape other {where}: it is squeezed"
            result += self._find(self._settings.on_aspect, "bad_image", message)
        return result

    def _check_image_motion(self, observation: Observation, pictures: Sequence[ImageSummary]) -> list[str]:
        """Returns findings about images that repeat while the arm moves."""
        times = observation.timestamps.tolist()
        for time, state, picture in zip(times, observation.states, pictures, strict=True):
            if time > self._newest:
                self._newest = time
                self._follow(time, state, picture)
        limits, seconds = self._settings, self._newest - self._first_time
        if self._frames >= limits.frozen_frames and self._motion.is_far(limits.frozen_m, limits.frozen_rad):
            message = (
                f"camera {self.name}: the same picture in {self._frames} frames ({seconds:.1f} s) while the arm moved "
                f"{self._motion.describe()}: it has stopped"
            )
            return self._find(limits.on_frozen, "stale", message)
        contents = [picture.content for picture in pictures]
        again = any(a == b and s < t for a, b, s, t in zip(contents, contents[1:], times, times[1:], strict=False))
        return [f"camera {self.name}: frames of different times show the same picture"] if again else []

    def _follow(self, time: float, state: FloatArray, picture: ImageSummary) -> None:
        """Updates the count of equal images with one frame, in order of time; state (D,)."""
        if self._still is None or picture.content != self._still.content:
            self._still, self._first_time, self._frames = picture, time, 1
            self._motion.begin(state)
            return
        self._frames += 1
        self._motion.add(state)

    def _find(self, choice: str, code: ErrorCode, message: str) -> list[str]:
        if choice == "refuse":
            raise ProtocolError(code, message)
        return [message]


def joint_units_in_a_radian(unit: str) -> float:
    """Returns how many units of a joint count as a radian."""
    return _JOINT_UNITS_IN_A_RADIAN.get(unit, 1.0)


class CameraMonitors:
    """Checks all cameras of one session, each separately.

    Args:
        monitors: one for each camera, in the order of an observation's images.
    """

    def __init__(self, monitors: Sequence[CameraMonitor]) -> None:
        self._monitors = tuple(monitors)

    @classmethod
    def of(cls, about: Mapping[str, Any], settings: ServeSettings, form: MessageForm) -> CameraMonitors:
        """Creates monitors of a policy's cameras from the engine's description of it, ``about``."""
        names = about.get("cameras", form.cameras)
        sizes = about.get("image_sizes", {name: about["image_size"] for name in names if "image_size" in about})
        monitors = []
        for name in names:
            recorded = [(w, h) for w, h in about.get("trained_on", {}).get("frame_sizes", {}).get(name, [])]
            read = tuple(sizes[name]) if name in sizes else None
            where = "images" if len(names) == 1 else f"images.{name}"
            pixels = settings.limits.image_pixels
            monitors.append(
                CameraMonitor(name, settings.cameras, recorded, read, pixels, form.n_obs_steps, form.layout, where)
            )
        return cls(monitors)

    def reset(self) -> None:
        """Starts an episode."""
        for monitor in self._monitors:
            monitor.reset()

    def close(self) -> None:
        """Ends the decoder threads."""
        for monitor in self._monitors:
            monitor.close()

    def check(self, observation: Observation) -> tuple[Observation, list[str]]:
        """Checks the images of all cameras, see :meth:`CameraMonitor.check`."""
        n_steps = len(observation.timestamps)
        frames: list[ImageArray | None] = []
        warnings: list[str] = []
        for index, monitor in enumerate(self._monitors):
            own = observation.images[index * n_steps : (index + 1) * n_steps]
            checked, notes = monitor.check(replace(observation, images=own))
            frames += checked.decoded or ()
            warnings += notes
        return replace(observation, decoded=tuple(frames)), warnings


class Motion:
    """Motion of the arms since a reference state; of several, the largest motion counts.

    Args:
        layout: layout of the states.
    """

    def __init__(self, layout: ActionLayout) -> None:
        self._layout = layout
        self._first: FloatArray | None = None
        self._meters, self._radians, self._joints = 0.0, 0.0, 0.0

    def begin(self, state: FloatArray) -> None:
        """Sets the reference state (D,)."""
        self._first, self._meters, self._radians, self._joints = state, 0.0, 0.0, 0.0

    def add(self, state: FloatArray) -> None:
        """Adds a later state (D,)."""
        assert self._first is not None
        layout = self._layout
        moved = np.linalg.norm(layout.positions(state) - layout.positions(self._first), axis=-1)
        turned = geodesic_distance(layout.rotations(state), layout.rotations(self._first))
        joints = np.abs(layout.joints(state) - layout.joints(self._first))
        self._meters = float(moved.max(initial=self._meters))
        self._radians = float(turned.max(initial=self._radians))
        self._joints = float(joints.max(initial=self._joints))

    def is_far(self, meters: float, radians: float) -> bool:
        """Whether an arm has moved at least this far; motion of a joint counts as rotation."""
        joint = radians * joint_units_in_a_radian(self._layout.joint_unit)
        return self._meters >= meters or self._radians >= radians or self._joints >= joint

    def describe(self) -> str:
        """Returns the motion in words."""
        message = []
        if self._layout.has_pose:
            message.append(f"{self._meters * 1000:.0f} mm and {np.degrees(self._radians):.0f} degrees")
        if self._layout.has_joints:
            message.append(f"a joint by {self._joints:.3g} {self._layout.joint_unit}")
        return ", ".join(message)


def _is_alike(size: Size, other: Size) -> bool:
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) < _ASPECT_SLACK
