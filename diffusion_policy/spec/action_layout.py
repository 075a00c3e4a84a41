"""Which numbers of an action are which arm's position, rotation, gripper and joints, derived from their names.

    layout = ActionLayout.of(("left.x", "left.y", "left.z", "left.r11", ..., "left.gripper", "right.x", ...))
    layout.positions(actions)      # (..., 2, 3) meters
    layout.rotations(actions)      # (..., 2, 4) quaternions xyzw, whatever representation the action has
    layout.grippers(actions)       # (..., 2) 0 closed to 1 open

Names are bare where there is one arm and begin with the arm's name and a dot where there are several:

    x y z                      position, meters, robot base frame
    qx qy qz qw                rotation as a quaternion, scalar last
    rx ry rz                   rotation as a rotation vector, radians
    r11 r12 r13 r21 r22 r23    rotation as the first two rows of its matrix: "6-D" as pytorch3d and UMI
                               order it (Zhou et al. 2019, "On the Continuity of Rotation Representations")
    r11 r21 r31 r12 r22 r32    the same as the first two columns
    gripper                    0 closed to 1 open; other scales are converted on reading (``gripper_scale``)
    joint_1 joint_2 ...        joints, in the unit that is declared; also LeRobot's names (``elbow_flex.pos``)
    camera_pitch camera_yaw    turns of a game's camera, degrees: a player's action, all else in it buttons, and no arm

Legend of shapes: D numbers in an action; P, R, G, J number of its positions, rotations, grippers, joints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.errors import SpecError
from diffusion_policy.spec.names import CAMERA_TURN, GRIPPER, POSE, UNITS
from diffusion_policy.spec.rotations import (
    IN_WORDS,
    ROTATIONS,
    Representation,
    from_quaternions,
    scipy_rotation,
    to_quaternions,
)

FloatArray = NDArray[np.float64]
POSITION = POSE[:3]
_JOINT = re.compile(r"(?:joint|j|q)_?\d+")
_MOTOR = ".pos"  # suffix of LeRobot's motor names
_JOINT_UNITS = {"rad", "deg", "%"}


@dataclass(frozen=True)
class Arm:
    """The columns of one arm; parts that it does not have are empty.

    Attributes:
        name: the part before the dot; empty if there is only one arm.
        position: x, y, z.
        rotation: as many as the representation has numbers, in its order.
        representation: None without a rotation.
        gripper: one column, or empty.
        joints: in order.
    """

    name: str
    position: tuple[int, ...] = ()
    rotation: tuple[int, ...] = ()
    representation: Representation | None = None
    gripper: tuple[int, ...] = ()
    joints: tuple[int, ...] = ()

    @property
    def has_pose(self) -> bool:
        """Whether it has a position and a rotation."""
        return bool(self.position and self.rotation)


@dataclass(frozen=True)
class ActionLayout:
    """The layout of an action; also of a state that has the same names.

    Attributes:
        names: (D,) names of the numbers.
        units: (D,) their units; "unknown" where none is given.
    """

    names: tuple[str, ...]
    units: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise SpecError(f"an action's names must be distinct; got {list(self.names)}")
        if self.units and len(self.units) != len(self.names):
            raise SpecError(f"{len(self.names)} names {list(self.names)} but {len(self.units)} units")

    @classmethod
    def of(cls, names: Iterable[str], units: Mapping[str, str] | None = None) -> ActionLayout:
        """The layout of these names; ``units`` gives those that differ from ``spec.UNITS``.

        Raises:
            SpecError: a name appears twice, or an arm has only part of a position or rotation.
        """
        names = tuple(names)
        layout = _layout(names, tuple((units or {}).get(name) or unit_of(name) for name in names))
        _ = layout.arms
        return layout

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """The arms, in the order of their first number; none in a game."""
        if self.is_game:
            return ()
        grouped: dict[str, dict[str, int]] = {}
        for index, name in enumerate(self.names):
            arm, part = _split(name)
            grouped.setdefault(arm, {})[part] = index
        return tuple(_arm(name, parts, self.units) for name, parts in grouped.items())

    @property
    def is_game(self) -> bool:
        """Whether it is what a game's player does: buttons, and the turns of a camera."""
        return set(CAMERA_TURN) <= set(self.names)

    @property
    def has_pose(self) -> bool:
        """Whether some arm has a position and a rotation."""
        return any(arm.has_pose for arm in self.arms)

    @property
    def has_gripper(self) -> bool:
        """Whether some arm has a gripper."""
        return bool(self.gripper_columns)

    @property
    def has_joints(self) -> bool:
        """Whether some arm is commanded by joints."""
        return bool(self.joint_columns)

    @cached_property
    def gripper_columns(self) -> tuple[int, ...]:
        """Columns of the grippers, by arm."""
        return tuple(column for arm in self.arms for column in arm.gripper)

    @cached_property
    def joint_columns(self) -> tuple[int, ...]:
        """Columns of the joints, by arm."""
        return tuple(column for arm in self.arms for column in arm.joints)

    @cached_property
    def motion_columns(self) -> tuple[int, ...]:
        """Columns of everything that moves an arm: positions, rotations and joints."""
        return tuple(sorted(column for arm in self.arms for column in (*arm.position, *arm.rotation, *arm.joints)))

    @property
    def joint_unit(self) -> str:
        """The unit of the joints; "unknown" if none is given, or if they differ."""
        units = {self.unit(column) for column in self.joint_columns}
        return units.pop() if len(units) == 1 else "unknown"

    def unit(self, column: int) -> str:
        """The unit of one number."""
        return self.units[column] if self.units else "unknown"

    def labels(self, part: Literal["position", "rotation", "gripper"]) -> tuple[str, ...]:
        """Names of the arms that have the part, in the order of ``positions``, ``rotations``, ``grippers``."""
        return tuple(arm.name for arm in self.arms if getattr(arm, part))

    def positions(self, values: ArrayLike) -> FloatArray:
        """(..., D) -> (..., P, 3) meters."""
        array = self._checked(values)
        columns = [arm.position for arm in self.arms if arm.position]
        return _stacked([array[..., list(c)] for c in columns], array.shape[:-1], 3)

    def rotations(self, values: ArrayLike) -> FloatArray:
        """(..., D) -> (..., R, 4) quaternions xyzw; NaN where a rotation is invalid (zero, or not finite).

        Quaternions are returned unchanged, norm included; other representations become unit quaternions.
        """
        array = self._checked(values)
        converted = [
            to_quaternions(array[..., list(arm.rotation)], arm.representation)
            for arm in self.arms
            if arm.representation is not None
        ]
        return _stacked(converted, array.shape[:-1], 4)

    def grippers(self, values: ArrayLike) -> FloatArray:
        """(..., D) -> (..., G), 0 closed to 1 open."""
        return self._checked(values)[..., list(self.gripper_columns)]

    def joints(self, values: ArrayLike) -> FloatArray:
        """(..., D) -> (..., J), in ``joint_unit``."""
        return self._checked(values)[..., list(self.joint_columns)]

    def replaced(
        self,
        values: ArrayLike,
        *,
        positions: ArrayLike | None = None,
        rotations: ArrayLike | None = None,
        grippers: ArrayLike | None = None,
        joints: ArrayLike | None = None,
    ) -> FloatArray:
        """A copy of (..., D) with parts replaced; shapes are those that the methods of the same names return."""
        array = self._checked(values).copy()
        if positions is not None:
            given = np.asarray(positions, dtype=np.float64)
            for index, arm in enumerate(arm for arm in self.arms if arm.position):
                array[..., list(arm.position)] = given[..., index, :]
        if rotations is not None:
            given = np.asarray(rotations, dtype=np.float64)
            for index, arm in enumerate(arm for arm in self.arms if arm.representation is not None):
                assert arm.representation is not None
                array[..., list(arm.rotation)] = from_quaternions(given[..., index, :], arm.representation)
        if grippers is not None:
            array[..., list(self.gripper_columns)] = grippers
        if joints is not None:
            array[..., list(self.joint_columns)] = joints
        return array

    def with_rotations_as(self, representation: Representation) -> ActionLayout:
        """The layout with its rotations in another representation, each starting where its first number was."""
        names: list[str] = []
        units: list[str] = []
        turned = {arm.rotation[0]: arm for arm in self.arms if arm.rotation}
        dropped = {column for arm in turned.values() for column in arm.rotation}
        for column, name in enumerate(self.names):
            if column in turned:
                prefix = f"{turned[column].name}." if turned[column].name else ""
                names.extend(f"{prefix}{part}" for part in ROTATIONS[representation])
                units.extend(UNITS.get(part, "1") for part in ROTATIONS[representation])
            elif column not in dropped:
                names.append(name)
                units.append(self.unit(column))
        return _layout(tuple(names), tuple(units))

    def converted(self, values: ArrayLike, target: ActionLayout) -> FloatArray:
        """(..., D) -> (..., D of ``target``): the same motion in another order or rotation representation.

        Raises:
            SpecError: the layouts do not have the same arms, parts and other names, or a rotation is invalid.
        """
        array = self._checked(values)
        if self._parts != target._parts:
            raise SpecError(
                f"{self.describe()} cannot be written as {target.describe()}; the two differ in their parts"
            )
        result = np.empty((*array.shape[:-1], len(target.names)))
        for column, name in enumerate(target.names):
            if column not in target._rotation_columns:
                result[..., column] = array[..., self.names.index(name)]
        for arm in target.arms:
            own = next(other for other in self.arms if other.name == arm.name)
            if arm.representation is None or own.representation is None:
                continue
            turn = array[..., list(own.rotation)]
            if own.representation != arm.representation:
                turn = from_quaternions(to_quaternions(turn, own.representation), arm.representation)
            result[..., list(arm.rotation)] = turn
        return result

    def difference(self, base: ArrayLike, values: ArrayLike) -> FloatArray:
        """Actions relative to a base: poses in the base's own frame (inverse(base) * value), joints by subtraction.

        Grippers and other numbers are unchanged. As in UMI's relative trajectories, every step of a chunk is relative
        to the same current pose.

        Args:
            base: (..., D) or (D,): the current state, in this layout; its gripper numbers are ignored.
            values: (..., D).

        Returns:
            (..., D); rotations in the representation of the layout.
        """
        return self._relative(base, values, inverse=False)

    def integrate(self, base: ArrayLike, relative: ArrayLike) -> FloatArray:
        """The inverse of ``difference``: relative actions (..., D) from a base back to absolute ones."""
        return self._relative(base, relative, inverse=True)

    def describe(self) -> str:
        """What it is, in words: "position, quaternion (xyzw), gripper"; of several arms, each with its name."""
        if self.is_game:
            return f"{len(self.names) - len(CAMERA_TURN)} buttons, camera pitch and yaw in degrees"
        parts = [f"{arm.name}: {_described(arm)}" if arm.name else _described(arm) for arm in self.arms]
        other = sorted({*range(len(self.names))} - {*self.motion_columns, *self.gripper_columns})
        if other:
            parts.append(f"{len(other)} other numbers ({', '.join(self.names[index] for index in other)})")
        return "; ".join(part for part in parts if part)

    @cached_property
    def _rotation_columns(self) -> frozenset[int]:
        return frozenset(column for arm in self.arms for column in arm.rotation)

    @cached_property
    def _parts(self) -> tuple[frozenset[str], frozenset[str]]:
        """What another layout must have, too: the arms with a rotation, and every other name."""
        others = (name for column, name in enumerate(self.names) if column not in self._rotation_columns)
        return frozenset(self.labels("rotation")), frozenset(others)

    def _relative(self, base: ArrayLike, values: ArrayLike, *, inverse: bool) -> FloatArray:
        start, array = self._checked(base), self._checked(values).copy()
        start = np.broadcast_to(start, array.shape)
        sign = 1.0 if inverse else -1.0
        for arm in self.arms:
            joints = list(arm.joints)
            array[..., joints] += sign * start[..., joints]
            place, turn = list(arm.position), list(arm.rotation)
            if arm.representation is None:
                array[..., place] += sign * start[..., place]
                continue
            frame = scipy_rotation(to_quaternions(start[..., turn], arm.representation))
            own = scipy_rotation(to_quaternions(array[..., turn], arm.representation))
            rotated = frame * own if inverse else frame.inv() * own
            quaternions = rotated.as_quat(canonical=not inverse).reshape(*array.shape[:-1], 4)
            array[..., turn] = from_quaternions(quaternions, arm.representation)
            if place:
                moved, origin = array[..., place].reshape(-1, 3), start[..., place].reshape(-1, 3)
                points = frame.apply(moved) + origin if inverse else frame.inv().apply(moved - origin)
                array[..., place] = points.reshape(*array.shape[:-1], 3)
        return array

    def _checked(self, values: ArrayLike) -> FloatArray:
        array = np.asarray(values, dtype=np.float64)
        if array.shape[-1:] != (len(self.names),):
            raise SpecError(
                f"an array of shape {array.shape} does not hold {self.describe()}; expected (..., {len(self.names)})"
            )
        return array


