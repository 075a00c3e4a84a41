"""Names of action and state dimensions, and their units."""

from __future__ import annotations

POSE = ("x", "y", "z", "qx", "qy", "qz", "qw")
GRIPPER = "gripper"
INTERVENTION = "intervention"  # of a recorded step, as in LeRobot: true where a person drives instead of the policy
POSE_GRIPPER = (*POSE, GRIPPER)
CAMERA_TURN = ("camera_pitch", "camera_yaw")  # how far a game's player turns in a step, downwards and to the right
ROTVEC_WIDTH = ("x", "y", "z", "rx", "ry", "rz", "width")

UNITS = {
    **dict.fromkeys(("x", "y", "z", "width"), "m"),
    **dict.fromkeys(("rx", "ry", "rz"), "rad"),
    **dict.fromkeys(("qx", "qy", "qz", "qw", "gripper"), "1"),
    **dict.fromkeys(CAMERA_TURN, "deg"),
    **{f"r{row}{column}": "1" for row in (1, 2, 3) for column in (1, 2, 3)},
}
GRIPPER_OPEN = 1.0
GRIPPER_CLOSED = 0.0
SEMANTICS_VERSION = 1


def default_names(width: int, prefix: str = "a") -> tuple[str, ...]:
    """Names of an unnamed vector: pose for seven, pose and gripper for eight, gripper for one, else numbered."""
    known = {len(POSE): POSE, len(POSE_GRIPPER): POSE_GRIPPER, 1: (GRIPPER,)}
    return known.get(width) or tuple(f"{prefix}{i}" for i in range(width))
