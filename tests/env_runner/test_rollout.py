"""Episodes in simulators: what is executed when, what is seen, why it failed; in any Gymnasium environment."""

from typing import Any

import numpy as np
import pytest
from closed_loop_factory import SEED, SPEC, Driver, Scripted, driver, expert, numbered, shape_meta, tabletop

from diffusion_policy.env_runner.results import SceneResult, success_of
from diffusion_policy.env_runner.rollout import RolloutSettings, default_action_steps, roll_out
from diffusion_policy.env_runner.simulator import InfoKeys, Simulator, SimulatorError
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.sim.referees import REFEREES
from diffusion_policy.spec import SpecError, read_shape_meta


def run(simulator: Simulator, actor: Any, n_scenes: int = 1, **rules: Any) -> list[SceneResult]:
    scenes = {scene: SEED + scene for scene in range(n_scenes)}
    return list(roll_out(simulator, actor, scenes, RolloutSettings(**{"n_action_steps": 6, **rules})))


def executed() -> list[float]:
    """Returns the step that each executed action was meant for."""
    return [float(action[1]) for action in Driver.told]


@pytest.mark.parametrize("referee", REFEREES)
def test_the_expert_succeeds(referee: str) -> None:
    results = run(tabletop(referee), expert(), 3)
    assert [result.success for result in results] == [True] * 3
    assert all(result.grasped and result.reason is None and 45 < result.steps < 90 for result in results)
    assert all(result.position is not None for result in results)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda scene, chunk: np.concatenate([chunk[:, :7], np.ones((8, 1))], axis=1), "never closed"),
        (lambda scene, chunk: np.concatenate([chunk[:, :7], np.zeros((8, 1))], axis=1), "shut on arrival"),
        (lambda scene, chunk: chunk + np.array([0.06, 0, 0, 0, 0, 0, 0, 0]), "closed beside"),
        (lambda scene, chunk: None, "refused by guard"),
        (lambda scene, chunk: np.tile([0.4, 0, 0.24, 1, 0, 0, 0, 1.0], (8, 1)), "timeout"),
    ],
)
def test_failures_have_reasons(change: Any, reason: str) -> None:
    (result,) = run(tabletop(), expert(change))
    assert (result.success, result.reason) == (False, reason)
    assert result.steps == 150


@pytest.mark.parametrize("n_action_steps", [1, 3, 6, 8])
def test_so_many_steps_of_each_chunk_are_executed(n_action_steps: int) -> None:
    actor = Scripted(numbered)
    run(driver(length=24), actor, n_action_steps=n_action_steps)
    assert executed() == list(range(1, 25))
    assert [request.step for request in actor.asked] == list(range(0, 24, n_action_steps))
    assert [request.index for request in actor.asked] == list(range(len(actor.asked)))


@pytest.mark.parametrize(("latency_s", "late"), [(0.0, 0), (0.05, 1), (0.1, 1), (0.25, 3)])
def test_injected_latency_leaves_out_what_is_over(latency_s: float, late: int) -> None:
    run(driver(length=26), Scripted(numbered), n_action_steps=2, latency_s=latency_s)
    commands = np.array(executed())
    first = 0.0 if late == 0 else commands[0]
    assert np.array_equal(commands[:late], np.full(late, first)), "until the first answer the pose is held"
    assert np.array_equal(commands[late:], np.arange(late + 1, 27)), "then every step is executed when it is meant"


def test_an_answer_that_comes_after_its_last_step_moves_nothing() -> None:
    run(driver(length=20), Scripted(numbered), n_action_steps=8, latency_s=1.0)
    assert set(executed()) == {0.0}


def test_without_an_answer_the_arm_holds_its_pose_and_its_gripper() -> None:
    actor = Scripted(lambda request: None if 6 <= request.step < 9 else numbered(request))
    (result,) = run(driver(length=15), actor)
    assert executed()[6:9] == [6.0] * 3, "the measured pose, one step for each refusal"
    assert [action[0] for action in Driver.told[6:9]] == [0.0] * 3, "the gripper as it was commanded"
    assert result.refusals == {"refused": 3}
    assert result.reason == "timeout", "for most of its steps it was answered"


def test_the_policy_sees_the_last_steps_oldest_first() -> None:
    actor = Scripted(numbered)
    run(driver(length=12), actor)
    first, second = actor.asked
    assert [step["image"][0, 0, 0] for step in first.history] == [0, 0], "nothing came before the first step"
    assert [step["image"][0, 0, 0] for step in second.history] == [5, 6]
    assert [float(step["robot_eef_pose"][0]) for step in second.history] == [5, 6]
    assert second.history[1]["robot_gripper_state"].shape == (1,)


