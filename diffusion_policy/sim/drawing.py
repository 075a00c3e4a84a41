"""Solids drawn with OpenCV: a pinhole camera, shaded boxes and rods, and their shadows on the table.

Solids are convex, so a box is drawn as its visible faces and a rod as the hull of two discs; solids are painted from
far to near. Coordinate frame and units are those of scene.py; pixels are (x right, y down).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.sim.scene import FloatArray
from diffusion_policy.spec import ImageArray

Color = tuple[float, float, float]

_SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates
_AMBIENT, _DIFFUSE = 0.58, 0.52

# Corners of a box as signs, and its faces: (normal, four corners in order around it).
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
_FACES = (
    ((-1, 0, 0), (0, 1, 3, 2)),
    ((1, 0, 0), (4, 6, 7, 5)),
    ((0, -1, 0), (0, 4, 5, 1)),
    ((0, 1, 0), (2, 3, 7, 6)),
    ((0, 0, -1), (0, 2, 6, 4)),
    ((0, 0, 1), (1, 5, 7, 3)),
)
_CIRCLE = np.array([[np.cos(angle), np.sin(angle)] for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False)])


@dataclass(frozen=True)
class Light:
    """A distant light source: unit direction (3,) toward it, and a brightness factor."""

    direction: FloatArray
    brightness: float

    def shade(self, color: Color, normal: FloatArray) -> Color:
        """Returns the color of a surface with this normal (3,), by Lambert's law with an ambient part."""
        level = self.brightness * (_AMBIENT + _DIFFUSE * max(0.0, float(normal @ self.direction)))
        red, green, blue = (min(255.0, channel * level) for channel in color)
        return red, green, blue

    def cast(self, points: FloatArray) -> FloatArray:
        """Returns the shadows (N, 3) of points (N, 3) on the plane z = 0."""
        return points - points[:, 2:3] * (self.direction / self.direction[2])


class Pinhole:
    """A pinhole camera at ``position`` that looks at ``target``, with z up in its image.

    Args:
        position, target: (3,) meters.
        size: (width, height) of the image in pixels.
        focal: focal length as a multiple of the width.
    """

    def __init__(self, position: ArrayLike, target: ArrayLike, size: tuple[int, int], focal: float) -> None:
        self.position = np.asarray(position, dtype=np.float64)
        self.size = size
        forward = np.asarray(target) - self.position
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        self._axes = np.stack([right, np.cross(forward, right), forward])  # right, down, forward
        self.pixels_at_one_meter = focal * size[0]

    def project(self, points: ArrayLike) -> FloatArray:
        """Projects points (N, 3) in front of the camera to pixels (N, 2)."""
        local = (np.asarray(points, dtype=np.float64) - self.position) @ self._axes.T
        return local[:, :2] / local[:, 2:] * self.pixels_at_one_meter + np.array(self.size) / 2

    def depth(self, point: ArrayLike) -> float:
        """Returns the depth of a point: meters from the camera along its optical axis."""
        return float((np.asarray(point, dtype=np.float64) - self.position) @ self._axes[2])


@dataclass(frozen=True)
class Box:
    """A box: center (3,), half sizes (3,), axes as the columns of ``rotation`` (3, 3)."""

    center: FloatArray
    half: FloatArray
    rotation: FloatArray
    color: Color

    def corners(self) -> FloatArray:
        """Returns the corners (8, 3)."""
        corners: FloatArray = self.center + (_CORNERS * self.half) @ self.rotation.T
        return corners

    def paint(self, canvas: ImageArray, view: Pinhole, light: Light) -> None:
        """Draws the faces that are turned to the camera, each with a slightly darker edge."""
        corners = self.corners()
        pixels = view.project(corners)
        for normal, around in _FACES:
            outward = self.rotation @ np.array(normal, dtype=np.float64)
            middle = corners[list(around)].mean(axis=0)
            if outward @ (view.position - middle) > 0:
                color = light.shade(self.color, outward)
                fill(canvas, pixels[list(around)], color)
                rim = tuple(0.78 * channel for channel in color)
                outline = [_fixed(pixels[list(around)])]
                cv2.polylines(canvas, outline, isClosed=True, color=rim, lineType=cv2.LINE_AA, shift=_SHIFT)

    def shadow(self, light: Light) -> FloatArray:
        """Returns points (N, 3) on the table whose hull is the shadow."""
        return light.cast(self.corners())


