"""Decoding and resizing of frames: exact, and fast within what it promises."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from trajectory_factory import draw_frame, write_trajectory

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.convert.decoding import IDENTICAL_DB, Decode, jpeg_size, psnr, read_frame
from diffusion_policy.trajectory import TrajectoryError


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    """A 960x540 frame with texture."""
    image = draw_frame(3, 10, (960, 540))
    texture = np.random.default_rng(0).integers(0, 30, (270, 480, 3), dtype=np.uint8)
    image = cv2.add(image, cv2.resize(texture, (960, 540)))
    file = tmp_path / "frame_0000.jpg"
    cv2.imwrite(str(file), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return file


def test_exact_is_decode_then_area(frame: Path) -> None:
    image, size = read_frame(frame, 160, 90)
    expected = cv2.resize(cv2.imread(str(frame)), (160, 90), interpolation=cv2.INTER_AREA)[..., ::-1]
    np.testing.assert_array_equal(image, expected)
    assert size == (960, 540)


@pytest.mark.parametrize("resolution", [(240, 135), (160, 90), (96, 96), (60, 34)])
def test_fast_is_close(frame: Path, resolution: tuple[int, int]) -> None:
    exact, _ = read_frame(frame, *resolution)
    fast, size = read_frame(frame, *resolution, "fast")
    assert size == (960, 540)
    assert psnr(exact, fast) > 45
    assert not np.array_equal(exact, fast)


def test_fast_is_exact_where_there_is_nothing_to_spare(frame: Path, tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_frame(frame, 640, 360, "fast")[0], read_frame(frame, 640, 360)[0])
    cv2.imwrite(str(tmp_path / "frame_0001.png"), cv2.imread(str(frame)))
    lossless = tmp_path / "frame_0001.png"
    np.testing.assert_array_equal(read_frame(lossless, 96, 54, "fast")[0], read_frame(lossless, 96, 54)[0])


def test_size_comes_from_the_header() -> None:
    for size in ((64, 36), (1920, 1080)):
        for flags in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]):
            data = cv2.imencode(".jpg", np.zeros((size[1], size[0], 3), np.uint8), flags)[1].tobytes()
            assert jpeg_size(data) == size
    assert jpeg_size(b"") is None
    assert jpeg_size(b"\x89PNG\r\n\x1a\n") is None
    assert jpeg_size(b"\xff\xd8\xff\xe0\x00\x04") is None


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_damaged_files_are_refused(frame: Path, decode: str) -> None:
    data = frame.read_bytes()
    frame.write_bytes(data[:-200])
    with pytest.raises(TrajectoryError, match="the JPEG is cut off"):
        read_frame(frame, 160, 90, decode)  # type: ignore[arg-type]
    frame.write_bytes(data[:400] + b"\xff\xd9")
    with pytest.raises(TrajectoryError, match="do not decode"):
        read_frame(frame, 160, 90, decode)  # type: ignore[arg-type]
    frame.unlink()
    with pytest.raises(TrajectoryError, match="cannot be read"):
        read_frame(frame, 160, 90, decode)  # type: ignore[arg-type]


def damaged(data: bytes, kind: str) -> bytes:
    """A JPEG damaged in its compressed data, as by disks and networks, that still decodes to a picture."""
    middle = len(data) // 2
    harmed = bytearray(data)
    if kind == "zeroed sector":
        harmed[middle : middle + 512] = bytes(512)
    if kind == "lost packet":
        del harmed[middle : middle + 1400]
    if kind == "another file's sector":
        harmed[middle : middle + 512] = np.random.default_rng(0).bytes(512)
    return bytes(harmed)


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("kind", ["zeroed sector", "lost packet", "another file's sector"])
def test_damage_that_opencv_fills_with_gray_is_noticed(frame: Path, kind: str, decode: Decode) -> None:
    data = damaged(frame.read_bytes(), kind)
    assert cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR) is not None
    frame.write_bytes(data)
    with pytest.raises(TrajectoryError, match=r"frame_0000\.jpg: \d+ bytes that do not decode: a damaged JPEG"):
        read_frame(frame, 160, 90, decode)


def with_orientation(data: bytes, orientation: int) -> bytes:
    """A JPEG with an EXIF segment that gives the camera's orientation."""
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00" + bytes([orientation, 0, 0, 0]) + bytes(4)
    segment = b"Exif\x00\x00" + tiff
    return data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]


