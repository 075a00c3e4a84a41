"""Camera images of the tabletop: a fixed camera opposite the robot shows the arm, the fingers, the block and the tray.

The static parts (room, table, tray and its shadow) are drawn once for each scene, at twice the size. Each frame adds
the arm, the block and their shadows, and is reduced by area interpolation, which smooths every edge.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from diffusion_policy.images import resize_frame
from diffusion_policy.sim.drawing import (
    Box,
    Color,
    Light,
    Pinhole,
    Rod,
    Solid,
    darken_by_shadows,
    fill,
    paint_solids,
)
from diffusion_policy.sim.scene import (
    BLOCK_COLORS,
    BLOCK_SIZE,
    FINGER_SPAN,
    TRAY_FLOOR,
    TRAY_HEIGHT,
    TRAY_SIZE,
    FloatArray,
    Scene,
    tray_walls,
)
from diffusion_policy.sim.tabletop import Tabletop
from diffusion_policy.spec import ImageArray

_OVERSAMPLING = 2
_SHADOW_DEPTH = 0.42
_POSITION, _TARGET, _FOCAL = (1.22, 0.10, 0.62), (0.40, 0.0, 0.17), 0.94
_TABLE_X, _TABLE_Y = (-0.45, 0.78), (-0.85, 0.85)
_TABLE_THICKNESS = 0.035
_WALL_TOP, _WALL_BOTTOM = np.array([214.0, 220.0, 224.0]), np.array([176.0, 184.0, 190.0])

_ARM: Color = (206, 210, 216)
_JOINT: Color = (70, 118, 168)
_PALM: Color = (66, 70, 78)
_FINGER: Color = (44, 46, 52)
_PAD: Color = (238, 176, 60)
_TRAY: Color = (92, 128, 148)

_SHOULDER = np.array([0.0, 0.0, 0.30])
_UPPER, _FOREARM = 0.42, 0.40
_WRIST_ABOVE_TIPS = 0.21
_FINGER_HALF = np.array([0.011, 0.007, 0.038])
_PAD_HALF = np.array([0.0120, 0.0078, 0.011])


class Camera:
    """Renders one scene.

    Args:
        scene: the scene; its static parts are drawn once, when the camera is created.
        image_size: (width, height) of the frames.
    """

    def __init__(self, scene: Scene, image_size: tuple[int, int] = (640, 360)) -> None:
        self._image_size = image_size
        width, height = (side * _OVERSAMPLING for side in image_size)
        self._view = Pinhole(_POSITION, _TARGET, (width, height), _FOCAL)
        self._light = Light(np.array(scene.light), scene.brightness)
        self._block_colors: list[Color] = [BLOCK_COLORS[block.color] for block in scene.blocks]
        self._walls = _tray_walls(scene)
        self._static = self._paint_static(scene)

    def render(self, tabletop: Tabletop) -> ImageArray:
        """Renders the current frame (H, W, 3), uint8 RGB."""
        moving = [*_blocks(tabletop, self._block_colors), *_gripper(tabletop), *_arm(tabletop)]
        canvas = self._static.copy()
        darken_by_shadows(canvas, moving, self._view, self._light, _SHADOW_DEPTH)
        paint_solids(canvas, [*moving, *self._walls], self._view, self._light)
        frame = resize_frame(canvas, *self._image_size)
        level = tabletop.scene.light_level(tabletop.steps)
        return frame if level == 1.0 else cv2.convertScaleAbs(frame, alpha=level)  # type: ignore[return-value]

    def _paint_static(self, scene: Scene) -> ImageArray:
        width, height = self._view.size
        ramp = np.linspace(0, 1, height)[:, None, None]
        wall = (_WALL_TOP * (1 - ramp) + _WALL_BOTTOM * ramp) * scene.brightness
        canvas = np.ascontiguousarray(np.broadcast_to(wall, (height, width, 3)).clip(0, 255).astype(np.uint8))
        self._paint_table(canvas, scene)
        tray_floor = _tray_floor(scene)
        darken_by_shadows(canvas, [tray_floor, *self._walls], self._view, self._light, _SHADOW_DEPTH)
        tray_floor.paint(canvas, self._view, self._light)
        return canvas

    def _paint_table(self, canvas: ImageArray, scene: Scene) -> None:
        (back, front), (right, left) = _TABLE_X, _TABLE_Y
        corners = np.array([[back, left, 0], [back, right, 0], [front, right, 0], [front, left, 0]], dtype=np.float64)
        below = corners[2:] - [0, 0, _TABLE_THICKNESS]
        table_rgb: Color = scene.table_rgb
        edge = self._light.shade(table_rgb, np.array([1.0, 0.0, -0.4]))
        wood = _wood(scene) * self._light.shade((1.0, 1.0, 1.0), np.array([0.0, 0.0, 1.0]))
        rows, columns = wood.shape[:2]
        texture_corners = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]], dtype=np.float32)
        pixels = self._view.project(corners)
        mapping = cv2.getPerspectiveTransform(texture_corners, pixels.astype(np.float32))
        size = canvas.shape[1::-1]
        texture = wood.clip(0, 255).astype(np.uint8)
        top = cv2.warpPerspective(texture, mapping, size, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
        mask = np.zeros(canvas.shape[:2], dtype=np.uint8)
        fill(mask, pixels, (255,))
        canvas[mask > 127] = top[mask > 127]
        fill(canvas, self._view.project(np.concatenate([corners[2:], below[::-1]])), edge)


def _wood(scene: Scene) -> FloatArray:
    """Returns a texture of planks (rows along x, columns along y); the grain is smooth noise, stretched along them."""
    rng = np.random.default_rng(scene.grain_seed)
    rows, columns, planks = 512, 704, 8
    noise = rng.normal(size=(rows, columns // 32)).astype(np.float32)
    grain = cv2.GaussianBlur(cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_CUBIC), (0, 0), 1.2)
    tone = 1 + 0.055 * grain.astype(np.float64)
    tone *= np.repeat(rng.uniform(0.95, 1.04, size=planks), rows // planks)[:, None]
    tone[:: rows // planks] *= 0.80
    tone[1 :: rows // planks] *= 0.90
    wood: FloatArray = tone[..., None] * np.array(scene.table_rgb)
    return wood


def _tray_floor(scene: Scene) -> Box:
    half = np.array([*TRAY_SIZE, TRAY_FLOOR]) / 2
    return Box(np.array([*scene.tray_xy, half[2]]), half, np.eye(3), _TRAY)


def _tray_walls(scene: Scene) -> list[Box]:
    center = np.array([*scene.tray_xy, TRAY_HEIGHT / 2])
    return [Box(center + np.array(offset), np.array(half), np.eye(3), _TRAY) for offset, half in tray_walls()]


def _blocks(tabletop: Tabletop, colors: list[Color]) -> list[Solid]:
    half = np.full(3, BLOCK_SIZE / 2)
    return [
        Box(block.position, half, block.rotation, color) for block, color in zip(tabletop.blocks, colors, strict=True)
    ]


def _gripper(tabletop: Tabletop) -> list[Solid]:
    """Returns the palm, two fingers with bright pads, and the wrist above them."""
    rotation = Rotation.from_quat(tabletop.pose[3:7]).as_matrix()
    rotation = rotation * np.array([1.0, -1.0, -1.0])  # the gripper points down: draw with its z axis up again
    tips = tabletop.pose[:3]
    reach = tabletop.opening * FINGER_SPAN / 2 + _FINGER_HALF[1]
    solids: list[Solid] = []
    for side in (-1.0, 1.0):
        foot = tips + rotation[:, 1] * side * reach
        solids.append(Box(foot + rotation[:, 2] * (_FINGER_HALF[2] - 0.006 + 0.012), _FINGER_HALF, rotation, _FINGER))
        solids.append(Box(foot + rotation[:, 2] * 0.001, _PAD_HALF, rotation, _PAD))
    palm_half = np.array([0.024, FINGER_SPAN / 2 + 0.020, 0.018])
    solids.append(Box(tips + rotation[:, 2] * 0.098, palm_half, rotation, _PALM))
    wrist = tips + rotation[:, 2] * _WRIST_ABOVE_TIPS
    solids.append(Rod(tips + rotation[:, 2] * 0.132, wrist, (0.026, 0.030), _JOINT))
    return solids


def _arm(tabletop: Tabletop) -> list[Solid]:
    """Returns base, upper arm and forearm; two links of fixed length meet at the elbow, which is bent upward."""
    wrist = tabletop.pose[:3] + np.array([0.0, 0.0, _WRIST_ABOVE_TIPS])
    span = wrist - _SHOULDER
    distance = min(float(np.linalg.norm(span)), 0.999 * (_UPPER + _FOREARM))
    along = span / np.linalg.norm(span)
    sideways = np.cross(along, [0.0, 0.0, 1.0])
    upward = np.cross(sideways / np.linalg.norm(sideways), along)
    foot = (distance**2 + _UPPER**2 - _FOREARM**2) / (2 * distance)
    elbow = _SHOULDER + along * foot + upward * np.sqrt(_UPPER**2 - foot**2)
    return [
        Rod(np.array([0.0, 0.0, 0.02]), _SHOULDER, (0.085, 0.070), _ARM),
        Rod(_SHOULDER, elbow, (0.055, 0.046), _ARM),
        Rod(elbow, wrist, (0.044, 0.034), _ARM),
        Rod(elbow, elbow + 1e-4, (0.050, 0.050), _JOINT),
        Rod(_SHOULDER, _SHOULDER + 1e-4, (0.064, 0.064), _JOINT),
    ]
