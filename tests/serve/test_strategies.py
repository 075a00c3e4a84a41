"""Plans and chunk strategies in isolation: what is executed when, and what becomes of the old chunk."""

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.client import STRATEGIES, Plan, TimedChunk, make_strategy
from diffusion_policy.serve.client.command_history import CommandHistory
from diffusion_policy.serve.client.strategies import Ensemble, Moment, mean_action
from diffusion_policy.spec import POSE_GRIPPER, ActionLayout

LAYOUT = ActionLayout.of(POSE_GRIPPER)


def row(x: float, gripper: float = 1.0, angle: float = 0.0) -> np.ndarray:
    return np.array([x, 0, 0.3, *Rotation.from_rotvec([0, 0, angle]).as_quat(), gripper])


def chunk(starts_at: float, xs: list[float], name: str = "a", grippers: list[float] | None = None) -> TimedChunk:
    rows = [row(x, 1.0 if grippers is None else grippers[i]) for i, x in enumerate(xs)]
    return TimedChunk(starts_at, np.stack(rows), 0.1, starts_at, name)


def plan_of(one: TimedChunk, begun_at: float | None = None, x: float = 0.0) -> Plan:
    return Plan.of(one, LAYOUT, one.starts_at if begun_at is None else begun_at, row(x))


def moment(now: float, still_since: float | None = None, x: float = 0.0) -> Moment:
    return Moment(now, now if still_since is None else still_since, row(x), LAYOUT)


def nothing(starts_at: float, period_s: float) -> None:
    """No step was executed before."""


def x_at(plan: Plan, now: float, period: float) -> float | None:
    target = plan.target(now, period)
    return None if target is None else round(float(target.action[0]), 9)


# ---- plans ----


def test_at_the_policy_s_own_rate_its_own_actions_are_commanded() -> None:
    plan = plan_of(chunk(7.0, [0.1, 0.4, 0.2]))
    assert [x_at(plan, 7.0 + i * 0.1, 0.1) for i in range(4)] == [0.1, 0.4, 0.2, None]
    assert [target.step for i in range(3) if (target := plan.target(7.0 + i * 0.1, 0.1))] == [0, 1, 2]


def test_at_a_higher_rate_each_step_is_reached_at_its_end() -> None:
    plan = plan_of(chunk(7.0, [0.1, 0.3]))
    assert [x_at(plan, 7.0 + i * 0.025, 0.025) for i in range(9)] == [
        0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, None,
    ]  # fmt: skip


def test_a_rate_that_is_not_a_multiple_stays_on_the_same_path() -> None:
    plan = plan_of(chunk(0.0, [0.1, 0.2, 0.3, 0.4]))
    for i in range(10):
        assert x_at(plan, i * 0.03, 0.03) == pytest.approx(i * 0.03 + 0.03), i
    assert x_at(plan_of(chunk(0.0, [0.1, 0.2, 0.3, 0.4])), 0.0, 0.2) == 0.2, "a slow robot leaves steps out"


def test_a_late_plan_begins_with_the_step_that_is_over_by_less_than_half() -> None:
    one = chunk(0.0, [0.1, 0.2, 0.3, 0.4])
    begun = (0.0, 0.05, 0.06, 0.15, 0.24, 0.34)
    assert [plan_of(one, moment).first for moment in begun] == [0, 0, 1, 1, 2, 3]
    late = plan_of(one, 0.16, x=0.15)
    assert x_at(late, 0.16, 0.02) == pytest.approx(0.15 + 0.15 * 0.02 / 0.14), "evenly to the third, from where it is"
    assert x_at(late, 0.28, 0.02) == pytest.approx(0.3)
    assert plan_of(one, 0.37).target(0.37, 0.02) is None, "nothing is left"


def test_the_gripper_changes_when_its_step_is_commanded() -> None:
    plan = plan_of(chunk(0.0, [0.1, 0.2], grippers=[1.0, 0.0]))
    commands = [plan.target(i * 0.025, 0.025).action[7] for i in range(8)]  # type: ignore[union-attr]
    assert commands == [1.0] * 4 + [0.0] * 4


