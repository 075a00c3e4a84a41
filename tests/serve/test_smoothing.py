"""The filter over a plan's steps: less jerk, no delay, the same grippers."""

import numpy as np
import pytest
from loop_factory import HOME, LAYOUT, forward, make_loop, run_for

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.geometry import geodesic_distance
from diffusion_policy.serve.client import Chunk, ChunkRequest, LoopSettings, chosen_strategy
from diffusion_policy.serve.client.plan import Plan, TimedChunk
from diffusion_policy.serve.client.smoothing import smoothed


def plan_of(actions: np.ndarray, begun_at: float = 0.0) -> Plan:
    return Plan.of(TimedChunk(0.0, actions, 0.1, 0.0, "a"), LAYOUT, begun_at, HOME)


def line(n: int = 12) -> np.ndarray:
    actions = np.tile(HOME, (n, 1))
    actions[:, 0] += 0.01 * np.arange(1, n + 1)
    return actions


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_even_movement_stays_as_it_is(passes: int) -> None:
    np.testing.assert_allclose(smoothed(plan_of(line()), passes).chunk.actions, line(), atol=1e-12)


def test_no_pass_is_the_plan_itself() -> None:
    plan = plan_of(line())
    assert smoothed(plan, 0) is plan


def test_noise_is_damped_without_delay_and_the_last_step_stays() -> None:
    noise = np.random.default_rng(0).normal(0, 0.003, (12, 3))
    actions = line()
    actions[:, :3] += noise
    plans = [smoothed(plan_of(actions), passes).chunk.actions for passes in (0, 1, 2)]
    jerks = [float(np.square(np.diff(rows[:, :3], n=3, axis=0)).mean()) for rows in plans]
    assert jerks[1] < jerks[0] / 4
    assert jerks[2] < jerks[1] / 2
    for rows in plans:
        assert abs((rows - line())[:, 0].mean()) < 0.002, "neither ahead nor behind"
        np.testing.assert_array_equal(rows[-1], actions[-1])


def test_a_jump_from_what_was_commanded_is_spread_over_the_first_steps() -> None:
    actions = line() + np.array([0.02, *[0] * 7])
    first = smoothed(plan_of(actions), 2).chunk.actions
    jump = actions[0, 0] - HOME[0]
    assert np.diff([HOME[0], *first[:, 0]]).max() < 0.8 * jump
    assert first[0, 0] < actions[0, 0], "the first step goes less far, and the next ones more"


def test_steps_that_are_over_and_grippers_are_left_alone_and_rotations_stay_rotations() -> None:
    rng = np.random.default_rng(1)
    actions = line()
    actions[:, :3] += rng.normal(0, 0.01, (12, 3))
    turned = rng.normal(0, 0.1, (12, 4)) + HOME[3:7]
    actions[:, 3:7] = turned / np.linalg.norm(turned, axis=1, keepdims=True)
    actions[:, 7] = rng.integers(0, 2, 12)
    rows = smoothed(plan_of(actions, begun_at=0.3), 2).chunk.actions
    np.testing.assert_array_equal(rows[:3], actions[:3])
    np.testing.assert_array_equal(rows[:, 7], actions[:, 7])
    np.testing.assert_allclose(np.linalg.norm(rows[:, 3:7], axis=1), 1)
    assert (
        geodesic_distance(rows[4:, 3:7], rows[3:-1, 3:7]).max()
        < geodesic_distance(actions[4:, 3:7], actions[3:-1, 3:7]).max()
    )


def test_the_loop_smooths_what_it_commands() -> None:
    def jagged(query: ChunkRequest) -> Chunk:
        chunk = forward(query)
        chunk.actions[::2, 1] += 0.004
        return chunk

    def jerk(smoothing: int) -> float:
        loop, arm, clock, _ = make_loop("skip", ask=jagged, delay=lambda request: 0.1, smoothing=smoothing)
        run_for(loop, clock, 4.0)
        commanded = np.array([action for _, action in arm.sent if action is not None])
        return float(np.abs(np.diff(commanded[:, 1], n=3)).max())

    assert jerk(2) < jerk(0) / 3


def test_a_negative_number_of_passes_is_refused() -> None:
    with pytest.raises(WorkspaceError, match="smoothing is -1; expected 0 or more"):
        LoopSettings(10.0, smoothing=-1)


@pytest.mark.parametrize(
    ("name", "offered", "chosen"),
    [("auto", ["warm_start", "rtc"], "rtc"), ("auto", [], "skip"), ("wait", ["rtc"], "wait")],
)
def test_auto_is_rtc_where_the_policy_has_it(name: str, offered: list[str], chosen: str) -> None:
    assert chosen_strategy(name, offered) == chosen