@dataclass(frozen=True)
class Rod:
    """A round bar from ``start`` to ``end`` (3,) with a radius at either end, in meters."""

    start: FloatArray
    end: FloatArray
    radii: tuple[float, float]
    color: Color

    @property
    def center(self) -> FloatArray:
        """(3,) the center of the rod."""
        return (self.start + self.end) / 2

    def paint(self, canvas: ImageArray, view: Pinhole, light: Light) -> None:
        """Draws three hulls, each narrower and lighter, which shade the bar as a round one."""
        ends = np.stack([self.start, self.end])
        pixels = view.project(ends)
        widths = [
            radius * view.pixels_at_one_meter / view.depth(point)
            for radius, point in zip(self.radii, ends, strict=True)
        ]
        for share, level in ((1.0, 0.80), (0.72, 0.94), (0.38, 1.06)):
            drift = np.array([-0.18, -0.12]) * (1 - share)
            discs = [_disc(pixel + drift * width, share * width) for pixel, width in zip(pixels, widths, strict=True)]
            color = tuple(min(255.0, channel * level * light.brightness) for channel in self.color)
            fill(canvas, _hull(np.concatenate(discs)), color)

    def shadow(self, light: Light) -> FloatArray:
        """Returns points (N, 3) on the table whose hull is the shadow."""
        rings = [
            light.cast(point[None]) + np.column_stack([_disc(np.zeros(2), radius), np.zeros(len(_CIRCLE))])
            for point, radius in zip((self.start, self.end), self.radii, strict=True)
        ]
        return np.concatenate(rings)


Solid = Box | Rod


def paint_solids(canvas: ImageArray, solids: Sequence[Solid], view: Pinhole, light: Light) -> None:
    """Paints solids from far to near."""
    for solid in sorted(solids, key=lambda solid: -view.depth(solid.center)):
        solid.paint(canvas, view, light)


def darken_by_shadows(canvas: ImageArray, solids: Sequence[Solid], view: Pinhole, light: Light, depth: float) -> None:
    """Darkens the table by ``depth`` (0..1) where solids block the light, with a soft edge."""
    scale = 4  # a soft shadow needs no full resolution
    mask = np.zeros((canvas.shape[0] // scale, canvas.shape[1] // scale), dtype=np.uint8)
    for solid in solids:
        fill(mask, _hull(view.project(solid.shadow(light))) / scale, (255, 255, 255))
    mask = cv2.GaussianBlur(mask, (0, 0), sigmaX=2.2)
    shade = cv2.resize(mask, canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    keep = cv2.cvtColor(255 - (depth * shade).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    cv2.multiply(canvas, keep, dst=canvas, scale=1 / 255)


def fill(canvas: NDArray[np.uint8], polygon: FloatArray, color: Sequence[float]) -> None:
    """Fills a convex polygon (N, 2), in pixels, with anti-aliased edges."""
    cv2.fillConvexPoly(canvas, _fixed(polygon), tuple(color), cv2.LINE_AA, _SHIFT)


def _fixed(points: FloatArray) -> NDArray[np.int32]:
    return np.round(points * (1 << _SHIFT)).astype(np.int32)


def _hull(points: FloatArray) -> FloatArray:
    hull: FloatArray = cv2.convexHull(points.astype(np.float32))[:, 0].astype(np.float64)
    return hull


def _disc(center: FloatArray, radius: float) -> FloatArray:
    return center + radius * _CIRCLE
