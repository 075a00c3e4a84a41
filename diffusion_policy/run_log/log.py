"""A log in memory: its steps, what its numbers are, and what is odd about it. Legend of shapes: see the package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.geometry import SERVED_NORM_SLACK
from diffusion_policy.gripper_scale import INTERNAL, DeclaredScales, FoundScales, find_scales, labeled_scales
from diffusion_policy.spec import POSE, POSE_GRIPPER, ROTVEC_WIDTH, ActionLayout, Layout, SpecError, is_gripper_width

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Missing = tuple[int, int]

_NAMED_LAYOUTS: dict[Layout, tuple[str, ...]] = {
    "xyz_quat": POSE,
    "xyz_quat_gripper": POSE_GRIPPER,
    "xyz_rotvec_width": ROTVEC_WIDTH,
}
# The gripper of the older layout, in meters.
_WIDTH = "width"
NO_STEP = "the log holds no step"
# The error of an observation that a newer one has overtaken: nothing was wrong with it.
SUPERSEDED = "superseded"
# Where a step's time is found, on one clock: the server's in the third generation, the client's in the second.
_STEP_CLOCKS = ("infer_start", "process_start", "server_recv", "timestamp")


class RunLogError(WorkspaceError, ValueError):
    """A log cannot be read or written; says which file, where in it, what was found and what was expected."""


@dataclass(frozen=True)
class LogStep:
    """One inference.

    Attributes:
        number: as the log counts.
        state: (S,) measured pose, then gripper if S is 8 (or 7 with a rotation vector).
        actions: (T, A) the chunk the policy answered; ``actions[0]`` is the next command.
        timing: seconds by name of the event, as logged. Clocks of client and server are not synchronized.
        jpeg: the newest camera frame, or None.
    """

    number: int
    state: FloatArray
    actions: FloatArray
    timing: Mapping[str, float] = field(default_factory=dict)
    jpeg: bytes | None = None


@dataclass(frozen=True)
class LoggedGripper:
    """One gripper of a log, in the log's scale.

    Attributes:
        arm: its name; empty of the only arm.
        chunks: (N, T) all commands of each chunk.
        measured: (N,) before each command, or None where the state does not hold it.
    """

    arm: str
    chunks: FloatArray
    measured: FloatArray | None

    @property
    def commands(self) -> FloatArray:
        """(N,) the next command at each step."""
        return self.chunks[:, 0]

    @property
    def is_copied(self) -> bool:
        """Whether the command is the measurement at every step, to the last digit."""
        return self.measured is not None and bool((self.commands == self.measured).all())


@dataclass(frozen=True)
class RunLog:
    """A whole log.

    Attributes:
        path: the file it was read from.
        generation: 1 to 4.
        meta: what the third generation says of the run; empty in older ones.
        steps: in the order logged; all have the same S, T and A.
        unanswered: observations at the end that got no action (the run was cut while the policy was thinking).
        errors: how many messages got an error in place of an action, by its code; empty for predecessors' logs.
    """

    path: Path
    generation: int
    meta: Mapping[str, Any]
    steps: tuple[LogStep, ...]
    unanswered: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def actions(self) -> FloatArray:
        """(N, T, A) all chunks; (0, 0, 0) of an empty log."""
        return np.stack([step.actions for step in self.steps]) if self.steps else np.zeros((0, 0, 0))

    @cached_property
    def states(self) -> FloatArray:
        """(N, S) all measured states."""
        return np.stack([step.state for step in self.steps]) if self.steps else np.zeros((0, 0))

    @property
    def commands(self) -> FloatArray:
        """(N, A) the next command at each step: the first action of each chunk."""
        return self.actions[:, 0] if self.steps else np.zeros((0, 0))

    @cached_property
    def layout(self) -> Layout:
        """What the action numbers are: as meta's action semantics name them, else told from the commands."""
        named = self._named_layout
        if named is None:
            return layout_of_commands(self.commands)
        return next((layout for layout, names in _NAMED_LAYOUTS.items() if names == named.names), "named")

    @cached_property
    def action_layout(self) -> ActionLayout | None:
        """What the action numbers are, by name; None where neither meta nor the numbers tell."""
        names = _NAMED_LAYOUTS.get(self.layout)
        return self._named_layout or (None if names is None else ActionLayout.of(names))

    @cached_property
    def state_layout(self) -> ActionLayout | None:
        """What the state's numbers are: as meta names them, else those of the action, else by how many they are."""
        width = self.states.shape[1]
        layout = _layout_of_names(self.meta.get("state_names"), None, width)
        if layout is None and self.action_layout is not None and len(self.action_layout.names) == width:
            layout = self.action_layout
        if layout is None and width in (len(POSE), len(POSE_GRIPPER)):
            layout = ActionLayout.of(POSE_GRIPPER[:width])
        return layout

    @cached_property
    def _named_layout(self) -> ActionLayout | None:
        semantics = self.meta.get("action_semantics")
        if not isinstance(semantics, Mapping):
            return None
        return _layout_of_names(semantics.get("names"), semantics.get("units"), self.commands.shape[1])

    @cached_property
    def grippers(self) -> tuple[LoggedGripper, ...]:
        """The commanded grippers, each beside its measurement; empty where no layout names one."""
        layout = self.action_layout
        if not self.steps or layout is None:
            return ()
        measured = {} if self.state_layout is None else _gripper_columns(self.state_layout)
        return tuple(
            LoggedGripper(arm, self.actions[..., column], self.states[:, measured[arm]] if arm in measured else None)
            for arm, column in _gripper_columns(layout).items()
        )

    @property
    def measured_gripper(self) -> FloatArray | None:
        """(N,) the gripper that was measured before each command, or None where the state holds not just one."""
        columns = {} if self.state_layout is None else _gripper_columns(self.state_layout)
        return self.states[:, next(iter(columns.values()))] if self.steps and len(columns) == 1 else None

    def gripper_scales(self, declared: DeclaredScales | None = None) -> FoundScales | None:
        """In which scales commands and measurements of the gripper are; None without a gripper command.

        Several grippers of one robot are in one scale.

        Args:
            declared: what somebody said of them; else the log's own ``action_semantics``, else what the numbers show.

        Raises:
            RunLogError: the numbers contradict what was declared, or the log's label is none.
        """
        if not self.grippers:
            return None
        semantics = self.meta.get("action_semantics") if self.layout != "xyz_rotvec_width" else None
        commands = np.concatenate([gripper.commands for gripper in self.grippers])
        seen = [gripper.measured for gripper in self.grippers if gripper.measured is not None]
        measured = np.concatenate(seen) if len(seen) == len(self.grippers) else None
        starts = np.arange(len(self.grippers)) * len(self.steps)
        try:
            labeled = labeled_scales(semantics if isinstance(semantics, Mapping) else None, "meta.action_semantics")
            return find_scales(commands, measured, starts=starts, declared=declared, labeled=labeled)
        except SpecError as error:
            raise RunLogError(f"{self.path}: {error}") from error

    def converted(self, scales: FoundScales) -> RunLog:
        """The same log with its gripper as 0 closed .. 1 open, as far as the scales are known, and labeled so.

        Args:
            scales: of this log; the command's must be known.
        """
        command, measured = scales.command.scale, None if scales.measured is None else scales.measured.scale
        assert command is not None
        assert self.action_layout is not None
        commanded = list(_gripper_columns(self.action_layout).values())
        seen = [] if self.state_layout is None else list(_gripper_columns(self.state_layout).values())
        steps = []
        for step in self.steps:
            actions, state = step.actions.copy(), step.state.copy()
            actions[:, commanded] = command.to_internal(actions[:, commanded])
            if measured is not None:
                state[seen] = measured.to_internal(state[seen])
            steps.append(replace(step, actions=actions, state=state))
        label = self.meta.get("action_semantics")
        named = dict(label) if isinstance(label, Mapping) else {}
        meta = {**self.meta, "action_semantics": {**named, "gripper": INTERNAL.label}}
        return replace(self, steps=tuple(steps), meta=meta)

    @cached_property
    def numbers(self) -> IntArray:
        """(N,) the steps' own numbers; their positions (0, 1, ...) where those repeat or go back."""
        numbers = np.array([step.number for step in self.steps], dtype=np.int64)
        return numbers if (np.diff(numbers) > 0).all() else np.arange(len(self.steps), dtype=np.int64)

    @cached_property
    def stride(self) -> int:
        """By how much the steps' numbers go up where nothing is missing."""
        return usual_stride(self.numbers)

    @cached_property
    def missing(self) -> tuple[Missing, ...]:
        """The first and the last number of each run of steps that the log lacks between its first step and its last."""
        return missing_steps(self.numbers)

    @cached_property
    def oddities(self) -> tuple[str, ...]:
        """What is odd about the log, one sentence each: missing steps, numbers that do not go on."""
        said = missing_sentences(self.numbers)
        if len(self.steps) > 1 and not (np.diff([step.number for step in self.steps]) > 0).all():
            said.append("step numbers repeat or go back; steps are counted by their position")
        if refused := {code: count for code, count in self.errors.items() if code != SUPERSEDED}:
            total = sum(refused.values())
            codes = ", ".join(f"{count} {code}" for code, count in sorted(refused.items(), key=lambda item: -item[1]))
            said.append(f"{total} of {total + len(self.steps)} messages got an error and no action ({codes})")
        return tuple(said)

    @property
    def is_refused(self) -> bool:
        """Whether there were messages, and none of them was answered with an action."""
        return not self.steps and bool(self.errors)

    @property
    def why_empty(self) -> str:
        """Why the log holds no step, in words; it must hold none."""
        assert not self.steps
        return "; ".join(("no message was answered with an action", *self.oddities)) if self.errors else NO_STEP

    @property
    def step_period(self) -> float | None:
        """Median seconds between two inferences, from the first clock that stamped every step; None without one."""
        for clock in _STEP_CLOCKS:
            stamps = [step.timing[clock] for step in self.steps if clock in step.timing]
            if len(stamps) == len(self.steps) >= 2:
                period = float(np.median(np.diff(stamps)))
                return period if period > 0 else None
        return None


