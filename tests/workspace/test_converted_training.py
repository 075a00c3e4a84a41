"""A policy in another representation than the robot's, end to end: trained, measured, and logged in quaternions."""

import json
import shutil
from pathlib import Path

import layout_factory
import numpy as np
import pytest
import tiny_run
import torch

from diffusion_policy.adapt.starting_point import ActionsError, check_actions
from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.evaluate.recorded_inference import Sampling, open_recorded, predict_chunks, run_recorded_inference
from diffusion_policy.policy.noise import window_noise
from diffusion_policy.policy.robot_action import predict_robot_action
from diffusion_policy.policy.sampler import set_sampler
from diffusion_policy.run_log import read_log
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.stages import Stages
from diffusion_policy.shape_meta import step_spec_of
from diffusion_policy.spec import POSE_GRIPPER
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

SETTINGS = {
    "six numbers": ("task=cogact_robot_10d",),
    "relative": ("task.dataset.relative_actions=True", "training.cache=memory"),
    "relative in six numbers": ("task=cogact_robot_10d", "task.dataset.relative_actions=True"),
}
TINY = ("++policy.encoder_width=16", "++policy.encoder_stride=32", "training.num_epochs=1", "checkpoint.topk.k=0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout_factory.write(tmp_path_factory.mktemp("data") / "set.zarr", "one arm")


@pytest.fixture(scope="module", params=SETTINGS)
def trained(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    cfg = tiny_run.settings(data, *TINY, *SETTINGS[request.param])
    TrainDiffusionTransformerHybridWorkspace(cfg, folder).run()
    return folder


def test_it_is_measured_and_logged_in_the_robots_numbers(trained: Path, data: Path, tmp_path: Path) -> None:
    path = trained / "checkpoints" / "latest.ckpt"
    recorded, checkpoint = open_recorded(path, data)
    spec = recorded.policy.spec
    assert spec.robot.action_names == POSE_GRIPPER != (spec.action_names, spec.relative)
    assert checkpoint.provenance is not None
    assert checkpoint.provenance["action_semantics"]["names"] == list(POSE_GRIPPER)
    set_sampler(recorded.policy, "ddim", 2)
    steps = recorded.steps(1)
    chunks, _ = predict_chunks(recorded, steps, Sampling(steps=2))
    assert chunks.shape == (12, 8, 8)
    np.testing.assert_allclose(np.linalg.norm(chunks[..., 3:7], axis=-1), 1, atol=1e-5)
    if spec.relative:  # as far from the measured pose as ever in the recording, by the normalizer's range
        stats = recorded.policy.normalizer["action"].get_input_stats()
        low, high = (stats[end][:3].detach().numpy() for end in ("min", "max"))
        reach = np.linalg.norm(np.maximum(-low, high))
        away = np.linalg.norm(chunks[..., :3] - recorded.logged_states(steps)[:, None, :3], axis=-1)
        assert reach < 0.3
        assert away.max() <= reach + 1e-4
    (log,) = run_recorded_inference(path, data, tmp_path / "logs", [1], steps=2)
    assert read_log(log).layout == "xyz_quat_gripper"
    line = json.loads((trained / "logs.json.txt").read_text().splitlines()[-1])
    assert np.isfinite(line["val_position_error_mm"])


def test_a_relative_policy_and_an_absolute_task_do_not_meet(trained: Path, data: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(trained / "checkpoints" / "latest.ckpt")
    spec = step_spec_of(checkpoint.cfg)
    check_actions(checkpoint, spec)
    six = f"task=cogact_robot_{spec.action_dim}d"
    other = tiny_run.settings(data, six, f"task.dataset.relative_actions={not spec.relative}")
    with pytest.raises(ActionsError, match="ranges that its normalizer was fitted to mean something else") as refused:
        check_actions(checkpoint, step_spec_of(other))
    assert refused.value.overrides == (f"task.dataset.relative_actions={spec.relative}",)
    resumed = tiny_run.settings(data, *TINY, six, f"task.dataset.relative_actions={not spec.relative}")
    with pytest.raises(ActionsError, match="the task's are"):
        TrainDiffusionTransformerHybridWorkspace(resumed, shutil.copytree(trained, tmp_path / "run")).run()


@pytest.mark.parametrize("fast", [True, False])
def test_the_server_answers_what_evaluation_measures(trained: Path, data: Path, fast: bool) -> None:
    path = trained / "checkpoints" / "latest.ckpt"
    engine = PolicyEngine.open(path, EngineSettings(scheduler="ddim", steps=2, fast=fast))
    recorded, _ = open_recorded(path, data)
    policy = recorded.policy
    set_sampler(policy, "ddim", 2)
    seen, states = recorded.observations(np.array([20])), recorded.logged_states(np.array([19, 20]))
    noise = window_noise(policy, torch.Generator().manual_seed(5))
    assert noise is not None
    expected = predict_robot_action(policy, seen, initial_noise=noise[None])["action"][0].numpy()
    frames = tuple(np.ascontiguousarray(np.moveaxis(frame, 0, -1)) for frame in seen["image"][0].numpy())
    asked = engine.form.observation(frames, states, np.array([0.0, 0.1]))
    found = engine.infer(asked, 5, None, Stages()).actions
    np.testing.assert_allclose(found, expected, atol=1e-4)
    low, high = engine.action_range()
    actions = recorded.recorded_chunks(recorded.steps(1))[0][..., :3]
    assert ((low[:3] - 0.05 < actions) & (actions < high[:3] + 0.05)).all(), "absolute positions, as the guard needs"
