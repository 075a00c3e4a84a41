"""The tabletop with forces and friction: the default referee, on MuJoCo's physics engine (without OpenGL).

Scene, interface, finger speed, arm gain and camera are those of the kinematic ``Tabletop``. The arm is a servo of
limited force: a finger that lands on a block stops there. (An arm that is welded to its goal would press the block
through the table, and "grasp" a block that is not between its fingers.) One step is 25 substeps of 4 ms; on one machine
equal commands give bit-equal results in every process.
"""

from __future__ import annotations

from typing import ClassVar

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from diffusion_policy.sim.scene import (
    BLOCK_SIZE,
    FINGER_SPAN,
    HOME,
    STEP_SECONDS,
    TRAY_FLOOR,
    TRAY_HEIGHT,
    TRAY_SIZE,
    FloatArray,
    Scene,
    tray_walls,
)
from diffusion_policy.sim.tabletop import FINGER_SPEED, Tabletop

_SUBSTEPS = 25
_TIMESTEP = STEP_SECONDS / _SUBSTEPS
# The arm: a critically damped servo of a hand of 1 kg; forces in N, torques in N m.
_HAND_MASS, _HAND_INERTIA = 1.0, 0.01
_ARM_RATE = 60.0  # rad/s
_ARM_FORCE, _ARM_TORQUE = 30.0, 4.0
_HAND_INERTIAS = np.array([_HAND_MASS] * 3 + [_HAND_INERTIA] * 3)
_HAND_LIMITS = np.array([_ARM_FORCE] * 3 + [_ARM_TORQUE] * 3)
_FINGER_FORCE = 10.0  # N, each
_FINGER_MASS, _BLOCK_MASS = 0.05, 0.08
# The finger with its pad, as the camera draws it: half sizes, and height of its center above the fingertips.
_FINGER_HALF, _FINGER_MIDDLE = (0.012, 0.0075, 0.046), 0.036
_SIDEWAYS = 0.7  # smallest component of a contact's normal along the fingers' motion
_HAND_DOFS = 6
_HAND_NUMBERS = 7  # of qpos: position, quaternion wxyz


class PhysicsTabletop(Tabletop):
    """A tabletop simulated by MuJoCo; attributes and methods are those of ``Tabletop``.

    ``held`` is the block that both fingers press from the sides.
    """

    referee: ClassVar[str] = "physics"
    _REST_TOLERANCE: ClassVar[float] = 0.003

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._model = mujoco.MjModel.from_xml_string(_model_text(scene))
        self._data = mujoco.MjData(self._model)
        self._goal = self.pose.copy()
        self._finger_goal = 1.0
        self._error = np.zeros(_HAND_DOFS)
        self._data.qpos[_HAND_NUMBERS : _HAND_NUMBERS + 2] = FINGER_SPAN / 2
        self._data.ctrl[:] = FINGER_SPAN / 2
        self._fingers = [self._model.geom(name).id for name in ("left", "right")]
        self._block_geoms = [self._model.geom(f"block{number}").id for number in range(len(scene.blocks))]
        mujoco.mj_forward(self._model, self._data)

    def _advance(self, goal: FloatArray, *, wants_open: bool) -> None:
        start, start_opening = self._goal, self._finger_goal
        self._goal = goal
        self._finger_goal = float(np.clip(start_opening + (FINGER_SPEED if wants_open else -FINGER_SPEED), 0.0, 1.0))
        shares = np.arange(1, _SUBSTEPS + 1) / _SUBSTEPS
        positions = start[:3] + shares[:, None] * (goal[:3] - start[:3])
        turns = Slerp([0, 1], Rotation.from_quat([start[3:7], goal[3:7]]))(shares).as_quat(scalar_first=True)
        openings = (start_opening + shares * (self._finger_goal - start_opening)) * FINGER_SPAN / 2
        velocity = np.concatenate([(goal[:3] - start[:3]) / STEP_SECONDS, np.zeros(3)])
        for position, rotation, opening in zip(positions, turns, openings, strict=True):
            self._drive_hand(position, velocity, rotation)
            self._data.ctrl[:] = opening
            mujoco.mj_step(self._model, self._data)
        self._read_state()

    def _drive_hand(self, position: FloatArray, velocity: FloatArray, rotation: FloatArray) -> None:
        """Applies the servo's limited force and torque for one substep."""
        numbers, error = self._data.qpos, self._error
        np.subtract(position, numbers[:3], out=error[:3])
        mujoco.mju_subQuat(error[3:], rotation, numbers[3:_HAND_NUMBERS])
        wrench = _ARM_RATE**2 * error + 2 * _ARM_RATE * (velocity - self._data.qvel[:_HAND_DOFS])
        wrench *= _HAND_INERTIAS
        self._data.qfrc_applied[:_HAND_DOFS] = np.minimum(np.maximum(wrench, -_HAND_LIMITS), _HAND_LIMITS)

    def _read_state(self) -> None:
        numbers = self._data.qpos
        quaternion = np.roll(numbers[3:_HAND_NUMBERS], -1)  # wxyz to xyzw
        if quaternion @ self._goal[3:7] < 0:
            quaternion = -quaternion
        self.pose = np.concatenate([numbers[:3], quaternion])
        fingers = numbers[_HAND_NUMBERS : _HAND_NUMBERS + 2]
        self.opening = float(np.clip(fingers.mean() / (FINGER_SPAN / 2), 0.0, 1.0))
        for number, block in enumerate(self.blocks):
            first = _HAND_NUMBERS + 2 + 7 * number
            block.position = numbers[first : first + 3].copy()
            block.rotation = Rotation.from_quat(numbers[first + 3 : first + 7], scalar_first=True).as_matrix()
            block.yaw = float(np.arctan2(block.rotation[1, 0], block.rotation[0, 0]))
        self.held = self._block_held()

    def _block_held(self) -> int | None:
        """Returns the block that both fingers press from the sides; closed fingers on top of a block do not hold it."""
        contact = self._data.contact
        across = np.abs(contact.frame[:, :3] @ Rotation.from_quat(self.pose[3:7]).as_matrix()[:, 1]) > _SIDEWAYS
        pairs = {frozenset(pair) for pair in contact.geom[across].tolist()}
        for number, block in enumerate(self._block_geoms):
            if all(frozenset((finger, block)) in pairs for finger in self._fingers):
                return number
        return None


