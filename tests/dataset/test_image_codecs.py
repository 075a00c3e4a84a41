"""Packing of frames: exact where required, close where promised, in both formats."""

import json
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import zarr
from trajectory_factory import draw_frame

from diffusion_policy.dataset.image_codecs import LEVELS, CodecError, ImageChunkCodec, image_codec
from diffusion_policy.dataset.replay_buffer import create_array, image_layout

FRAMES = np.stack([draw_frame(i, 4, (64, 36))[..., ::-1] for i in range(4)])


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", LEVELS)
def test_frames_come_back(tmp_path: Path, name: str, zarr_format: int) -> None:
    codec = image_codec(name)
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    create_array(group, "image", image_layout(64, 36, codec), len(FRAMES))[:] = FRAMES
    read = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")["image"][:]
    if codec.lossless:
        np.testing.assert_array_equal(read, FRAMES)
    else:
        assert cv2.PSNR(read, FRAMES) > 30


@pytest.mark.parametrize("name", ["jpeg2k", "jpeg", "jpegxl"])
def test_a_higher_level_is_closer(tmp_path: Path, name: str) -> None:
    agreement = []
    for level in (30, 60, 90):
        group = zarr.open_group(str(tmp_path / f"{level}.zarr"), mode="w", zarr_format=2)
        array = create_array(group, "image", image_layout(64, 36, image_codec(name, level)), len(FRAMES))
        array[:] = FRAMES
        agreement.append(cv2.PSNR(array[:], FRAMES))
    assert agreement == sorted(agreement)
    assert agreement[0] < agreement[-1]


# Older releases of imagecodecs accept only these arguments, and refuse every newer name, null or not.
WRITTEN = {
    "jpeg2k": {"id": "imagecodecs_jpeg2k", "level": 50, "numthreads": 1},
    "jpeg": {"id": "imagecodecs_jpeg", "level": 95},
    "jpegxl": {"id": "imagecodecs_jpegxl", "level": 90, "lossless": False, "numthreads": 1},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_only_arguments_that_say_something_are_written(tmp_path: Path, name: str) -> None:
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    create_array(group, "image", image_layout(64, 36, image_codec(name)), len(FRAMES))[:] = FRAMES
    metadata = tmp_path / "a.zarr" / "image" / ".zarray"
    assert json.loads(metadata.read_text())["compressor"] == WRITTEN[name]
    again = zarr.open_group(str(tmp_path / "a.zarr"), mode="r+")["image"]
    again.resize((len(FRAMES) + 1, *FRAMES.shape[1:]))  # metadata is rewritten
    assert json.loads(metadata.read_text())["compressor"] == WRITTEN[name]
    assert cv2.PSNR(again[: len(FRAMES)], FRAMES) > 30


def test_refuses_what_does_not_exist() -> None:
    with pytest.raises(CodecError, match="no codec 'webp'; there are blosc, none"):
        image_codec("webp")
    with pytest.raises(CodecError, match="codec 'blosc' has no level 10; expected 0 to 9"):
        image_codec("blosc", 10)
    with pytest.raises(CodecError, match="has no configuration"):
        ImageChunkCodec.from_dict({"name": ImageChunkCodec.NAME})


READ_BY_ZARR_2 = """
import sys, numpy, zarr
from imagecodecs.numcodecs import register_codecs
register_codecs()
assert zarr.__version__.startswith("2."), zarr.__version__
numpy.save(sys.argv[2], zarr.open(sys.argv[1], mode="r")["data/image"][:])
"""


# jpeg does not open there, see docs/data.md.
@pytest.mark.parametrize("name", [name for name in LEVELS if name != "jpeg"])
def test_zarr_2_reads_the_frames_that_we_read(name: str, tmp_path: Path) -> None:
    python = os.environ.get("ZARR2_PYTHON")
    if not python:
        pytest.skip("ZARR2_PYTHON names no interpreter (one with zarr<3 and imagecodecs, of another environment)")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    array = create_array(group.create_group("data"), "image", image_layout(64, 36, image_codec(name)), len(FRAMES))
    array[:] = FRAMES
    words = [python, "-c", READ_BY_ZARR_2, str(tmp_path / "a.zarr"), str(tmp_path / "read.npy")]
    output = subprocess.run(words, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr[-2000:]
    read = np.load(tmp_path / "read.npy")
    if image_codec(name).lossless:
        np.testing.assert_array_equal(read, FRAMES)
    else:
        assert cv2.PSNR(read, array[:]) > 45, "another release of the decoder may give other last bits"
