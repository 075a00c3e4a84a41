"""Settings of the motion guard, and the limits that follow from them for a layout.

The step limits default to those of the predecessor's robot configuration: 0.04 m and 0.1 rad per step. The public
robot client commands all steps of a chunk at once and so drives the arm toward the last one: the limit over the whole
chunk bounds that jump. Its default is CHUNK_STEPS steps of full length, half of what eight could add up to; of
4,734 chunks in the logs of a real robot's 8-D policies, 95 % stay within it in meters and 98 % in radians.

Joints have no such measurement: unless a limit is set, a step is at most JOINT_SHARE of the range that training saw for
the joint, and a chunk CHUNK_STEPS of those. The share is a choice: a joint takes ten steps, one second at 10 Hz,
to cross its range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.geometry import SERVED_NORM_SLACK
from diffusion_policy.gripper_events import GRIPPER_BAND
from diffusion_policy.spec import ActionLayout

CHUNK_STEPS = 4
JOINT_SHARE = 0.1
# Share of the widest range, the least that a joint gets that moved less in training, or not at all.
_NARROWEST = 0.1

FloatArray = NDArray[np.float64]
Box = tuple[float, float, float]


@dataclass(frozen=True)
class GuardSettings:
    """Settings of the motion guard; all limits apply by default.

    Attributes:
        max_step_m: largest distance between consecutive positions, meters.
        max_step_rad: largest geodesic angle between consecutive orientations, radians.
        max_chunk_m: largest distance of any position in a chunk from the measured one, meters; None for CHUNK_STEPS
            times ``max_step_m``.
        max_chunk_rad: largest geodesic angle of any orientation in a chunk from the measured one, radians; None for
            CHUNK_STEPS times ``max_step_rad``.
        max_step_joint: largest step of any joint, in the joints' unit; None for JOINT_SHARE of each joint's training
            range.
        max_chunk_joint: largest distance of any joint from its measurement, in the same unit; None for CHUNK_STEPS
            times the step limit.
        workspace_low: lowest x y z in meters, robot base frame; None until :meth:`within` fills it in.
        workspace_high: highest x y z in meters; None likewise.
        on_step: "clip" or "refuse" a step that is too long.
        on_chunk: "clip" or "refuse" a pose too far from the measured one.
        on_workspace: "clip" or "refuse" a position outside the box.
        quaternion_tolerance: a quaternion whose norm is further than this from 1 is refused; others are normalized.
        action_scale: fraction of each step that is executed, position and rotation alike; 1 changes nothing.
        smoothing: weight of the previous action in (0, 1) (lerp for positions, slerp for orientations); 0 is off.
        gripper_open: commands at or above it open.
        gripper_closed: commands at or below it close; between the two the last command holds and, before the first
            one, the measured state.
        gripper_min_dwell: actions for which a gripper command holds before it may change again.
    """

    max_step_m: float = 0.04
    max_step_rad: float = 0.1
    max_chunk_m: Optional[float] = None  # noqa: UP045 - OmegaConf reads this form
    max_chunk_rad: Optional[float] = None  # noqa: UP045
    max_step_joint: Optional[float] = None  # noqa: UP045
    max_chunk_joint: Optional[float] = None  # noqa: UP045
    workspace_low: Optional[Box] = None  # noqa: UP045
    workspace_high: Optional[Box] = None  # noqa: UP045
    on_step: str = "clip"
    on_chunk: str = "clip"
    on_workspace: str = "refuse"
    quaternion_tolerance: float = SERVED_NORM_SLACK
    action_scale: float = 1.0
    smoothing: float = 0.0
    gripper_open: float = GRIPPER_BAND.open
    gripper_closed: float = GRIPPER_BAND.closed
    gripper_min_dwell: int = 1

    def __post_init__(self) -> None:
        """Refuses settings that would limit nothing or everything."""
        for name in ("m", "rad"):
            if getattr(self, f"max_chunk_{name}") is None:
                longest = round(CHUNK_STEPS * getattr(self, f"max_step_{name}"), 9)
                object.__setattr__(self, f"max_chunk_{name}", longest)  # the dataclass is frozen
        for name, low, high in (
            ("max_step_m", 0, np.inf),
            ("max_step_rad", 0, np.inf),
            ("max_chunk_m", 0, np.inf),
            ("max_chunk_rad", 0, np.inf),
            ("quaternion_tolerance", 0, 1),
            ("action_scale", 0, 1 + 1e-12),
        ):
            if not low < getattr(self, name) < high:
                raise WorkspaceError(f"motion guard: {name} is {getattr(self, name)}; expected more than {low}, finite")
        self._check_joints()
        if not 0 <= self.smoothing < 1:
            raise WorkspaceError(f"motion guard: smoothing is {self.smoothing}; expected 0 <= smoothing < 1")
        if not -np.inf < self.gripper_closed < self.gripper_open < np.inf:
            raise WorkspaceError(
                f"motion guard: gripper_closed {self.gripper_closed} is not below gripper_open {self.gripper_open}"
            )
        if self.gripper_min_dwell < 0:
            raise WorkspaceError(f"motion guard: gripper_min_dwell is {self.gripper_min_dwell}; expected 0 or more")
        edges = zip(self.workspace_low or (), self.workspace_high or (), strict=False)
        if not all(low < high for low, high in edges):
            raise WorkspaceError(f"motion guard: workspace_low {self.workspace_low} is not below {self.workspace_high}")
        for name in ("on_step", "on_chunk", "on_workspace"):
            if getattr(self, name) not in ("clip", "refuse"):
                raise WorkspaceError(f"motion guard: {name} is {getattr(self, name)!r}; expected 'clip' or 'refuse'")

    def _check_joints(self) -> None:
        for name in ("max_step_joint", "max_chunk_joint"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < np.inf:
                raise WorkspaceError(f"motion guard: {name} is {limit}; expected more than 0, finite, or null")

    def within(self, low: Sequence[float] | FloatArray, high: Sequence[float] | FloatArray) -> GuardSettings:
        """Returns the settings with this box, x y z in meters, unless they already have one."""
        return replace(
            self,
            workspace_low=_corner(low) if self.workspace_low is None else self.workspace_low,
            workspace_high=_corner(high) if self.workspace_high is None else self.workspace_high,
        )

    def describe(self) -> str:
        """Returns one sentence for the start-up message."""
        box = f"workspace {_box_as_text(self.workspace_low, self.workspace_high)} m ({self.on_workspace})"
        return ", ".join((self.describe_poses(), box, self.describe_steps(), self.describe_grippers()))

    def describe_poses(self) -> str:
        """Describes the limits of poses."""
        return (
            f"at most {self.max_step_m} m and {self.max_step_rad} rad a step ({self.on_step}), "
            f"{self.max_chunk_m} m and {self.max_chunk_rad} rad from the measured pose in a chunk ({self.on_chunk})"
        )

    def describe_steps(self) -> str:
        """Describes scale and smoothing."""
        return f"action scale {self.action_scale}, smoothing {self.smoothing}"

    def describe_grippers(self) -> str:
        """Describes the debouncing of gripper commands."""
        return (
            f"gripper opens from {self.gripper_open} and closes to {self.gripper_closed}, "
            f"holding each command {self.gripper_min_dwell} action(s)"
        )


@dataclass(frozen=True)
class MotionLimits:
    """The limits in force for a layout: a box for each arm with a position, step and chunk limits for each joint.

    Attributes:
        layout: layout of actions, rotations as quaternions.
        settings: the settings, with a box where exactly one arm has a position.
        boxes: lowest and highest x y z in meters, by arm's name.
        joint_steps: (J,) largest steps, by ``layout.joint_columns``, in the joints' unit.
        joint_chunks: (J,) largest distances from the measured joints, as above.
    """

    layout: ActionLayout
    settings: GuardSettings
    boxes: Mapping[str, tuple[Box, Box]]
    joint_steps: tuple[float, ...] = ()
    joint_chunks: tuple[float, ...] = ()

    @classmethod
    def within(
        cls, settings: GuardSettings, layout: ActionLayout, low: FloatArray, high: FloatArray, margin_m: float = 0.0
    ) -> MotionLimits:
        """Derives the limits from settings and the training range.

        Args:
            settings: the settings; a box in them applies to every arm.
            layout: layout of actions, rotations as quaternions.
            low, high: (D,) range of the training actions, in the order of the layout.
            margin_m: margin by which the range of positions is widened to a box.

        Raises:
            WorkspaceError: no joint moved in training and no step limit is set.
        """
        lows, highs = layout.positions(low) - margin_m, layout.positions(high) + margin_m
        completed = [settings.within(*corners) for corners in zip(lows, highs, strict=True)]
        boxes = {
            arm: (one.workspace_low, one.workspace_high)
            for arm, one in zip(layout.labels("position"), completed, strict=True)
            if one.workspace_low is not None and one.workspace_high is not None
        }
        chosen = completed[0] if len(completed) == 1 else settings
        steps, chunks = _joint_limits(settings, layout.joints(high) - layout.joints(low), layout)
        return cls(layout, chosen, boxes, steps, chunks)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """(J,) names of the joints."""
        return tuple(self.layout.names[column] for column in self.layout.joint_columns)

    def describe(self) -> str:
        """Returns one sentence for the start-up message."""
        settings, parts = self.settings, []
        if self.boxes:
            parts.append(settings.describe_poses())
            parts += [
                f"workspace {f'of {arm} ' if arm else ''}{_box_as_text(*box)} m ({settings.on_workspace})"
                for arm, box in self.boxes.items()
            ]
        for what, limits, choice in (
            ("a step", self.joint_steps, settings.on_step),
            ("from the measured joints in a chunk", self.joint_chunks, settings.on_chunk),
        ):
            if limits:
                listed = ", ".join(f"{name} {limit:g}" for name, limit in zip(self.joint_names, limits, strict=True))
                parts.append(f"at most ({listed}) {self.layout.joint_unit} {what} ({choice})")
        parts.append(settings.describe_steps())
        if self.layout.has_gripper:
            parts.append(settings.describe_grippers())
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Returns the settings, with boxes of several arms and limits of joints."""
        result = asdict(self.settings)
        if not self.joint_steps:
            result = {name: value for name, value in result.items() if not name.endswith("_joint")}
        else:
            limits = zip(self.joint_names, self.joint_steps, self.joint_chunks, strict=True)
            result["joints"] = {name: {"max_step": step, "max_chunk": chunk} for name, step, chunk in limits}
            result["joint_unit"] = self.layout.joint_unit
        if len(self.boxes) > 1:
            result["workspaces"] = {arm: {"low": low, "high": high} for arm, (low, high) in self.boxes.items()}
        return result


