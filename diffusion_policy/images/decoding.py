"""Decodes one image, with notes on its irregularities, and resizes frames."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import cv2
import numpy as np
import simplejpeg

from diffusion_policy.images import jpeg, png
from diffusion_policy.images.errors import ImageError
from diffusion_policy.images.jpeg import JpegHeader
from diffusion_policy.images.png import PngHeader
from diffusion_policy.images.stray_bytes import without_stray_bytes
from diffusion_policy.spec import ImageArray

# Largest picture that is decoded unless the caller says otherwise: an 8K frame has 33 million pixels.
MAX_PIXELS = 100_000_000
# Decoded pixels per output pixel and side that suffice for any picture (57 dB, as measured); and the fewest, which
# halve the decoding again and suffice for pictures without much fine texture.
SAFE_PIXELS, FEWEST_PIXELS = 2.0, 1.5
# Factors by which a JPEG can be reduced in decoding; odd eighths lack fast code in libjpeg-turbo and cost more.
_REDUCTIONS = (8, 4, 2)
_FOUR_COLORS = 4
_UPRIGHT = 1
# Other files found in place of pictures, by their first bytes.
_OTHER_KINDS = (
    (b"RIFF", "a WebP or other RIFF file"),
    (b"BM", "a BMP"),
    (b"GIF8", "a GIF"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"\0\0\0\x0cjP", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cJXL", "a JPEG XL"),
    (b"v/1\x01", "an OpenEXR"),
    (b"%PDF", "a PDF"),
    (b"version https://git-lfs", "a git-lfs pointer, not the picture: run git lfs pull"),
    (b"<", "an HTML or XML page"),
)


class ImageNote(StrEnum):
    """Irregularities of an image that has all of its pixels."""

    TRAILING_BYTES = "bytes after the end marker"
    STRAY_BYTES = "stray bytes before a marker"
    NO_END_MARKER = "no end marker"
    STANDARD_TABLES = "no Huffman tables, the standard ones used"
    GRAY = "gray"
    CMYK = "four colors (CMYK)"
    ALPHA = "alpha channel ignored"
    TURNED = "turned as its EXIF orientation says"


@dataclass(frozen=True)
class DecodedImage:
    """An image whose pixels are all there.

    Attributes:
        frame: (H, W, 3) RGB uint8, upright, reduced if requested.
        size: (width, height) of the upright picture as it was encoded, before any reduction.
        orientation: of EXIF, 1 to 8; 1 is upright. The frame is already rotated.
        notes: what is odd about it, in a fixed order.
    """

    frame: ImageArray
    size: tuple[int, int]
    orientation: int = _UPRIGHT
    notes: tuple[ImageNote, ...] = ()


def decode_image(
    data: bytes,
    where: str,
    *,
    wanted: tuple[int, int] | None = None,
    pixels: float = SAFE_PIXELS,
    max_pixels: int = MAX_PIXELS,
) -> DecodedImage:
    """Decode a JPEG or an 8-bit PNG.

    Args:
        data: the encoded image.
        where: its name, for errors.
        wanted: (width, height) that the frame will be resized to: lets the JPEG decoder reduce it by 2, 4 or 8 first.
            None decodes every pixel.
        pixels: decoded pixels to keep per wanted one and side when reducing.
        max_pixels: the most that are decoded; checked against the header before any memory is allocated.

    Raises:
        ImageError: pixels are missing or damaged, it is of another kind, or larger than `max_pixels`.
    """
    header = jpeg.jpeg_header(data)
    if header is not None:
        _check_size(header.size, max_pixels, where)
        return _decode_jpeg(data, header, where, wanted, pixels)
    png_header = png.png_header(data)
    if png_header is not None:
        _check_size(png_header.size, max_pixels, where)
        return _decode_png(data, png_header, where)
    raise ImageError(f"{where}: {_not_an_image(data)}")


def decode_jpeg(data: bytes, where: str) -> ImageArray:
    """The frame (H, W, 3) of `decode_image`, without its notes."""
    return decode_image(data, where).frame


def image_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of the upright picture, from the header of a JPEG or PNG; None if it is neither."""
    header = jpeg.jpeg_header(data)
    if header is not None:
        return header.upright_size
    png_header = png.png_header(data)
    return None if png_header is None else png_header.size


def mime_suffix(data: bytes) -> str:
    """File name suffix of an encoded image that was accepted: ".png" or ".jpg"."""
    return ".png" if data.startswith(png.SIGNATURE) else ".jpg"


def resize_frame(frame: ImageArray, width: int, height: int) -> ImageArray:
    """Resize one (H, W, 3) frame by area interpolation: the one resize of converter and server."""
    if frame.shape[:2] == (height, width):
        return frame
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _check_size(size: tuple[int, int], max_pixels: int, where: str) -> None:
    width, height = size
    if width == 0 or height == 0:
        raise ImageError(f"{where}: do not decode: its header says {width}x{height} pixels")
    if width * height > max_pixels:
        raise ImageError(f"{where}: {width}x{height} pixels; at most {max_pixels} are read", "oversized")


