"""How far the control loop's commands in a recorded episode are from the commands given when it was recorded.

Both are compared by where they lead. A recorded command is reached when the next one is given; a command of the loop is
compared with the recorded path at the end of its control period. Grippers are compared as commanded at its beginning.

Legend of shapes: N recorded steps, M commands of the loop, D numbers of an action.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.geometry import geodesic_distance
from diffusion_policy.gripper_events import CLIENT_THRESHOLD
from diffusion_policy.recording.contract import Recording
from diffusion_policy.serve.client.arm_log import ArmLogContent
from diffusion_policy.serve.client.interpolation import interpolate
from diffusion_policy.spec import ActionLayout

FloatArray = NDArray[np.float64]
_ROUNDING = 1e-6  # seconds


@dataclass(frozen=True)
class RecordedCommands:
    """The commands recorded in an episode.

    Attributes:
        layout: layout of the numbers that both the policy and the recording command, rotations as quaternions.
        columns: columns of the policy's action, in the order of ``layout``.
        actions: (N, numbers of ``layout``) commands.
        times: (N,) when they were commanded, seconds from the first step.
    """

    layout: ActionLayout
    columns: tuple[int, ...]
    actions: FloatArray
    times: FloatArray

    @classmethod
    def of(cls, recording: Recording, layout: ActionLayout, times: FloatArray) -> RecordedCommands:
        """Reads them; parts of the policy's ``layout`` (such as a rotation) not recorded completely are left out."""
        recorded = recording.names.action_layout
        written = recorded.with_rotations_as("quaternion")
        kept: set[int] = set()
        for arm in layout.arms:
            for part in (arm.position, arm.rotation, arm.gripper, *((joint,) for joint in arm.joints)):
                kept |= set(part) if all(layout.names[column] in written.names for column in part) else set()
        columns = tuple(sorted(kept))
        shared = ActionLayout.of(
            [layout.names[column] for column in columns],
            {layout.names[column]: layout.unit(column) for column in columns},
        )
        actions = recorded.converted(np.asarray(recording.action, dtype=np.float64), written)
        return cls(shared, columns, actions[:, [written.names.index(name) for name in shared.names]], times)

    def at(self, now: float, reached: float) -> FloatArray | None:
        """Returns (numbers of ``layout``,): poses or joints at time ``reached``, grippers commanded at ``now``.

        None before the first command was reached, and after the last one was given.
        """
        index = int(np.searchsorted(self.times, reached - _ROUNDING))  # step index - 1 is reached at times[index]
        if reached < self.times[1] - _ROUNDING or index >= len(self.times):
            return None
        before, start, end = self.actions[max(0, index - 2)], self.times[index - 1], self.times[index]
        result = interpolate(self.layout, before, self.actions[index - 1], min(1.0, (reached - start) / (end - start)))
        given = max(0, int(np.searchsorted(self.times, now + _ROUNDING, side="right")) - 1)
        columns = list(self.layout.gripper_columns)
        result[columns] = self.actions[given, columns]
        return result


@dataclass(frozen=True)
class CommandComparison:
    """The differences, as pairs of mean and largest; None for a kind that the policy or the recording does not command.

    Attributes:
        commands: M, the number of the loop's commands for which there are recorded ones.
        position_mm: between positions.
        rotation_deg: between rotations, geodesic.
        joints: differences of a joint, in ``joint_unit``.
        gripper_agreement: share of commands in which every gripper is commanded to the same side of half open.
        joint_unit: None without joints.
    """

    commands: int
    position_mm: tuple[float, float] | None
    rotation_deg: tuple[float, float] | None
    joints: tuple[float, float] | None
    gripper_agreement: float | None
    joint_unit: str | None

    @classmethod
    def of(cls, log: ArmLogContent, recorded: RecordedCommands, began_at: float) -> CommandComparison:
        """Compares the commands in a log with the recorded ones.

        Args:
            log: the loop's log; a dry run's serves as well.
            recorded: the commands of the episode that served as its arm.
            began_at: time of the episode's first step on the loop's clock.
        """
        layout, period = recorded.layout, 1 / log.start["control_hz"]
        pairs = [
            (np.asarray(line["action"], dtype=np.float64)[list(recorded.columns)], recorded_action)
            for line in log.of("move")
            if (recorded_action := recorded.at(line["time"] - began_at, line["time"] - began_at + period)) is not None
        ]
        ours, theirs = np.array(pairs).reshape(len(pairs), 2, len(layout.names)).transpose(1, 0, 2)
        moved = np.linalg.norm(layout.positions(ours) - layout.positions(theirs), axis=-1) * 1000
        turned = np.degrees(geodesic_distance(layout.rotations(ours), layout.rotations(theirs)))
        is_open = [layout.grippers(values) > CLIENT_THRESHOLD for values in (ours, theirs)]
        agree = (is_open[0] == is_open[1]).all(axis=-1)
        return cls(
            len(pairs),
            _mean_and_largest(moved),
            _mean_and_largest(turned),
            _mean_and_largest(np.abs(layout.joints(ours) - layout.joints(theirs))),
            float(agree.mean()) if layout.has_gripper and len(pairs) else None,
            layout.joint_unit if layout.has_joints else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Returns the names and values to show."""
        rows = [
            ("position", _formatted(self.position_mm, "mm")),
            ("rotation", _formatted(self.rotation_deg, "degrees")),
            *([] if self.joint_unit is None else [("joints", _formatted(self.joints, self.joint_unit))]),
            ("gripper", _NOTHING if self.gripper_agreement is None else f"{self.gripper_agreement:.1%} agree"),
        ]
        return [("compared with recorded", f"{self.commands} commands"), *((f"  {name}", text) for name, text in rows)]


_NOTHING = "nothing to compare"


def _mean_and_largest(values: FloatArray) -> tuple[float, float] | None:
    return (float(values.mean()), float(values.max())) if values.size else None


def _formatted(pair: tuple[float, float] | None, unit: str) -> str:
    return _NOTHING if pair is None else f"mean {pair[0]:.1f} {unit}, largest {pair[1]:.1f} {unit}"
