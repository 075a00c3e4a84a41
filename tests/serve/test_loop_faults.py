"""Random sequences of faults: the arm holds within the control period, executes nothing stale, and always recovers."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from loop_factory import HOME, form

from diffusion_policy.serve.client import (
    STRATEGIES,
    ArmError,
    Chunk,
    ChunkRequest,
    ControlLoop,
    LoopSettings,
    Picture,
    PolicyForm,
    Reading,
    ServerError,
    VirtualClock,
    make_strategy,
)

PERIOD, N_STEPS = 0.1, 4
SETTINGS = LoopSettings(10.0, answer_timeout_s=0.35, max_action_age_s=1.0, camera_max_age_s=0.25, state_max_age_s=0.15)
FORMS = {cameras: form(cameras) for cameras in (("image",), ("front", "wrist"))}
ARM_FAULTS = (
    "silent", "nan", "ahead", "back", "slow", "slow move", "no move", "no hold", "no camera", "no state", "suspended",
    "set back",
)  # fmt: skip
SERVER_FAULTS = ("error", "lost", "half", "late", "never", "very late", "wrong times", "no rotation")
CODES = ("late", "refused", "stale", "superseded", "internal", "busy", "unsupported", "changed")


class Silence:
    """A log that keeps nothing."""

    def write(self, line: Any) -> None: ...

    def close(self) -> None: ...


@dataclass
class Faults:
    """When an arm and a server fail: by control period, and by request."""

    arm: dict[int, str]
    server: dict[int, str]
    last: int

    @classmethod
    def drawn(cls, rng: random.Random) -> "Faults":
        arm: dict[int, str] = {}
        for _ in range(rng.randrange(3)):
            start, kind = rng.randrange(6), rng.choice(ARM_FAULTS)
            arm |= dict.fromkeys(range(start, start + rng.choice((1, 1, 2, 5))), kind)
        server = {rng.randrange(4): rng.choice(SERVER_FAULTS) for _ in range(rng.randrange(3))}
        return cls(arm, server, max(arm, default=0))


@dataclass
class FaultyArm:
    """An arm that records what failed and what was done in every period.

    Attributes:
        done: one entry per period: (time of the command, action or None for hold, whether something was wrong with the
            arm or an answer).
    """

    clock: VirtualClock
    faults: Faults
    form: PolicyForm
    tick: int = -1
    wrong: bool = False
    commands: int = 0
    captured: dict[str, float] = field(default_factory=dict)
    state_at: float = 0.0
    last_observed: float | None = None
    done: list[tuple[float, np.ndarray | None, bool]] = field(default_factory=list)

    def observe(self) -> Reading:
        assert self.commands == self.tick + 1, "one command a period"
        self.tick += 1
        fault = self.faults.arm.get(self.tick, "")
        if fault in ("slow", "suspended"):
            self.clock.advance(0.4 if fault == "slow" else 60.0)
        elif fault == "set back":
            self.clock.advance(-3.0)
        now = self.clock.now()
        gap = 0.0 if self.last_observed is None else now - self.last_observed
        self.wrong = fault in ("silent", "nan", "ahead", "back") or gap > SETTINGS.gap_s or gap < 0
        if fault == "silent":
            raise ArmError("no answer")
        self.last_observed = now
        if fault != "no state":
            self.state_at = now
        for camera in self.form.cameras:
            if fault != "no camera" or camera != self.form.cameras[-1]:
                self.captured[camera] = now
        newest = self.captured.get(self.form.cameras[-1])
        self.wrong |= newest is None or now - newest > SETTINGS.camera_max_age_s
        self.wrong |= now - self.state_at > SETTINGS.state_max_age_s
        shift = {"ahead": 1.0, "back": -1.0}.get(fault, 0.0)
        state = HOME if fault != "nan" else HOME * np.nan
        pictures = {camera: Picture(b"", at + shift) for camera, at in self.captured.items()}
        return Reading(state, self.state_at + shift, pictures)

    def move(self, action: np.ndarray) -> None:
        fault = self.faults.arm.get(self.tick, "")
        if fault == "no move":
            raise ArmError("not taken")
        self.commands += 1
        self.done.append((self.clock.now(), action, self.wrong))
        if fault == "slow move":
            self.clock.advance(0.4)

    def hold(self, reason: str) -> None:
        self.commands += 1
        self.done.append((self.clock.now(), None, self.wrong))
        if self.faults.arm.get(self.tick) == "no hold":
            raise ArmError("not taken")

    def stop(self) -> None: ...


@dataclass
class FaultyServer:
    """Answers with chunks whose numbers identify them: y is the observation's time, z the step."""

    clock: VirtualClock
    faults: Faults
    arm: FaultyArm
    delay: float
    count: int = 0
    answer: Chunk | ServerError | None = None
    ready_at: float = 0.0
    is_busy: bool = False
    is_wrong: bool = False

    def start(self, query: ChunkRequest) -> None:
        assert not self.is_busy
        fault = self.faults.server.get(self.count, "")
        self.count, self.is_busy = self.count + 1, True
        seen = query.observation
        actions = np.tile(HOME, (N_STEPS, 1))
        actions[:, 1], actions[:, 2] = seen.observed_at, np.arange(N_STEPS)
        times = seen.observed_at + PERIOD * np.arange(N_STEPS)
        self.ready_at = self.clock.now() + {"late": 0.3, "never": 1e9, "very late": 0.9}.get(fault, self.delay)
        self.is_wrong = fault in ("error", "lost", "half", "wrong times", "no rotation")
        if fault == "wrong times":
            times += 0.3
        elif fault == "no rotation":
            actions[3, 3] = 0.0
        self.answer = Chunk(actions, times)
        if fault in ("error", "lost", "half"):
            code = {"lost": "closed", "half": "malformed"}.get(fault) or CODES[self.count % len(CODES)]
            self.answer = ServerError(code, "for the test")

    def poll(self) -> Chunk | ServerError | None:
        if not self.is_busy or self.clock.now() < self.ready_at - 1e-9:
            return None
        self.is_busy = False
        self.arm.wrong |= self.is_wrong
        return self.answer

    def abandon(self) -> None:
        self.arm.wrong = self.is_wrong = True
        self.answer, self.ready_at = ServerError("silent", "abandoned"), min(self.ready_at, self.clock.now() + 0.05)
        if self.count % 2:  # an old answer that had come before the connection was closed
            self.ready_at = self.clock.now()

    def close(self) -> None: ...


