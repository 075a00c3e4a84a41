"""The grove as an environment, its expert, and what it refuses."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.installation import CONFIG
from diffusion_policy.minecraft.actions import BUTTONS, VPT_ACTION, MinecraftError, degrees_of
from diffusion_policy.minecraft.environment import make_minecraft
from diffusion_policy.minecraft.expert import Expert
from diffusion_policy.minecraft.grove import GroveEnv
from diffusion_policy.minecraft.minedojo import MineDojoSpace
from diffusion_policy.minecraft.view import render
from diffusion_policy.minecraft.world import TASKS, direction, draw_world

tasks = pytest.mark.parametrize("task", TASKS)
spaces = pytest.mark.parametrize("kind", ["vpt", "minedojo"])


def _numbers(action: dict[str, Any]) -> np.ndarray:
    return np.array([*(action[name] for name in BUTTONS), *action["camera"]], np.float32)


@spaces
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_is_a_gymnasium_environment(kind: str):
    check_env(GroveEnv("log", kind, max_steps=5), skip_render_check=True)


@tasks
def test_the_expert_finishes_every_seed_with_actions_that_vpt_can_say(task: str):
    bins = degrees_of(np.arange(11))
    for seed in range(12):
        world, expert = draw_world(TASKS[task], np.random.default_rng(seed)), Expert(np.random.default_rng(seed))
        while not world.done and world.ticks < 600:
            action = expert.act(world)
            assert np.isin(action["camera"], bins).all()
            world.step({name for name in BUTTONS if action[name]}, action["camera"])
        assert world.done, seed


@pytest.mark.parametrize("episode", [3, 22])
def test_the_expert_gets_past_what_it_slides_along_and_what_hides_its_target(episode: int):
    """A tree that it slid along a millimeter per tick, and a sheep that came to rest in front of the rock."""
    rng = np.random.default_rng([7, episode])
    world, expert = draw_world(TASKS["stone"], rng), Expert(rng, 0.0)
    while not world.done and world.ticks < 200:
        action = expert.act(world)
        world.step({name for name in BUTTONS if action[name]}, action["camera"])
    assert world.done


@pytest.mark.parametrize("distance", [2.0, 2.4, 3.0, 3.4, 3.8, 4.2])
def test_who_stands_and_harvests_is_told_to_go_on_and_no_more(distance: float):
    """As a label. The expert itself walks up while it begins; a policy that stands is not stuck."""
    world = draw_world(TASKS["log"], np.random.default_rng(5))
    log = (world.targets()[1].low + world.targets()[1].high) / 2
    world.position, world.yaw = np.array([log[0], 0.0, log[2] - distance]), 0.0
    expert = Expert(np.random.default_rng(0), 0.0)
    world.step({"attack"}, np.zeros(2))
    while not world.done:
        assert world.progress > 0, "the test aims at the log"
        said = {name for name, pressed in expert.act(world).items() if name in BUTTONS and pressed}
        assert said == {"attack"}
        world.step({"attack"}, np.zeros(2))


def test_who_walks_and_does_not_move_is_told_to_step_aside():
    world, expert = draw_world(TASKS["log"], np.random.default_rng(5)), Expert(np.random.default_rng(0), 0.0)
    said: list[frozenset[str]] = []
    held = world.position.copy()
    while world.ticks < 60:
        action = expert.act(world)
        said.append(frozenset(name for name in BUTTONS if action[name]))
        world.step(said[-1], action["camera"])
        world.position = held.copy()
    assert any(pressed & {"left", "right"} for pressed in said)


@tasks
@spaces
def test_equal_seeds_give_equal_episodes_and_other_seeds_others(task: str, kind: str):
    def play(seed: int) -> list[Any]:
        env = GroveEnv(task, kind)
        observation, info = env.reset(seed=seed)
        seen = [next(iter(observation.values())), info["target_xy"]]
        env.action_space.seed(0)
        for _ in range(3):
            observation, *_ = env.step(env.action_space.sample())
            seen.append(next(iter(observation.values())))
        return seen

    first, again, other = play(3), play(3), play(4)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@tasks
def test_an_episode_of_the_expert_is_rewarded_once_at_its_end(task: str):
    env = GroveEnv(task, "vpt")
    env.reset(seed=11)
    expert, rewards, ended = Expert(np.random.default_rng(0), 0.0), [], False
    while not ended:
        _, reward, ended, truncated, info = env.step(_numbers(expert.act(env.world)))
        rewards.append(reward)
        assert not truncated
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert (info["success"], info["failure"], info["progress"]) == (True, None, 1.0)


def test_letting_go_or_looking_away_starts_the_harvest_anew():
    env = GroveEnv("log", "vpt")
    env.reset(seed=11)
    expert = Expert(np.random.default_rng(0), 0.0)
    while env.world.progress < 40:
        env.step(_numbers(expert.act(env.world)))
    env.step(np.zeros(22))
    assert env.world.progress == 0
    for turn in (0.0, 90.0, -90.0):
        action = _numbers({**dict.fromkeys(BUTTONS, 0), "attack": 1, "camera": (0.0, turn)})
        *_, info = env.step(action)
        assert bool(env.world.progress) == info["aimed"] == (turn != 90.0)


def test_no_op_of_minedojo_moves_nothing_and_zeros_turn_the_head():
    env = GroveEnv("log", "minedojo")
    env.reset(seed=0)
    before, yaw = env.world.position.copy(), env.world.yaw
    env.step(MineDojoSpace().no_op)
    np.testing.assert_array_equal(env.world.position, before)
    assert (env.world.yaw, env.world.pitch) == (yaw, 0.0)
    env.step([0] * 8)
    assert env.world.pitch == -90.0
    assert abs(abs(env.world.yaw - yaw) - 180.0) < 1e-6


def test_a_turn_to_the_right_moves_the_picture_to_the_left_and_one_down_moves_it_up():
    world = draw_world(TASKS["log"], np.random.default_rng(5))
    target = world.targets()[1]
    away = (target.low + target.high) / 2 - world.eye
    world.yaw = float(np.degrees(np.arctan2(-away[0], away[2])))
    np.testing.assert_allclose(direction(world.yaw, 0.0)[[0, 2]], away[[0, 2]] / np.hypot(*away[[0, 2]]), atol=1e-9)

    def trunk(turn: tuple[float, float]) -> tuple[float, float]:
        world.step((), np.array(turn))
        frame = render(world).astype(int)
        brown = (frame[..., 0] > frame[..., 1]) & (frame[..., 1] > frame[..., 2])
        brown[110:] = False  # the hand
        rows, columns = np.nonzero(brown & (np.abs(np.arange(256) - 128) < 60))
        return float(np.median(columns)), float(np.median(rows))

    ahead, right, down = trunk((0, 0)), trunk((0, 6)), trunk((6, -6))
    assert abs(ahead[0] - 128) < 12
    assert right[0] < ahead[0] - 5
    assert down[1] < ahead[1] - 5


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"task": "diamond"}, "it has log, wool, stone"),
        ({"spaces": "minerl"}, "expected minedojo or vpt"),
        ({"camera_interval": 7}, "does not divide 180"),
        ({"max_steps": 0}, "expected 1 or more"),
        ({"game": "minetest"}, "expected grove or minedojo"),
        ({"game": "minedojo", "task": "harvest_milk"}, "MineDojo is not installed"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], found: str):
    with pytest.raises(MinecraftError, match=found):
        make_minecraft(**settings)


@pytest.mark.parametrize("action", [np.zeros(21), np.full(22, np.nan), np.zeros((1, 22))])
def test_actions_of_another_space_are_refused(action: np.ndarray):
    env = GroveEnv("log", "vpt")
    env.reset(seed=0)
    with pytest.raises(MinecraftError, match="22 finite numbers"):
        env.step(action)


class _OldGym:
    """The part of MineDojo's interface that is used, which is gym 0.21's."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.steps, self.taken = settings, 0, []

    def seed(self, seed: int) -> None:
        self.seeded = seed

    def reset(self) -> dict[str, Any]:
        return {"rgb": np.zeros((3, 160, 256), np.uint8), "inventory": {}}

    def step(self, slots: np.ndarray) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        self.taken.append(list(slots))
        self.steps += 1
        return {"rgb": np.full((3, 160, 256), self.steps, np.uint8)}, float(self.steps == 3), self.steps == 3, {"x": 1}

    def close(self) -> None:
        self.closed = True