def test_what_remains_of_a_plan() -> None:
    plan = plan_of(chunk(0.0, [0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_allclose(plan.remainder(0.1, nothing)[:, 0], [0.2, 0.3, 0.4])
    np.testing.assert_allclose(plan.remainder(0.15, nothing)[:, 0], [0.25, 0.35])
    assert plan.remainder(0.4, nothing).shape == (0, 8)
    assert plan_of(chunk(0.0, [0.1, 0.2]), begun_at=0.17).remainder(0.0, nothing).shape == (0, 8), "it came too late"


def test_what_was_executed_before_a_plan_began_comes_first_in_its_remainder() -> None:
    """The chunk starts at 7.0 s and took over at 7.2 s, when the arm was at 0.9."""
    plan = plan_of(chunk(7.0, [0.1, 0.2, 0.3, 0.4]), 7.2, x=0.9)
    values = {7.0: 0.7, 7.1: 0.9}
    rows = plan.remainder(
        6.9, lambda starts, period: row(values[time]) if (time := round(starts, 3)) in values else None
    )
    np.testing.assert_allclose(rows[:, 0], [0.9, 0.7, 0.9, 0.3, 0.4])
    between = plan.remainder(7.15, nothing)
    np.testing.assert_allclose(between[:, 0], [(0.9 + 0.3) / 2, 0.35])
    stood = plan_of(chunk(7.3, [0.1, 0.2]), 7.3, x=0.5)
    np.testing.assert_allclose(stood.remainder(7.1, nothing)[:, 0], [0.5, 0.5, 0.1, 0.2])


@pytest.mark.parametrize("hz", [10.0, 20.0, 30.0, 50.0])
def test_the_history_tells_what_a_plan_told_the_arm(hz: float) -> None:
    plan = plan_of(chunk(0.0, [0.1, 0.3, 0.2, 0.4], grippers=[1.0, 0.0, 0.0, 1.0]))
    history = CommandHistory(LAYOUT, 1 / hz)
    for tick in range(math.ceil(0.4 * hz)):
        target = plan.target(tick / hz, 1 / hz)
        assert target is not None
        history.add(tick / hz, target.action)
    for index in range(4):
        found = history.step(index / 10, 0.1)
        assert found is not None
        assert found[0] == pytest.approx(plan.chunk.actions[index, 0])
        assert found[7] == plan.chunk.actions[index, 7]
    assert history.step(0.5, 0.1) is None, "not commanded yet"
    history.add(0.9, row(1.0))
    assert history.step(0.6, 0.1) is None, "it was held"
    history.clear()
    assert history.step(0.0, 0.1) is None


# ---- strategies ----


@pytest.mark.parametrize("name", STRATEGIES)
def test_time_in_which_the_arm_stood_still_is_not_over(name: str) -> None:
    """The answer comes 0.35 s after its observation, and the arm has not moved since."""
    plan = make_strategy(name, 4).merge(None, chunk(1.0, [0.1, 0.2, 0.3, 0.4]), moment(1.35, still_since=-math.inf))
    assert [x_at(plan, 1.35 + i * 0.1, 0.1) for i in range(5)] == [0.1, 0.2, 0.3, 0.4, None]


@pytest.mark.parametrize("name", ["skip", "warm_start", "rtc"])
def test_steps_that_are_over_are_left_out(name: str) -> None:
    strategy = make_strategy(name, 4)
    old = plan_of(chunk(0.0, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]))
    new = strategy.merge(old, chunk(0.3, [0.45, 0.55, 0.65, 0.75], "b"), moment(0.5, x=0.5))
    assert (new.first, x_at(new, 0.5, 0.1), new.ends_at) == (2, 0.65, pytest.approx(0.7))
    half = strategy.merge(old, chunk(0.3, [0.45, 0.55, 0.65, 0.75], "b"), moment(0.9, still_since=0.7, x=0.7))
    assert half.first == 4, "0.4 s of movement are over, 0.2 s of standing are not"
    assert half.chunk.starts_at == pytest.approx(0.5)


def test_wait_asks_once_the_arm_is_at_rest() -> None:
    strategy = make_strategy("wait", 2)
    plan = strategy.merge(None, chunk(0.0, [0.1, 0.2, 0.3]), moment(0.0))
    assert plan.ends_at == pytest.approx(0.2), "two of three steps"
    assert [strategy.wants(plan, now, 9.0) for now in (0.0, 0.1, 0.2)] == [False, False, True]
    assert strategy.observe_after(plan) == pytest.approx(0.2, abs=1e-5)
    assert strategy.wants(None, 0.0, 0.0)
    assert strategy.continuation(plan, 0.1, 0.3, nothing) is None


@pytest.mark.parametrize("name", ["skip", "warm_start", "rtc"])
def test_the_next_answer_is_to_come_when_its_turn_is(name: str) -> None:
    strategy = make_strategy(name, 4)
    plan = plan_of(chunk(0.0, [0.1] * 8))
    assert [strategy.wants(plan, now, 0.25) for now in (0.1, 0.14, 0.15, 0.3, 0.9)] == [False, False, True, True, True]
    assert strategy.wants(None, 0.0, 0.0)
    assert strategy.observe_after(plan) == -math.inf


@pytest.mark.parametrize("mode", ["warm_start", "rtc"])
def test_a_continuation_is_what_remains_and_how_much_of_it_is_certain(mode: str) -> None:
    strategy = make_strategy(mode, 4)
    plan = plan_of(chunk(0.0, [0.1, 0.2, 0.3, 0.4, 0.5]))
    found = strategy.continuation(plan, 0.1, 0.35, nothing)
    assert found is not None
    assert (found.mode, found.committed) == (mode, 3)
    np.testing.assert_allclose(found.actions[:, 0], [0.2, 0.3, 0.4, 0.5])
    late = strategy.continuation(plan, 0.3, 9.0, nothing)
    assert late is not None
    assert late.committed == len(late.actions) == 2
    assert strategy.continuation(plan, 0.5, 0.7, nothing) is None
    assert strategy.continuation(None, 0.5, 0.7, nothing) is None


def test_an_ensemble_averages_what_is_for_the_same_time() -> None:
    strategy = Ensemble(decay=math.log(3))  # the older of two weighs three times as much
    first = strategy.merge(None, chunk(0.0, [0.1, 0.2, 0.3]), moment(0.0))
    second = strategy.merge(first, chunk(0.1, [0.6, 0.7, 0.8], "b"), moment(0.1, x=0.1))
    np.testing.assert_allclose(second.chunk.actions[:, 0], [0.3, 0.4, 0.8])
    assert second.observed_ats == (0.0, 0.0, 0.1)
    assert second.chunk.request_id == "b"
    third = strategy.merge(second, chunk(0.35, [1.0], "c"), moment(0.35, x=0.4))
    assert [one.request_id for one in third.sources] == ["b", "c"], "a chunk that is over has no vote"
    assert third.chunk.actions[0, 0] == pytest.approx(1.0), "the older has no step after 0.3 s"
    assert [strategy.wants(second, now, 0.0) for now in (0.15, 0.2)] == [False, True]
    assert strategy.observe_after(second) > 0.1


def test_between_the_steps_of_two_grids_the_older_chunk_is_interpolated() -> None:
    strategy = Ensemble(decay=0.0)
    first = strategy.merge(None, chunk(0.0, [0.1, 0.2, 0.3]), moment(0.0))
    second = strategy.merge(first, chunk(0.05, [0.25, 0.35], "b"), moment(0.05))
    np.testing.assert_allclose(second.chunk.actions[:, 0], [(0.15 + 0.25) / 2, (0.25 + 0.35) / 2])


def test_grippers_are_voted_on_and_never_half_open() -> None:
    rows = [row(0.0, 0.0), row(0.0, 0.9), row(0.0, 1.0)]
    assert mean_action(LAYOUT, rows, np.ones(3))[7] == pytest.approx(0.95)
    assert mean_action(LAYOUT, rows, np.array([3.0, 1, 1]))[7] == 0.0
    tie = mean_action(LAYOUT, rows[:2], np.ones(2))[7]
    assert tie in (0.0, 0.9)


def test_rotations_are_averaged_on_the_sphere_whatever_their_sign() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        center = Rotation.random(random_state=rng)
        turn = Rotation.from_rotvec(rng.normal(size=3) * 0.3)
        one, other = (center * turn).as_quat(), (center * turn.inv()).as_quat()
        rows = [np.array([0, 0, 0, *quaternion, 1]) for quaternion in (one, -other)]
        found = mean_action(LAYOUT, rows, np.ones(2))[3:7]
        assert (Rotation.from_quat(found).inv() * center).magnitude() < 1e-6
        assert np.linalg.norm(found) == pytest.approx(1)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(WorkspaceError, match="expected wait, skip, ensemble, warm_start, rtc"):
        make_strategy("hurry", 4)
    with pytest.raises(WorkspaceError, match="n_action_steps is 0"):
        make_strategy("skip", 0)
    with pytest.raises(WorkspaceError, match="every_steps is 0"):
        Ensemble(0)
