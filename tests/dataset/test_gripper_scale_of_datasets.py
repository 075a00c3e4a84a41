"""Datasets whose gripper is in every scale: refused until it is declared, and then read as 0 closed .. 1 open."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from gripper_scales import FOREIGN, rewrite_gripper

from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.dataset.joined_datasets import JoinedDatasets
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.gripper_scale import parse_scale
from diffusion_policy.spec import SpecError, action_semantics

SHAPE_META = {
    "obs": {
        "image": {"shape": [3, tiny_run.HEIGHT, tiny_run.WIDTH], "type": "rgb"},
        "robot_eef_pose": {"shape": [7], "type": "low_dim"},
        "robot_gripper_state": {"shape": [1], "type": "low_dim"},
    },
    "action": {"shape": [8]},
}
POSES = {**SHAPE_META, "action": {"shape": [7]}}


def numbers(path: Path, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """Commanded and measured gripper as training reads them."""
    dataset = CogActImageDataset(SHAPE_META, path, **options)  # type: ignore[arg-type]
    batch = dataset.get_batch(range(len(dataset)))
    return batch["action"][:, 0, 7].numpy(), batch["obs"]["robot_gripper_state"][:, 0, 0].numpy()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    return numbers(tiny_run.write_dataset(tmp_path_factory.mktemp("sound") / "set.zarr"))


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_scale_is_refused_then_converted_as_declared(
    tmp_path: Path, sound: tuple[np.ndarray, np.ndarray], name: str
) -> None:
    path = rewrite_gripper(tiny_run.write_dataset(tmp_path / "set.zarr"), name)
    with pytest.raises(SpecError, match=r"its gripper is .*task\.dataset\.gripper_scale=") as refused:
        numbers(path)
    assert str(path) in str(refused.value)
    assert "--gripper-scale" in str(refused.value)
    for found, expected in zip(numbers(path, gripper_scale=name), sound, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert JoinedDatasets(path).needs_gripper_scale
    np.testing.assert_allclose(JoinedDatasets(path, name).rows("action")[:, 7], sound[0], atol=1e-6)
    normalizer = CogActImageDataset(SHAPE_META, path, gripper_scale=name).get_normalizer()
    assert normalizer["action"].get_input_stats()["max"][7] == pytest.approx(1.0)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_label_is_a_declaration(tmp_path: Path, sound: tuple[np.ndarray, np.ndarray], name: str) -> None:
    path = rewrite_gripper(tiny_run.write_dataset(tmp_path / "set.zarr"), name)
    label = {**action_semantics(), "gripper": parse_scale(name).label}
    ReplayBuffer.open(path, mode="r+").root.attrs["action_semantics"] = label
    dataset = CogActImageDataset(SHAPE_META, path)
    assert dataset.semantics == action_semantics(), "what is read is in this package's own scale"
    assert [parse_scale(found).label for found in dataset.gripper_scale] == [parse_scale(name).label]
    np.testing.assert_allclose(numbers(path)[0], sound[0], atol=1e-6)


def test_two_kinds_in_one_dataset(tmp_path: Path, sound: tuple[np.ndarray, np.ndarray]) -> None:
    path = rewrite_gripper(tiny_run.write_dataset(tmp_path / "set.zarr"), "signed_closed1", "meters:0.08")
    with pytest.raises(SpecError, match=r"gripper_scale=signed_closed1/meters:0\.08"):
        numbers(path)
    for found, expected in zip(numbers(path, gripper_scale="signed_closed1/meters:0.08"), sound, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    root = ReplayBuffer.open(path, mode="r+").root
    both = {"open": -1, "closed": 1, "measured": {"open": 0.08, "closed": 0.0}}
    root.attrs["action_semantics"] = {**action_semantics(), "gripper": both}
    np.testing.assert_allclose(numbers(path)[1], sound[1], atol=1e-6)


def test_a_policy_that_reads_no_gripper_needs_no_scale(tmp_path: Path) -> None:
    path = rewrite_gripper(tiny_run.write_dataset(tmp_path / "set.zarr"), "percent")
    poses = {"obs": {"robot_eef_pose": POSES["obs"]["robot_eef_pose"]}, "action": POSES["action"]}
    assert len(CogActImageDataset(poses, path)) > 0


def test_several_datasets_may_differ(tmp_path: Path, sound: tuple[np.ndarray, np.ndarray]) -> None:
    own = tiny_run.write_dataset(tmp_path / "own.zarr")
    other = rewrite_gripper(tiny_run.write_dataset(tmp_path / "other.zarr"), "byte_closed")
    found = CogActImageDataset(SHAPE_META, [own, other], gripper_scale=[None, "byte_closed"])
    assert found.gripper_scale == ("byte_closed",)
    action = found.get_batch(range(len(found)))["action"][:, 0, 7].numpy()
    np.testing.assert_allclose(action, np.tile(sound[0], 2), atol=1e-6)
    with pytest.raises(SpecError, match=r"has 1 names .*one for each of 2"):
        CogActImageDataset(SHAPE_META, [own, other], gripper_scale=["byte_closed"])
    with pytest.raises(SpecError, match=r"own\.zarr.*byte_closed .*: the command is 0 to 1; that looks like open1"):
        CogActImageDataset(SHAPE_META, [own, other], gripper_scale="byte_closed")


def test_labels_that_the_numbers_contradict_are_refused(tmp_path: Path) -> None:
    path = rewrite_gripper(tiny_run.write_dataset(tmp_path / "set.zarr"), "percent")
    ReplayBuffer.open(path, mode="r+").root.attrs["action_semantics"] = action_semantics()
    with pytest.raises(SpecError, match=r"labeled open1 .*, but it is 0 to 100"):
        numbers(path)


@pytest.mark.parametrize("name", ["pm", "pct", "wid"])
def test_trial_of_foreign_units(trial: Callable[..., Path], name: str) -> None:
    with pytest.raises(SpecError, match="its gripper is"):
        numbers(trial("25") / f"{name}.zarr")