def test_an_installed_minedojo_is_behind_the_same_factory(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("minedojo")
    module.make = lambda **settings: _OldGym(**settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "minedojo", module)
    env = make_minecraft("minedojo", "harvest_milk")
    assert isinstance(env, gymnasium.Env)
    observation, _ = env.reset(seed=5)
    assert observation["pov"].shape == (160, 256, 3)
    turn = np.zeros(len(VPT_ACTION))
    turn[-1] = 5.0
    outcomes = [env.step(turn)[1:4] for _ in range(3)]
    assert outcomes == [(0.0, False, False), (0.0, False, False), (1.0, True, False)]
    # 5, 10 and 15 degrees are owed: the second and not the first rounds to a bin of 15, which leaves -5.
    assert [slots[4] for slots in env._game.taken] == [12, 13, 12]  # type: ignore[attr-defined]
    assert env._game.settings["cam_interval"] == 15  # type: ignore[attr-defined]
    env.close()


def test_minedojos_own_space_goes_through_as_it_is(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("minedojo")
    module.make = lambda **settings: _OldGym(**settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "minedojo", module)
    env = make_minecraft("minedojo", "harvest_milk", "minedojo", max_steps=2)
    observation, _ = env.reset()
    assert observation["rgb"].shape == (3, 160, 256)
    assert [env.step(MineDojoSpace().no_op)[3] for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    ("error", "at_reset", "message"),
    [
        (ModuleNotFoundError("No module named 'gym'", name="gym"), False, "cannot be imported (No module named 'gym')"),
        (AttributeError("module 'minedojo' has no attribute 'make'"), False, "another interface than version 0.1"),
        (TypeError("make() got an unexpected keyword argument 'cam_interval'"), False, "another interface than"),
        (AssertionError("no such task"), False, "does not start its task 'harvest_milk': no such task"),
        (
            FileNotFoundError("java"),
            True,
            "Minecraft does not start: java, and there is no java on PATH (it needs JDK 8)",
        ),
        (
            EOFError("the client ended"),
            True,
            "Minecraft does not start: the client ended, and there is no java on PATH",
        ),
    ],
)
def test_a_minedojo_that_does_not_work_is_one_sentence(
    error: Exception, at_reset: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version, a package that it needs, Java: through the settings that every command reads."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    module = ModuleType("minedojo")
    module.make = (lambda **settings: _OldGym(**settings)) if at_reset else fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "minedojo", module)
    monkeypatch.setattr(_OldGym, "reset", fail)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MinecraftError) as caught:
        Simulator.load(CONFIG / "simulator" / "grove.yaml", game="minedojo", task="harvest_milk").make().reset(seed=1)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
