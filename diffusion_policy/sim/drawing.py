"""Drawing solids with OpenCV: a pinhole camera, shaded boxes and rods, and their shadows on the table.

Solids are convex, so a box is its visible faces and a rod is the hull of two discs; a picture is solids painted from
far to near. Frame and units as in scene.py; pixels are (x right, y down).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.sim.scene import FloatArray
from diffusion_policy.spec import ImageArray

Colour = tuple[float, float, float]

_SHIFT = 4  # OpenCV's fixed-point bits: corners lie between pixels
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
    """One lamp far away: unit direction towards it, and a factor on everything."""

    direction: FloatArray
    brightness: float

    def shade(self, colour: Colour, normal: FloatArray) -> Colour:
        """Lambert's law with an ambient share."""
        level = self.brightness * (_AMBIENT + _DIFFUSE * max(0.0, float(normal @ self.direction)))
        red, green, blue = (min(255.0, channel * level) for channel in colour)
        return red, green, blue

    def cast(self, points: FloatArray) -> FloatArray:
        """Where the shadows of points (N, 3) fall on the plane z = 0."""
        return points - points[:, 2:3] * (self.direction / self.direction[2])


class Pinhole:
    """A camera at ``position`` that looks at ``target``, z up in its picture.

    Args:
        position, target: (3,) metres.
        size: (width, height) of the picture in pixels.
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
        self.pixels_at_one_metre = focal * size[0]

    def project(self, points: ArrayLike) -> FloatArray:
        """Pixels (N, 2) of points (N, 3) in front of the camera."""
        local = (np.asarray(points, dtype=np.float64) - self.position) @ self._axes.T
        return local[:, :2] / local[:, 2:] * self.pixels_at_one_metre + np.array(self.size) / 2

    def depth(self, point: ArrayLike) -> float:
        """Metres from the camera to a point, along its line of sight."""
        return float((np.asarray(point, dtype=np.float64) - self.position) @ self._axes[2])


@dataclass(frozen=True)
class Box:
    """A box: centre (3,), half sizes (3,), axes as the columns of ``turn`` (3, 3)."""

    centre: FloatArray
    half: FloatArray
    turn: FloatArray
    colour: Colour

    def corners(self) -> FloatArray:
        """(8, 3)."""
        corners: FloatArray = self.centre + (_CORNERS * self.half) @ self.turn.T
        return corners

    def paint(self, canvas: ImageArray, view: Pinhole, light: Light) -> None:
        """Draw the faces that look at the camera, each with a slightly darker rim."""
        corners = self.corners()
        pixels = view.project(corners)
        for normal, around in _FACES:
            outward = self.turn @ np.array(normal, dtype=np.float64)
            middle = corners[list(around)].mean(axis=0)
            if outward @ (view.position - middle) > 0:
                colour = light.shade(self.colour, outward)
                fill(canvas, pixels[list(around)], colour)
                rim = tuple(0.78 * channel for channel in colour)
                outline = [_fixed(pixels[list(around)])]
                cv2.polylines(canvas, outline, isClosed=True, color=rim, lineType=cv2.LINE_AA, shift=_SHIFT)

    def shadow(self, light: Light) -> FloatArray:
        """Points (N, 3) on the table whose hull is the shadow."""
        return light.cast(self.corners())


@dataclass(frozen=True)
class Rod:
    """A round bar from ``start`` to ``end`` (3,) with a radius at either end, in metres."""

    start: FloatArray
    end: FloatArray
    radii: tuple[float, float]
    colour: Colour

    @property
    def centre(self) -> FloatArray:
        """(3,) its middle."""
        return (self.start + self.end) / 2

    def paint(self, canvas: ImageArray, view: Pinhole, light: Light) -> None:
        """Draw three hulls, each narrower and lighter: a round bar's shading."""
        ends = np.stack([self.start, self.end])
        pixels = view.project(ends)
        widths = [
            radius * view.pixels_at_one_metre / view.depth(point)
            for radius, point in zip(self.radii, ends, strict=True)
        ]
        for share, level in ((1.0, 0.80), (0.72, 0.94), (0.38, 1.06)):
            drift = np.array([-0.18, -0.12]) * (1 - share)
            discs = [_disc(pixel + drift * width, share * width) for pixel, width in zip(pixels, widths, strict=True)]
            colour = tuple(min(255.0, channel * level * light.brightness) for channel in self.colour)
            fill(canvas, _hull(np.concatenate(discs)), colour)

    def shadow(self, light: Light) -> FloatArray:
        """Points (N, 3) on the table whose hull is the shadow."""
        rings = [
            light.cast(point[None]) + np.column_stack([_disc(np.zeros(2), radius), np.zeros(len(_CIRCLE))])
            for point, radius in zip((self.start, self.end), self.radii, strict=True)
        ]
        return np.concatenate(rings)


Solid = Box | Rod


def paint_solids(canvas: ImageArray, solids: Sequence[Solid], view: Pinhole, light: Light) -> None:
    """Paint from far to near."""
    for solid in sorted(solids, key=lambda solid: -view.depth(solid.centre)):
        solid.paint(canvas, view, light)


def darken_by_shadows(canvas: ImageArray, solids: Sequence[Solid], view: Pinhole, light: Light, depth: float) -> None:
    """Darken the table by ``depth`` (0..1) where solids keep the lamp's light away, with a soft edge."""
    scale = 4  # a soft shadow needs no full resolution
    mask = np.zeros((canvas.shape[0] // scale, canvas.shape[1] // scale), dtype=np.uint8)
    for solid in solids:
        fill(mask, _hull(view.project(solid.shadow(light))) / scale, (255, 255, 255))
    mask = cv2.GaussianBlur(mask, (0, 0), sigmaX=2.2)
    shade = cv2.resize(mask, canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    keep = cv2.cvtColor(255 - (depth * shade).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    cv2.multiply(canvas, keep, dst=canvas, scale=1 / 255)


def fill(canvas: NDArray[np.uint8], polygon: FloatArray, colour: Sequence[float]) -> None:
    """Fill a convex polygon (N, 2) given in pixels, with soft edges."""
    cv2.fillConvexPoly(canvas, _fixed(polygon), tuple(colour), cv2.LINE_AA, _SHIFT)


def _fixed(points: FloatArray) -> NDArray[np.int32]:
    return np.round(points * (1 << _SHIFT)).astype(np.int32)


def _hull(points: FloatArray) -> FloatArray:
    hull: FloatArray = cv2.convexHull(points.astype(np.float32))[:, 0].astype(np.float64)
    return hull


def _disc(centre: FloatArray, radius: float) -> FloatArray:
    return centre + radius * _CIRCLE
