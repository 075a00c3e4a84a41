"""An arm with an impedance controller that follows poses, a gripper whose calls block, and cameras with clocks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from diffusion_policy.serve.client import ArmError, Picture, PolicyForm, Reading

WIDEST_M = 0.08  # between the fingers of an open gripper


class PoseInterfaceArm:
    """Observes and moves a robot by poses; see ``diffusion_policy.serve.client.arm`` for what is promised.

    Args:
        robot: ``pose()`` -> (position (3,) meters, quaternion xyzw (4,)), ``follow(position, quaternion)``, and
            ``finish()``.
        gripper: ``width()`` -> meters, ``open()`` and ``grasp()``, which return once it has moved.
        cameras: per key of the policy, ``latest()`` -> (JPEG, seconds on ``time.monotonic`` of the exposure).
    """

    def __init__(self, robot: Any, gripper: Any, cameras: Mapping[str, Any]) -> None:
        self._robot, self._gripper, self._cameras = robot, gripper, cameras
        self._fingers = ThreadPoolExecutor(max_workers=1)  # its calls block, and those of an arm must not
        self._is_open = gripper.width() > WIDEST_M / 2
        self._held: tuple[Any, Any] | None = None

    def observe(self) -> Reading:
        try:
            position, quaternion = self._robot.pose()
            opening = self._gripper.width() / WIDEST_M  # 1 = open, as in the recordings
            pictures = {key: Picture(*camera.latest()) for key, camera in self._cameras.items()}
        except OSError as error:  # whatever your driver raises
            raise ArmError(f"the robot does not answer: {error}") from error
        return Reading(np.array([*position, *quaternion, opening]), time.monotonic(), pictures)

    def move(self, action: np.ndarray) -> None:
        self._held = None
        self._robot.follow(action[:3], action[3:7])
        if (action[7] > 0.5) != self._is_open:  # LoopSettings.gripper_blocking_s keeps this from coming too often
            self._is_open = not self._is_open
            self._fingers.submit(self._gripper.open if self._is_open else self._gripper.grasp)

    def hold(self, reason: str) -> None:
        if self._held is None:  # measured once: an arm that is told its measured pose again and again sinks
            self._held = self._robot.pose()
        self._robot.follow(*self._held)

    def stop(self) -> None:
        self._fingers.shutdown(wait=True)
        self._robot.finish()


def make_arm(form: PolicyForm) -> PoseInterfaceArm:
    import my_lab  # your drivers

    return PoseInterfaceArm(my_lab.robot(), my_lab.gripper(), {key: my_lab.camera(key) for key in form.cameras})
