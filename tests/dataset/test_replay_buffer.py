"""The layout on disk: created, appended to, opened, and refused when damaged."""

from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr

from diffusion_policy.dataset.image_codecs import image_codec
from diffusion_policy.dataset.replay_buffer import (
    ArrayLayout,
    DatasetError,
    ReplayBuffer,
    image_layout,
    low_dim_layout,
)
from diffusion_policy.spec import POSE_GRIPPER

LAYOUT = {"image": image_layout(8, 6), "action": low_dim_layout(POSE_GRIPPER), "timestamp": ArrayLayout((), np.float64)}


def episode(n_steps: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (n_steps, 6, 8, 3), dtype=np.uint8),
        "action": rng.normal(size=(n_steps, 8)).astype(np.float32),
        "timestamp": rng.normal(size=n_steps),
    }


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_append_and_open(tmp_path: Path, zarr_format: int) -> None:
    buffer = ReplayBuffer.create(tmp_path / "a.zarr", LAYOUT, zarr_format=zarr_format)
    parts = [episode(5, 1), episode(1, 2), episode(9, 3)]
    for part in parts:
        buffer.append(part)
    opened = ReplayBuffer.open(tmp_path / "a.zarr")
    assert opened.episode_ends.tolist() == [5, 6, 15]
    assert (opened.n_steps, opened.n_episodes, opened.keys) == (15, 3, ("action", "image", "timestamp"))
    for key in LAYOUT:
        np.testing.assert_array_equal(opened[key][:], np.concatenate([part[key] for part in parts]))
    assert opened.names("action") == POSE_GRIPPER
    assert opened.semantics is None
    assert "image" in opened
    assert "depth" not in opened


def test_refuses_an_episode_that_does_not_fit(tmp_path: Path) -> None:
    buffer = ReplayBuffer.create(tmp_path / "a.zarr", LAYOUT)
    with pytest.raises(DatasetError, match=r"an episode with \['action'\]"):
        buffer.append({"action": np.zeros((2, 8))})
    with pytest.raises(DatasetError, match="expected one positive number of steps"):
        buffer.append({**episode(3), "timestamp": np.zeros(2)})
    with pytest.raises(DatasetError, match="expected one positive number of steps"):
        buffer.append(episode(0))


def test_create_refuses_what_is_there(tmp_path: Path) -> None:
    ReplayBuffer.create(tmp_path / "a.zarr", LAYOUT)
    with pytest.raises(DatasetError, match="exists already"):
        ReplayBuffer.create(tmp_path / "a.zarr", LAYOUT)
    with pytest.raises(DatasetError, match="no zarr format 4"):
        ReplayBuffer.create(tmp_path / "b.zarr", LAYOUT, zarr_format=4)


def test_open_refuses_what_is_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no zarr dataset there"):
        ReplayBuffer.open(tmp_path / "nowhere.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no zarr dataset there"):
        ReplayBuffer.open(tmp_path / "empty")
    root = zarr.open_group(str(tmp_path / "b.zarr"), mode="w", zarr_format=2)
    with pytest.raises(DatasetError, match="has no group data/"):
        ReplayBuffer.open(tmp_path / "b.zarr")
    root.create_group("data")
    root.create_group("meta")
    with pytest.raises(DatasetError, match="has no meta/episode_ends"):
        ReplayBuffer.open(tmp_path / "b.zarr")


@pytest.mark.parametrize(
    ("ends", "message"),
    [([4, 3], "does not increase"), ([0, 5], "does not increase"), ([3], "episodes end at step 3, arrays have")],
)
def test_open_refuses_ends_that_disagree(tmp_path: Path, ends: list[int], message: str) -> None:
    buffer = ReplayBuffer.create(tmp_path / "a.zarr", LAYOUT)
    buffer.append(episode(5))
    buffer.set_episode_ends(np.asarray(ends))
    with pytest.raises(DatasetError, match=message):
        ReplayBuffer.open(tmp_path / "a.zarr")


def test_missing_array_is_named(tmp_path: Path) -> None:
    buffer = ReplayBuffer.create(tmp_path / "a.zarr", LAYOUT)
    with pytest.raises(DatasetError, match="has no data/depth; it has action, image, timestamp"):
        buffer["depth"]


@pytest.mark.parametrize("codec", ["blosc", "imagecodecs_jpeg2k"])
def test_opens_what_the_reference_wrote(tmp_path: Path, codec: str) -> None:
    """Its images may have many frames in a chunk (Blosc) or JPEG 2000 chunks; it has no attributes."""
    frames = episode(12)["image"]
    root = zarr.open_group(str(tmp_path / "old.zarr"), mode="w", zarr_format=2)
    compressor = (
        numcodecs.Blosc("lz4", clevel=5) if codec == "blosc" else numcodecs.get_codec({"id": codec, "level": 50})
    )
    chunks = (5, 6, 8, 3) if codec == "blosc" else (1, 6, 8, 3)
    data = root.create_group("data")
    data.create_array("image", data=frames, chunks=chunks, compressors=compressor)
    data.create_array("action", data=np.ones((12, 8), dtype=np.float32), chunks=(12, 8))
    root.create_group("meta").create_array("episode_ends", data=np.asarray([7, 12]))
    buffer = ReplayBuffer.open(tmp_path / "old.zarr")
    assert buffer.n_episodes == 2
    assert buffer.names("action") == POSE_GRIPPER
    difference = np.abs(buffer["image"][:].astype(int) - frames)
    assert difference.max() <= (0 if codec == "blosc" else 12)


def test_shards_hold_many_frames_in_a_file(tmp_path: Path) -> None:
    layout = {"image": image_layout(8, 6, image_codec("blosc"), shard=8)}
    buffer = ReplayBuffer.create(tmp_path / "a.zarr", layout, zarr_format=3, n_steps=20)
    frames = episode(20)["image"]
    buffer["image"][:] = frames
    files = [path for path in (tmp_path / "a.zarr" / "data" / "image").rglob("*") if path.is_file()]
    assert len(files) == 3 + 1
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "a.zarr" / "data" / "image"))[13], frames[13])