def usual_stride(numbers: IntArray) -> int:
    """By how much rising step numbers (N,) go up where nothing is missing: the least step that is not rare."""
    steps = Counter(np.diff(numbers).tolist())
    return int(min(step for step, count in steps.items() if 10 * count >= steps.total())) if steps else 1


def missing_steps(numbers: IntArray) -> tuple[Missing, ...]:
    """The first and the last number of each run that rising step numbers (N,) lack."""
    stride = usual_stride(numbers)
    (before,) = np.nonzero(np.diff(numbers) >= 2 * stride)
    return tuple((int(numbers[at]) + stride, int(numbers[at + 1]) - stride) for at in before.tolist())


def missing_sentences(numbers: IntArray) -> list[str]:
    """What rising step numbers (N,) lack, in a sentence; none if nothing is missing."""
    missing, stride = missing_steps(numbers), usual_stride(numbers)
    if not missing:
        return []
    count = sum((last - first) // stride + 1 for first, last in missing)
    runs = [f"{first}-{last}" if first < last else str(first) for first, last in missing]
    listed = ", ".join(runs[:3]) + (f" and {len(runs) - 3} more runs" if len(runs) > 3 else "")
    return [f"steps {listed} are missing ({count} of {count + len(numbers)})"]


def _layout_of_names(names: Any, units: Any, width: int) -> ActionLayout | None:
    """The layout that a log's meta names; None where it names none of this width, or nothing that is known."""
    if not isinstance(names, list) or len(names) != width or not all(isinstance(name, str) for name in names):
        return None
    known = isinstance(units, list) and len(units) == width and all(isinstance(unit, str) for unit in units)
    try:
        layout = ActionLayout.of(names, dict(zip(names, units, strict=True)) if known else None)
    except SpecError:
        return None
    return layout if layout.motion_columns or layout.has_gripper else None


def _gripper_columns(layout: ActionLayout) -> dict[str, int]:
    """Column of each arm's gripper, or of the width of the older layout."""
    if _WIDTH in layout.names and not layout.has_gripper:
        return {"": layout.names.index(_WIDTH)}
    return dict(zip(layout.labels("gripper"), layout.gripper_columns, strict=True))


def layout_of_commands(commands: FloatArray) -> Layout:
    """Tell the layout of commands (N, A): the last four numbers of a quaternion pose have norm 1, a width is 3-8 cm."""
    if len(commands) == 0 or commands.shape[1] not in (len(POSE), len(POSE_GRIPPER)):
        return "unknown"
    layout = ActionLayout.of(POSE_GRIPPER[: commands.shape[1]])
    norms = np.linalg.norm(layout.rotations(commands)[:, 0], axis=1)
    if commands.shape[1] == len(POSE_GRIPPER):
        # Served poses were once smoothed component by component: single norms of 0.81-1.16, their median near 1.
        return "xyz_quat_gripper" if abs(np.median(norms) - 1) <= SERVED_NORM_SLACK else "unknown"
    if (np.abs(norms - 1) <= SERVED_NORM_SLACK).all():  # of seven numbers, the last four say so at every step
        return "xyz_quat"
    width = commands[:, ROTVEC_WIDTH.index(_WIDTH)]
    return "xyz_rotvec_width" if is_gripper_width(width.min(), width.max()) else "unknown"


def check_same_dimensions(steps: Sequence[LogStep], where: Path | str) -> None:
    """RunLogError if states or actions differ in shape from one step to another."""
    for name in ("state", "actions"):
        for i, step in enumerate(steps):
            first, shape = getattr(steps[0], name).shape, getattr(step, name).shape
            if shape != first:
                raise RunLogError(
                    f"{where}: {name} of step {i} has shape {shape}, of step 0 {first}; expected one layout"
                )