@pytest.mark.parametrize("kind", ["gray", "progressive", "turned", "png", "4:4:4"])
def test_every_image_reads_as_opencv_reads_it(frame: Path, kind: str) -> None:
    image = cv2.imread(str(frame))
    flags = {"progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], "4:4:4": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]}
    if kind == "gray":
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    data = cv2.imencode(".png" if kind == "png" else ".jpg", image, flags.get(kind, []))[1].tobytes()
    frame.write_bytes(with_orientation(data, 6) if kind == "turned" else data)
    expected = cv2.imread(str(frame))
    assert expected.shape[0] == (960 if kind == "turned" else 540)
    small = cv2.resize(expected, (160, 90), interpolation=cv2.INTER_AREA)[..., ::-1]
    found, size = read_frame(frame, 160, 90)
    np.testing.assert_array_equal(found, small)
    assert size == (expected.shape[1], expected.shape[0])
    assert psnr(read_frame(frame, 160, 90, "fast")[0], found) > 45


def test_what_no_reduction_comes_close_to_is_decoded_whole(tmp_path: Path) -> None:
    """Single-pixel noise at full contrast; the measured 57 dB apply to pictures, not to this."""
    folder = write_trajectory(tmp_path / "in", n_steps=3, size=(960, 540))
    rng = np.random.default_rng(0)
    for file in (folder / "images").iterdir():
        noise = 255 * rng.integers(0, 2, (540, 960, 3), dtype=np.uint8)
        cv2.imwrite(str(file), noise, [cv2.IMWRITE_JPEG_QUALITY, 100])
    settings = ConversionSettings(tmp_path / "in", tmp_path / "out.zarr", (160, 90), decode="fast", workers=1)
    (entry,) = convert(settings).kept
    assert psnr(*(read_frame(file, 160, 90, mode)[0] for mode in ("exact", "fast"))) < 46
    assert entry.psnr_db["image"] == IDENTICAL_DB


def test_the_ledger_says_how_close_fast_is(tmp_path: Path) -> None:
    write_trajectory(tmp_path / "in", n_steps=18, size=(320, 180))
    settings = ConversionSettings(tmp_path / "in", tmp_path / "out.zarr", (80, 45), decode="fast", workers=1)
    (entry,) = convert(settings).kept
    assert 45 < entry.psnr_db["image"] < IDENTICAL_DB


@pytest.mark.parametrize(("contrast", "spares"), [(4, True), (120, False)])
def test_fast_decodes_as_little_as_the_picture_allows(tmp_path: Path, contrast: int, spares: bool) -> None:
    """Fine texture needs more decoded pixels; at a quarter of the size it would be further from exact than promised."""
    folder = write_trajectory(tmp_path / "in", n_steps=3, size=(960, 540))
    noise = np.random.default_rng(0).integers(0, contrast, (540, 960, 3), dtype=np.uint8)
    files = sorted((folder / "images").iterdir())
    for file in files:
        cv2.imwrite(str(file), cv2.add(cv2.imread(str(file)), noise), [cv2.IMWRITE_JPEG_QUALITY, 95])
    settings = ConversionSettings(tmp_path / "in", tmp_path / "out.zarr", (160, 90), decode="fast", workers=1)
    (entry,) = convert(settings).kept
    exact, quick = read_frame(files[0], 160, 90)[0], read_frame(files[0], 160, 90, "fast", 1.5)[0]
    assert (psnr(exact, quick) >= 47) == spares
    assert (entry.psnr_db["image"] == pytest.approx(psnr(exact, quick), abs=0.01)) == spares
    assert entry.psnr_db["image"] > 45
