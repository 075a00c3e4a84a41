"""The control loop under a virtual clock: what is sent to the arm, and what makes it hold."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_factory import HOME, N_STEPS, NumericArm, form, forward, make_loop, run_for

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.client import (
    STRATEGIES,
    ArmError,
    ArmLog,
    Chunk,
    ChunkRequest,
    ControlLoop,
    DelayedRequester,
    LoopSettings,
    Picture,
    Reading,
    ServerError,
    VirtualClock,
    make_strategy,
    read_arm_log,
)
from diffusion_policy.serve.client.arm_log import ArmLogError


def test_without_delay_every_period_moves_the_arm() -> None:
    for strategy in STRATEGIES:
        loop, arm, clock, _ = make_loop(strategy)
        run_for(loop, clock, 2.0)
        assert (loop.moves, dict(loop.holds), loop.missed) == (20, {}, 0), strategy
        np.testing.assert_allclose(np.diff([0.5, *arm.xs]), 0.01, atol=1e-6)
        assert arm.stopped == 1


def test_wait_holds_while_the_policy_computes_and_loses_no_step() -> None:
    loop, arm, clock, log = make_loop("wait", delay=lambda request: 0.2)
    run_for(loop, clock, 1.2)
    assert arm.xs == [None, None, 0.51, 0.52, 0.53, 0.54, None, None, 0.55, 0.56, 0.57, 0.58]
    assert loop.holds == {"waiting": 4}
    events = [line["event"] for line in log.lines]
    assert events == ["start", *["request", "hold", "answer", *["move"] * 4] * 2, "end"]


@pytest.mark.parametrize("strategy", ["skip", "warm_start", "rtc", "ensemble"])
def test_others_move_on_while_the_policy_computes(strategy: str) -> None:
    loop, arm, clock, log = make_loop(strategy, delay=lambda request: 0.3)
    run_for(loop, clock, 6.0)
    assert loop.holds == {"waiting": 3}, "before the first answer"
    np.testing.assert_allclose(np.diff(arm.xs[3:]), 0.01, atol=1e-6)
    seams = [line["seam"]["millimetres"] for line in log.lines if line["event"] == "answer" and line["seam"]]
    assert len(seams) > 5
    assert max(seams) < 1e-6, "the policy goes on from what it saw"


@pytest.mark.parametrize("hz", [10.0, 30.0, 50.0, 125.0])
@pytest.mark.parametrize("strategy", ["wait", "skip", "ensemble"])
def test_any_control_rate_goes_the_same_way(hz: float, strategy: str) -> None:
    loop, arm, clock, _ = make_loop(strategy, control_hz=hz, delay=lambda request: 0.05)
    run_for(loop, clock, 3.0)
    moved = np.array([action[0] for _, action in arm.sent if action is not None])
    steps = np.diff([0.5, *moved])
    assert steps.min() > -1e-9, "never back"
    assert steps.max() < 0.1 / hz * 2.01, "never more than twice the policy's speed"


def test_a_delay_beyond_the_chunk_is_survived() -> None:
    loop, arm, clock, _ = make_loop("skip", delay=lambda request: 1.3, answer_timeout_s=5, max_action_age_s=5)
    run_for(loop, clock, 8.0)
    moved = [x for x in arm.xs if x is not None]
    assert len(moved) > 20
    assert np.diff([0.5, *moved]).max() < 0.0101, "it never jumps over steps that it did not execute"


# ---- what makes it hold ----


@dataclass
class FaultyArm(NumericArm):
    """Misbehaves at certain times."""

    faults: dict[float, str] = field(default_factory=dict)

    def fault(self) -> str:
        return self.faults.get(round(self.clock.now() - 100.0, 3), "")

    def observe(self) -> Reading:
        found = super().observe()
        match self.fault():
            case "silent":
                raise ArmError("no answer from the arm")
            case "nan":
                found.state[2] = np.nan
            case "ahead":
                return Reading(found.state, found.measured_at + 1, found.pictures)
            case "back":
                return Reading(found.state, found.measured_at - 1, found.pictures)
            case "slow":
                self.clock.advance(0.4)
        return found

    def move(self, action: np.ndarray) -> None:
        if self.fault() == "no move":
            raise ArmError("the command was not taken")
        super().move(action)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("silent", "arm_error"),
        ("no move", "arm_error"),
        ("nan", "state_invalid"),
        ("ahead", "clock"),
        ("back", "clock"),
        ("slow", "gap"),
    ],
)
def test_a_fault_of_the_arm_holds_it_at_once_and_is_over_with_it(fault: str, reason: str) -> None:
    loop, arm, clock, log = make_loop("skip", arm=lambda clock: FaultyArm(clock, faults={0.5: fault}))
    run_for(loop, clock, 2.0)
    holds = [line for line in log.lines if line["event"] == "hold"]
    assert [line["reason"] for line in holds] == [reason]
    assert holds[0]["time"] == pytest.approx(100.5 + 0.4 * (fault == "slow"))
    assert arm.sent[5][1] is None
    assert arm.sent[6][1] is not None, "and it goes on"
    requested = [line["observed_at"] for line in log.lines if line["event"] == "request"]
    after = next(line for line in log.lines if line["event"] == "move" and line["time"] > holds[0]["time"])
    assert max(at for at in requested if at <= after["time"]) > holds[0]["time"], "from what it saw afterward"


@dataclass
class TwoCameras(NumericArm):
    """One of its cameras stops."""

    cameras: tuple[str, ...] = ("front", "wrist")
    stops_at: float = 101.0
    back_at: float = 102.0

    def observe(self) -> Reading:
        found, now = super().observe(), self.clock.now()
        seen = min(now, self.stops_at) if now < self.back_at else now
        return Reading(found.state, now, {**found.pictures, "wrist": Picture(b"jpeg", seen)})


def test_a_camera_that_stops_holds_the_arm_until_it_is_back() -> None:
    loop, arm, clock, log = make_loop("skip", arm=TwoCameras)
    run_for(loop, clock, 3.0)
    [hold] = [line for line in log.lines if line["event"] == "hold"]
    assert hold["reason"] == "camera_stale"
    assert "camera wrist" in hold["message"]
    assert hold["time"] == pytest.approx(101.4), "the first period in which its newest frame is older than 0.3 s"
    assert [time for time, action in arm.sent if action is None] == pytest.approx([101.4 + i / 10 for i in range(6)])


@pytest.mark.parametrize("code", ["late", "refused", "stale", "internal", "closed", "unreachable"])
def test_an_error_of_the_server_holds_the_arm_until_the_next_answer(code: str) -> None:
    asked: list[ChunkRequest] = []

    def ask(query: ChunkRequest) -> Chunk:
        asked.append(query)
        if len(asked) == 2:
            raise ServerError(code, "for the test")
        return forward(query)

    loop, arm, clock, log = make_loop("skip", ask=ask)
    run_for(loop, clock, 2.0)
    [hold] = [line for line in log.lines if line["event"] == "hold"]
    assert (hold["reason"], hold["message"]) == ("server_error", f"{code}: for the test")
    [error] = [line for line in log.lines if line["event"] == "error"]
    assert (error["code"], error["request_id"]) == (code, "t-1")
    held = [index for index, x in enumerate(arm.xs) if x is None]
    assert held == [4], "the period in which the answer came; the next request is 0.1 s later"


def test_an_answer_that_does_not_come_holds_the_arm_and_is_never_executed() -> None:
    """The second answer takes 0.9 s, and 0.5 s are allowed; the step due in between is still executed."""
    loop, _, clock, log = make_loop(
        "skip", delay=lambda request: 0.9 if request == 1 else 0.1, answer_timeout_s=0.5, expected_delay_s=0.1
    )
    run_for(loop, clock, 4.0)
    assert loop.holds["no_answer"] == 1
    [error] = [line for line in log.lines if line["event"] == "error"]
    assert error["code"] == "silent"
    assert "t-1" not in {line["request_id"] for line in log.lines if line["event"] in ("answer", "move")}


def test_nothing_that_is_too_old_is_executed() -> None:
    loop, _, clock, log = make_loop("wait", 8, delay=lambda request: 0.3, max_action_age_s=0.5)
    run_for(loop, clock, 4.0)
    ages = [line["age_s"] for line in log.lines if line["event"] == "move"]
    assert ages
    assert max(ages) <= 0.5 + 1e-9
    assert loop.holds["too_old"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda chunk: Chunk(chunk.actions, chunk.timestamps + 0.2), "the answer is for"),
        (lambda chunk: Chunk(chunk.actions * [1, 1, 1, 0, 0, 0, 0, 1], chunk.timestamps), "no rotation"),
    ],
)
def test_a_chunk_that_cannot_be_the_answer_is_an_error(change: Any, message: str) -> None:
    loop, _, clock, log = make_loop("wait", ask=lambda query: change(forward(query)))
    run_for(loop, clock, 0.5)
    assert loop.moves == 0
    assert message in next(line["message"] for line in log.lines if line["event"] == "error")


def test_a_policy_without_the_continuation_is_refused_before_anything_moves() -> None:
    clock = VirtualClock()
    for name in ("rtc", "warm_start"):
        with pytest.raises(ServerError, match="offers none: choose wait, skip or ensemble") as caught:
            ControlLoop(
                NumericArm(clock),
                DelayedRequester(forward, clock, lambda request: 0.0),
                form(continuations=()),
                make_strategy(name, 4),
                LoopSettings(10.0),
            )
        assert caught.value.code == "unsupported"


@pytest.mark.parametrize("strategy", ["warm_start", "rtc"])
def test_a_request_carries_what_will_be_executed_until_its_answer_comes(strategy: str) -> None:
    queries: list[ChunkRequest] = []

    def ask(query: ChunkRequest) -> Chunk:
        queries.append(query)
        return forward(query)

    loop, arm, clock, log = make_loop(strategy, ask=ask, delay=lambda request: 0.2)
    run_for(loop, clock, 3.0)
    assert queries[0].continuation is None
    sent = {round(time, 3): action for time, action in arm.sent if action is not None}
    for query in queries[1:-1]:
        continued = query.continuation
        assert continued is not None
        assert (continued.mode, continued.committed) == (strategy, 2)
        for index in range(continued.committed):
            executed = sent[round(query.observation.observed_at + index / 10, 3)]
            np.testing.assert_allclose(executed, continued.actions[index], atol=1e-9)
    assert [line["committed"] for line in log.lines if line["event"] == "request"][:2] == [None, 2]


@dataclass
class LaggingArm(NumericArm):
    """Its camera lags by 0.2 s."""

    def observe(self) -> Reading:
        seen = super().observe()
        return Reading(seen.state, seen.measured_at, {"image": Picture(b"jpeg", self.clock.now() - 0.2)})


@pytest.mark.parametrize("hz", [10.0, 40.0])
def test_for_an_observation_before_the_takeover_the_executed_action_is_returned(hz: float) -> None:
    """Every chunk takes another path than the previous one, whatever it was asked to continue."""
    queries: list[ChunkRequest] = []

    def ask(query: ChunkRequest) -> Chunk:
        queries.append(query)
        chunk = forward(query, 16)
        chunk.actions[:, 1] += 0.01 * len(queries)
        return chunk

    loop, arm, clock, log = make_loop("rtc", 1, ask=ask, delay=lambda request: 0.1, arm=LaggingArm, control_hz=hz)
    run_for(loop, clock, 4.0)
    sent = {round(time, 3): action for time, action in arm.sent if action is not None}
    taken = [line["time"] for line in log.lines if line["event"] == "answer"]
    compared = 0
    for query in queries[3:-3]:
        continued, seen = query.continuation, query.observation.observed_at
        assert continued is not None
        assert any(seen < time for time in taken)
        for index in range(continued.committed):
            last = round(seen + (index + 1) / 10 - 1 / hz, 3)  # of its step's commands
            if last in sent:
                np.testing.assert_allclose(continued.actions[index], sent[last], atol=1e-9)
                compared += 1
    assert compared > 20
    assert {query.continuation.committed for query in queries[3:-3]} == {3}  # type: ignore[union-attr]


def test_one_slow_answer_does_not_make_it_ask_earlier_and_is_still_reckoned_with() -> None:
    committed: dict[str, list[int]] = {}
    requests = {}
    for name, first in (("even", 0.1), ("slow", 0.7)):
        loop, _, clock, log = make_loop("rtc", delay=lambda request, first=first: 0.1 if request else first)
        run_for(loop, clock, 3.0)
        asked = [line for line in log.lines if line["event"] == "request"]
        requests[name] = len(asked) / (3.0 - first)
        committed[name] = [line["committed"] for line in asked]
    assert requests["slow"] == pytest.approx(requests["even"], rel=0.2)
    assert committed["even"][1:] == [1] * (len(committed["even"]) - 1)
    assert min(committed["slow"][2:6]) > 4, "the rows that a slow answer would find executed are all committed"


def test_a_gripper_that_moves_gets_no_other_command() -> None:
    def flutter(query: ChunkRequest) -> Chunk:
        chunk = forward(query)
        chunk.actions[:, 7] = [0, 1, 0, 0, 0, 0, 0, 0]
        return chunk

    loop, arm, clock, _ = make_loop("wait", 8, ask=flutter, gripper_blocking_s=0.25)
    run_for(loop, clock, 0.8)
    assert [action[7] for _, action in arm.sent] == [0] * 8, "closed first; open 0.1 s later is not taken"
    loop, arm, clock, _ = make_loop("wait", 8, ask=flutter)
    run_for(loop, clock, 0.8)
    assert [action[7] for _, action in arm.sent] == [0, 1, 0, 0, 0, 0, 0, 0]


def test_an_error_of_the_program_stops_the_arm() -> None:
    def ask(query: ChunkRequest) -> Chunk:
        raise RuntimeError("a mistake")

    loop, arm, clock, log = make_loop(ask=ask)
    with pytest.raises(RuntimeError, match="a mistake"):
        run_for(loop, clock, 1.0)
    assert arm.stopped == 1
    assert log.lines[-1]["event"] == "end"


# ---- the log ----


def test_the_log_holds_what_was_sent(tmp_path: Path) -> None:
    clock, log = VirtualClock(50.0), ArmLog(tmp_path / "logs")
    arm = NumericArm(clock)
    loop = ControlLoop(
        arm,
        DelayedRequester(forward, clock, lambda request: 0.1),
        form(),
        make_strategy("skip", 4),
        LoopSettings(20.0, camera_max_ages_s={"image": 0.2}),
        clock=clock,
        log=log,
        run_id="r",
        about={"dry_run": False},
    )
    run_for(loop, clock, 1.0)
    assert log.path is not None
    found = read_arm_log(log.path)
    assert (found.start["strategy"], found.start["control_hz"], found.start["policy_hz"]) == ("skip", 20.0, 10.0)
    assert found.start["settings"]["camera_max_ages_s"] == {"image": 0.2}
    assert (found.start["clock_start"], found.start["dry_run"]) == (50.0, False)
    moves = found.of("move")
    assert len(moves) == loop.moves
    np.testing.assert_array_equal([move["action"] for move in moves], [a for _, a in arm.sent if a is not None])
    assert {move["request_id"] for move in moves} <= {line["request_id"] for line in found.of("answer")}
    assert found.lines[-1] == {"event": "end", "time": 51.0, "moves": loop.moves, "holds": {"waiting": 2}, "missed": 0}
    with log.path.open("ab") as file:
        file.write(b'{"event": "mo')
    assert read_arm_log(log.path) == found
    other = ArmLog(tmp_path / "logs")
    other.write({})
    other.close()
    assert other.path != log.path
    (tmp_path / "file").touch()
    with pytest.raises(ArmLogError, match="cannot be written there"):
        ArmLog(tmp_path / "file" / "logs").write({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no arm log"),
        ("{}\n", "no arm log"),
        ('{"format": "arm log", "version": 9}\n', "of version 1"),
        ("[]\n", "expected an object"),
        ("{\n", "line 1 is not JSON"),
    ],
)
def test_what_is_not_a_log_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "arm.jsonl"
    path.write_text(text)
    with pytest.raises(ArmLogError, match=message):
        read_arm_log(path)


def test_times_of_the_loop_are_even(tmp_path: Path) -> None:
    loop, arm, clock, _ = make_loop(control_hz=50.0)
    run_for(loop, clock, 1.0)
    assert {round(after - before, 9) for (before, _), (after, _) in pairwise(arm.sent)} == {0.02}
    assert N_STEPS == 8
    np.testing.assert_array_equal(HOME[3:7], [1, 0, 0, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"control_hz": 0.0}, "control_hz"),
        ({"control_hz": float("nan")}, "control_hz"),
        ({"answer_timeout_s": 0.0}, "answer_timeout_s"),
        ({"max_action_age_s": float("inf")}, "max_action_age_s"),
        ({"gripper_blocking_s": -1.0}, "gripper_blocking_s"),
        ({"longest_gap_s": 0.05}, "longest_gap_s"),
    ],
)
def test_settings_of_the_loop_that_mean_nothing_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(WorkspaceError, match=message):
        LoopSettings(**{"control_hz": 10.0, **settings})
