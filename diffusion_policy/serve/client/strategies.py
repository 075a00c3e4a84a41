"""What happens between two chunks: when the next one is requested, and what is executed once it is there.

    wait        executes n_action_steps, holds the arm, requests: it holds still while the policy computes
    skip        requests while the arm is moving; steps whose time has passed by the answer's arrival are left out
    ensemble    requests without a pause, and averages all chunks that have a step for the same time
    warm_start  as skip; the request carries what remains of the chunk, and denoising starts from there
    rtc         as skip; the steps that will have been executed by the answer's arrival are kept in the answer

A strategy holds no state and knows no clock: the loop asks it. Time in which the arm stood still does not count as
passed: a chunk is shifted by it, so the arm never jumps over steps that were not executed.

Legend of shapes: n steps, D numbers of an action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_events import CLIENT_THRESHOLD
from diffusion_policy.serve.client.plan import Executed, Plan, TimedChunk, value_at
from diffusion_policy.serve.transport.continuation import Continuation, Mode
from diffusion_policy.spec import ActionLayout

FloatArray = NDArray[np.float64]
StrategyName = Literal["wait", "skip", "ensemble", "warm_start", "rtc"]
# How fast the weight of a newer chunk falls, per chunk: that of ACT (Zhao et al. 2023, "Learning Fine-Grained Bimanual
# Manipulation with Low-Cost Hardware", section 4.2), where the oldest prediction has the largest weight.
_DECAY = 0.01
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Moment:
    """The situation in which a chunk takes over.

    Attributes:
        now: seconds on the loop's clock.
        still_since: until when the arm was commanded to move; minus infinity if it never was.
        start: (D,) where the arm is commanded to be, or is measured.
        layout: of actions.
    """

    now: float
    still_since: float
    start: FloatArray
    layout: ActionLayout

    def shifted(self, chunk: TimedChunk) -> TimedChunk:
        """Returns a chunk shifted by the time in which the arm has stood still since its observation."""
        still = max(0.0, self.now - max(chunk.observed_at, self.still_since))
        return replace(chunk, starts_at=chunk.starts_at + still)


class ChunkStrategy(Protocol):
    """When the next chunk is requested, and what is executed once it is there. Pure: all state is in the arguments."""

    @property
    def name(self) -> str:
        """Its name in settings and logs."""

    @property
    def mode(self) -> Mode | None:
        """The kind of continuation that its requests carry."""

    def wants(self, plan: Plan | None, now: float, delay_s: float) -> bool:
        """Whether to request a chunk now.

        Args:
            plan: under execution.
            now: seconds on the loop's clock.
            delay_s: usual, from the capture of an observation to the arrival of its answer.
        """

    def observe_after(self, plan: Plan | None) -> float:
        """Returns the earliest time at which what is sent may have been captured."""

    def continuation(
        self, plan: Plan | None, observed_at: float, arrives_at: float, executed: Executed
    ) -> Continuation | None:
        """Returns what a request carries of the plan; None: nothing.

        Args:
            plan: under execution.
            observed_at: the newest step of the observation.
            arrives_at: when the answer is expected at the latest.
            executed: what was executed before the plan.
        """

    def merge(self, plan: Plan | None, chunk: TimedChunk, moment: Moment) -> Plan:
        """Returns the plan that follows from a new chunk."""


@dataclass(frozen=True)
class _Replacing:
    """The base of those that replace the former chunk: the next one is to arrive once n_action_steps are executed."""

    n_action_steps: int
    name = "skip"
    mode: Mode | None = None

    def __post_init__(self) -> None:
        """Refuses a number of steps that is none."""
        if self.n_action_steps < 1:
            raise WorkspaceError(f"n_action_steps is {self.n_action_steps}; expected 1 or more")

    def wants(self, plan: Plan | None, now: float, delay_s: float) -> bool:
        """Whether the answer would come once ``n_action_steps`` are executed."""
        if plan is None:
            return True
        takes_over = plan.chunk.starts_at + self.n_action_steps * plan.chunk.period_s
        return now + delay_s >= takes_over - _ROUNDING

    def observe_after(self, plan: Plan | None) -> float:
        """Anything fresh may be sent."""
        return -math.inf

    def continuation(
        self, plan: Plan | None, observed_at: float, arrives_at: float, executed: Executed
    ) -> Continuation | None:
        """Nothing."""
        return None

    def merge(self, plan: Plan | None, chunk: TimedChunk, moment: Moment) -> Plan:
        """The new chunk takes over at once, from its step for now on."""
        return Plan.of(moment.shifted(chunk), moment.layout, moment.now, moment.start)


@dataclass(frozen=True)
class Skip(_Replacing):
    """Executes on while the policy computes, then leaves out the steps whose time has passed."""


@dataclass(frozen=True)
class Wait(_Replacing):
    """Executes ``n_action_steps``, then holds until the answer to what is observed afterward is there."""

    name = "wait"

    def wants(self, plan: Plan | None, now: float, delay_s: float) -> bool:
        """Whether all steps are executed."""
        return plan is None or plan.is_over(now)

    def observe_after(self, plan: Plan | None) -> float:
        """What is sent shows the arm at rest."""
        return -math.inf if plan is None else plan.ends_at - _ROUNDING

    def merge(self, plan: Plan | None, chunk: TimedChunk, moment: Moment) -> Plan:
        """The first ``n_action_steps`` of the new chunk, from now on."""
        return super().merge(plan, replace(chunk, actions=chunk.actions[: self.n_action_steps]), moment)


@dataclass(frozen=True)
class Continuing(_Replacing):
    """As ``Skip``; the request carries the remainder of the chunk, which the policy continues.

    The answer of a policy that lacks ``mode`` is the error ``unsupported``, and the arm holds.
    """

    mode: Mode | None = "rtc"

    @property
    def name(self) -> str:  # type: ignore[override]
        """That of its mode."""
        return str(self.mode)

    def continuation(
        self, plan: Plan | None, observed_at: float, arrives_at: float, executed: Executed
    ) -> Continuation | None:
        """What is executed from the observation on, and how many of them are executed before the answer arrives."""
        if plan is None or self.mode is None or plan.is_over(observed_at):
            return None
        rows = plan.remainder(observed_at, executed)
        if not len(rows):
            return None
        committed = math.ceil((arrives_at - observed_at) / plan.chunk.period_s - _ROUNDING)
        return Continuation(self.mode, rows, min(max(committed, 0), len(rows)))


@dataclass(frozen=True)
class Ensemble:
    """Temporal ensembling: every step is the weighted mean of all chunks that have one for its time.

    Positions and joints are averaged, rotations on the sphere of unit quaternions (the eigenvector of the largest
    eigenvalue of the weighted sum of q q^T; Markley et al. 2007, "Averaging Quaternions", equation 13). A gripper is
    not averaged: open and closed are voted on by weight, and the command is the mean of the winner's votes.

    Attributes:
        every_steps: steps between two requests, at least; a request still waits for the answer to the one before.
        decay: the k-th oldest chunk has the weight exp(-decay k).
    """

    every_steps: int = 1
    decay: float = _DECAY
    name = "ensemble"
    mode: Mode | None = None

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        if self.every_steps < 1 or not math.isfinite(self.decay):
            raise WorkspaceError(
                f"every_steps is {self.every_steps} and decay {self.decay}; expected 1 or more, finite"
            )

    def wants(self, plan: Plan | None, now: float, delay_s: float) -> bool:
        """Whether ``every_steps`` have passed since the newest observation."""
        if plan is None:
            return True
        return now >= plan.sources[-1].observed_at + self.every_steps * plan.chunk.period_s - _ROUNDING

    def observe_after(self, plan: Plan | None) -> float:
        """Something newer than the last time."""
        return -math.inf if plan is None else plan.sources[-1].observed_at + _ROUNDING

    def continuation(
        self, plan: Plan | None, observed_at: float, arrives_at: float, executed: Executed
    ) -> Continuation | None:
        """Nothing."""
        return None

    def merge(self, plan: Plan | None, chunk: TimedChunk, moment: Moment) -> Plan:
        """The steps of the new chunk, each averaged with those of former chunks for the same time."""
        new = moment.shifted(chunk)
        former = () if plan is None else tuple(one for one in plan.sources if one.ends_at > moment.now)
        rows, observed = [], []
        for index, row in enumerate(new.actions):
            time = new.starts_at + index * new.period_s
            previous = [(one, value_at(one, moment.layout, (time - one.starts_at) / one.period_s)) for one in former]
            given = [(one.observed_at, value) for one, value in previous if value is not None]
            values = [value for _, value in given] + [row]
            rows.append(mean_action(moment.layout, values, np.exp(-self.decay * np.arange(len(values)))))
            observed.append(min([new.observed_at, *(seen for seen, _ in given)]))
        averaged = replace(new, actions=np.stack(rows))
        return Plan(averaged, moment.layout, moment.now, moment.start, tuple(observed), (*former, new))


def mean_action(layout: ActionLayout, actions: Sequence[FloatArray], weights: FloatArray) -> FloatArray:
    """Returns the weighted mean (D,) of actions (D,); see ``Ensemble`` for rotations and grippers.

    Args:
        layout: of the actions, rotations as quaternions.
        actions: one or more.
        weights: of each, above 0.
    """
    if len(actions) == 1:
        return actions[0]
    stacked, shares = np.array(actions), weights / weights.sum()
    found: FloatArray = shares @ stacked
    for arm in layout.arms:
        if arm.rotation:
            columns = list(arm.rotation)
            quaternions = stacked[:, columns]
            mean = np.linalg.eigh((quaternions.T * shares) @ quaternions)[1][:, -1]
            found[columns] = mean if mean @ quaternions[-1] >= 0 else -mean
        for column in arm.gripper:
            is_open = stacked[:, column] > CLIENT_THRESHOLD
            winner = is_open if shares[is_open].sum() > 0.5 else ~is_open
            found[column] = (stacked[winner, column] @ shares[winner]) / shares[winner].sum()
    return found


_MAKERS: dict[StrategyName, Callable[[int], ChunkStrategy]] = {
    "wait": Wait,
    "skip": Skip,
    "ensemble": lambda n_action_steps: Ensemble(),
    "warm_start": lambda n_action_steps: Continuing(n_action_steps, "warm_start"),
    "rtc": lambda n_action_steps: Continuing(n_action_steps, "rtc"),
}
STRATEGIES: tuple[StrategyName, ...] = tuple(_MAKERS)
AUTO = "auto"


def chosen_strategy(name: str, continuations: Sequence[str]) -> str:
    """Returns the strategy that ``auto`` stands for, or the name itself.

    Args:
        name: one of ``STRATEGIES``, or ``auto``: rtc if the served policy can continue chunks by it, else skip
            (docs/on_the_arm.md compares them).
        continuations: kinds that the served policy offers.
    """
    if name != AUTO:
        return name
    return "rtc" if "rtc" in continuations else "skip"


def make_strategy(name: str, n_action_steps: int) -> ChunkStrategy:
    """Returns the strategy of a name.

    Args:
        name: one of ``STRATEGIES``.
        n_action_steps: steps of a chunk that are executed before the next one is to take over.

    Raises:
        WorkspaceError: there is none of that name, or the number is not positive.
    """
    for known, maker in _MAKERS.items():
        if known == name:
            return maker(n_action_steps)
    raise WorkspaceError(f"chunk strategy {name!r}; expected {', '.join(STRATEGIES)}")
