"""Images of messages, decoded by the decoder of recordings; their size is checked before memory is allocated."""

from __future__ import annotations

from diffusion_policy import images
from diffusion_policy.serve.transport.protocol import ProtocolError
from diffusion_policy.spec import ImageArray


def decode_observed(
    image: bytes | ImageArray, max_pixels: int, where: str
) -> tuple[ImageArray, tuple[images.ImageNote, ...]]:
    """Decodes an image to RGB (H, W, 3) uint8, and returns notes about it; raw frames are returned as they are.

    Raises:
        ProtocolError: oversized, or bad_image.
    """
    if not isinstance(image, bytes):
        return image, ()
    try:
        decoded = images.decode_image(image, where, max_pixels=max_pixels)
    except images.ImageError as error:
        raise ProtocolError(error.code, str(error)) from error
    return decoded.frame, decoded.notes


def decode_image(image: bytes | ImageArray, max_pixels: int, where: str) -> ImageArray:
    """Returns only the frame of ``decode_observed``."""
    return decode_observed(image, max_pixels, where)[0]
