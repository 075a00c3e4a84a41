"""A camera's frames: which ones do not decode, or are black, repeated or frozen. Every frame is inspected.

Each is reduced to THUMBNAIL pixels, which a JPEG decoder does in a fraction of the time that a whole frame takes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.cpu import usable_cores
from diffusion_policy.diagnose.steps import Camera, Look, Steps
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.images import FrameKind, ImageNote, kinds_of
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.recording.contract import true_runs
from diffusion_policy.storage import content_key

THUMBNAIL = (80, 45)
# A frame whose brightest pixel is darker than this is black.
BLACK = 8
# A camera is frozen if it gives one picture for this many steps while the arm travels this far.
FROZEN_STEPS, FROZEN_METERS = 5, 0.02

# Number of steps that one thread inspects in sequence.
_TOGETHER = 32

StepRange = tuple[int, int]


@dataclass(frozen=True)
class FrameEvidence:
    """One frame. `trouble` is why it does not decode; the rest is empty then, and where there is no frame."""

    digest: bytes = b""
    brightest: int = 0
    kind: FrameKind | None = None
    notes: tuple[ImageNote, ...] = ()
    trouble: str = ""


@dataclass(frozen=True)
class CameraEvidence:
    """The frames of a camera. Steps are counted over all episodes.

    Attributes:
        name: the camera's name.
        sizes: (width, height) that occur.
        kinds: formats of frames that occur, the most frequent first.
        notes: number of steps whose frame is odd, by what is odd about it.
        shown: steps with a frame.
        undecodable: steps whose frame does not decode, with the reason.
        black: steps with a black frame.
        repeated: steps that show the same picture as the previous step.
        elsewhere: steps that show the same picture as another step that is not the previous one.
        frozen: (first, exclusive end) of each stretch that shows one picture while the arm moves.
    """

    name: str
    sizes: tuple[tuple[int, int], ...]
    kinds: tuple[FrameKind, ...]
    notes: Mapping[str, int]
    shown: int
    undecodable: tuple[tuple[int, str], ...]
    black: tuple[int, ...]
    repeated: int
    elsewhere: int
    frozen: tuple[StepRange, ...]


def look_at_cameras(
    steps: Steps, traveled: NDArray[np.float64], on_progress: Progress = no_progress
) -> tuple[CameraEvidence, ...]:
    """Inspects every frame, on all cores.

    Args:
        steps: the steps, with their cameras.
        traveled: (N,) meters that the arm has traveled up to each step.
        on_progress: called with the number of frames done, and the total.
    """
    total = steps.n_steps * len(steps.cameras)
    blocks = [range(start, min(start + _TOGETHER, steps.n_steps)) for start in range(0, steps.n_steps, _TOGETHER)]
    done = 0
    cameras = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        for name, camera in steps.cameras.items():
            looks: list[FrameEvidence] = []
            for seen in pool.map(partial(_look, camera), blocks):
                looks += seen
                done += len(seen)
                on_progress(done, total)
            cameras.append(_judge(name, looks, steps, traveled))
    return tuple(cameras)


def _look(camera: Camera, steps: range) -> list[FrameEvidence]:
    return [_seen(look) for look in camera.looks(steps, *THUMBNAIL)]


def _seen(look: Look) -> FrameEvidence:
    if isinstance(look.image, WorkspaceError):
        return FrameEvidence(trouble=str(look.image))
    if look.image is None:
        return FrameEvidence()
    small = look.image.frame
    kind = FrameKind(*look.image.size, look.image.orientation, first=look.file)
    return FrameEvidence(content_key(np.ascontiguousarray(small).data), int(small.max()), kind, look.image.notes)


def _judge(name: str, looks: list[FrameEvidence], steps: Steps, traveled: NDArray[np.float64]) -> CameraEvidence:
    # A black frame is reported as black, not as a copy of other black frames.
    pictures = [look.digest if look.brightest >= BLACK else b"" for look in looks]
    same = [bool(now) and now == before for before, now in itertools.pairwise(pictures)]
    repeated = np.asarray([False, *same])
    repeated[1:] &= steps.within
    runs = true_runs(repeated)  # a stretch of one picture begins one step before its first repetition
    distinct = [picture for picture, again in zip(pictures, repeated, strict=True) if picture and not again]
    kinds = kinds_of(look.kind for look in looks if look.kind is not None)
    return CameraEvidence(
        name=name,
        sizes=tuple(sorted({(kind.width, kind.height) for kind in kinds})),
        kinds=kinds,
        notes=dict(Counter(str(note) for look in looks for note in look.notes)),
        shown=sum(bool(look.digest or look.trouble) for look in looks),
        undecodable=tuple((step, look.trouble) for step, look in enumerate(looks) if look.trouble),
        black=tuple(step for step, look in enumerate(looks) if look.digest and look.brightest < BLACK),
        repeated=int(repeated.sum()),
        elsewhere=len(distinct) - len(set(distinct)),
        frozen=tuple(
            (start - 1, end)
            for start, end in runs
            if end - start + 1 >= FROZEN_STEPS and traveled[end - 1] - traveled[start - 1] > FROZEN_METERS
        ),
    )
