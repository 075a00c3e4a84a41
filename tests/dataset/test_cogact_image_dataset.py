"""What training reads: samples, batches, the split, the normalizer, and what is refused."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from trajectory_factory import write_trajectory

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.dataset.replay_buffer import DatasetError, ReplayBuffer
from diffusion_policy.spec import SpecError, policy_observation

LENGTHS = (20, 33, 7, 12)


def shape_meta(action: int | list[str] = 8, image: tuple[int, int, int] = (3, 18, 32)) -> dict[str, Any]:
    names = {"names": action} if isinstance(action, list) else {}
    return {
        "obs": {
            "image": {"shape": list(image), "type": "rgb"},
            "robot_eef_pose": {"shape": [7], "type": "low_dim"},
            "robot_gripper_state": {"shape": [1], "type": "low_dim"},
        },
        "action": {"shape": [len(action) if isinstance(action, list) else action], **names},
    }


@pytest.fixture(scope="module")
def zarr_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for number, n_steps in enumerate(LENGTHS):
        write_trajectory(folder / "in", number, n_steps=n_steps, size=(64, 36))
    convert(ConversionSettings(folder / "in", folder / "out.zarr", resolution=(32, 18)))
    return folder / "out.zarr"


def make(zarr_path: Path, **options: Any) -> CogActImageDataset:
    settings = {"horizon": 16, "pad_before": 1, "pad_after": 7, "n_obs_steps": 2, **options}
    return CogActImageDataset(settings.pop("shape_meta", shape_meta()), str(zarr_path), **settings)


def test_a_sample_is_a_window(zarr_path: Path) -> None:
    dataset = make(zarr_path)
    buffer = ReplayBuffer.open(zarr_path)
    assert len(dataset) == sum(max(n - 16 + 1 + 8, 0) for n in LENGTHS)
    sample = dataset[5]
    np.testing.assert_array_equal(sample["action"].numpy(), buffer["action"][4:20])
    images = sample["obs"]["image"]
    assert (images.shape, images.dtype) == ((2, 3, 18, 32), torch.uint8)
    np.testing.assert_array_equal(images.numpy(), np.moveaxis(buffer["image"][4:6], -1, 1))
    np.testing.assert_array_equal(sample["obs"]["robot_eef_pose"].numpy(), buffer["robot_eef_pose"][4:6])
    assert sample["obs"]["robot_gripper_state"].shape == (2, 1)
    assert sample["action"].dtype == torch.float32
    np.testing.assert_array_equal(dataset[0]["action"][:2].numpy(), buffer["action"][[0, 0]])
    np.testing.assert_array_equal(dataset[-1]["action"][-1].numpy(), buffer["action"][-1])
    with pytest.raises(IndexError, match="sample 1000 of"):
        dataset[1000]


def test_observations_take_the_one_way_in(zarr_path: Path) -> None:
    dataset = make(zarr_path)
    buffer = ReplayBuffer.open(zarr_path)
    raw = {key: buffer[key][9:11] for key in ("image", "robot_eef_pose", "robot_gripper_state")}
    expected = policy_observation(dataset.spec, raw)
    for key, value in dataset[10]["obs"].items():
        np.testing.assert_array_equal(value.numpy(), expected[key])


def test_a_batch_is_its_samples(zarr_path: Path) -> None:
    dataset = make(zarr_path)
    batch = dataset.get_batch([3, 0, 17])
    stacked = torch.utils.data.default_collate([dataset[i] for i in (3, 0, 17)])
    assert batch["obs"].keys() == stacked["obs"].keys()
    for key in batch["obs"]:
        torch.testing.assert_close(batch["obs"][key], stacked["obs"][key], rtol=0, atol=0)
    torch.testing.assert_close(batch["action"], stacked["action"], rtol=0, atol=0)


def test_latency_shifts_the_action_only(zarr_path: Path) -> None:
    dataset = make(zarr_path, horizon=8, pad_before=0, pad_after=0, n_latency_steps=3)
    buffer = ReplayBuffer.open(zarr_path)
    sample = dataset[2]
    np.testing.assert_array_equal(sample["action"].numpy(), buffer["action"][5:13])
    np.testing.assert_array_equal(sample["obs"]["robot_eef_pose"].numpy(), buffer["robot_eef_pose"][2:4])


def test_the_held_out_episodes_are_disjoint(zarr_path: Path) -> None:
    dataset = make(zarr_path, val_ratio=0.5, seed=1, max_train_episodes=1)
    held_out = dataset.get_validation_dataset()
    assert dataset.train_episodes.sum() == 1
    assert dataset.validation_episodes.sum() == 2
    assert not (dataset.train_episodes & dataset.validation_episodes).any()
    trained = set(dataset.windows.low.tolist())
    assert trained.isdisjoint(held_out.windows.low.tolist())
    assert len(held_out) > 0
    assert len(make(zarr_path).get_validation_dataset()) == 0


def test_a_pose_policy_reads_a_pose_and_gripper_dataset(zarr_path: Path) -> None:
    buffer = ReplayBuffer.open(zarr_path)
    pose = make(zarr_path, shape_meta=shape_meta(7))
    np.testing.assert_array_equal(pose[1]["action"].numpy(), buffer["action"][:16, :7])
    picked = make(zarr_path, shape_meta=shape_meta(["gripper", "z"]))
    np.testing.assert_array_equal(picked[1]["action"].numpy(), buffer["action"][:16][:, [7, 2]])


def test_the_normalizer_covers_every_key(zarr_path: Path) -> None:
    dataset = make(zarr_path)
    normalizer = dataset.get_normalizer()
    batch = dataset.get_batch(range(len(dataset)))
    action = normalizer["action"].normalize(batch["action"])
    assert action.min() >= -1.0001
    assert action.max() <= 1.0001
    pose = normalizer["robot_eef_pose"].normalize(batch["obs"]["robot_eef_pose"])
    assert pose.abs().max() <= 1.0001
    image = normalizer["image"].normalize(torch.tensor([0.0, 1.0]))
    assert image.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_of_a_loader_open_it_anew(zarr_path: Path, start_method: str) -> None:
    dataset = make(zarr_path)
    dataset[0]  # the parent has it open
    loader = torch.utils.data.DataLoader(dataset, batch_size=8, num_workers=1, multiprocessing_context=start_method)
    batches, whole = list(loader), dataset.get_batch(range(len(dataset)))
    assert torch.equal(torch.cat([batch["action"] for batch in batches]), whole["action"])
    assert torch.equal(torch.cat([batch["obs"]["image"] for batch in batches]), whole["obs"]["image"])


def test_it_can_be_pickled(zarr_path: Path) -> None:
    dataset = make(zarr_path)
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    torch.testing.assert_close(copy[4]["obs"]["image"], dataset[4]["obs"]["image"], rtol=0, atol=0)


def test_refusals(zarr_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no zarr dataset there"):
        make(tmp_path / "nowhere.zarr")
    with pytest.raises(
        DatasetError, match=r"data/image is uint8 \(18, 32, 3\); shape_meta wants.*--resolution 320 180"
    ):
        make(zarr_path, shape_meta=shape_meta(image=(3, 180, 320)))
    wanting = shape_meta()
    wanting["obs"]["wrist"] = {"shape": [3, 18, 32], "type": "rgb"}
    with pytest.raises(DatasetError, match="has no data/wrist"):
        make(zarr_path, shape_meta=wanting)
    with pytest.raises(DatasetError, match=r"shape_meta also wants \['width'\]"):
        make(zarr_path, shape_meta=shape_meta(["x", "width"]))
    with pytest.raises(DatasetError, match=r"no window of 100 steps .* fits into 4 training episodes"):
        make(zarr_path, horizon=100)


def _unlabeled(path: Path, action: np.ndarray) -> Path:
    """A dataset as written by the predecessor, without any attributes."""
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    n = len(action)
    arrays = {
        "image": np.ones((n, 18, 32, 3), dtype=np.uint8),
        "robot_eef_pose": action[:, :7],
        "robot_gripper_state": np.ones((n, 1), dtype=np.float32),
        "action": action,
    }
    data = root.create_group("data")
    for key, values in arrays.items():
        data.create_array(key, data=values, chunks=(5, *values.shape[1:]))
    root.create_group("meta").create_array("episode_ends", data=np.asarray([n]))
    return path


def test_unlabeled_files_are_distinguished_by_their_numbers(tmp_path: Path, zarr_path: Path) -> None:
    quaternions = ReplayBuffer.open(zarr_path)["action"][:20, :7]
    assert make(_unlabeled(tmp_path / "q.zarr", quaternions), shape_meta=shape_meta(7)).semantics is None
    vectors = np.tile(np.asarray([0.4, 0.0, 0.5, 3.1, 0.1, 0.0, 0.05], dtype=np.float32), (20, 1))
    with pytest.raises(DatasetError, match="looks like x y z, rotation vector, gripper width"):
        make(_unlabeled(tmp_path / "v.zarr", vectors), shape_meta=shape_meta(7))


def test_refuses_data_that_means_something_else(tmp_path: Path, zarr_path: Path) -> None:
    actions = ReplayBuffer.open(zarr_path)["action"][:20]
    path = _unlabeled(tmp_path / "wxyz.zarr", actions)
    root = zarr.open_group(str(path), mode="r+")
    root.attrs["action_semantics"] = {"quaternion_order": "wxyz", "names": [], "units": []}
    with pytest.raises(SpecError, match="quaternion_order is 'wxyz', expected 'xyzw'"):
        make(path)


@pytest.mark.parametrize("cache", ["memory", "mmap", "device"])
def test_a_cache_changes_nothing_but_speed(zarr_path: Path, cache: str) -> None:
    plain, cached = make(zarr_path), make(zarr_path, cache=cache, device="cpu")
    every = range(len(plain))
    expected, batch = plain.get_batch(every), cached.get_batch(every)
    for key, value in expected["obs"].items():
        torch.testing.assert_close(batch["obs"][key], value, rtol=0, atol=0)
    torch.testing.assert_close(batch["action"], expected["action"], rtol=0, atol=0)
    copy = pickle.loads(pickle.dumps(cached))
    torch.testing.assert_close(copy[3]["obs"]["image"], plain[3]["obs"]["image"], rtol=0, atol=0)


def test_a_mapped_cache_is_written_once_for_the_same_content(tmp_path: Path) -> None:
    write_trajectory(tmp_path / "in", 0, n_steps=20, size=(64, 36))
    output = tmp_path / "out.zarr"
    convert(ConversionSettings(tmp_path / "in", output, resolution=(32, 18)))
    make(output, cache="mmap")
    (file,) = (tmp_path / "out.zarr.cache").glob("image-*.npy")
    written = file.stat().st_mtime_ns
    make(output, cache="mmap")
    assert file.stat().st_mtime_ns == written
    write_trajectory(tmp_path / "in", 1, n_steps=20, size=(64, 36))
    convert(ConversionSettings(tmp_path / "in", output, resolution=(32, 18), append=True))
    dataset = make(output, cache="mmap")
    torch.testing.assert_close(dataset[-1]["obs"]["image"], make(output)[-1]["obs"]["image"], rtol=0, atol=0)
    assert len(list((tmp_path / "out.zarr.cache").glob("image-*.npy"))) == 2


def test_cache_refusals(zarr_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match="cache is 'ram'; expected one of none, memory, mmap, device"):
        make(zarr_path, cache="ram")
    monkeypatch.setattr("diffusion_policy.dataset.observations._free_memory", lambda: 1000.0)
    with pytest.raises(DatasetError, match=r"cache: memory needs 0.0 GB, 0.0 GB are free; use cache: mmap"):
        make(zarr_path, cache="memory")
    if not torch.cuda.is_available():
        with pytest.raises(DatasetError, match="needs a GPU and none is there"):
            make(zarr_path, cache="device")


def test_several_datasets_become_one(zarr_path: Path, tmp_path: Path) -> None:
    write_trajectory(tmp_path / "in", 8, n_steps=25, size=(64, 36))
    convert(ConversionSettings(tmp_path / "in", tmp_path / "more.zarr", resolution=(32, 18)))
    paths = [str(zarr_path), str(tmp_path / "more.zarr")]
    first, second = (make(path) for path in paths)
    both = CogActImageDataset(shape_meta(), paths, horizon=16, pad_before=1, pad_after=7, n_obs_steps=2)
    assert both.episode_names[-1] == "episode_0008"
    assert len(both) == len(first) + len(second)
    for index, expected in ((3, first[3]), (len(first) + 5, second[5])):
        torch.testing.assert_close(both[index]["obs"]["image"], expected["obs"]["image"], rtol=0, atol=0)
        torch.testing.assert_close(both[index]["action"], expected["action"], rtol=0, atol=0)
    mixed = both.get_batch([len(first), 0, len(first) - 1])
    torch.testing.assert_close(mixed["obs"]["image"][0], second[0]["obs"]["image"], rtol=0, atol=0)
    held_out = CogActImageDataset(shape_meta(), paths, horizon=4, val_ratio=0.5).validation_episodes
    np.testing.assert_array_equal(held_out[:4], make(zarr_path, val_ratio=0.5).validation_episodes)


def test_weights_share_out_the_draws(zarr_path: Path) -> None:
    paths = [str(zarr_path)] * 2
    dataset = CogActImageDataset(shape_meta(), paths, horizon=16, weights=(1.0, 3.0))
    drawn = dataset.sample_weights
    assert drawn is not None
    assert drawn.sum() == pytest.approx(1)
    assert drawn[len(dataset) // 2 :].sum() == pytest.approx(0.75)
    assert make(zarr_path).sample_weights is None
    for weights in ((1.0,), (1.0, -1.0), (0.0, 0.0)):
        with pytest.raises(DatasetError, match="weights are"):
            CogActImageDataset(shape_meta(), paths, weights=weights)
    with pytest.raises(DatasetError, match="zarr_path is empty"):
        CogActImageDataset(shape_meta(), [])


def test_episode_filters_leave_the_split_alone(zarr_path: Path) -> None:
    plain = make(zarr_path, val_ratio=0.25)
    filtered = make(zarr_path, val_ratio=0.25, exclude_episodes=["episode_0001"])
    assert filtered.train_episodes.sum() + filtered.validation_episodes.sum() == 3
    others = np.asarray([True, False, True, True])
    np.testing.assert_array_equal(filtered.validation_episodes, plain.validation_episodes & others)
    only = make(zarr_path, only_episodes=["episode_0001"])
    assert set(only.windows.low.tolist()) == {20}
    with pytest.raises(DatasetError, match="no episode is called episode_0099; there are episode_0000"):
        make(zarr_path, exclude_episodes=["episode_0099"])
