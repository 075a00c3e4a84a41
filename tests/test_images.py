"""One judgment on encoded images: complete pixels are accepted whatever surrounds them, damaged ones are not.

Every case goes through the decoder, through the converter's reader and through the server's, which must agree.
"""

import io
import random
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from diffusion_policy.convert.decoding import decode_frame
from diffusion_policy.images import ImageError, ImageNote, decode_image, image_size
from diffusion_policy.serve.transport.images import decode_image as decode_observed
from diffusion_policy.serve.transport.protocol import ProtocolError
from diffusion_policy.trajectory import TrajectoryError

WIDTH, HEIGHT = 96, 64
N = ImageNote


def picture() -> np.ndarray:
    """BGR with texture, so that a wrong block shows."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0, 180, WIDTH), np.linspace(0, 180, HEIGHT))
    smooth = np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8)
    return cv2.add(smooth, rng.integers(0, 40, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def encoded(suffix: str = ".jpg", image: np.ndarray | None = None, *flags: int) -> bytes:
    return cv2.imencode(suffix, picture() if image is None else image, flags)[1].tobytes()


def by_pillow(mode: str, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture()[..., ::-1]).convert(mode).save(stream, format=kind)
    return stream.getvalue()


JPEG, PNG = encoded(), encoded(".png")
GRAY = encoded(".jpg", picture()[..., 0])
SAMPLINGS = {"4:1:1": 0x411111, "4:2:0": 0x221111, "4:2:2": 0x211111, "4:4:4": 0x111111}
SAMPLED = {name: encoded(".jpg", None, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, flag) for name, flag in SAMPLINGS.items()}
RESTARTED = encoded(".jpg", None, cv2.IMWRITE_JPEG_RST_INTERVAL, 5)
PROGRESSIVE = encoded(".jpg", None, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
IEND = b"\0\0\0\0IEND\xaeB`\x82"


def before_end(data: bytes, stray: bytes) -> bytes:
    return data[:-2] + stray + data[-2:]


def before_restarts(data: bytes, stray: bytes) -> bytes:
    return re.sub(rb"\xff[\xd0-\xd7\xd9]", lambda marker: stray + marker.group(), data)


def without_huffman_tables(data: bytes) -> bytes:
    kept, at = data[:2], 2
    while data[at + 1] != 0xDA:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        kept += b"" if data[at + 1] == 0xC4 else data[at : at + length]
        at += length
    return kept + data[at:]


def tiff(orientation: int, order: str = "<") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def turned_jpeg(orientation: int, order: str = "<", data: bytes = JPEG) -> bytes:
    segment = b"Exif\0\0" + tiff(orientation, order)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def with_chunk(kind: bytes, payload: bytes, data: bytes = PNG) -> bytes:
    return data[:33] + chunk(kind, payload) + data[33:]


def png_of(rows: bytes, n_parts: int = 1, lost: int | None = None) -> bytes:
    """An RGB PNG of raw rows, its pixels in several chunks of which one may be lost."""
    packed = zlib.compress(rows)
    step = -(-len(packed) // n_parts)
    parts = [chunk(b"IDAT", packed[i * step : (i + 1) * step]) for i in range(n_parts) if i != lost]
    return PNG[:33] + b"".join(parts) + IEND


ROWS = b"".join(b"\0" + row.tobytes() for row in picture()[..., ::-1])
REFERENCE = {True: cv2.imdecode(np.frombuffer(JPEG, np.uint8), 1)[..., ::-1], False: picture()[..., ::-1]}

ACCEPTED: dict[str, tuple[bytes, bytes, set[ImageNote]]] = {
    # name: image, another with the same pixels, as read by OpenCV, notes
    "jpeg": (JPEG, JPEG, set()),
    "png": (PNG, PNG, set()),
    "restart markers": (RESTARTED, RESTARTED, set()),
    "progressive": (PROGRESSIVE, PROGRESSIVE, set()),
    **{f"padded, {n} zeros": (JPEG + bytes(n), JPEG, {N.TRAILING_BYTES}) for n in (1, 63, 64, 512, 100_000)},
    "padded with the rest of an older frame": (JPEG + JPEG[700:], JPEG, {N.TRAILING_BYTES}),
    "padded gray": (GRAY + bytes(512), GRAY, {N.GRAY, N.TRAILING_BYTES}),
    "padded progressive": (PROGRESSIVE + bytes(512), PROGRESSIVE, {N.TRAILING_BYTES}),
    "padded png": (PNG + bytes(512), PNG, {N.TRAILING_BYTES}),
    "fill bytes before the end marker": (before_end(JPEG, b"\xff" * 40), JPEG, set()),
    **{
        f"{len(stray)} stray bytes {stray[0]:02x}, {name}": (before_end(data, stray), data, {N.STRAY_BYTES})
        for name, data in SAMPLED.items()
        for stray in (b"\x12\x34\x56" * 4, b"\xaa" * 20, bytes([7, 1] * 30), bytes(400))
    },
    "stray bytes before every restart": (before_restarts(RESTARTED, b"\x12\x34" * 10), RESTARTED, {N.STRAY_BYTES}),
    "no Huffman tables": (without_huffman_tables(JPEG), JPEG, {N.STANDARD_TABLES}),
    "no Huffman tables, padded": (
        without_huffman_tables(JPEG) + bytes(9),
        JPEG,
        {N.STANDARD_TABLES, N.TRAILING_BYTES},
    ),
    "no Huffman tables, stray bytes": (
        before_end(without_huffman_tables(JPEG), b"\x12\x34" * 9),
        JPEG,
        {N.STANDARD_TABLES, N.STRAY_BYTES},
    ),
    "no end marker": (JPEG[:-2], JPEG, {N.NO_END_MARKER}),
    "half an end marker": (JPEG[:-1], JPEG, {N.NO_END_MARKER}),
    "png without its end": (PNG[:-12], PNG, {N.NO_END_MARKER}),
    "png with half an end": (PNG[:-5], PNG, {N.NO_END_MARKER}),
    "gray": (GRAY, GRAY, {N.GRAY}),
    "gray png": (by_pillow("L", "PNG"), by_pillow("L", "PNG"), {N.GRAY}),
    "gray with alpha": (by_pillow("LA", "PNG"), by_pillow("LA", "PNG"), {N.GRAY, N.ALPHA}),
    "one bit": (by_pillow("1", "PNG"), by_pillow("1", "PNG"), {N.GRAY}),
    "palette": (by_pillow("P", "PNG"), by_pillow("P", "PNG"), set()),
    "alpha": (by_pillow("RGBA", "PNG"), by_pillow("RGB", "PNG"), {N.ALPHA}),
    "a transparent color": (with_chunk(b"tRNS", bytes(6)), PNG, {N.ALPHA}),
    "four colors": (by_pillow("CMYK", "JPEG"), by_pillow("CMYK", "JPEG"), {N.CMYK}),
    **{
        f"EXIF {order}{n}": (turned_jpeg(n, order), turned_jpeg(n, order), {N.TURNED})
        for n in range(2, 9)
        for order in "<>"
    },
    **{f"EXIF {n}": (turned_jpeg(n), JPEG, set()) for n in (0, 1, 9, 300)},
    "EXIF cut short": (JPEG[:2] + b"\xff\xe1\0\x0aExif\0\0II" + JPEG[2:], JPEG, set()),
    "png turned": (with_chunk(b"eXIf", tiff(6)), with_chunk(b"eXIf", tiff(6)), {N.TURNED}),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_whole_pixels_are_accepted_and_noted(name: str) -> None:
    data, same, notes = ACCEPTED[name]
    found = decode_image(data, "here")
    expected = cv2.imdecode(np.frombuffer(same, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(found.frame, expected)
    assert found.frame.flags.c_contiguous
    assert found.size == (expected.shape[1], expected.shape[0]) == (found.frame.shape[1], found.frame.shape[0])
    assert set(found.notes) == notes
    np.testing.assert_array_equal(decode_frame(data, "here", *found.size)[0], found.frame)
    np.testing.assert_array_equal(decode_observed(data, 10**7, "here"), found.frame)


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def zeroed(data: bytes, n: int = 512) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(n) + data[middle + n :]


def lost(data: bytes, n: int = 700) -> bytes:
    middle = len(data) // 2
    return data[:middle] + data[middle + n :]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def with_byte(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


def sof(data: bytes) -> int:
    return next(data.index(bytes([0xFF, code])) for code in (0xC0, 0xC2) if bytes([0xFF, code]) in data)


def with_height(data: bytes, height: int) -> bytes:
    at = sof(data) + 5
    return data[:at] + struct.pack(">H", height) + data[at + 2 :]


def flat_below(sampling: int) -> bytes:
    """16 more rows, which take few bytes and are left over with the others' height, like displaced blocks."""
    image = cv2.copyMakeBorder(picture(), 0, 16, 0, 0, cv2.BORDER_CONSTANT, value=(90, 90, 90))
    return encoded(".jpg", image, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling)


