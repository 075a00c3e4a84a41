"""The Gymnasium environment: accepted by Gymnasium's checker, paired by seed, equal under its wrappers."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.sim.expert import plan
from diffusion_policy.sim.referees import KINEMATIC, REFEREES
from diffusion_policy.sim.tabletop_env import TabletopEnv
from diffusion_policy.sim.tasks import TASKS
from diffusion_policy.spec import SpecError

ENV = "diffusion_policy.sim:Tabletop-v0"


@pytest.mark.parametrize("referee", REFEREES)
@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_finds_nothing_to_complain_about(task: str, referee: str) -> None:
    env = gymnasium.make(ENV, task=task, referee=referee, image_size=(64, 36), render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_the_expert_succeeds_and_the_episode_ends() -> None:
    env = TabletopEnv(referee=KINEMATIC, image_size=(64, 36))
    observation, info = env.reset(seed=4)
    assert info.pop("target_xy") == env.tabletop.scene.block_xy
    assert info == {
        "success": False,
        "grasped": False,
        "failure": "timeout",
        "referee": "kinematic",
        "task": "pick_and_place",
    }
    for command in plan(env.tabletop.scene, np.random.default_rng(0)):
        action = np.append(command.pose, command.gripper).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(observation)
        assert reward == float(terminated)
        if terminated:
            break
    assert terminated
    assert not truncated
    assert info["success"]
    assert info["grasped"]


def test_equal_seeds_make_equal_scenes_under_both_referees() -> None:
    scenes = []
    for referee in REFEREES:
        env = TabletopEnv(referee=referee, image_size=(64, 36))
        env.reset(seed=7)
        scenes.append(env.tabletop.scene)
        env.reset()
        assert env.tabletop.scene != scenes[0]
    assert scenes[0] == scenes[1]


def test_an_episode_is_cut_off_after_max_steps() -> None:
    env = TabletopEnv(referee=KINEMATIC, image_size=(64, 36), max_steps=3)
    env.reset(seed=0)
    action = np.append(env.tabletop.pose, 1).astype(np.float32)
    assert [env.step(action)[3] for _ in range(3)] == [False, False, True]


def test_far_commands_are_brought_back_and_quaternions_normalized() -> None:
    env = TabletopEnv(referee=KINEMATIC, image_size=(64, 36))
    env.reset(seed=0)
    for _ in range(20):
        observation, *_ = env.step(np.array([50, -50, 50, 0.2, 0, 0, 0, 1], dtype=np.float32))
    np.testing.assert_allclose(observation["pose"][:3], [1, -1, 1], atol=1e-6)
    assert np.linalg.norm(observation["pose"][3:]) == pytest.approx(1)
    assert env.observation_space.contains(observation)


@pytest.mark.parametrize("action", [np.zeros(8), np.full(8, np.nan), np.ones(7)])
def test_what_is_not_a_command_is_refused(action: np.ndarray) -> None:
    env = TabletopEnv(referee=KINEMATIC, image_size=(64, 36))
    env.reset(seed=0)
    with pytest.raises(SpecError):
        env.step(action)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(WorkspaceError, match="no render_mode 'human'"):
        TabletopEnv(render_mode="human")
    with pytest.raises(WorkspaceError, match="no referee"):
        TabletopEnv(referee="none")
