"""By which an image in memory is known again, as it came: encoded, or decoded."""

from __future__ import annotations

import numpy as np

from diffusion_policy.spec import ImageArray
from diffusion_policy.storage import content_key


def image_key(image: bytes | ImageArray) -> bytes:
    """(16,) the same for the same encoded bytes, or for the same frame (H, W, 3); frames of other shapes differ."""
    if isinstance(image, bytes):
        return content_key(image)
    return content_key(np.ascontiguousarray(image).data, kind=repr(image.shape).encode())
