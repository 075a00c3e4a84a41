"""Closed-loop rollouts: the expert succeeds, a policy that copies the measured gripper never grasps."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from diffusion_policy.env_runner.tabletop_runner import TabletopRunner
from diffusion_policy.sim.expert import Command, plan
from diffusion_policy.sim.tabletop import draw_scene
from diffusion_policy.spec import SpecError

SEED = 7
N_OBS_STEPS, N_ACTION_STEPS = 2, 8


def shape_meta(action_dim: int = 8) -> dict[str, object]:
    return {
        "obs": {
            "image": {"shape": [3, 36, 64], "type": "rgb"},
            "robot_eef_pose": {"shape": [7], "type": "low_dim"},
            "robot_gripper_state": {"shape": [1], "type": "low_dim"},
        },
        "action": {"shape": [action_dim]},
    }


class ScriptedPolicy:
    """Plays the expert's plan of the one scene it is used for, and notes what it was shown."""

    n_obs_steps = N_OBS_STEPS
    device = torch.device("cpu")

    def __init__(self, executed_steps: int) -> None:
        rng = np.random.default_rng([SEED, 0])
        self.commands: list[Command] = plan(draw_scene(rng), rng)
        self.executed_steps = executed_steps
        self.asked = 0
        self.seen: list[dict[str, torch.Tensor]] = []

    def gripper(self, command: Command, obs: dict[str, torch.Tensor]) -> float:
        return command.gripper

    def predict_action(
        self, obs: dict[str, torch.Tensor], *, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        self.seen.append(obs)
        rows = [np.append(command.pose, self.gripper(command, obs)) for command in self._next()]
        return {"action": torch.tensor(np.stack(rows))[None]}

    def _next(self) -> Iterator[Command]:
        for step in range(self.asked, self.asked + N_ACTION_STEPS):
            yield self.commands[min(step, len(self.commands) - 1)]
        self.asked += self.executed_steps


class CopyingPolicy(ScriptedPolicy):
    """Answers the measured gripper as its command."""

    def gripper(self, command: Command, obs: dict[str, torch.Tensor]) -> float:
        return float(obs["robot_gripper_state"][0, -1, 0])


def runner(**settings: int) -> TabletopRunner:
    return TabletopRunner(None, shape_meta(), n_episodes=1, seed=SEED, camera_size=(128, 72), **settings)


def test_the_expert_succeeds() -> None:
    assert runner().run(ScriptedPolicy(6)) == {"tabletop_grasped": 1.0, "tabletop_success": 1.0}


def test_a_copy_of_the_measured_gripper_never_grasps() -> None:
    assert runner(max_steps=90).run(CopyingPolicy(6)) == {"tabletop_grasped": 0.0, "tabletop_success": 0.0}


@pytest.mark.parametrize("executed_steps", [1, 6])
def test_the_policy_sees_the_last_two_steps(executed_steps: int) -> None:
    policy = ScriptedPolicy(executed_steps)
    runner(max_steps=12, executed_steps=executed_steps).run(policy)
    first, later = policy.seen[0], policy.seen[-1]
    assert first["image"].shape == (1, N_OBS_STEPS, 3, 36, 64)
    assert first["image"].dtype == torch.uint8
    torch.testing.assert_close(first["robot_eef_pose"][0, 0], first["robot_eef_pose"][0, 1])
    moved = later["robot_eef_pose"][0, 1] - later["robot_eef_pose"][0, 0]
    assert 0 < moved[:3].norm() < 0.08, "two neighbouring steps, oldest first"


def test_seven_numbers_are_no_command() -> None:
    with pytest.raises(SpecError, match=r"the actions lack \['gripper'\]"):
        TabletopRunner(None, shape_meta(action_dim=7))


def test_one_camera() -> None:
    meta = shape_meta()
    meta["obs"]["wrist"] = {"shape": [3, 36, 64], "type": "rgb"}  # type: ignore[index]
    with pytest.raises(SpecError, match=r"one camera; shape_meta.obs has 2 images"):
        TabletopRunner(None, meta)
