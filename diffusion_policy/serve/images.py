"""Images from the network: size from the header first, then whole or not at all.

A decoder fills what is missing of a cut JPEG with grey and calls it a warning; here it is an error. Only JPEG and PNG
are read, because only of these the size is known before any memory is taken.
"""

from __future__ import annotations

import struct

from diffusion_policy.convert.decoding import jpeg_size
from diffusion_policy.serve.protocol import ProtocolError
from diffusion_policy.spec import ImageArray, SpecError, decode_jpeg

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_END = {_JPEG: b"\xff\xd9", _PNG: b"IEND"}


def decode_image(image: bytes | ImageArray, max_pixels: int, where: str) -> ImageArray:
    """An image of a message as RGB (H, W, 3) uint8; raw frames pass as they are.

    Raises:
        ProtocolError: oversized, or bad_image.
    """
    if not isinstance(image, bytes):
        return image
    kind = _JPEG if image.startswith(_JPEG) else _PNG if image.startswith(_PNG) else None
    size = None if kind is None else jpeg_size(image) if kind is _JPEG else _png_size(image)
    if kind is None or size is None:
        raise ProtocolError("bad_image", f"{where}: {len(image)} bytes that are no JPEG or PNG")
    if size[0] * size[1] > max_pixels:
        raise ProtocolError("oversized", f"{where}: {size[0]}x{size[1]} pixels; at most {max_pixels} are read")
    if _END[kind] not in image[-64:]:
        raise ProtocolError("bad_image", f"{where}: cut off after {len(image)} bytes")
    try:
        return decode_jpeg(image, where)
    except SpecError as error:
        raise ProtocolError("bad_image", str(error)) from error


def _png_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) from the first chunk, IHDR, of a PNG."""
    return struct.unpack(">II", data[16:24]) if data[12:16] == b"IHDR" and len(data) >= 24 else None


def mime_suffix(image: bytes) -> str:
    """File name suffix of an encoded image."""
    return ".png" if image.startswith(_PNG) else ".jpg"