@cache
def _layout(names: tuple[str, ...], units: tuple[str, ...]) -> ActionLayout:
    return ActionLayout(names, units)


def unit_of(name: str) -> str:
    """The unit that a name implies; "unknown" if it implies none."""
    return UNITS.get(_split(name)[1], "unknown")


def is_gripper_name(name: str) -> bool:
    """Whether a number of that name is a gripper: "gripper", "left.gripper", "gripper.pos"."""
    return _split(name)[1] == GRIPPER


def _split(name: str) -> tuple[str, str]:
    """("left", "x") of "left.x"; LeRobot's "gripper.pos" and "elbow_flex.pos" are parts of a single arm."""
    if name.endswith(_MOTOR):
        motor = name.removesuffix(_MOTOR)
        return "", GRIPPER if motor == GRIPPER else name
    arm, _, part = name.rpartition(".")
    return arm, part


def _arm(name: str, parts: Mapping[str, int], units: Sequence[str]) -> Arm:
    position = _whole(name, parts, {"position": POSITION})
    kind, rotation = _rotation_of(name, parts)
    joints = tuple(
        index
        for part, index in parts.items()
        if _JOINT.fullmatch(part)
        or part.endswith(_MOTOR)
        or (units and units[index] in _JOINT_UNITS and part not in UNITS)
    )
    return Arm(name, position, rotation, kind, (parts[GRIPPER],) if GRIPPER in parts else (), joints)


