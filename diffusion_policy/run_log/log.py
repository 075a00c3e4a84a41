"""A log in memory: its steps, the layout of its numbers, and its irregularities. Legend of shapes: see the package."""

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
from diffusion_policy.gripper_scale import INTERNAL, DeclaredScales, ResolvedScales, find_scales, labeled_scales
from diffusion_policy.spec import POSE, POSE_GRIPPER, ROTVEC_WIDTH, ActionLayout, Layout, SpecError, is_gripper_width

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Missing = tuple[int, int]

_NAMED_LAYOUTS: dict[Layout, tuple[str, ...]] = {
    "xyz_quat": POSE,
    "xyz_quat_gripper": POSE_GRIPPER,
    "xyz_rotvec_width": ROTVEC_WIDTH,
}
# The camera's name in logs with a single camera, and in predecessors' logs.
SINGLE_CAMERA = "image"
# The gripper in the older layout, in meters.
_WIDTH = "width"
NO_STEP = "the log holds no step"
# The error code of an observation that a newer one has replaced; it is not a fault.
SUPERSEDED = "superseded"
# Entries that hold a step's time, in order of preference: the server's clock in the third generation, the client's in
# the second.
_STEP_CLOCKS = ("infer_start", "process_start", "server_recv", "timestamp")


class RunLogError(WorkspaceError, ValueError):
    """A log cannot be read or written; the message names the file, the entry, what was found and what was expected."""


@dataclass(frozen=True)
class LogStep:
    """One inference.

    Attributes:
        number: number of the step in the log.
        state: (S,) measured pose, followed by the gripper if S is 8 (or 7 with a rotation vector).
        actions: (T, A) the policy's action chunk; ``actions[0]`` is the next command.
        timing: time in seconds by name of the event, as logged. Clocks of client and server are not synchronized.
        frames: the newest encoded frame of each camera, by name; a single camera is called SINGLE_CAMERA. Empty
            if the log holds none.
    """

    number: int
    state: FloatArray
    actions: FloatArray
    timing: Mapping[str, float] = field(default_factory=dict)
    frames: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class LoggedGripper:
    """One gripper of a log, in the log's scale.

    Attributes:
        arm: name of the arm; empty if there is only one.
        chunks: (N, T) commands of each chunk.
        measured: (N,) measurement before each command, or None if the state does not hold it.
    """

    arm: str
    chunks: FloatArray
    measured: FloatArray | None

    @property
    def commands(self) -> FloatArray:
        """(N,) next command at each step."""
        return self.chunks[:, 0]

    @property
    def is_copied(self) -> bool:
        """Whether the command equals the measurement exactly at every step."""
        return self.measured is not None and bool((self.commands == self.measured).all())