def test_somebody_elses_simulator_is_settings() -> None:
    results = run(driver(length=40, goal=9.5), Scripted(numbered), 3, at_once=2)
    assert [(result.success, result.steps) for result in results] == [(True, 10)] * 3
    assert Driver.seeds == [SEED, SEED + 1, SEED + 2]
    assert results[0].grasped is None
    assert results[0].position is None
    by_reward = driver(length=40, goal=9.5)
    object.__setattr__(by_reward, "info", InfoKeys(success=None))
    assert run(by_reward, Scripted(numbered))[0].success


def test_episodes_make_room_for_the_next_ones() -> None:
    actor = expert(lambda scene, chunk: chunk if scene % 2 else np.tile([0.4, 0, 0.24, 1, 0, 0, 0, 1.0], (8, 1)))
    results = run(tabletop(max_steps=90), actor, 5, at_once=2)
    assert sorted(result.scene for result in results) == list(range(5))
    assert {result.scene for result in results if result.success} == {1, 3}
    assert max(actor.at_once) == 2
    assert success_of(results).count == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_action_steps": 9}, "n_action_steps is 9; expected 1 to the 8 of a chunk"),
        ({"n_action_steps": 0}, "n_action_steps is 0"),
        ({"latency_s": -1.0}, "latency_s is -1.0; expected 0 or more"),
        ({"latency_s": float("nan")}, "latency_s is nan"),
        ({"at_once": 0}, "at_once is 0"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkspaceError, match=message):
        run(driver(), Scripted(numbered), **settings)


def test_the_default_number_of_steps_fits_the_chunk() -> None:
    actor = Scripted(numbered)
    assert [default_action_steps(actor, asked) for asked in (None, 3, 8)] == [6, 3, 8]
    actor.n_action_steps = 4
    assert default_action_steps(actor, None) == 4


SETTINGS: dict[str, Any] = {
    "env": {"_target_": "closed_loop_factory.Driver"},
    "observations": {"image": "cameras.front", "robot_eef_pose": "agent.pose", "robot_gripper_state": "agent.hand"},
    "info": {"success": "is_success"},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"envs": 1}, r"simulator has the keys .*'envs'.*; expected"),
        ({"env": {"length": 3}}, "expected _target_ and its arguments"),
        ({"env": {"_target_": "no_such.Thing"}}, r"simulator.env cannot be created: .*no_such"),
        ({"env": {"_target_": "closed_loop_factory.Driver", "wrong": 1}}, r"simulator.env cannot be created: .*wrong"),
        ({"env": {"_target_": "collections.OrderedDict"}}, "makes a OrderedDict; expected a Gymnasium environment"),
        ({"info": {"succes": "x"}}, r"simulator.info has the keys \['succes'\]"),
        ({"info": {"success": "done"}}, "simulator.info.success is 'done', but the environment's info has"),
        ({"observations": {"image": "cameras.front"}}, r"the policy reads \['robot_eef_pose', 'robot_gripper_state'\]"),
        (
            {"observations": {**SETTINGS["observations"], "image": "cameras.side"}},
            r"observations.image is 'cameras.side'; the environment's observation has \['front'\]",
        ),
        (
            {"observations": {**SETTINGS["observations"], "image": "agent.pose"}},
            r"image: the environment's agent.pose is float64 \(7,\); expected uint8 \(H, W, 3\)",
        ),
        ({"action": ["x", "y"]}, r"the policy commands \['z', .*, but the simulator's action is \['x', 'y'\]"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkspaceError, match=message):
        run(Simulator.read({**SETTINGS, **change}), Scripted(numbered))


def test_a_settings_file_that_cannot_be_read(tmp_path: Any) -> None:
    for content in (None, "- 1\n", "{ : :"):
        path = tmp_path / "mine.yaml"
        if content is not None:
            path.write_text(content)
        with pytest.raises(SimulatorError, match=r"mine\.yaml"):
            Simulator.load(path)


def test_a_pose_policy_leaves_the_gripper_open_and_says_so() -> None:
    spec = read_shape_meta(shape_meta(7))
    simulator = tabletop()
    assert simulator.check_policy(spec) == ["the policy commands no gripper: held at 1"]
    assert simulator.check_policy(SPEC) == []
    np.testing.assert_array_equal(simulator.to_env(np.zeros((2, 7)), spec.action_names)[:, 7], [1, 1])
    with pytest.raises(SpecError, match=r"simulator\.absent can hold them"):
        driver().check_policy(spec)
