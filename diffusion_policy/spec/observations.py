"""Camera frames and states -> policy input: the one way in, for training, serving, simulation and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import SpecError
from diffusion_policy.spec.steps import ObsField, StepSpec

ImageArray = NDArray[np.uint8]


def policy_observation(spec: StepSpec, raw: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Turn observed steps into policy input: the one way in, for training and for serving.

    Args:
        spec: what the policy expects.
        raw: per key; images (..., H, W, 3) uint8 RGB at the policy's size, low-dimensional keys (..., D), finite.
            Leading dimensions are free: (To,), (B, To) or none. Keys that ``spec`` does not name are ignored.

    Returns:
        per key of ``spec``, C-contiguous: images (..., 3, H, W) uint8, low-dimensional keys (..., D) float32.

    Raises:
        SpecError: a key is missing, or has the wrong shape or dtype, or holds a value that is not finite.
    """
    missing = [field.key for field in spec.obs if field.key not in raw]
    if missing:
        raise SpecError(f"observation lacks {missing}; it has {sorted(raw)}")
    return {field.key: _policy_entry(field, np.asarray(raw[field.key])) for field in spec.obs}


def _policy_entry(field: ObsField, value: NDArray[Any]) -> NDArray[Any]:
    if field.kind == "rgb":
        channels, height, width = field.shape
        if value.dtype != np.uint8 or value.shape[-3:] != (height, width, channels):
            raise SpecError(
                f"observation {field.key!r} is {value.dtype} {value.shape}; "
                f"expected uint8 (..., {height}, {width}, {channels})"
            )
        return _channels_first(value)
    if value.shape[-1:] != field.shape or not np.issubdtype(value.dtype, np.number):
        raise SpecError(
            f"observation {field.key!r} is {value.dtype} {value.shape}; expected numbers (..., {field.shape[0]})"
        )
    if not np.isfinite(value).all():
        raise SpecError(f"observation {field.key!r} holds NaN or infinity")
    return np.ascontiguousarray(value, dtype=np.float32)


def _channels_first(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., H, W, C) -> (..., C, H, W) in new memory; OpenCV takes an eighth of NumPy's time for this."""
    import cv2  # imported here, so that a robot's computer can use this package without it

    *leading, height, width, channels = images.shape
    planes = np.empty((*leading, channels, height, width), dtype=np.uint8)
    sources = np.ascontiguousarray(images).reshape(-1, height, width, channels)
    for source, target in zip(sources, planes.reshape(-1, channels, height, width), strict=True):
        cv2.split(source, list(target))
    return planes