def _model_text(scene: Scene) -> str:
    """Returns the scene in MuJoCo's XML; quaternions are wxyz, the hand's frame is the gripper's (z points down)."""
    tray = "".join(_box(f"{x} {y} {z + TRAY_HEIGHT / 2}", half) for (x, y, z), half in tray_walls()) + _box(
        f"0 0 {TRAY_FLOOR / 2}", (*(side / 2 for side in TRAY_SIZE), TRAY_FLOOR / 2)
    )
    fingers = "".join(
        f'<body><joint name="{name}" type="slide" axis="0 {side} 0" range="-0.001 {FINGER_SPAN / 2}" armature="0.05"/>'
        + _box(
            f"0 {side * _FINGER_HALF[1]} {-_FINGER_MIDDLE}",
            _FINGER_HALF,
            f'name="{name}" mass="{_FINGER_MASS}" friction="1.2 0.01 0.0001"',
        )
        + "</body>"
        for name, side in (("left", -1), ("right", 1))
    )
    blocks = "".join(
        f'<body pos="{block.xy[0]} {block.xy[1]} {BLOCK_SIZE / 2}" euler="0 0 {block.yaw}"><freejoint/>'
        + _box("0 0 0", (BLOCK_SIZE / 2,) * 3, f'name="block{number}" mass="{_BLOCK_MASS}" friction="1 0.01 0.0001"')
        + "</body>"
        for number, block in enumerate(scene.blocks)
    )
    servos = "".join(
        f'<position joint="{name}" kp="800" kv="40" forcerange="{-_FINGER_FORCE} {_FINGER_FORCE}"/>'
        for name in ("left", "right")
    )
    home = " ".join(map(str, HOME))
    inertia = " ".join([str(_HAND_INERTIA)] * 3)
    return (
        f'<mujoco><compiler angle="radian"/><option timestep="{_TIMESTEP}" cone="elliptic" impratio="10" '
        f'integrator="implicitfast"/><worldbody><geom type="plane" size="2 2 0.1"/>'
        f'<body pos="{scene.tray_xy[0]} {scene.tray_xy[1]} 0">{tray}</body>'
        f'<body pos="{home}" quat="0 1 0 0" gravcomp="1"><freejoint/>'
        f'<inertial pos="0 0 0" mass="{_HAND_MASS}" diaginertia="{inertia}"/>{fingers}</body>{blocks}</worldbody>'
        f'<equality><joint joint1="left" joint2="right" solref="0.008 1"/></equality>'
        f"<actuator>{servos}</actuator></mujoco>"
    )


def _box(position: str, half: tuple[float, ...], attributes: str = "") -> str:
    return f'<geom type="box" pos="{position}" size="{" ".join(map(str, half))}" {attributes}/>'
