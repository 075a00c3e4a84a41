"""The grove's world: boxes on flat ground, and a player that walks among them and harvests.

Units are Minecraft's: a block is one meter, a tick is a twentieth of a second, and speeds, reach and breaking times are
those of its survival mode (Minecraft Wiki: "Sprinting", "Breaking", "Shears"). x is east, y is up, z is south; yaw 0
looks south (+z) and increases to the right, pitch increases downward, both in degrees.

The player has no momentum: it moves at full speed in the tick in which a key is pressed. Movement is otherwise as in
Minecraft.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.minecraft.actions import MinecraftError

Array = NDArray[np.float64]
Material = Literal["log", "leaves", "stone", "sheep", "head"]

TICK_SECONDS = 0.05
SIDE = 24.0  # of the square of ground that the player cannot leave
EYE, EYE_SNEAKING, HEIGHT, RADIUS = 1.62, 1.54, 1.8, 0.3
WALK, SPRINT, SNEAK = 4.317, 5.612, 1.295  # m/s
JUMP_SPEED, GRAVITY, DRAG = 0.42, 0.08, 0.98  # blocks per tick
REACH_BLOCK, REACH_ANIMAL = 4.5, 3.0
SHEEP_SPEED = 0.8  # m/s


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: of the task, and of the item that drops.
        target: material to aim at.
        button: held while aiming at it: "attack" to break, "use" to shear.
        ticks: for how many ticks in a row.
        held: the item in the player's hand, which the picture shows.
    """

    name: str
    target: Literal["log", "stone", "sheep"]
    button: Literal["attack", "use"]
    ticks: int
    held: Literal["hand", "shears", "pickaxe"]


# Breaking a log by hand takes 3 s, stone with a wooden pickaxe 1.15 s; shears work at once.
TASKS = {
    "log": Task("log", "log", "attack", 60, "hand"),
    "wool": Task("wool", "sheep", "use", 1, "shears"),
    "stone": Task("stone", "stone", "attack", 23, "pickaxe"),
}


@dataclass(eq=False)
class Box:
    """A thing that can be seen, bumped into and aimed at.

    Attributes:
        low, high: (3,) opposite corners.
        material: what it is made of.
        solid: whether it stops the player.
        thing: number of the object that it is a part of.
    """

    low: Array
    high: Array
    material: Material
    solid: bool
    thing: int


