"""Encoded images -> RGB frames: one decoder and one set of rules for recordings (converter) and observations (server).

An image is accepted if all of its pixels are there, and refused if any is missing or damaged. Anything else odd (bytes
after the end marker, stray bytes before it, Huffman tables that a webcam left out) becomes a note of the result. What
an 8-bit color camera does not write (16-bit depth, an animation, another format) is refused by name.
"""

from diffusion_policy.images.decoding import (
    FEWEST_PIXELS,
    MAX_PIXELS,
    SAFE_PIXELS,
    DecodedImage,
    ImageNote,
    decode_image,
    decode_jpeg,
    image_size,
    mime_suffix,
    resize_frame,
)
from diffusion_policy.images.errors import ImageError
from diffusion_policy.images.keys import image_key
from diffusion_policy.images.mixture import FrameKind, kinds_of, mixture

__all__ = [
    "FEWEST_PIXELS",
    "MAX_PIXELS",
    "SAFE_PIXELS",
    "DecodedImage",
    "FrameKind",
    "ImageError",
    "ImageNote",
    "decode_image",
    "decode_jpeg",
    "image_key",
    "image_size",
    "kinds_of",
    "mime_suffix",
    "mixture",
    "resize_frame",
]