def _joint_limits(
    settings: GuardSettings, ranges: FloatArray, layout: ActionLayout
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns (J,) largest steps and distances: from the settings, else from the training ranges (J,)."""
    if not ranges.size:
        return (), ()
    if settings.max_step_joint is not None:
        steps = np.full(ranges.shape, settings.max_step_joint)
    else:
        widest = float(ranges.max())
        if not 0 < widest < np.inf:
            raise WorkspaceError(
                f"motion guard: in training the joints {[layout.names[c] for c in layout.joint_columns]} moved by "
                f"{widest}, from which no limit can be derived; set guard.max_step_joint, in {layout.joint_unit}"
            )
        steps = JOINT_SHARE * np.maximum(ranges, _NARROWEST * widest)
    chunks = CHUNK_STEPS * steps
    if settings.max_chunk_joint is not None:
        chunks = np.full(ranges.shape, settings.max_chunk_joint)
    return _rounded(steps), _rounded(chunks)


def _rounded(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values.tolist())


def _box_as_text(low: Box | None, high: Box | None) -> str:
    first, last = (", ".join(map(str, edge or ("not set",))) for edge in (low, high))
    return f"({first}) to ({last})"


def _corner(values: Sequence[float] | FloatArray) -> Box:
    x, y, z = (round(float(value), 4) for value in values)
    return x, y, z