def _whole(arm: str, parts: Mapping[str, int], wanted: Mapping[str, tuple[str, ...]]) -> tuple[int, ...]:
    """Columns of the first complete set of names; empty if there is none; an error if a set is incomplete."""
    for names in wanted.values():
        if set(names) <= parts.keys():
            return tuple(parts[name] for name in names)
    there = sorted({name for names in wanted.values() for name in names} & parts.keys())
    if there:
        sets = " or ".join(f"{' '.join(names)} ({what})" for what, names in wanted.items())
        whose = f"arm {arm!r} has" if arm else "the action has"
        raise SpecError(f"{whose} {' '.join(there)} alone; expected all of {sets}")
    return ()


def _rotation_of(arm: str, parts: Mapping[str, int]) -> tuple[Representation | None, tuple[int, ...]]:
    for kind, names in ROTATIONS.items():
        if set(names) <= parts.keys():
            return kind, tuple(parts[name] for name in names)
    _whole(arm, parts, {str(kind): names for kind, names in ROTATIONS.items()})
    return None, ()


def _described(arm: Arm) -> str:
    parts = ["position"] if arm.position else []
    if arm.representation is not None:
        parts.append(IN_WORDS[arm.representation])
    if arm.joints:
        parts.append(f"{len(arm.joints)} joints")
    return ", ".join([*parts, GRIPPER] if arm.gripper else parts)


def _stacked(parts: Sequence[FloatArray], leading: tuple[int, ...], width: int) -> FloatArray:
    return np.stack(parts, axis=-2) if parts else np.empty((*leading, 0, width))
