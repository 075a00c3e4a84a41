"""A dataset in an object store, read by training and the checks like a local one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from object_store import s3_server
from trajectory_factory import write_trajectory

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.dataset.replay_buffer import DatasetError, ReplayBuffer
from diffusion_policy.diagnose.inspection import inspect_dataset, inspect_recordings
from diffusion_policy.paths import as_path, file_system
from diffusion_policy.workspace.preflight import check_start

SHAPE_META = {
    "obs": {
        "image": {"shape": [3, 18, 32], "type": "rgb"},
        "robot_eef_pose": {"shape": [7]},
        "robot_gripper_state": {"shape": [1]},
    },
    "action": {"shape": [8]},
}


@pytest.fixture(scope="module")
def url_and_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The same recordings and dataset in a store ("in", "out.zarr") and in a folder."""
    folder = tmp_path_factory.mktemp("here")
    for number in range(2):
        write_trajectory(folder / "in", number, n_steps=12, size=(64, 36))
    with s3_server() as bucket:
        url = f"s3://{bucket}/there"
        file_system(as_path(url))[0].put(str(folder / "in"), f"{bucket}/there/in", recursive=True)
        for output in (folder / "out.zarr", f"{url}/out.zarr"):
            options = {"scratch": folder / "scratch"} if isinstance(output, str) else {}
            convert(ConversionSettings(folder / "in", output, (32, 18), workers=1, **options))  # type: ignore[arg-type]
        yield url, folder


@pytest.mark.parametrize("cache", ["none", "memory", "mmap"])
def test_training_reads_the_same_samples(
    url_and_folder: tuple[str, Path], cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url, folder = url_and_folder
    there, here = (
        CogActImageDataset(SHAPE_META, path, 4, 1, 3, 2, cache=how)
        for path, how in ((f"{url}/out.zarr", cache), (folder / "out.zarr", "none"))
    )
    assert len(there) == len(here)
    torch.testing.assert_close(there.get_batch([0, 7, 20]), here.get_batch([0, 7, 20]), rtol=0, atol=0)
    kept = list((tmp_path / "diffusion_policy" / "images").glob("out.zarr-*/image-*.npy"))
    assert len(kept) == (cache == "mmap")


def test_a_mapped_cache_notices_another_dataset_without_hashes(
    url_and_folder: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url, _ = url_and_folder
    root = ReplayBuffer.open(f"{url}/out.zarr", mode="r+").root
    attributes = root.attrs.asdict()
    del root.attrs["content_sha256"]
    try:
        first = CogActImageDataset(SHAPE_META, f"{url}/out.zarr", 4, 1, 3, 2, cache="mmap")
        CogActImageDataset(SHAPE_META, f"{url}/out.zarr", 4, 1, 3, 2, cache="mmap")
        files = list(tmp_path.rglob("image-*.npy"))
        assert len(files) == 1
        np.testing.assert_array_equal(np.load(files[0])[3], first.get_batch([4])["obs"]["image"][0, 0])
    finally:
        root.attrs.update(attributes)


def said_of(details: object, home: str) -> str:
    """Returns evidence without the location of its files."""
    return repr(replace(details, where="")).replace(home, "")  # type: ignore[type-var]


def test_the_checks_find_the_same(url_and_folder: tuple[str, Path]) -> None:
    url, folder = url_and_folder
    for inspect, name in ((inspect_dataset, "out.zarr"), (inspect_recordings, "in")):
        there, here = inspect(f"{url}/{name}"), inspect(folder / name)  # type: ignore[operator]
        homes = zip((there, here), (url, str(folder)), strict=True)
        messages = [
            [(one.code, one.severity, one.evidence.replace(home, "")) for one in found.findings]
            for found, home in homes
        ]
        assert messages[0] == messages[1]
        assert there.summary.settings == here.summary.settings
        assert said_of(there.details, url) == said_of(here.details, str(folder))


def test_an_absent_dataset_is_named(url_and_folder: tuple[str, Path]) -> None:
    with pytest.raises(DatasetError, match=r"s3://robot/there/none\.zarr: no zarr dataset there"):
        CogActImageDataset(SHAPE_META, f"{url_and_folder[0]}/none.zarr")


@pytest.mark.parametrize("form", ["2", "shards"])
def test_a_lost_object_is_refused_before_training_begins(url_and_folder: tuple[str, Path], form: str) -> None:
    """By the dataset that training builds first, and by the launchers' check; with its name."""
    url, folder = url_and_folder
    target = f"{url}/{form}.zarr"
    options: dict[str, Any] = {"zarr_format": 3, "shard": 8} if form == "shards" else {}
    convert(ConversionSettings(folder / "in", folder / f"{form}.zarr", (32, 18), workers=1, **options))  # type: ignore[arg-type]
    store, path = file_system(as_path(target))
    store.put(str(folder / f"{form}.zarr"), path, recursive=True)
    CogActImageDataset(SHAPE_META, target, 4, 1, 3, 2)
    for array in ("data/image", "data/action", "meta/episode_ends"):
        objects = [name for name in store.find(f"{path}/{array}") if not Path(name).name.startswith((".z", "zarr"))]
        lost = objects[len(objects) // 2]
        content = store.cat_file(lost)
        store.rm_file(lost)
        name = lost.removeprefix(f"{path}/")
        with pytest.raises(DatasetError, match=rf"^{target}/{name}.* does not exist: nothing is read in its place"):
            CogActImageDataset(SHAPE_META, target, 4, 1, 3, 2)
        if array == "data/image":
            with pytest.raises(DatasetError, match=rf"{name}.* does not exist"):
                check_start([f"task.dataset_path={target}", "training.device=cpu"])
        store.pipe_file(lost, content)
    if form == "shards":
        shard = f"{path}/data/image/c/1/0/0/0"
        whole = store.cat_file(shard)
        for damaged in (whole[: len(whole) // 2], whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:]):
            store.pipe_file(shard, damaged)
            with pytest.raises(DatasetError, match=r"data/image/c/1/0/0/0 \(rows 8 to 15\) is truncated"):
                CogActImageDataset(SHAPE_META, target, 4, 1, 3, 2)
