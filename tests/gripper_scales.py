"""Every kind of gripper scale, as tests plant it: a name, and what is found of it without a word from anyone."""

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
    """Gripper values of 0 closed .. 1 open (GRASP by default), as a recorder of that scale writes them."""
    return [float(value) for value in parse_scale(name).from_internal(GRASP if values is None else values)]
