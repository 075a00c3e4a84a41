"""What the control loop needs of a robot.

The order of the D numbers of states and actions is the server's (``state_names`` of its metadata); for a pose and a
gripper it is x y z qx qy qz qw gripper: meters and a quaternion (scalar last) in the robot's base frame, gripper
0 = closed, 1 = open unless the server was given another ``gripper_scale``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.spec import ImageArray

FloatArray = NDArray[np.float64]


class ArmError(WorkspaceError):
    """The robot did not answer, or answered nonsense. The loop holds, and asks it again at the next control period."""


@dataclass(frozen=True)
class Picture:
    """The newest frame of one camera.

    Attributes:
        data: an encoded JPEG or PNG; by WebSocket also a frame (H, W, 3) uint8 RGB.
        captured_at: seconds on the loop's clock when the exposure was made, not when the frame was received.
    """

    data: bytes | ImageArray
    captured_at: float


@dataclass(frozen=True)
class Reading:
    """What a robot last measured.

    Attributes:
        state: (D,) measured, in the order of the server's names.
        measured_at: seconds on the loop's clock.
        pictures: the newest frame by camera, under the keys of the server's ``cameras``.
    """

    state: FloatArray
    measured_at: float
    pictures: Mapping[str, Picture]


class Arm(Protocol):
    """A robot with its cameras. Calls come from one thread, one after another, and return at once.

    A call that takes longer than a control period costs the steps whose time passes meanwhile; beyond
    ``LoopSettings.longest_gap_s`` the loop holds.
    """

    def observe(self) -> Reading:
        """Returns the newest reading of everything; one that has not changed since the last call is returned again.

        Raises:
            ArmError: there is none.
        """

    def move(self, action: FloatArray) -> None:
        """Commands the target (D,) for the end of the control period that begins now, in the order of a state.

        Raises:
            ArmError: the command was not taken.
        """

    def hold(self, reason: str) -> None:
        """Keeps the arm where it is, gripper as last commanded; called in every control period without a target.

        Raises:
            ArmError: the command was not taken.
        """

    def stop(self) -> None:
        """Ends the run: the arm comes to rest and accepts no further target. Called once, whatever ended the loop."""
