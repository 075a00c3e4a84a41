"""VPT's actions: 20 buttons and a camera, converted to and from the two numbers that its heads predict.

    joint {"buttons": 0 .. 8640, "camera": 0 .. 120}  <->  factored buttons (20,) and camera bins (2,)
                                                      <->  environment {"attack": 0 | 1, ..., "camera": (pitch, yaw)}

Forward and back cancel each other, and so do left and right; among sprint and sneak, and among several hotbar slots,
the last one wins; ``inventory`` overrides all others. One digit says whether the camera moves; if not, both of its bins
are the middle one. An inventory action keeps the camera bins that were sampled with it, as in upstream.

The camera is (pitch, yaw) in degrees per step, with pitch downward. It is quantized by the mu-law to 11 bins per axis.

Legend of shapes: (...) any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.spec.names import CAMERA_TURN

IntArray = NDArray[np.int64]
BUTTONS = (
    "attack", "back", "forward", "jump", "left", "right", "sneak", "sprint", "use", "drop", "inventory",
    *(f"hotbar.{slot}" for slot in range(1, 10)),
)  # fmt: skip
# Names of an action as numbers: the buttons, 0 or 1, then degrees a step.
VPT_ACTION = (*BUTTONS, *CAMERA_TURN)
# Digits of the joint number, the most significant first; the first choice of each is none of the buttons.
GROUPS: dict[str, tuple[str, ...]] = {
    "hotbar": ("none", *(f"hotbar.{slot}" for slot in range(1, 10))),
    "fore_back": ("none", "forward", "back"),
    "left_right": ("none", "left", "right"),
    "sprint_sneak": ("none", "sprint", "sneak"),
    "use": ("none", "use"),
    "drop": ("none", "drop"),
    "attack": ("none", "attack"),
    "jump": ("none", "jump"),
    "camera": ("none", "camera"),
}
_OPPOSITES = ("fore_back", "left_right")
_RADICES = tuple(len(choices) for choices in GROUPS.values())
INVENTORY = int(np.prod(_RADICES))  # 8640, after all combinations of the groups
N_BUTTONS = INVENTORY + 1
CAMERA_BINS = 11
N_CAMERA = CAMERA_BINS**2
MIDDLE = CAMERA_BINS // 2
NULL = {"buttons": 0, "camera": MIDDLE * CAMERA_BINS + MIDDLE}
MOST_DEGREES, BIN_SIZE, MU = 10.0, 2.0, 10.0


class MinecraftError(WorkspaceError, ValueError):
    """An action, a recording or an environment of Minecraft is not valid."""


class Factored(NamedTuple):
    """An action by buttons.

    Attributes:
        buttons: (..., 20) of 0 and 1, in the order of ``BUTTONS``.
        camera: (..., 2) bins of pitch and yaw, 0 to 10.
    """

    buttons: IntArray
    camera: IntArray


def quantize(degrees: ArrayLike) -> IntArray:
    """Degrees per step -> bins 0 .. 10; beyond 10 degrees the outermost bin."""
    clipped = np.clip(np.asarray(degrees, dtype=np.float64), -MOST_DEGREES, MOST_DEGREES) / MOST_DEGREES
    encoded = np.sign(clipped) * np.log1p(MU * np.abs(clipped)) / np.log1p(MU) * MOST_DEGREES
    return np.round((encoded + MOST_DEGREES) / BIN_SIZE).astype(np.int64)


def degrees_of(bins: ArrayLike) -> NDArray[np.float64]:
    """Bins 0 .. 10 -> degrees per step: the inverse of the quantization, at the middle of each bin."""
    encoded = (np.asarray(bins, dtype=np.float64) * BIN_SIZE - MOST_DEGREES) / MOST_DEGREES
    return np.sign(encoded) * ((1 + MU) ** np.abs(encoded) - 1) / MU * MOST_DEGREES


def to_joint(factored: Factored) -> dict[str, IntArray]:
    """Factored -> {"buttons": (...), "camera": (...)}.

    Raises:
        MinecraftError: the shapes are wrong, or bins are out of range.
    """
    buttons, camera = (np.asarray(part) for part in factored)
    if buttons.shape[-1:] != (len(BUTTONS),) or camera.shape != (*buttons.shape[:-1], 2):
        raise MinecraftError(f"buttons {buttons.shape} and camera {camera.shape}; expected (..., 20) and (..., 2)")
    if ((camera < 0) | (camera >= CAMERA_BINS)).any():
        raise MinecraftError(f"camera bins {camera.min()} to {camera.max()}; expected 0 to {CAMERA_BINS - 1}")
    moves = (camera != MIDDLE).any(axis=-1)
    joint = np.zeros(buttons.shape[:-1], dtype=np.int64)
    for name, choices in GROUPS.items():
        digit = moves.astype(np.int64) if name == "camera" else _digit(buttons, name)
        joint = joint * len(choices) + digit
    opens = buttons[..., BUTTONS.index("inventory")] != 0
    bins = camera[..., 0] * CAMERA_BINS + camera[..., 1]
    return {
        "buttons": np.where(opens, INVENTORY, joint),
        "camera": np.where(opens, NULL["camera"], bins).astype(np.int64),
    }


def to_factored(joint: Mapping[str, ArrayLike]) -> Factored:
    """{"buttons": (...), "camera": (...)} -> factored.

    Raises:
        MinecraftError: numbers are out of range, or differ in shape.
    """
    numbers, bins = (np.asarray(joint[name], dtype=np.int64) for name in ("buttons", "camera"))
    if numbers.shape != bins.shape:
        raise MinecraftError(f"buttons {numbers.shape} and camera {bins.shape}; expected equal shapes")
    for name, values, count in (("buttons", numbers, N_BUTTONS), ("camera", bins, N_CAMERA)):
        if ((values < 0) | (values >= count)).any():
            raise MinecraftError(f"{name} {values.min()} to {values.max()}; expected 0 to {count - 1}")
    buttons = np.zeros((*numbers.shape, len(BUTTONS)), dtype=np.int64)
    opens, rest, camera_off = numbers == INVENTORY, numbers % INVENTORY, np.zeros(numbers.shape, dtype=bool)
    for name, choices in reversed(GROUPS.items()):
        rest, digit = np.divmod(rest, len(choices))
        if name == "camera":
            camera_off = (digit == 0) & ~opens
            continue
        for choice in range(1, len(choices)):
            buttons[..., BUTTONS.index(choices[choice])] = (digit == choice) & ~opens
    buttons[..., BUTTONS.index("inventory")] = opens
    camera = np.stack(np.divmod(bins, CAMERA_BINS), axis=-1)
    return Factored(buttons, np.where(camera_off[..., None], MIDDLE, camera))


def from_environment(action: Mapping[str, Any]) -> Factored:
    """An environment's action, in which missing buttons are up and a missing camera is still.

    Raises:
        MinecraftError: a button that VPT does not have, or a camera that is not two finite numbers.
    """
    pressed, camera = pressed_buttons(action)
    return Factored(np.array([int(name in pressed) for name in BUTTONS], dtype=np.int64), quantize(camera))


def pressed_buttons(action: Mapping[str, Any]) -> tuple[frozenset[str], NDArray[np.float64]]:
    """The pressed buttons of an environment's action, and its camera (2,) in degrees.

    Raises:
        MinecraftError: as ``from_environment``.
    """
    unknown = sorted(set(action) - set(BUTTONS) - {"camera"})
    if unknown:
        raise MinecraftError(f"VPT has no button {', '.join(unknown)}; it has {', '.join(BUTTONS)}, and a camera")
    camera = np.asarray(action.get("camera", (0.0, 0.0)), dtype=np.float64)
    if camera.shape != (2,) or not np.isfinite(camera).all():
        raise MinecraftError(f"camera is {camera.tolist()}; expected (pitch, yaw) in degrees")
    return frozenset(name for name in BUTTONS if np.asarray(action.get(name, 0)).item()), camera


def to_environment(factored: Factored) -> dict[str, Any]:
    """One action (no leading dimension) as an environment takes it: every button, and the camera in degrees."""
    buttons = {name: int(value) for name, value in zip(BUTTONS, factored.buttons, strict=True)}
    return {**buttons, "camera": degrees_of(factored.camera)}


def _digit(buttons: NDArray[Any], group: str) -> IntArray:
    """The pressed choice of a group; if there are several, none if they are opposites, else the last one."""
    pressed = [buttons[..., BUTTONS.index(name)] != 0 for name in GROUPS[group][1:]]
    digit = np.zeros(buttons.shape[:-1], dtype=np.int64)
    for choice, is_pressed in enumerate(pressed, start=1):
        digit = np.where(is_pressed, choice, digit)
    return np.where(np.all(pressed, axis=0), 0, digit) if group in _OPPOSITES else digit
