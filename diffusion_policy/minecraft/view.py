"""What the player of the grove sees: rays from the eye to boxes and ground, with a texel grid like Minecraft's.

The picture (160, 256, 3) has a vertical field of view of 70 degrees, as MineDojo's and the recordings that VPT was
trained on. Rays are cast only where a box can be, so a frame takes a few milliseconds on one core.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.minecraft.world import Box, World

FloatArray = NDArray[np.float32]
IMAGE_HEIGHT, IMAGE_WIDTH = 160, 256
FIELD_OF_VIEW = 70.0
TEXELS = 8  # per side of a block
_NEAREST = 0.05
_HORIZON = 40.0
_SKY_HIGH, _SKY_LOW = np.array([110, 160, 245], np.float32), np.array([185, 210, 250], np.float32)
_GRASS = np.array([98, 152, 62], np.float32)
_COLORS = {
    "log": (104, 82, 50), "leaves": (52, 110, 36), "stone": (128, 128, 130), "sheep": (228, 228, 224),
    "head": (196, 160, 140),
}  # fmt: skip
_ITEMS = {"hand": (205, 160, 125), "shears": (200, 205, 212), "pickaxe": (150, 110, 60)}
_SHADE = np.array([0.8, 1.0, 0.6], np.float32)  # of faces perpendicular to x, y and z


def render(world: World) -> NDArray[np.uint8]:
    """Render the picture (160, 256, 3) uint8 RGB of a world."""
    rays = _rays() @ _rotation(world.yaw, world.pitch).T
    eye = world.eye.astype(np.float32)
    color, depth = _ground_and_sky(eye, rays)
    for box in world.boxes:
        window = _window(box, eye, world)
        if window is not None:
            _draw(box, eye, rays[window], color[window], depth[window], world.progress / world.task.ticks)
    _draw_hand(color, world)
    return np.clip(color, 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _rays() -> FloatArray:
    """(160, 256, 3) rays of a player that looks south: right, up, ahead; one unit ahead, not of unit length."""
    half = math.tan(math.radians(FIELD_OF_VIEW / 2))
    up = half * (1 - (np.arange(IMAGE_HEIGHT) + 0.5) * 2 / IMAGE_HEIGHT)
    right = half * IMAGE_WIDTH / IMAGE_HEIGHT * ((np.arange(IMAGE_WIDTH) + 0.5) * 2 / IMAGE_WIDTH - 1)
    rays = np.stack([*np.meshgrid(right, up), np.ones((IMAGE_HEIGHT, IMAGE_WIDTH))], axis=-1)
    found: FloatArray = rays.astype(np.float32)
    found.setflags(write=False)
    return found


def _rotation(yaw: float, pitch: float) -> FloatArray:
    """(3, 3) from (right, up, ahead) to (x, y, z)."""
    turn, tilt = math.radians(yaw), math.radians(pitch)
    ahead = [-math.sin(turn) * math.cos(tilt), -math.sin(tilt), math.cos(turn) * math.cos(tilt)]
    right = [-math.cos(turn), 0.0, -math.sin(turn)]
    up = [-math.sin(turn) * math.sin(tilt), math.cos(tilt), math.cos(turn) * math.sin(tilt)]
    return np.array([right, up, ahead], np.float32).T


def _ground_and_sky(eye: FloatArray, rays: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Colors (160, 256, 3) and distances (160, 256) along the rays without any box."""
    fall = rays[..., 1]
    below = fall < -1e-3
    depth = np.where(below, -eye[1] / np.where(below, fall, -1.0), np.inf).astype(np.float32)
    height = np.clip(fall / 0.7, 0.0, 1.0)[..., None]
    sky = _SKY_LOW + (_SKY_HIGH - _SKY_LOW) * height
    reach = np.minimum(depth, _HORIZON)
    at = np.floor((eye[[0, 2]] + rays[..., [0, 2]] * reach[..., None]) * TEXELS).astype(np.int64)
    grass = _GRASS * _grain(at[..., 0], at[..., 1], 3)[..., None]
    mist = np.clip(reach / _HORIZON, 0.0, 1.0)[..., None] ** 2
    return np.where(below[..., None], grass + (_SKY_LOW - grass) * mist, sky).astype(np.float32), depth


