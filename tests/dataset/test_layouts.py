"""Datasets of every layout are read by names: units, grippers of several arms, and invalid poses."""

from pathlib import Path

import layout_factory
import numpy as np
import pytest
from layout_factory import JOINTS, NAMES

from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.dataset.replay_buffer import DatasetError, ReplayBuffer
from diffusion_policy.pose_check import pose_faults
from diffusion_policy.spec import SpecError, read_shape_meta


@pytest.mark.parametrize("kind", NAMES)
def test_every_layout_is_read_as_it_is_stored(tmp_path: Path, kind: str) -> None:
    path = layout_factory.write(tmp_path / "set.zarr", kind)
    dataset = CogActImageDataset(layout_factory.shape_meta(kind), path, horizon=4, n_obs_steps=2)
    batch = dataset.get_batch([0])
    expected = layout_factory.episode(kind, 13, 0)
    np.testing.assert_allclose(batch["action"][0], expected["action"][:4], atol=1e-6)
    state = np.concatenate([batch["obs"][key][0] for key in layout_factory.low_dim_keys(kind)], axis=-1)
    np.testing.assert_allclose(state, expected["state"][:2], atol=1e-6)


@pytest.mark.parametrize("units", [["rad"] * 7 + [None], dict.fromkeys(JOINTS, "rad")])
def test_units_are_a_list_or_a_mapping(units: object) -> None:
    layout = read_shape_meta(layout_factory.shape_meta("joints", units=units)).layout
    assert layout.joint_unit == "rad"
    assert layout.unit(7) == "1"
    assert read_shape_meta(layout_factory.shape_meta("joints")).layout.joint_unit == "unknown"


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (["rad"], "expected 8 units"),
        ("rad", "expected 8 units"),
        ({"elbow": "rad"}, r"names \['elbow'\]; its dimensions are"),
        ({"gripper": "m"}, "gripper is in 'm'; it is in '1' here"),
    ],
)
def test_invalid_units_are_refused(units: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_shape_meta(layout_factory.shape_meta("joints", units=units))


@pytest.mark.parametrize("unit", ["rad", "deg", None])
def test_the_datasets_unit_and_the_policys_are_compared(tmp_path: Path, unit: str | None) -> None:
    path = layout_factory.write(tmp_path / "set.zarr", "joints")
    meta = layout_factory.shape_meta("joints", units={} if unit is None else dict.fromkeys(JOINTS, unit))
    if unit == "deg":
        with pytest.raises(SpecError, match="is in 'rad', expected 'deg'"):
            CogActImageDataset(meta, path)
    else:
        assert len(CogActImageDataset(meta, path)) == 51


def test_each_gripper_of_two_arms_has_its_scale(tmp_path: Path) -> None:
    path = layout_factory.write(tmp_path / "set.zarr", "two arms", left_gripper=100.0)
    root = ReplayBuffer.open(path, mode="r+").root
    del root.attrs["action_semantics"]
    meta = layout_factory.shape_meta("two arms")
    with pytest.raises(SpecError, match=r"its left.gripper is 0 to 100: .*task\.dataset\.gripper_scale=percent"):
        CogActImageDataset(meta, path)
    both = layout_factory.write(tmp_path / "both.zarr", "two arms", left_gripper=100.0, right_gripper=100.0)
    root = ReplayBuffer.open(both, mode="r+").root
    del root.attrs["action_semantics"]
    dataset = CogActImageDataset(meta, both, gripper_scale="percent")
    expected = layout_factory.episode("two arms", 13, 0)
    batch = dataset.get_batch([0])
    np.testing.assert_allclose(batch["action"][0], expected["action"][:1], atol=1e-6)
    np.testing.assert_allclose(batch["obs"]["left_state"][0], expected["state"][:1, :10], atol=1e-6)
    assert dataset.gripper_scale == ("percent",)


def test_an_invalid_pose_is_named_with_its_arm(tmp_path: Path) -> None:
    numbers = layout_factory.episode("two arms", 20, 0)["action"]
    numbers[:, NAMES["two arms"].index("right.y")] *= 1000
    (fault,) = pose_faults(numbers, NAMES["two arms"], "data/action")
    assert fault.message.startswith("data/action, right: positions reach")
    path = layout_factory.write(tmp_path / "set.zarr", "two arms", right_y=1000.0)
    with pytest.raises(DatasetError, match=r"data/action, right: positions reach"):
        CogActImageDataset(layout_factory.shape_meta("two arms"), path)


def test_two_numbers_on_a_table_are_not_a_pose() -> None:
    assert pose_faults(np.full((3, 2), 400.0), ("x", "y"), "data/goal") == ()
