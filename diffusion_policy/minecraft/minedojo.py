"""Translates between MineDojo's action spaces and VPT's buttons and camera, and reports what is lost.

    slot  0 none, forward, back             4 yaw of the camera: interval * i - 180 degrees
          1 none, left, right               5 none, use, drop, attack, craft, equip, place, destroy
          2 none, jump, sneak, sprint       6 what to craft or smelt, read only with craft
          3 pitch of the camera, as yaw     7 index in the inventory, read only with equip, place and destroy

The wrapper that ``minedojo.make`` always applies has these eight slots, with its default of 15 degrees
``MultiDiscrete([3, 3, 4, 25, 25, 8, 244, 36])``. Its no-op is ``[0, 0, 0, 12, 12, 0, 0, 0]``: zeros would turn the head
by half a circle. Below the wrapper, MineDojo's simulator takes a dictionary with a key for each button and a camera in
degrees, which loses almost nothing.

VPT's largest turn is 10 degrees per step, so at 15 degrees per bin most turns round to none; `CameraRemainder` carries
what rounding leaves over into the next step, and treats left and right symmetrically. A smaller interval needs no such
help.

Numbers of the slots: MineDojo's source, commit 2731bc2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.minecraft.actions import (
    BUTTONS,
    GROUPS,
    INVENTORY,
    N_BUTTONS,
    N_CAMERA,
    Factored,
    MinecraftError,
    pressed_buttons,
    to_environment,
    to_factored,
)

IntArray = NDArray[np.int64]
FORE_BACK = ("none", "forward", "back")
LEFT_RIGHT = ("none", "left", "right")
POSTURE = ("none", "jump", "sneak", "sprint")
FUNCTION = ("none", "use", "drop", "attack", "craft", "equip", "place", "destroy")
N_CRAFTS, N_INVENTORY = 244, 36
DEFAULT_INTERVAL = 15.0
# Precedence if one slot holds several buttons: the order of MineDojo's own reverse mapping.
_POSTURE_ORDER = ("jump", "sprint", "sneak")
_FUNCTION_ORDER = ("attack", "use", "drop")
_HOTBARS = tuple(name for name in BUTTONS if name.startswith("hotbar."))
# Keys of the simulator below the wrapper; VPT's inventory button has no counterpart there either.
SIMULATOR_BUTTONS = tuple(name for name in BUTTONS if name != "inventory")

Hotbar = Literal["equip", "slot"]


class Translated(NamedTuple):
    """An action in another space.

    Attributes:
        action: in that space.
        lost: parts without a counterpart there, in words; empty if nothing was lost.
    """

    action: Any
    lost: tuple[str, ...]


@dataclass
class CameraRemainder:
    """Degrees of pitch and yaw that were requested but not yet turned; one per episode."""

    degrees: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))

    def reset(self) -> None:
        """Clear the remainder at the start of an episode."""
        self.degrees = np.zeros(2)


@dataclass(frozen=True)
class MineDojoSpace:
    """The eight slots.

    Attributes:
        camera_interval: degrees between two bins of the camera; a divisor of 180, else no bin means no turn.
        hotbar: how to write a hotbar button, which MineDojo does not have. "equip": equip the item in that slot of the
            inventory (slot 5 = equip, slot 7 = k - 1), the closest that MineDojo offers, although it moves armor to the
            body and fails on an empty slot. "slot": slot 7 = k and nothing else, as in a public guide; MineDojo ignores
            slot 7 then, so this code is for storing actions, not for acting.
        crafts: choices of slot 6; MineDojo has 244, a public guide's space 4.
    """

    camera_interval: float = DEFAULT_INTERVAL
    hotbar: Hotbar = "equip"
    crafts: int = N_CRAFTS

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            MinecraftError: the interval has no bin for no turn, there is no such way to write a hotbar button, or no
                such number of crafts.
        """
        if not 0 < self.camera_interval <= 180:
            raise MinecraftError(f"camera_interval is {self.camera_interval}; expected above 0 and at most 180 degrees")
        if abs(180 / self.camera_interval - round(180 / self.camera_interval)) > 1e-9:
            raise MinecraftError(
                f"camera_interval is {self.camera_interval:g}, which does not divide 180: no bin would mean no turn "
                "(the middle one turns the head at every step); use 15, 10, 5, 1 or 0.1"
            )
        if self.hotbar not in ("equip", "slot"):
            raise MinecraftError(f"hotbar is {self.hotbar!r}; expected equip or slot")
        if not 1 <= self.crafts <= N_CRAFTS:
            raise MinecraftError(f"crafts is {self.crafts}; expected 1 to {N_CRAFTS}, the crafts of MineDojo")

    @property
    def middle(self) -> int:
        """The camera's bin for no turn."""
        return round(180 / self.camera_interval)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Choices of each slot, as ``MultiDiscrete`` takes them."""
        bins = 2 * self.middle + 1
        return (len(FORE_BACK), len(LEFT_RIGHT), len(POSTURE), bins, bins, len(FUNCTION), self.crafts, N_INVENTORY)

    @property
    def no_op(self) -> IntArray:
        """(8,) the action that does nothing."""
        return np.array([0, 0, 0, self.middle, self.middle, 0, 0, 0], dtype=np.int64)

    def from_vpt(self, action: Mapping[str, Any], remainder: CameraRemainder | None = None) -> Translated:
        """Buttons and camera in degrees -> (8,) slots.

        Args:
            action: as returned by VPT's agent; missing buttons are up.
            remainder: of this episode, carried from step to step; None: what rounding leaves over is lost.

        Raises:
            MinecraftError: a button that VPT does not have, or a camera that is not two finite numbers.
        """
        pressed, camera = pressed_buttons(action)
        slots, lost = self.no_op, []
        for slot, choices in ((0, FORE_BACK), (1, LEFT_RIGHT)):
            held = [name for name in choices[1:] if name in pressed]
            slots[slot] = choices.index(held[0]) if len(held) == 1 else 0  # if both are pressed, they cancel each other
        slots[2], others = _first(pressed, _POSTURE_ORDER, POSTURE)
        lost += others
        slots[5], others = _first(pressed, _FUNCTION_ORDER, FUNCTION)
        lost += others + self._set_hotbar(slots, pressed)
        if "inventory" in pressed:
            lost.append("inventory")
        slots[3:5], turned_less = self._turn(camera, remainder)
        return Translated(slots, (*lost, *turned_less))

    def to_vpt(self, slots: ArrayLike) -> Translated:
        """(8,) slots -> buttons (all of VPT's) and camera (2,) in degrees.

        Raises:
            MinecraftError: not eight whole numbers within ``sizes``.
        """
        values = self._checked(slots)
        pressed, lost = {FORE_BACK[values[0]], LEFT_RIGHT[values[1]], POSTURE[values[2]]}, []
        does = FUNCTION[values[5]]
        if does in _FUNCTION_ORDER:
            pressed.add(does)
        elif does == "equip" and self.hotbar == "equip" and values[7] < len(_HOTBARS):
            pressed.add(_HOTBARS[values[7]])
        elif does == "craft":
            lost.append(f"craft {values[6]}")
        elif does != "none":
            lost.append(f"{does} {values[7]}")
        if self.hotbar == "slot" and does not in ("equip", "place", "destroy") and 1 <= values[7] <= len(_HOTBARS):
            pressed.add(_HOTBARS[values[7] - 1])
        camera = (values[3:5] - self.middle) * self.camera_interval
        return Translated({**{name: int(name in pressed) for name in BUTTONS}, "camera": camera}, tuple(lost))

    def _checked(self, slots: ArrayLike) -> IntArray:
        values = np.asarray(slots)
        if values.shape != (len(self.sizes),) or values.dtype.kind not in "iu":
            raise MinecraftError(
                f"an action {values.dtype} {values.shape}; expected 8 whole numbers below {self.sizes}"
            )
        for slot, (value, size) in enumerate(zip(values, self.sizes, strict=True)):
            if not 0 <= value < size:
                raise MinecraftError(f"slot {slot} is {value}; expected 0 to {size - 1}")
        return values.astype(np.int64)

    def _set_hotbar(self, slots: IntArray, pressed: frozenset[str]) -> list[str]:
        held = [name for name in _HOTBARS if name in pressed]
        if not held:
            return []
        number = _HOTBARS.index(held[-1])
        if self.hotbar == "slot":
            slots[7] = number + 1
            return held[:-1]
        if slots[5]:
            return held  # the slot is already used by another function
        slots[5], slots[7] = FUNCTION.index("equip"), number
        return held[:-1]

    def _turn(self, camera: NDArray[np.float64], remainder: CameraRemainder | None) -> tuple[IntArray, list[str]]:
        """Bins of pitch and yaw, and the rest of the turn."""
        owed = camera if remainder is None else camera + remainder.degrees
        # Half a bin rounds away from zero, so that left and right are symmetric; the last bins are the limits.
        bins = np.sign(owed) * np.floor(np.abs(owed) / self.camera_interval + 0.5)
        bins = np.clip(bins, -self.middle, self.middle)
        left = owed - bins * self.camera_interval
        if remainder is not None:
            remainder.degrees = left
            return bins.astype(np.int64) + self.middle, []
        lost = [f"{name} {value:+.4g}" for name, value in zip(("pitch", "yaw"), left, strict=True) if abs(value) > 1e-9]
        return bins.astype(np.int64) + self.middle, lost


def to_simulator(action: Mapping[str, Any]) -> Translated:
    """Buttons and camera -> the dictionary of MineDojo's simulator, one key per button and (2,) degrees of pitch and
    yaw.

    Raises:
        MinecraftError: as ``MineDojoSpace.from_vpt``.
    """
    pressed, camera = pressed_buttons(action)
    found = {name: int(name in pressed) for name in SIMULATOR_BUTTONS}
    return Translated({**found, "camera": camera}, tuple(sorted(pressed - set(SIMULATOR_BUTTONS))))


def from_simulator(action: Mapping[str, Any]) -> Translated:
    """The dictionary of MineDojo's simulator -> buttons and camera of VPT.

    ``pickItem`` and ``swap_slot`` are lost where they are not 0.

    Raises:
        MinecraftError: an unknown key, or a camera that is not two finite numbers.
    """
    extra = ("pickItem", "swap_slot")
    pressed, camera = pressed_buttons({name: value for name, value in action.items() if name not in extra})
    lost = tuple(name for name in extra if np.any(np.asarray(action.get(name, 0)) != 0))
    return Translated({**{name: int(name in pressed) for name in BUTTONS}, "camera": camera}, lost)


class Losses(NamedTuple):
    """VPT's joint actions that a space cannot express.

    Attributes:
        reason: what is lost.
        actions: how many of the 8,641 joint button actions, or of the 121 camera actions, lose it.
        total: of how many.
    """

    reason: str
    actions: int
    total: int


def losses(space: MineDojoSpace) -> list[Losses]:
    """The table of what cannot be mapped, counted over all reachable actions.

    Buttons are counted with the camera still and the camera without buttons, since neither depends on the other. The
    camera is counted without a remainder: what a single step loses.
    """
    counts: dict[str, int] = {}
    step = len(GROUPS["camera"])  # odd numbers differ from the preceding one only by the camera
    for number, action in zip(range(0, N_BUTTONS, step), _actions(np.arange(0, N_BUTTONS, step), 0), strict=True):
        for name in space.from_vpt({**action, "camera": (0, 0)}).lost:
            reason = "a hotbar button beside attack, use or drop" if name in _HOTBARS else name
            counts[reason] = counts.get(reason, 0) + (1 if number == INVENTORY else step)
    table = [Losses(reason, count, N_BUTTONS) for reason, count in sorted(counts.items())]
    turns = [space.from_vpt(action).lost for action in _actions(1, np.arange(N_CAMERA))]
    rounded = sum(bool(lost) for lost in turns)
    return [*table, Losses("a turn between two bins of the camera", rounded, len(turns))] if rounded else table


def _actions(buttons: ArrayLike, camera: ArrayLike) -> Iterator[dict[str, Any]]:
    """Joint numbers, one of them (N,), as actions of an environment."""
    numbers, bins = np.broadcast_arrays(buttons, camera)
    factored = to_factored({"buttons": numbers, "camera": bins})
    return (to_environment(Factored(*row)) for row in zip(*factored, strict=True))


def _first(pressed: frozenset[str], order: tuple[str, ...], choices: tuple[str, ...]) -> tuple[int, list[str]]:
    """The slot's number for the first pressed button in order, and the other pressed ones."""
    held = [name for name in order if name in pressed]
    return (choices.index(held[0]), held[1:]) if held else (0, [])