def _window(box: Box, eye: FloatArray, world: World) -> tuple[slice, slice] | None:
    """Rows and columns of the picture that a box can cover; None if it is behind the player or outside the picture."""
    corners = np.array(
        [
            [x, y, z]
            for x in (box.low[0], box.high[0])
            for y in (box.low[1], box.high[1])
            for z in (box.low[2], box.high[2])
        ]
    )
    seen = (corners - eye) @ _rotation(world.yaw, world.pitch)
    if (seen[:, 2] <= _NEAREST).all():
        return None
    if (seen[:, 2] <= _NEAREST).any():
        return slice(None), slice(None)  # partly behind: its corners do not give its outline
    half = math.tan(math.radians(FIELD_OF_VIEW / 2))
    across = (seen[:, 0] / seen[:, 2] / (half * IMAGE_WIDTH / IMAGE_HEIGHT) + 1) * IMAGE_WIDTH / 2
    down = (1 - seen[:, 1] / seen[:, 2] / half) * IMAGE_HEIGHT / 2
    top, bottom = max(0, math.floor(down.min())), min(IMAGE_HEIGHT, math.ceil(down.max()))
    left, right = max(0, math.floor(across.min())), min(IMAGE_WIDTH, math.ceil(across.max()))
    return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None


def _draw(box: Box, eye: FloatArray, rays: FloatArray, color: FloatArray, depth: FloatArray, broken: float) -> None:
    """Draw a box into a part of the picture, where it is nearer than what is already there."""
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = (box.low.astype(np.float32) - eye) / rays, (box.high.astype(np.float32) - eye) / rays
    nears = np.fmin(low, high)
    axis = nears.argmax(axis=-1)
    near, far = nears.max(axis=-1), np.fmax(low, high).min(axis=-1)
    shows = (near < far) & (near > _NEAREST) & (near < depth)
    if not shows.any():
        return
    distance, side = near[shows], axis[shows]
    at = np.floor((eye + rays[shows] * distance[:, None]) * TEXELS - 1e-3).astype(np.int64)
    across = np.where(side == 0, at[:, 2], at[:, 0])
    along = np.where(side == 1, at[:, 2], at[:, 1])
    grain = _grain(across if box.material != "log" else across * 5, along if box.material != "log" else along // 4, 7)
    shade = _SHADE[side] * grain
    found = np.array(_COLORS[box.material], np.float32) * shade[:, None]
    found += (_SKY_LOW - found) * np.clip(distance / _HORIZON, 0.0, 1.0)[:, None] ** 2
    color[shows], depth[shows] = found, distance


def _draw_hand(color: FloatArray, world: World) -> None:
    """Draw the item in the hand, which bobs while harvesting, the crosshair, and a progress bar."""
    bob = 6 * (world.ticks % 4 < 2) if world.progress else 0
    top, left = IMAGE_HEIGHT - 42 + bob, IMAGE_WIDTH - 62 - bob
    rows, columns = np.mgrid[top:IMAGE_HEIGHT, left:IMAGE_WIDTH]
    wide = {"hand": 20, "shears": 8, "pickaxe": 6}[world.task.held]
    shaft = np.abs((columns - left - 30) + (rows - top) // 2 - 10) < wide
    if world.task.held == "shears":
        shaft |= np.abs((columns - left - 30) - (rows - top) // 2 + 4) < wide
    if world.task.held == "pickaxe":
        shaft |= (rows - top < 8) & (np.abs(columns - left - 38) < 24)
    item = np.array(_ITEMS[world.task.held], np.float32) * _grain(rows // 4, columns // 4, 11)[..., None]
    part = color[top:, left:]
    part[shaft] = item[shaft]
    middle_row, middle_column = IMAGE_HEIGHT // 2, IMAGE_WIDTH // 2
    color[middle_row, middle_column - 4 : middle_column + 5] = (
        255 - color[middle_row, middle_column - 4 : middle_column + 5]
    )
    color[middle_row - 4 : middle_row + 5, middle_column] = 255 - color[middle_row - 4 : middle_row + 5, middle_column]


def _grain(a: NDArray[np.int64], b: NDArray[np.int64], salt: int) -> FloatArray:
    """Brightness of texels, 0.8 to 1.1: a hash of their position, so that a texel looks the same in every frame."""
    mixed = (a * 73856093) ^ (b * 19349663) ^ (salt * 83492791)
    mixed = (mixed ^ (mixed >> 7)) * 2654435761
    return (0.8 + 0.3 * ((mixed >> 16) & 255) / 255).astype(np.float32)
