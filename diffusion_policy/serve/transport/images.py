"""Images from the network, decoded by the decoder of recordings; their size is known before any memory is taken."""

from __future__ import annotations

from diffusion_policy import images
from diffusion_policy.serve.transport.protocol import ProtocolError
from diffusion_policy.spec import ImageArray


def decode_observed(
    image: bytes | ImageArray, max_pixels: int, where: str
) -> tuple[ImageArray, tuple[images.ImageNote, ...]]:
    """An image of a message as RGB (H, W, 3) uint8, and what is odd about it; raw frames pass as they are.

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
    """The frame of ``decode_observed`` alone."""
    return decode_observed(image, max_pixels, where)[0]
