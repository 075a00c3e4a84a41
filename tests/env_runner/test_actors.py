"""A policy in process: it sees what a recording would show, and its noise depends on the scene."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closed_loop_factory import SPEC, driver, tabletop

from diffusion_policy.env_runner.actors import ActionRequest, PolicyActor
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.images import decode_jpeg, resize_frame
from diffusion_policy.model.normalizer import LinearNormalizer
from diffusion_policy.policy.noise import noise_seed
from diffusion_policy.sim.recorder import encode_jpeg, make_trajectories
from diffusion_policy.trajectory import open_trajectory


class Watching:
    """Remembers its observations, and answers with its noise."""

    spec, n_obs_steps, n_action_steps, sample_shape = SPEC, 2, 4, (4, 8)
    device = torch.device("cpu")

    def __init__(self, mean_quaternion: list[float] | None = None) -> None:
        self.normalizer = LinearNormalizer()
        pose = torch.tensor([[0.4, 0.0, 0.2, *(mean_quaternion or [1.0, 0.0, 0.0, 0.0])]])
        self.normalizer.fit({"robot_eef_pose": pose, "action": torch.zeros(1, 8)})
        self.shown: list[dict[str, torch.Tensor]] = []

    def predict_action(
        self, obs: Any, initial_noise: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        assert initial_noise is not None
        self.shown.append(dict(obs))
        return {"action": initial_noise}


def action_request(simulator: Simulator, scene: int = 0, request: int = 0, turn: float = 1.0) -> ActionRequest:
    env = simulator.make()
    observation, _ = env.reset(seed=scene)
    step = simulator.read_step(observation, SPEC)
    step["robot_eef_pose"] = step["robot_eef_pose"] * np.array([1, 1, 1, *[turn] * 4])
    return ActionRequest(scene, request, 0, (step, step))


def test_noise_belongs_to_scene_and_request() -> None:
    actor, simulator = PolicyActor(Watching(), driver(), seed=5), driver()
    first, second, third = (action_request(simulator, scene, request) for scene, request in ((0, 0), (3, 0), (3, 1)))
    together = [answer.actions for answer in actor.answer([first, second, third])]
    alone = [actor.answer([one])[0].actions for one in (third, first, second)]
    np.testing.assert_array_equal(together, [alone[1], alone[2], alone[0]])
    generator = torch.Generator().manual_seed(noise_seed(5, 4, 1))
    np.testing.assert_array_equal(together[2], torch.randn((4, 8), generator=generator).double())
    assert actor.answer([]) == []


def test_frames_are_those_of_a_recording(tmp_path: Path) -> None:
    """Camera, JPEG and resize are those of recorder and converter."""
    (folder,) = make_trajectories(tmp_path, 1, seed=0, image_size=(64, 36))
    recorded = decode_jpeg((folder / "images" / "frame_0000.jpg").read_bytes(), "frame")
    simulator, policy = tabletop(), Watching()
    env: Any = simulator.make()
    env._begin(np.random.default_rng([0, 0]))  # the scene of the recording
    step = simulator.read_step(env._observe(), SPEC)
    PolicyActor(policy, simulator).answer([ActionRequest(0, 0, 0, (step, step))])
    shown = policy.shown[0]
    assert shown["image"].dtype == torch.uint8
    assert shown["image"].shape == (1, 2, 3, 36, 64)
    np.testing.assert_array_equal(shown["image"][0, 1].permute(1, 2, 0).numpy(), recorded)
    measured = open_trajectory(folder)
    np.testing.assert_array_equal(shown["robot_eef_pose"][0, 1].numpy(), measured.pose[0])
    np.testing.assert_array_equal(shown["robot_gripper_state"][0, 1].numpy(), measured.gripper[:1])


def test_larger_frames_are_made_small_as_the_converter_does() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (72, 128, 3), dtype=np.uint8)
    simulator = tabletop()
    np.testing.assert_array_equal(
        simulator.resized(frame, 64, 36), resize_frame(decode_jpeg(encode_jpeg(frame), "frame"), 64, 36)
    )


@pytest.mark.parametrize("turn", [1.0, -1.0])
def test_quaternions_are_on_the_side_of_training(turn: float) -> None:
    policy = Watching([1.0, 0.0, 0.0, 0.0])
    PolicyActor(policy, tabletop()).answer([action_request(tabletop(), turn=turn)])
    assert (policy.shown[0]["robot_eef_pose"][0, :, 3] > 0.9).all()


def test_a_chunk_with_nan_is_not_an_answer() -> None:
    class Broken(Watching):
        def predict_action(self, *arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
            action = super().predict_action(*arguments, **options)["action"].clone()
            action[1, 2, 3] = torch.nan
            return {"action": action}

    answers = PolicyActor(Broken(), driver()).answer([action_request(driver()), action_request(driver(), 1)])
    assert answers[0].actions is not None
    assert answers[1].actions is None
    assert answers[1].refusal == "not finite: the chunk holds NaN or infinity"