@dataclass
class World:
    """State of an episode.

    Attributes:
        task: to be done.
        boxes: all things.
        position: (3,) of the player's feet.
        yaw, pitch: where it looks, in degrees.
        pressed: buttons that were down in the last tick.
        progress: ticks for which the right button was held on one target.
        done: whether the target was harvested.
        ticks: that have passed.
    """

    task: Task
    boxes: list[Box]
    position: Array
    yaw: float
    pitch: float = 0.0
    pressed: frozenset[str] = frozenset()
    progress: int = 0
    done: bool = False
    ticks: int = 0
    sneaking: bool = False
    _aimed: int | None = None
    _rise: float = 0.0
    _sheep_turns: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    _sheep_yaw: float = 0.0

    @property
    def eye(self) -> Array:
        """(3,) position of the camera."""
        return self.position + np.array([0.0, EYE_SNEAKING if self.sneaking else EYE, 0.0])

    @property
    def looks(self) -> Array:
        """(3,) unit vector toward the middle of the picture."""
        return direction(self.yaw, self.pitch)

    def aimed_at(self) -> Box | None:
        """The box in the middle of the picture, if it is within reach."""
        nearest, distance = None, math.inf
        for box in self.boxes:
            found = _enters(self.eye, self.looks, box)
            if found < min(distance, REACH_ANIMAL if box.material in ("sheep", "head") else REACH_BLOCK):
                nearest, distance = box, found
        return nearest

    def targets(self) -> list[Box]:
        """Boxes that the task is about."""
        return [box for box in self.boxes if box.material == self.task.target]

    def step(self, pressed: Collection[str], turn: Array) -> None:
        """One tick.

        Args:
            pressed: buttons of VPT that are down; buttons without a meaning here (hotbar, drop, inventory) do nothing.
            turn: (2,) pitch and yaw, degrees.
        """
        self.ticks += 1
        self.pressed = frozenset(pressed)
        self.pitch = float(np.clip(self.pitch + turn[0], -90.0, 90.0))
        self.yaw = float((self.yaw + turn[1] + 180.0) % 360.0 - 180.0)
        self._walk(pressed)
        self._move_sheep()
        aimed = self.aimed_at()
        works = aimed is not None and aimed.material == self.task.target and self.task.button in pressed
        if works and aimed is not None:
            # Another part of the same thing is another block, so breaking starts over.
            self.progress = self.progress + 1 if self._aimed == id(aimed) else 1
            self._aimed = id(aimed)
            if self.progress >= self.task.ticks:
                self.done = True
                self._harvest(aimed)
        else:
            self.progress, self._aimed = 0, None

    def _harvest(self, box: Box) -> None:
        """A block disappears; a sheep stays, without its wool."""
        if box.material != "sheep":
            self.boxes.remove(box)

    def _walk(self, pressed: Collection[str]) -> None:
        self.sneaking = "sneak" in pressed
        ahead = ("forward" in pressed) - ("back" in pressed)
        right = ("right" in pressed) - ("left" in pressed)
        speed = SNEAK if self.sneaking else SPRINT if "sprint" in pressed and ahead > 0 else WALK
        if ahead or right:
            facing, side = direction(self.yaw, 0.0), direction(self.yaw + 90.0, 0.0)
            step = facing * ahead + side * right
            self._slide(step / np.linalg.norm(step) * speed * TICK_SECONDS)
        if "jump" in pressed and self.position[1] == 0.0:
            self._rise = JUMP_SPEED
        if self._rise or self.position[1] > 0.0:
            self.position[1] = max(0.0, self.position[1] + self._rise)
            self._rise = (self._rise - GRAVITY) * DRAG if self.position[1] > 0.0 else 0.0

    def _slide(self, step: Array) -> None:
        """Move along each axis as far as nothing is in the way."""
        for axis in (0, 2):
            moved = self.position.copy()
            moved[axis] = np.clip(moved[axis] + step[axis], RADIUS, SIDE - RADIUS)
            if not any(box.solid and _overlaps(moved, box) for box in self.boxes):
                self.position = moved

    def _move_sheep(self) -> None:
        """A sheep wanders; it stops and turns if something is in its way."""
        parts = [box for box in self.boxes if box.material in ("sheep", "head")]
        if not parts:
            return
        if self._sheep_turns.random() < 0.05:
            self._sheep_yaw += self._sheep_turns.uniform(-90.0, 90.0)
        step = direction(self._sheep_yaw, 0.0) * SHEEP_SPEED * TICK_SECONDS
        body = parts[0]
        middle = (body.low + body.high) / 2 + step
        others = [box for box in self.boxes if box.solid and box.thing != body.thing]
        free = all(_gap(middle, box) > 1.0 for box in others) and np.linalg.norm(middle - self.position) > 1.5
        if not free or not (1.5 < middle[0] < SIDE - 1.5 and 1.5 < middle[2] < SIDE - 1.5):
            self._sheep_yaw += 100.0
            return
        for part in parts:
            part.low, part.high = part.low + step, part.high + step


def direction(yaw: float, pitch: float) -> Array:
    """(3,) unit vector of a yaw and a pitch in degrees."""
    turned, tilted = math.radians(yaw), math.radians(pitch)
    return np.array([-math.sin(turned) * math.cos(tilted), -math.sin(tilted), math.cos(turned) * math.cos(tilted)])


def task_of(name: str) -> Task:
    """The task with that name.

    Raises:
        MinecraftError: there is none.
    """
    if name not in TASKS:
        raise MinecraftError(f"the grove has no task {name!r}; it has {', '.join(TASKS)}")
    return TASKS[name]