def run(seed: int) -> tuple[FaultyArm, FaultyServer, ControlLoop, str]:
    rng = random.Random(seed)
    clock, faults = VirtualClock(1000.0), Faults.drawn(rng)
    arm = FaultyArm(clock, faults, FORMS[rng.choice(list(FORMS))])
    server = FaultyServer(clock, faults, arm, rng.choice((0.0, 0.05, 0.2)))
    strategy = rng.choice(STRATEGIES)
    loop = ControlLoop(
        arm, server, arm.form, make_strategy(strategy, rng.choice((2, 4, 8))), SETTINGS, clock=clock, log=Silence()
    )
    # until the faults are over and the arm moves again, or it clearly never will
    loop.run(lambda: arm.tick >= 9 and (arm.done[-1][1] is not None or arm.tick >= 60))
    return arm, server, loop, strategy


def violations(arm: FaultyArm, strategy: str) -> Iterator[str]:
    """Returns what an arm did wrong."""
    doubted = -np.inf
    for tick, (time, action, wrong) in enumerate(arm.done):
        if wrong:
            doubted = time
            if action is not None:
                yield f"period {tick}: moved although something was wrong"
        if action is None:
            continue
        observed_at, step = float(action[1]), float(action[2])
        if time - observed_at > SETTINGS.max_action_age_s + 1e-9:
            yield f"period {tick}: executed what was seen {time - observed_at:.3f} s ago"
        if observed_at <= doubted - 1e-9:
            yield f"period {tick}: executed what was seen at {observed_at}, before the doubt at {doubted}"
        if strategy != "ensemble" and not (0 <= step <= N_STEPS - 1 and observed_at + step * PERIOD <= time + 1e-6):
            yield f"period {tick}: step {step} of {observed_at} at {time}"
    if arm.done[-1][1] is None:
        yield "the arm did not go on"


@pytest.mark.parametrize("sequences", [2_000, pytest.param(10_000, marks=pytest.mark.exhaustive)])
def test_sequences_of_faults(sequences: int) -> None:
    kinds: set[str] = set()
    moved = held = 0
    for seed in range(sequences):
        arm, _, loop, strategy = run(seed)
        found = list(violations(arm, strategy))
        assert not found, f"seed {seed}, {strategy}, {arm.faults}: {found}"
        kinds |= {*arm.faults.arm.values(), *arm.faults.server.values()}
        moved, held = moved + loop.moves, held + sum(loop.holds.values())
    assert kinds == {*ARM_FAULTS, *SERVER_FAULTS}
    assert moved > 3 * sequences
    assert held > sequences


@pytest.mark.parametrize("fault", ["seen", "age", "doubt"])
def test_the_judge_of_the_sequences_sees_what_is_wrong(fault: str) -> None:
    arm, _, _, strategy = run(0)
    assert not list(violations(arm, strategy))
    action = HOME.copy()
    action[1], action[2] = {"seen": (1002.0, 5.0), "age": (1001.05, 0.0), "doubt": (1001.9, 0.0)}[fault]
    arm.done += [(1002.0, None, fault == "doubt"), (1002.1, action, False)]
    assert len(list(violations(arm, strategy))) == 1