JPEGS = {
    "baseline": JPEG,
    "gray": GRAY,
    "restarts": RESTARTED,
    "progressive": PROGRESSIVE,
    "turned": turned_jpeg(6),
    "4:1:1": SAMPLED["4:1:1"],
    "four colors": by_pillow("CMYK", "JPEG"),
    "without tables": without_huffman_tables(JPEG),
}
DEPTH = (picture()[..., 0].astype(np.uint16) * 10) + 400
REFUSED: dict[str, tuple[bytes, str]] = {
    **{f"jpeg cut at {share}": (cut(JPEG, share), "is cut off after") for share in (0.05, 0.3, 0.5, 0.9, 0.99)},
    **{f"jpeg cut at {share}, ended": (cut(JPEG, share) + b"\xff\xd9", "a damaged JPEG") for share in (0.5, 0.9, 0.99)},
    "jpeg cut, zeros up to its length": (cut(JPEG, 0.6).ljust(len(JPEG), b"\0"), "is cut off after"),
    **{
        f"{name} {kind}": (harm(data), "a damaged JPEG")
        for name, data in JPEGS.items()
        for kind, harm in {"zeroed": zeroed, "lost": lost}.items()
    },
    "displaced blocks": (before_end(JPEG, JPEG[-120:-2]), "a damaged JPEG"),
    "more blocks than fit": (with_height(JPEG, 48), "a damaged JPEG"),
    **{f"few blocks more than fit, {name}": (with_height(flat_below(flag), HEIGHT), "a damaged JPEG")
       for name, flag in SAMPLINGS.items()},
    "12 bits a sample": (with_byte(JPEG, sof(JPEG) + 4, 12), "of 12 bits; expected"),
    "no height": (with_height(JPEG, 0), "says 96x0 pixels"),
    "png half": (cut(PNG, 0.5), "the PNG is cut off"),
    "png cut in its last block": (PNG[:-30], "the PNG is cut off"),
    "png cut and ended": (PNG[:-2000] + IEND, "a damaged PNG|the PNG is cut off"),
    "png flipped": (flipped(PNG, len(PNG) // 2), "IDAT chunk .* fails its CRC-32"),
    "png with a chunk lost": (png_of(ROWS, 5, lost=4), "a damaged PNG: its pixels unpack"),
    "png with a chunk lost inside": (png_of(ROWS, 5, lost=2), "a damaged PNG: its pixels do not unpack"),
    "png with rows missing": (png_of(ROWS[: len(ROWS) // 2]), "its header implies"),
    "png with rows too many": (png_of(ROWS * 2), "its header implies"),
    "png without pixels": (PNG[:33] + IEND, "its header implies"),
    "png with a damaged header": (flipped(PNG, 19), "IHDR chunk .* fails its CRC-32"),
    "animation": (with_chunk(b"acTL", bytes(8)), "an animated PNG"),
    "depth": (encoded(".png", DEPTH), r"a 16-bit PNG \(gray, as depth cameras write\); expected 8-bit color"),
    "16-bit color": (encoded(".png", picture().astype(np.uint16) * 256), "a 16-bit PNG"),
    "webp": (encoded(".webp"), "WebP.*; expected a JPEG or an 8-bit PNG"),
    "bmp": (encoded(".bmp"), "a BMP"),
    "tiff": (encoded(".tiff"), "a TIFF"),
    "jpeg 2000": (encoded(".jp2"), "a JPEG 2000"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs pointer"),
    "html": (b"<!DOCTYPE html><html>", "an HTML"),
    "text": (b"no image", "8 bytes that do not decode: neither a JPEG nor a PNG"),
    "empty": (b"", "0 bytes that do not decode"),
    "markers only": (b"\xff\xd8\xff\xd9", "do not decode"),
    "signature only": (PNG[:8], "do not decode"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_missing_or_damaged_pixels_and_other_kinds_are_refused(name: str) -> None:
    data, message = REFUSED[name]
    with pytest.raises(ImageError, match=f"here: .*(?:{message})"):
        decode_image(data, "here")
    with pytest.raises(TrajectoryError, match=message):
        decode_frame(data, "here", 48, 32, "fast")
    with pytest.raises(ProtocolError, match=message) as caught:
        decode_observed(data, 10**8, "here")
    assert caught.value.code == "bad_image"


@pytest.mark.parametrize("data", [JPEG, PNG, turned_jpeg(6)])
def test_the_size_is_judged_before_any_memory_is_taken(data: bytes) -> None:
    width, height = image_size(data) or (0, 0)
    with pytest.raises(ImageError, match="at most 100 are read") as caught:
        decode_image(data, "here", max_pixels=100)
    assert caught.value.code == "oversized"
    assert decode_image(data, "here", max_pixels=width * height).size == (width, height)


@pytest.mark.parametrize("name", [name for name in ACCEPTED if not name.startswith("png")])
def test_a_reduced_frame_is_the_whole_one_made_small(name: str) -> None:
    data = ACCEPTED[name][0]
    whole = decode_image(data, "here")
    reduced = decode_image(data, "here", wanted=(12, 8), pixels=1.0)
    assert reduced.size == whole.size
    assert reduced.notes == whole.notes
    height, width = reduced.frame.shape[:2]
    small = cv2.resize(whole.frame, (width, height), interpolation=cv2.INTER_AREA)
    assert cv2.PSNR(small, reduced.frame) > 25


@pytest.mark.parametrize("seed", range(60))
def test_damage_never_passes_for_stray_bytes(seed: int) -> None:
    """Noise, losses and copies anywhere in the pixels: refused, or libjpeg saw nothing; never "only stray bytes"."""
    rng = np.random.default_rng(seed)
    data = bytearray(list(SAMPLED.values())[seed % 4] if seed % 5 else RESTARTED)
    at, n = int(rng.integers(700, len(data) - 600)), int(rng.choice([1, 4, 16, 64, 500]))
    if seed % 3 == 0:
        data[at : at + n] = rng.bytes(n)
    elif seed % 3 == 1:
        del data[at : at + n]
    else:
        data[at:at] = data[at - n : at]
    try:
        found = decode_image(bytes(data), "here")
    except ImageError:
        return
    assert N.STRAY_BYTES not in found.notes


def mutated(rng: random.Random, data: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(made))
        match rng.randrange(4):
            case 0:
                made[at] = rng.randrange(256)
            case 1:
                del made[at : at + rng.randrange(1, 40)]
            case 2:
                made[at:at] = rng.randbytes(rng.randrange(1, 40))
            case _:
                made = made[: at + 1]
        if not made:
            break
    return bytes(made)


def test_mutated_images_end_in_a_frame_or_the_one_error() -> None:
    rng = random.Random(0)
    small = picture()[:8, :16]
    flags: list[list[int]] = [[], [cv2.IMWRITE_JPEG_RST_INTERVAL, 1], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]]
    bases = [encoded(".png", small), turned_jpeg(6), by_pillow("CMYK", "JPEG")]
    bases += [encoded(".jpg", image, *more) for image in (small, small[..., 0]) for more in flags]
    refused = 0
    for _ in range(1500):
        data = mutated(rng, rng.choice(bases))
        try:
            frame = decode_image(data, "here", max_pixels=10**6).frame
        except ImageError:
            refused += 1
        else:
            assert frame.dtype == np.uint8
            assert frame.ndim == 3
    assert refused > 500


def test_a_png_wider_than_opencv_takes_is_refused() -> None:
    width = 2**20 + 1
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0))
    data = PNG[:8] + header + chunk(b"IDAT", zlib.compress(bytes(width + 1))) + IEND
    with pytest.raises(ImageError, match="a damaged PNG"):
        decode_image(data, "here")


def test_old_import_names_stay() -> None:
    from diffusion_policy.spec import decode_jpeg, resize_frame

    np.testing.assert_array_equal(decode_jpeg(JPEG, "here"), decode_image(JPEG, "here").frame)
    assert resize_frame(decode_jpeg(JPEG, "here"), 12, 8).shape == (8, 12, 3)
