"""One line of JSON per tick, as OpenAI's contractors recorded their play -> VPT's 20 buttons and camera.

Like upstream's reader: a key or mouse button that is down is a button that is down; a change of the hotbar is a press
of that slot; an attack that is down from the first tick on, before any press, is stuck and counts as up until it is
pressed again. Two differences are deliberate: the camera keeps its fractions of a degree (upstream's integer array
truncates them, its issue 54), and ticks without any action are counted, and left out only on request.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.minecraft.actions import BUTTONS, MinecraftError

DEGREES_PER_PIXEL = 0.15  # 360 / 2400
KEYS = {
    "forward": "w", "back": "s", "left": "a", "right": "d", "jump": "space", "sneak": "left.shift",
    "sprint": "left.control", "drop": "q", "inventory": "e",
    **{f"hotbar.{slot}": str(slot) for slot in range(1, 10)},
}  # fmt: skip
MOUSE_BUTTONS = {"attack": 0, "use": 1}
_BUTTON_OF_KEY = {f"key.keyboard.{key}": button for button, key in KEYS.items()}
_BUTTON_OF_MOUSE = {number: button for button, number in MOUSE_BUTTONS.items()}
# Keys that the recorder knows but VPT never presses.
_WITHOUT_BUTTON = {"key.keyboard.escape": "ESC", "key.keyboard.f": "swapHands", 2: "pickItem"}
SCREEN_HEIGHT = 720.0  # pixels in which the cursor is recorded
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True)
class Played:
    """Ticks of one recording.

    Attributes:
        action: (N, 22) float32, in the order of ``actions.VPT_ACTION``: buttons 0 or 1, pitch and yaw in degrees.
        cursor: (N, 2) where the cursor is, in pixels of a screen 720 high; NaN where no window is open.
        null: (N,) whether a tick has no action at all.
        ignored: how often each key without a VPT button was down.
        stuck: number of ticks of an attack that was down from the start.
    """

    action: NDArray[np.float32]
    cursor: NDArray[np.float64]
    null: NDArray[np.bool_]
    ignored: Mapping[str, int]
    stuck: int

    def __len__(self) -> int:
        return len(self.action)


def read_lines(lines: Iterable[str], where: str) -> Played:
    """Read a recording's lines.

    Args:
        lines: of JSON, one per tick.
        where: the file, for errors.

    Raises:
        MinecraftError: a line is not as described; says which, and what it lacks.
    """
    rows: list[NDArray[np.float32]] = []
    cursors: list[tuple[float, float]] = []
    ignored: Counter[str] = Counter()
    hotbar: int | None = None
    stuck_ticks, stuck = 0, False
    for number, line in enumerate(lines, start=1):
        tick = _Tick(line, f"{where}:{number}")
        pressed = {_BUTTON_OF_KEY[key] for key in tick.keys if key in _BUTTON_OF_KEY}
        pressed |= {_BUTTON_OF_MOUSE[button] for button in tick.buttons if button in _BUTTON_OF_MOUSE}
        ignored.update(_WITHOUT_BUTTON[name] for name in (*tick.keys, *tick.buttons) if name in _WITHOUT_BUTTON)
        if hotbar is not None and tick.hotbar != hotbar:
            pressed.add(f"hotbar.{tick.hotbar + 1}")
        hotbar = tick.hotbar
        stuck = tick.attack_is_stuck if number == 1 else stuck and not tick.attack_is_pressed
        if stuck and "attack" in pressed:
            pressed.remove("attack")
            stuck_ticks += 1
        rows.append(np.array([*(name in pressed for name in BUTTONS), *tick.turn], np.float32))
        cursors.append(tick.cursor)
    if not rows:
        raise MinecraftError(f"{where}: is empty; expected a line of JSON for every frame of the video")
    action = np.stack(rows)
    return Played(action, np.array(cursors), np.asarray((action == 0).all(axis=1)), dict(ignored), stuck_ticks)


class _Tick:
    """One line, checked."""

    def __init__(self, line: str, where: str) -> None:
        self._where = where
        if len(line) > _LONGEST_LINE:
            raise MinecraftError(f"{where}: {len(line)} characters; expected a tick's JSON of at most {_LONGEST_LINE}")
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MinecraftError(f"{where}: is not JSON ({error})") from error
        mouse, keyboard = self._part(content, "mouse"), self._part(content, "keyboard")
        self.keys = [key for key in self._list(keyboard, "keys") if isinstance(key, str)]
        self.buttons = [button for button in self._list(mouse, "buttons") if isinstance(button, int)]
        pressed = mouse.get("newButtons", [])
        self.attack_is_pressed = isinstance(pressed, list) and MOUSE_BUTTONS["attack"] in pressed
        self.attack_is_stuck = MOUSE_BUTTONS["attack"] in self.buttons and pressed == [MOUSE_BUTTONS["attack"]]
        self.turn = tuple(self._number(mouse, name) * DEGREES_PER_PIXEL for name in ("dy", "dx"))
        hotbar = content.get("hotbar", 0)
        if not isinstance(hotbar, int) or not 0 <= hotbar <= 8:
            raise MinecraftError(f"{where}: hotbar is {hotbar!r}; expected 0 to 8")
        self.hotbar = hotbar
        opened = bool(content.get("isGuiOpen", False))
        self.cursor = (self._number(mouse, "x"), self._number(mouse, "y")) if opened else (math.nan, math.nan)

    def _part(self, content: Any, name: str) -> Mapping[str, Any]:
        part = content.get(name) if isinstance(content, dict) else None
        if not isinstance(part, dict):
            raise MinecraftError(
                f"{self._where}: {name} is {part!r}; expected an object, as contractors' recordings have"
            )
        return part

    def _list(self, part: Mapping[str, Any], name: str) -> list[Any]:
        value = part.get(name)
        if not isinstance(value, list):
            raise MinecraftError(f"{self._where}: {name} is {value!r}; expected a list of what is down")
        return value

    def _number(self, part: Mapping[str, Any], name: str) -> float:
        value = part.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
            raise MinecraftError(f"{self._where}: mouse.{name} is {value!r}; expected pixels")
        return float(value)
