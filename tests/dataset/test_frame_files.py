"""Direct access to packed frame files gives the same results as zarr, in both directions."""

from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from trajectory_factory import draw_frame

from diffusion_policy.dataset.frame_files import FrameFiles
from diffusion_policy.dataset.image_codecs import LEVELS, image_codec
from diffusion_policy.dataset.replay_buffer import DatasetError, create_array, image_layout

FRAMES = np.stack([draw_frame(i, 6, (64, 36))[..., ::-1] for i in range(6)])


def make(path: Path, zarr_format: int = 2, codec: str = "blosc", shard: int | None = None) -> zarr.Array:
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    return create_array(group, "image", image_layout(64, 36, image_codec(codec), shard), len(FRAMES))


@pytest.mark.parametrize("codec", LEVELS)
@pytest.mark.parametrize(("zarr_format", "shard"), [(2, None), (3, None), (3, 4)])
def test_each_way_reads_what_the_other_wrote(tmp_path: Path, codec: str, zarr_format: int, shard: int | None) -> None:
    array = make(tmp_path / "short.zarr", zarr_format, codec, shard)
    FrameFiles(array).write(0, FRAMES[:4])
    FrameFiles(array).write(4, FRAMES[4:])
    plain = make(tmp_path / "plain.zarr", zarr_format, codec, shard)
    plain[:] = FRAMES
    np.testing.assert_array_equal(array[:], plain[:])
    np.testing.assert_array_equal(FrameFiles(plain).read(1, 5), plain[1:5])
    assert array.nchunks_initialized == plain.nchunks_initialized


def test_a_frame_whose_file_is_not_there_is_not_made_up(tmp_path: Path) -> None:
    """It used to read as black, as in zarr, so that a lost file looked like a black frame."""
    array = make(tmp_path / "a.zarr")
    FrameFiles(array).write(0, FRAMES[:2])
    np.testing.assert_array_equal(FrameFiles(array).read(0, 2), FRAMES[:2])
    with pytest.raises(DatasetError, match=r"a\.zarr/image: the file of row 2 does not exist"):
        FrameFiles(array).read(0, 3)


@pytest.mark.parametrize("options", [{"order": "F"}, {"filters": [numcodecs.Delta("u1")]}, {"chunks": (4, 36, 64, 3)}])
def test_what_is_laid_out_otherwise_is_left_to_zarr(tmp_path: Path, options: dict) -> None:
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    array = group.create_array("image", data=FRAMES, **{"chunks": (1, 36, 64, 3), **options})
    np.testing.assert_array_equal(FrameFiles(array).read(2, 6), FRAMES[2:6])
    FrameFiles(array).write(2, FRAMES[:2])
    np.testing.assert_array_equal(array[2:4], FRAMES[:2])
