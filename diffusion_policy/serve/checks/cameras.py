"""What a camera shows while a robot is served: decoded once, and judged before a policy sees it.

Damaged pictures, other formats and 16-bit depth are refused by the decoder (``images``), as the converter refuses them.
What decodes may still be no use: a camera that stopped sends the same picture for ever, a covered one a black picture,
another one pictures of another shape, which would be squeezed. Each camera of an observation is judged by itself.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.geometry import geodesic_distance
from diffusion_policy.images import ImageNote
from diffusion_policy.serve.settings import CameraSettings, ServeSettings
from diffusion_policy.serve.transport.images import decode_observed
from diffusion_policy.serve.transport.protocol import ErrorCode, Observation, ProtocolError
from diffusion_policy.spec import ImageArray

FloatArray = NDArray[np.float64]
Size = tuple[int, int]

# Every so many pixels a side are enough to tell pictures apart, and a black one from a dark one.
_STRIDE = 8
# Gray levels of 255 that nearly all pixels (98 %) of a picture without content lie within, per channel.
_NEARLY_UNIFORM = 10
# Two shapes are the same if width over height differs by less: 848x480 is used for 16:9.
_ASPECT_SLACK = 0.03
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
    content = hashlib.blake2b(sample.data, digest_size=16).digest()
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
    """

    def __init__(
        self,
        name: str,
        settings: CameraSettings,
        recorded: Sequence[Size],
        read: Size | None,
        max_pixels: int,
        n_frames: int,
    ) -> None:
        self.name = name
        self._settings = settings
        self._recorded, self._read = tuple(recorded), read
        self._max_pixels = max_pixels
        self._decoders = ThreadPoolExecutor(n_frames, "decode")
        self._seen: OrderedDict[bytes, Picture] = OrderedDict()  # by the bytes as they came
        self._capacity = 4 * n_frames
        self.reset()

    @classmethod
    def of(cls, about: Mapping[str, Any], settings: ServeSettings, n_frames: int) -> CameraWatch:
        """The watch of the one camera that the protocol carries; ``about``: what an engine says of its policy."""
        (name,) = about.get("cameras", ["image"])
        recorded = [(w, h) for w, h in about.get("trained_on", {}).get("frame_sizes", {}).get(name, [])]
        read = tuple(about["image_size"]) if "image_size" in about else None
        return cls(name, settings.cameras, recorded, read, settings.limits.image_pixels, n_frames)

    def reset(self) -> None:
        """Another episode: whether the camera has stopped is asked anew."""
        self._newest = -np.inf
        self._still: Picture | None = None
        self._first_pose: FloatArray | None = None
        self._first_time, self._frames, self._far_m, self._far_rad = 0.0, 0, 0.0, 0.0

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
        keys = [_key(image) for image in observation.images]
        unseen = {key: step for step, key in enumerate(keys) if key not in self._seen}
        decoded = dict(zip(unseen, self._decode([(observation, step) for step in unseen.values()]), strict=True))
        for key in keys:
            if key in decoded:
                self._seen[key] = decoded[key][1]
            self._seen.move_to_end(key)
        pictures = [self._seen[key] for key in keys]
        while len(self._seen) > self._capacity:
            self._seen.popitem(last=False)
        frames = tuple(decoded[key][0] if key in decoded else None for key in keys)
        warnings = [*self._judge(pictures[-1]), *self._judge_motion(observation, pictures)]
        return replace(observation, decoded=frames), warnings

    def _decode(self, wanted: Sequence[tuple[Observation, int]]) -> list[tuple[ImageArray, Picture]]:
        def decode(entry: tuple[Observation, int]) -> tuple[ImageArray, Picture]:
            observation, step = entry
            frame, notes = decode_observed(observation.images[step], self._max_pixels, f"images[{step}]")
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
        for time, pose, picture in zip(times, observation.poses, pictures, strict=True):
            if time > self._newest:
                self._newest = time
                self._follow(time, pose, picture)
        limits, seconds = self._settings, self._newest - self._first_time
        moved = self._far_m >= limits.frozen_m or self._far_rad >= limits.frozen_rad
        if self._frames >= limits.frozen_frames and moved:
            said = (
                f"camera {self.name}: the same picture in {self._frames} frames ({seconds:.1f} s) while the arm moved "
                f"{self._far_m * 1000:.0f} mm and {np.degrees(self._far_rad):.0f} degrees: it has stopped"
            )
            return self._find(limits.on_frozen, "stale", said)
        contents = [picture.content for picture in pictures]
        again = any(a == b and s < t for a, b, s, t in zip(contents, contents[1:], times, times[1:], strict=False))
        return [f"camera {self.name}: frames of different times are the same picture"] if again else []

    def _follow(self, time: float, pose: FloatArray, picture: Picture) -> None:
        """One frame in the order of time; pose (7,)."""
        if self._still is None or self._first_pose is None or picture.content != self._still.content:
            self._still, self._first_pose, self._first_time = picture, pose, time
            self._frames, self._far_m, self._far_rad = 1, 0.0, 0.0
            return
        self._frames += 1
        self._far_m = max(self._far_m, float(np.linalg.norm(pose[:3] - self._first_pose[:3])))
        self._far_rad = max(self._far_rad, float(geodesic_distance(pose[3:7], self._first_pose[3:7])))

    def _find(self, choice: str, code: ErrorCode, said: str) -> list[str]:
        if choice == "refuse":
            raise ProtocolError(code, said)
        return [said]


def _is_alike(size: Size, other: Size) -> bool:
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) < _ASPECT_SLACK


def _key(image: bytes | ImageArray) -> bytes:
    if isinstance(image, bytes):
        return hashlib.blake2b(image, digest_size=16).digest()
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16, key=repr(image.shape).encode()).digest()