@dataclass(frozen=True)
class RunLog:
    """A complete log.

    Attributes:
        path: the file or folder it was read from.
        generation: 1 to 4.
        meta: description of the run, from the third generation on; empty in older logs.
        steps: the steps in logged order; all have the same S, T and A.
        unanswered: number of observations at the end without an action (the run ended during inference).
        errors: number of messages answered by an error instead of an action, by code; empty in predecessors' logs.
    """

    path: Path
    generation: int
    meta: Mapping[str, Any]
    steps: tuple[LogStep, ...]
    unanswered: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def actions(self) -> FloatArray:
        """(N, T, A) all chunks; (0, 0, 0) for an empty log."""
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
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, in the order of the log."""
        return tuple(dict.fromkeys(camera for step in self.steps for camera in step.frames))

    @cached_property
    def layout(self) -> Layout:
        """The kind of action layout: as named in meta's action semantics, otherwise inferred from the commands."""
        named = self._named_layout
        if named is None:
            return layout_of_commands(self.commands)
        return next((layout for layout, names in _NAMED_LAYOUTS.items() if names == named.names), "named")

    @cached_property
    def action_layout(self) -> ActionLayout | None:
        """The layout of the actions, by name; None if neither meta nor the numbers determine it."""
        names = _NAMED_LAYOUTS.get(self.layout)
        return self._named_layout or (None if names is None else ActionLayout.of(names))

    @cached_property
    def state_layout(self) -> ActionLayout | None:
        """The state layout: as named in meta, otherwise that of the actions, otherwise inferred from the width."""
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
        """The commanded grippers, each with its measurement; empty if no layout names one."""
        layout = self.action_layout
        if not self.steps or layout is None:
            return ()
        measured = {} if self.state_layout is None else _gripper_columns(self.state_layout)
        return tuple(
            LoggedGripper(arm, self.actions[..., column], self.states[:, measured[arm]] if arm in measured else None)
            for arm, column in _gripper_columns(layout).items()
        )

    def gripper_scales(self, declared: DeclaredScales | None = None) -> ResolvedScales | None:
        """Returns the scales of the gripper's commands and measurements; None without a gripper command.

        All grippers of a robot have the same scale.

        Args:
            declared: scales given by the user; otherwise the log's ``action_semantics`` decide, otherwise the numbers.

        Raises:
            RunLogError: the numbers contradict the declared scale, or the log's label is not a scale.
        """
        if not self.grippers:
            return None
        semantics = self.meta.get("action_semantics") if self.layout != "xyz_rotvec_width" else None
        commands = np.concatenate([gripper.commands for gripper in self.grippers])
        present = [gripper.measured for gripper in self.grippers if gripper.measured is not None]
        measured = np.concatenate(present) if len(present) == len(self.grippers) else None
        starts = np.arange(len(self.grippers)) * len(self.steps)
        try:
            labeled = labeled_scales(semantics if isinstance(semantics, Mapping) else None, "meta.action_semantics")
            return find_scales(commands, measured, starts=starts, declared=declared, labeled=labeled)
        except SpecError as error:
            raise RunLogError(f"{self.path}: {error}") from error

    def converted(self, scales: ResolvedScales) -> RunLog:
        """Returns the log with its gripper converted to, and labeled as, 0 closed .. 1 open where the scales are known.

        Args:
            scales: scales of this log; the commands' must be known.
        """
        command, measured = scales.command.scale, None if scales.measured is None else scales.measured.scale
        assert command is not None
        assert self.action_layout is not None
        commanded = list(_gripper_columns(self.action_layout).values())
        observed = [] if self.state_layout is None else list(_gripper_columns(self.state_layout).values())
        steps = []
        for step in self.steps:
            actions, state = step.actions.copy(), step.state.copy()
            actions[:, commanded] = command.to_internal(actions[:, commanded])
            if measured is not None:
                state[observed] = measured.to_internal(state[observed])
            steps.append(replace(step, actions=actions, state=state))
        label = self.meta.get("action_semantics")
        named = dict(label) if isinstance(label, Mapping) else {}
        meta = {**self.meta, "action_semantics": {**named, "gripper": INTERNAL.label}}
        return replace(self, steps=tuple(steps), meta=meta)

    @cached_property
    def numbers(self) -> IntArray:
        """(N,) numbers of the steps; their positions (0, 1, ...) if the numbers do not increase."""
        numbers = np.array([step.number for step in self.steps], dtype=np.int64)
        return numbers if (np.diff(numbers) > 0).all() else np.arange(len(self.steps), dtype=np.int64)

    @cached_property
    def stride(self) -> int:
        """The increment of step numbers where nothing is missing."""
        return usual_stride(self.numbers)

    @cached_property
    def missing(self) -> tuple[Missing, ...]:
        """The first and the last number of each run of steps that are missing between the first and the last step."""
        return missing_steps(self.numbers)

    @cached_property
    def oddities(self) -> tuple[str, ...]:
        """Irregularities of the log, one sentence each: missing steps, step numbers that do not increase."""
        sentences = missing_sentences(self.numbers)
        if len(self.steps) > 1 and not (np.diff([step.number for step in self.steps]) > 0).all():
            sentences.append("step numbers repeat or go back, so steps are counted by position")
        if refused := {code: count for code, count in self.errors.items() if code != SUPERSEDED}:
            total = sum(refused.values())
            codes = ", ".join(f"{count} {code}" for code, count in sorted(refused.items(), key=lambda item: -item[1]))
            sentences.append(f"{total} of {total + len(self.steps)} messages got an error and no action ({codes})")
        return tuple(sentences)

    @property
    def is_refused(self) -> bool:
        """Whether there were messages, and none of them was answered with an action."""
        return not self.steps and bool(self.errors)

    @property
    def why_empty(self) -> str:
        """The reason why the log holds no step; only defined for such logs."""
        assert not self.steps
        return "; ".join(("no message was answered with an action", *self.oddities)) if self.errors else NO_STEP

    @property
    def step_period(self) -> float | None:
        """Median seconds between two inferences, from the first clock with a time for every step; None without one."""
        for clock in _STEP_CLOCKS:
            stamps = [step.timing[clock] for step in self.steps if clock in step.timing]
            if len(stamps) == len(self.steps) >= 2:
                period = float(np.median(np.diff(stamps)))
                return period if period > 0 else None
        return None


