"""Every kind of gripper scale for tests: its name, and what is found of it without a declaration."""

from pathlib import Path

import numpy as np

from diffusion_policy.dataset.replay_buffer import ACTION_KEY, GRIPPER_KEY, ReplayBuffer
from diffusion_policy.gripper_scale import parse_scale

# Open, closed on an object, open: 0 closed .. 1 open.
GRASP = [1.0] * 20 + [0.0] * 15 + [1.0] * 10
FOREIGN = (
    "closed1",
    "signed_open1",
    "signed_closed1",
    "percent",
    "percent_closed",
    "byte",
    "byte_closed",
    "meters:0.08",
    "meters_closed:0.04",
    "meters:0.03:0.08",
    "millimeters:85",
    "radians:0.8",
    "radians_closed:0.8",
    "radians:-0.5:1.2",
    "degrees:45",
    "range:850:0",
    "range:0:1000",
)
"""Scales that are not this package's own: recorded so, no judge may take them for 0..1."""


def written(name: str, values: list[float] | None = None) -> list[float]:
    """Gripper values of 0 closed .. 1 open (GRASP by default), as written by a recorder with that scale."""
    return [float(value) for value in parse_scale(name).from_internal(GRASP if values is None else values)]


def rewrite_gripper(dataset: Path, command: str, measured: str | None = None) -> Path:
    """Stores the gripper of a 0..1 dataset in other scales, and removes its label."""
    buffer = ReplayBuffer.open(dataset, mode="r+")
    for key, name in ((ACTION_KEY, command), (GRIPPER_KEY, measured or command)):
        rows = np.asarray(buffer[key][:], dtype=np.float64)
        rows[:, -1] = parse_scale(name).from_internal(rows[:, -1])
        buffer[key][:] = rows
    buffer.root.attrs.pop("action_semantics", None)
    return dataset