def draw_world(task: Task, rng: np.random.Generator) -> World:
    """A world for an episode: four to six trees, two rocks, a sheep, and the player at a distance, facing anywhere."""
    places = _places(rng, int(rng.integers(4, 7)) + 3)
    rocks, sheep, trees = (places[0], places[1]), places[2], places[3 : len(places)]
    boxes: list[Box] = []
    for thing, (x, z) in enumerate(trees):
        boxes += _tree(x, z, int(rng.integers(3, 6)), thing)
    for thing, (x, z) in enumerate(rocks, start=len(trees)):
        boxes.append(_box(x, 0.0, z, (1.0, 1.0, 1.0), "stone", thing))
        if rng.random() < 0.5:
            boxes.append(_box(x, 1.0, z, (1.0, 1.0, 1.0), "stone", thing))
    thing, (x, z) = len(places) - 1, sheep
    boxes.append(_box(x, 0.4, z, (0.9, 0.8, 0.9), "sheep", thing, solid=False))
    boxes.append(_box(x, 0.8, z + 0.6, (0.5, 0.5, 0.4), "head", thing, solid=False))
    wanted = {"log": trees, "stone": list(rocks), "sheep": [sheep]}[task.target]
    start = _start(rng, places, wanted)
    world = World(task, boxes, np.array([start[0], 0.0, start[1]]), float(rng.uniform(-180.0, 180.0)))
    world._sheep_turns = np.random.default_rng(rng.integers(2**32))
    world._sheep_yaw = float(rng.uniform(-180.0, 180.0))
    return world


def _places(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Columns of blocks, at least three apart."""
    found: list[tuple[float, float]] = []
    while len(found) < count:
        x, z = (float(rng.integers(3, int(SIDE) - 3)) for _ in range(2))
        if all(math.hypot(x - a, z - b) >= 3.0 for a, b in found):
            found.append((x, z))
    return found


def _start(
    rng: np.random.Generator, places: list[tuple[float, float]], wanted: list[tuple[float, float]]
) -> tuple[float, float]:
    """Where the player starts: at least two meters from everything, and four from every target.

    Such a place exists: six circles of four meters and three of two cover less than the ground.
    """
    while True:
        x, z = rng.uniform(2.0, SIDE - 2.0, 2)
        away = {place: math.hypot(x - place[0] - 0.5, z - place[1] - 0.5) for place in places}
        if min(away.values()) >= 2.0 and min(away[place] for place in wanted) >= 4.0:
            return float(x), float(z)


def _tree(x: float, z: float, height: int, thing: int) -> list[Box]:
    trunk = [_box(x, float(y), z, (1.0, 1.0, 1.0), "log", thing) for y in range(height)]
    crown = _box(x - 1.0, float(height), z - 1.0, (3.0, 2.0, 3.0), "leaves", thing)
    return [*trunk, crown]


def _box(
    x: float,
    y: float,
    z: float,
    size: tuple[float, float, float],
    material: Material,
    thing: int,
    *,
    solid: bool = True,
) -> Box:
    low = np.array([x, y, z])
    return Box(low, low + np.array(size), material, solid, thing)


def _overlaps(position: Array, box: Box) -> bool:
    """Whether the player, with its feet there, is inside a box."""
    low = position - np.array([RADIUS, 0.0, RADIUS])
    high = position + np.array([RADIUS, HEIGHT, RADIUS])
    return bool((low < box.high).all() and (high > box.low).all())


def _gap(point: Array, box: Box) -> float:
    """Distance on the ground from a point to a box."""
    outside = np.maximum(np.maximum(box.low - point, point - box.high), 0.0)
    return float(math.hypot(outside[0], outside[2]))


def _enters(eye: Array, looks: Array, box: Box) -> float:
    """Distance at which a ray enters a box; infinite if it does not."""
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = (box.low - eye) / looks, (box.high - eye) / looks
    first, last = np.fmax.reduce(np.fmin(near, far)), np.fmin.reduce(np.fmax(near, far))
    return float(first) if 0.0 < first <= last else math.inf