def _not_an_image(data: bytes) -> str:
    count = f"{len(data)} bytes that do not decode"
    if data.startswith((jpeg.START, png.SIGNATURE)):
        kind = "JPEG" if data.startswith(jpeg.START) else "PNG"
        return f"{count}: the {kind} is damaged or truncated before its pixels"
    kind = next((name for magic, name in _OTHER_KINDS if data.startswith(magic)), "")
    return f"{count}: {kind or 'neither a JPEG nor a PNG'}; expected a JPEG or an 8-bit PNG"


# ---- JPEG ----


def _decode_jpeg(
    data: bytes, header: JpegHeader, where: str, wanted: tuple[int, int] | None, pixels: float
) -> DecodedImage:
    n_colors = len(header.components)
    if header.precision != 8 or n_colors not in (1, 3, _FOUR_COLORS):
        raise ImageError(
            f"{where}: a JPEG of {n_colors} channels of {header.precision} bits; expected 3 (or 1, gray) of 8 bits"
        )
    if not header.scan:
        raise ImageError(_why_not(data, not data.endswith(jpeg.END), "it ends before its pixels", where))
    end = jpeg.end_of_picture(data, header.scan_at)
    picture = data + jpeg.END if end is None else data[:end]
    notes = {
        ImageNote.TRAILING_BYTES: end is not None and end < len(data),
        ImageNote.NO_END_MARKER: end is None,
        ImageNote.STANDARD_TABLES: not header.huffman,
        ImageNote.GRAY: n_colors == 1,
        ImageNote.CMYK: n_colors == _FOUR_COLORS,
        ImageNote.TURNED: header.orientation != _UPRIGHT,
    }
    reduction = _reduction(header.upright_size, wanted, pixels)
    frame, warning = _pixels(picture, header, reduction)
    if frame is None and end is not None:
        cleaned = without_stray_bytes(picture, header)
        frame = None if cleaned is None else _pixels(cleaned, header, reduction)[0]
        notes[ImageNote.STRAY_BYTES] = True
    if frame is None:
        raise ImageError(_why_not(data, end is None, warning, where))
    return DecodedImage(_upright(frame, header.orientation), header.upright_size, header.orientation, _noted(notes))


def _reduction(size: tuple[int, int], wanted: tuple[int, int] | None, pixels: float) -> int:
    if wanted is None:
        return 1
    least = max(wanted[0] / size[0], wanted[1] / size[1]) * pixels
    return next((n for n in _REDUCTIONS if n * least <= 1), 1)


def _pixels(data: bytes, header: JpegHeader, reduction: int) -> tuple[ImageArray | None, str]:
    """The unrotated pixels, at 1 / reduction of the size; or None and the first warning of libjpeg.

    OpenCV silently fills damaged parts with gray, so it is used only for four-color images, after libjpeg.
    """
    has_four_colors = len(header.components) == _FOUR_COLORS
    width, height = (-(-side // reduction) for side in header.size)
    try:
        decoded: ImageArray = simplejpeg.decode_jpeg(
            data, "CMYK" if has_four_colors else "RGB", min_width=width, min_height=height
        )
    except ValueError as error:
        return None, str(error)
    return (_by_opencv(data), "OpenCV does not read it") if has_four_colors else (decoded, "")


def _by_opencv(data: bytes) -> ImageArray | None:
    """The frame as stored, without EXIF rotation; None if OpenCV cannot read it, or considers it too wide."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        bgr = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:
        return None
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def _why_not(data: bytes, is_cut: bool, reason: str, where: str) -> str:
    if is_cut:
        return f"{where}: the JPEG is cut off after {len(data)} bytes"
    return f"{where}: {len(data)} bytes that do not decode: a damaged JPEG ({reason.splitlines()[0]})"


def _upright(frame: ImageArray, orientation: int) -> ImageArray:
    """The frame rotated according to EXIF (CIPA DC-008, tag 0x0112)."""
    if orientation >= 5:
        frame = frame.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        frame = frame[:, ::-1]
    if orientation in (3, 4, 7, 8):
        frame = frame[::-1]
    return np.ascontiguousarray(frame)


# ---- PNG ----


def _decode_png(data: bytes, header: PngHeader, where: str) -> DecodedImage:
    if header.depth == 16:
        kind = "gray, as depth cameras write" if header.is_gray else "color"
        raise ImageError(f"{where}: a 16-bit PNG ({kind}); expected 8-bit color")
    checked = png.check_png(data, header, where)
    decoded = _by_opencv(checked.data)
    if decoded is None:
        raise ImageError(f"{where}: {len(data)} bytes that do not decode: a damaged PNG")
    frame = _upright(decoded, checked.orientation)
    notes = {
        ImageNote.TRAILING_BYTES: checked.n_trailing > 0 and checked.is_ended,
        ImageNote.NO_END_MARKER: not checked.is_ended,
        ImageNote.GRAY: header.is_gray,
        ImageNote.ALPHA: checked.has_alpha,
        ImageNote.TURNED: checked.orientation != _UPRIGHT,
    }
    return DecodedImage(frame, (frame.shape[1], frame.shape[0]), checked.orientation, _noted(notes))


def _noted(notes: dict[ImageNote, bool]) -> tuple[ImageNote, ...]:
    return tuple(note for note in ImageNote if notes.get(note))