def usual_stride(numbers: IntArray) -> int:
    """Returns the increment of increasing step numbers (N,) where no step is missing: the smallest that is not rare."""
    steps = Counter(np.diff(numbers).tolist())
    return int(min(step for step, count in steps.items() if 10 * count >= steps.total())) if steps else 1


def missing_steps(numbers: IntArray) -> tuple[Missing, ...]:
    """Returns the first and the last number of each run that is missing in increasing step numbers (N,)."""
    stride = usual_stride(numbers)
    (before,) = np.nonzero(np.diff(numbers) >= 2 * stride)
    return tuple((int(numbers[at]) + stride, int(numbers[at + 1]) - stride) for at in before.tolist())


def missing_sentences(numbers: IntArray) -> list[str]:
    """Returns a sentence about numbers that are missing in increasing step numbers (N,); none if there are none."""
    missing, stride = missing_steps(numbers), usual_stride(numbers)
    if not missing:
        return []
    count = sum((last - first) // stride + 1 for first, last in missing)
    runs = [f"{first}-{last}" if first < last else str(first) for first, last in missing]
    listed = ", ".join(runs[:3]) + (f" and {len(runs) - 3} more runs" if len(runs) > 3 else "")
    return [f"steps {listed} are missing ({count} of {count + len(numbers)})"]


def _layout_of_names(names: Any, units: Any, width: int) -> ActionLayout | None:
    """Returns the layout that a log's meta names; None if the names are unknown or do not match the width."""
    if not isinstance(names, list) or len(names) != width or not all(isinstance(name, str) for name in names):
        return None
    known = isinstance(units, list) and len(units) == width and all(isinstance(unit, str) for unit in units)
    try:
        layout = ActionLayout.of(names, dict(zip(names, units, strict=True)) if known else None)
    except SpecError:
        return None
    return layout if layout.motion_columns or layout.has_gripper else None


def _gripper_columns(layout: ActionLayout) -> dict[str, int]:
    """Returns the column of each arm's gripper, or of the width in the older layout."""
    if _WIDTH in layout.names and not layout.has_gripper:
        return {"": layout.names.index(_WIDTH)}
    return dict(zip(layout.labels("gripper"), layout.gripper_columns, strict=True))


def layout_of_commands(commands: FloatArray) -> Layout:
    """Infers the layout of commands (N, A): a pose's last four numbers form a unit quaternion, a width is 3-8 cm."""
    if len(commands) == 0 or commands.shape[1] not in (len(POSE), len(POSE_GRIPPER)):
        return "unknown"
    layout = ActionLayout.of(POSE_GRIPPER[: commands.shape[1]])
    norms = np.linalg.norm(layout.rotations(commands)[:, 0], axis=1)
    if commands.shape[1] == len(POSE_GRIPPER):
        # Served poses were once smoothed component by component: some norms are 0.81-1.16, with a median near 1.
        return "xyz_quat_gripper" if abs(np.median(norms) - 1) <= SERVED_NORM_SLACK else "unknown"
    if (np.abs(norms - 1) <= SERVED_NORM_SLACK).all():  # with seven numbers, the last four show it at every step
        return "xyz_quat"
    width = commands[:, ROTVEC_WIDTH.index(_WIDTH)]
    return "xyz_rotvec_width" if is_gripper_width(width.min(), width.max()) else "unknown"


def check_same_dimensions(steps: Sequence[LogStep], where: Path | str) -> None:
    """Raises RunLogError if states or actions differ in shape between steps."""
    for name in ("state", "actions"):
        for i, step in enumerate(steps):
            first, shape = getattr(steps[0], name).shape, getattr(step, name).shape
            if shape != first:
                raise RunLogError(
                    f"{where}: {name} of step {i} has shape {shape}, of step 0 {first}; expected one layout"
                )
