"""Closed loop as a runner of training: metrics, the same scenes at every epoch, and an unchanged random state."""

from typing import Any

import numpy as np
import pytest
import torch
from closed_loop_factory import SEED, expert, shape_meta
from hydra.utils import instantiate

from diffusion_policy.env_runner.gym_runner import GymRunner
from diffusion_policy.env_runner.tabletop_runner import SETTINGS, TabletopRunner
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.model.normalizer import LinearNormalizer
from diffusion_policy.spec import SpecError, read_shape_meta


class ExpertPolicy:
    """Plays the scripted expert through a policy's interface; it finds the scene from the order of requests."""

    n_obs_steps, n_action_steps, sample_shape = 2, 8, (8, 8)
    device = torch.device("cpu")

    def __init__(self, *, copies: bool = False, camera: str = "image") -> None:
        self.spec = read_shape_meta(shape_meta(camera=camera))
        self.normalizer = LinearNormalizer()
        self.normalizer.fit({"robot_eef_pose": torch.tensor([[0.4, 0.0, 0.2, 1.0, 0.0, 0.0, 0.0]])})
        self.actor, self.step, self.copies = expert(), 0, copies

    def predict_action(self, obs: Any, initial_noise: Any = None, generator: Any = None) -> dict[str, torch.Tensor]:
        from diffusion_policy.env_runner.actors import ActionRequest

        chunk = self.actor.rule(ActionRequest(0, 0, self.step, ()))
        assert chunk is not None
        self.step += 6
        if self.copies:
            chunk[:, 7] = obs["robot_gripper_state"][0, -1, 0]
        return {"action": torch.from_numpy(chunk)[None]}


def runner(**settings: Any) -> TabletopRunner:
    return TabletopRunner(None, shape_meta(), n_episodes=1, seed=SEED, camera_size=(64, 36), **settings)


@pytest.mark.parametrize("referee", ["kinematic", "physics"])
def test_the_expert_succeeds(referee: str) -> None:
    policy, measuring = ExpertPolicy(), runner(referee=referee)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    metrics = measuring.run(policy)
    assert metrics["test_success"] == metrics["tabletop_success"] == 1.0
    assert metrics["test_grasped"] == metrics["tabletop_grasped"] == 1.0
    assert metrics["test_success_low"] < 0.3
    assert metrics["test_n_action_steps"] == 6
    torch.testing.assert_close(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_a_copy_of_the_measured_gripper_never_grasps() -> None:
    metrics = runner(max_steps=90).run(ExpertPolicy(copies=True))
    assert (metrics["test_grasped"], metrics["test_success"]) == (0.0, 0.0)


def test_the_camera_may_have_any_name() -> None:
    found = TabletopRunner(None, shape_meta(camera="front"), n_episodes=1, seed=SEED, camera_size=(64, 36))
    assert found.run(ExpertPolicy(camera="front"))["test_success"] == 1.0


def test_any_simulator_is_a_config() -> None:
    section = {
        "_target_": "diffusion_policy.env_runner.gym_runner.GymRunner",
        "_recursive_": False,
        "shape_meta": shape_meta(),
        "n_scenes": 2,
        "simulator": {
            "env": {"_target_": "closed_loop_factory.Driver", "length": 6},
            "observations": {
                "image": "cameras.front", "robot_eef_pose": "agent.pose", "robot_gripper_state": "agent.hand",
            },
            "info": {"success": "is_success"},
        },
    }  # fmt: skip
    found = instantiate(section, output_dir=None)
    assert isinstance(found, GymRunner)
    assert found.simulator.make().length == 6  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="_recursive_: false"):
        instantiate({**section, "_recursive_": True}, output_dir=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"referee": "umpire"}, "no referee 'umpire'"),
        ({"task": "juggle"}, "no task 'juggle'"),
        ({"executed_steps": 9}, "n_action_steps is 9"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkspaceError, match=message):
        runner(**settings).run(ExpertPolicy())


def test_one_camera() -> None:
    meta = shape_meta()
    meta["obs"]["wrist"] = {"shape": [3, 36, 64], "type": "rgb"}
    with pytest.raises(SpecError, match=r"one camera; shape_meta.obs has 2 images"):
        TabletopRunner(None, meta)


def test_settings_of_the_tabletop_lie_in_config() -> None:
    assert SETTINGS.is_file()
