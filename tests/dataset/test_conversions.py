"""Datasets read in another representation than stored: 6-D rotations, and actions relative to the newest pose."""

from pathlib import Path
from typing import Any

import layout_factory
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.geometry import geodesic_distance
from diffusion_policy.spec import ActionLayout, SpecError, StepTransform, read_shape_meta

SIX = "rotation_6d_rows"


@pytest.fixture(scope="module")
def quaternions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout_factory.write(tmp_path_factory.mktemp("data") / "set.zarr", "one arm")


def meta_6d(**action: Any) -> dict[str, Any]:
    meta = layout_factory.shape_meta("one arm", **action)
    meta["obs"]["robot_eef_pose"] |= {"shape": [9], "names": list(layout_factory.POSE_6D)}
    meta["action"] |= {"shape": [10], "names": [*layout_factory.POSE_6D, "gripper"]}
    return meta


def open_dataset(path: Path, meta: dict[str, Any], **options: Any) -> CogActImageDataset:
    return CogActImageDataset(meta, path, horizon=8, pad_before=1, pad_after=3, n_obs_steps=2, val_ratio=0.3, **options)


@pytest.fixture(scope="module")
def plain(quaternions: Path) -> CogActImageDataset:
    return open_dataset(quaternions, layout_factory.shape_meta("one arm"))


def test_rotations_are_the_recorded_ones_in_six_numbers(quaternions: Path, plain: CogActImageDataset) -> None:
    dataset = open_dataset(quaternions, meta_6d(rotation=SIX), rotation=SIX)
    batch, recorded = (each.get_batch(range(len(each))) for each in (dataset, plain))
    assert batch["action"].shape[-1] == 10
    turns, expected = dataset.spec.layout.rotations(batch["action"]), plain.spec.layout.rotations(recorded["action"])
    assert geodesic_distance(turns, expected).max() < 1e-3
    torch.testing.assert_close(batch["action"][..., [0, 1, 2, 9]], recorded["action"][..., [0, 1, 2, 7]])
    pose = ActionLayout.of(layout_factory.POSE_6D).rotations(batch["obs"]["robot_eef_pose"])
    assert geodesic_distance(pose[..., 0, :], recorded["obs"]["robot_eef_pose"][..., 3:7]).max() < 1e-3
    torch.testing.assert_close(batch["obs"]["image"], recorded["obs"]["image"], rtol=0, atol=0)
    assert dataset.semantics == plain.semantics, "what is recorded"
    fitted = dataset.get_normalizer()["action"].get_input_stats()["max"]
    assert fitted.shape == (10,)
    assert (fitted[3:9].abs() <= 1 + 1e-6).all()


@pytest.mark.parametrize("rotation", [None, SIX])
def test_every_step_is_relative_to_the_newest_observation(
    quaternions: Path, plain: CogActImageDataset, rotation: str | None
) -> None:
    meta = layout_factory.shape_meta("one arm", relative=True) if rotation is None else None
    meta = meta or meta_6d(rotation=SIX, relative=True)
    dataset = open_dataset(quaternions, meta, rotation=rotation, relative_actions=True)
    batch, recorded = (each.get_batch(range(len(each))) for each in (dataset, plain))
    transform = StepTransform(dataset.spec)
    obs = {key: recorded["obs"][key].numpy() for key in ("robot_eef_pose", "robot_gripper_state")}
    back = transform.commanded(batch["action"].numpy(), obs)
    np.testing.assert_allclose(back, recorded["action"], atol=1e-5)
    assert batch["action"][..., :3].abs().max() < recorded["action"][..., :3].abs().max() / 2
    held_out = dataset.get_validation_dataset()
    assert len(held_out) > 0
    whole = held_out.get_batch(range(len(held_out)))["action"]
    torch.testing.assert_close(held_out.window_actions(), whole, rtol=0, atol=0)


def test_the_normalizer_is_fitted_to_relative_numbers(quaternions: Path, plain: CogActImageDataset) -> None:
    dataset = open_dataset(quaternions, layout_factory.shape_meta("one arm", relative=True), relative_actions=True)
    every = [dataset.window_actions(), dataset.get_validation_dataset().window_actions()]
    numbers = torch.cat(every).flatten(0, 1)
    fitted, absolute = (each.get_normalizer()["action"].get_input_stats() for each in (dataset, plain))
    torch.testing.assert_close(fitted["min"].data, numbers.amin(0), rtol=0, atol=0)
    torch.testing.assert_close(fitted["max"].data, numbers.amax(0), rtol=0, atol=0)
    assert (fitted["max"] - absolute["max"]).abs().max() > 0.1
    pose = dataset.get_normalizer()["robot_eef_pose"].get_input_stats()["max"]
    torch.testing.assert_close(pose, plain.get_normalizer()["robot_eef_pose"].get_input_stats()["max"])


@pytest.mark.parametrize("kind", ["two arms", "joints"])
def test_every_arm_and_joint_is_relative_to_its_own(tmp_path: Path, kind: str) -> None:
    path = layout_factory.write(tmp_path / "set.zarr", kind)
    dataset = open_dataset(path, layout_factory.shape_meta(kind, relative=True), relative_actions=True)
    recorded = open_dataset(path, layout_factory.shape_meta(kind)).get_batch([3])
    obs = {key: recorded["obs"][key].numpy() for key in layout_factory.low_dim_keys(kind)}
    actions = dataset.get_batch([3])["action"].numpy()
    np.testing.assert_allclose(StepTransform(dataset.spec).commanded(actions, obs), recorded["action"], atol=1e-5)


@pytest.mark.parametrize(
    ("meta", "options", "message"),
    [
        (
            layout_factory.shape_meta("one arm"),
            {"rotation": SIX},
            "dataset.rotation is rotation_6d_rows and shape",
        ),
        (meta_6d(rotation=SIX), {}, "task.dataset.rotation is None and shape_meta.action.rotation is rotation_6d_rows"),
        (layout_factory.shape_meta("one arm"), {"relative_actions": True}, "relative_actions is True and shape_meta"),
    ],
)
def test_settings_that_disagree_are_refused(
    quaternions: Path, meta: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        open_dataset(quaternions, meta, **options)


@pytest.mark.parametrize("choice", ["cogact_robot_7d", "cogact_robot_8d", "cogact_robot_10d"])
@pytest.mark.parametrize("relative", [False, True])
def test_the_tasks_of_config_say_the_same_in_every_place(choice: str, relative: bool) -> None:
    from tiny_run import settings

    cfg = settings(Path("any.zarr"), f"task={choice}", f"task.dataset.relative_actions={relative}")
    spec = read_shape_meta(OmegaConf.to_container(cfg.policy.shape_meta, resolve=True))  # type: ignore[arg-type]
    assert spec.relative is relative
    assert spec.rotation == cfg.task.dataset.rotation
    assert spec.robot.action_dim == (7 if choice.endswith("7d") else 8)
