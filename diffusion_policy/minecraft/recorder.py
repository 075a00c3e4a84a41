"""Writes episodes of the grove's expert like OpenAI's contractors' recordings: a video, and a line of JSON per tick.

    NAME.mp4     frame t is what was seen before action t; 20 per second
    NAME.jsonl   {"tick": t, "mouse": {"dx", "dy", "buttons", ...}, "keyboard": {"keys": [...]}, "hotbar": 0, ...}

The mouse moves one pixel per 0.15 degrees, the factor with which readers of these recordings convert it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.minecraft.actions import MinecraftError, pressed_buttons
from diffusion_policy.minecraft.contractor import DEGREES_PER_PIXEL, KEYS, MOUSE_BUTTONS
from diffusion_policy.minecraft.expert import Expert
from diffusion_policy.minecraft.grove import DEFAULT_MAX_STEPS
from diffusion_policy.minecraft.view import IMAGE_HEIGHT, IMAGE_WIDTH, render
from diffusion_policy.minecraft.world import TICK_SECONDS, World, draw_world, task_of
from diffusion_policy.storage import atomic_file, write_json, write_text
from diffusion_policy.video_writer import VideoWriter

_FIRST_MS = 1_767_225_600_000  # 2026-01-01 UTC; recordings of one seed are equal
_TICK_MS = round(1000 * TICK_SECONDS)


def record_grove(
    folder: Path | str,
    episodes: int,
    seed: int,
    *,
    task: str = "log",
    variation: float = 0.5,
    max_steps: int = DEFAULT_MAX_STEPS,
    resume: bool = False,
) -> Iterator[Path]:
    """Records episodes of the scripted expert one at a time, whenever the caller requests the next.

    Their settings are written to TASK_SEED.json, so that recordings of different settings do not mix.

    Args:
        folder: created if absent.
        episodes: how many.
        seed: episode i depends on (seed, i) and the settings alone.
        task: "log", "wool" or "stone".
        variation: 0 to 1, how much the expert pauses and how unevenly it turns.
        max_steps: within which it has to finish.
        resume: whether to keep episodes that are already complete.

    Yields:
        the path of each episode's .mp4; its .jsonl has the same name.

    Raises:
        MinecraftError: no such task, an episode exists already, it was recorded with other settings, or the expert did
            not finish in time.
    """
    chosen, files = task_of(task), grove_files(folder, episodes, seed, task)
    if not resume:
        for file in files:
            if file.exists() or file.with_suffix(".jsonl").exists():
                raise MinecraftError(f"{file} exists already; go on with --resume, or name another folder or seed")
    note, settings = Path(folder) / f"{task}_{seed}.json", {"variation": variation, "max_steps": max_steps}
    if note.exists():
        _check_settings(note, settings)
    for index, file in enumerate(files):
        if not file.exists():
            rng = np.random.default_rng([seed, index])
            _record(file, draw_world(chosen, rng), Expert(rng, variation), max_steps)
            write_json(note, settings)
        yield file


def grove_files(folder: Path | str, episodes: int, seed: int, task: str) -> list[Path]:
    """The .mp4 of each episode that ``record_grove`` writes. An episode is complete once this file exists."""
    return [Path(folder) / f"{task}_{seed}_{index:04d}.mp4" for index in range(episodes)]


def _check_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Refuses settings other than those of the episodes that a folder holds."""
    try:
        former = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MinecraftError(f"{file}: is not JSON ({error}); delete it to record again in this folder") from error
    if former != settings:
        raise MinecraftError(
            f"{file}: episodes were recorded with {former}, now it is {dict(settings)}; name another folder or seed"
        )


class EpisodeWriter:
    """Writes the video and the lines of one episode, tick by tick.

    Args:
        video: path of the video file.
    """

    def __init__(self, video: Path) -> None:
        self._video = VideoWriter(video, (IMAGE_WIDTH, IMAGE_HEIGHT), 1 / TICK_SECONDS)
        self._lines: list[str] = []
        self._before: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, world: World, frame: NDArray[np.uint8], action: Mapping[str, Any]) -> None:
        """Add what is seen, (160, 256, 3), and the action taken then: all buttons, and the camera (2,) in degrees."""
        self._video.write(frame)
        pressed, camera = pressed_buttons(action)
        self._lines.append(json.dumps(_line(world, pressed, pressed - self._before, camera)))
        self._before = pressed

    def close(self) -> str:
        """Ends the video, and returns the lines as text."""
        self._video.close()
        return "\n".join(self._lines) + "\n"

    def abandon(self) -> None:
        """Ends the recording; the file is not a video."""
        self._video.abandon()


def _record(file: Path, world: World, expert: Expert, max_steps: int) -> None:
    # Lines first: by its name, a video without lines would pass for a complete recording.
    with atomic_file(file) as partial:
        episode = EpisodeWriter(partial)
        while not world.done:
            if world.ticks >= max_steps:
                episode.abandon()
                raise MinecraftError(f"{file}: the expert did not finish {world.task.name} in {max_steps} steps")
            action = expert.act(world)
            episode.add(world, render(world), action)
            world.step(*pressed_buttons(action))
        write_text(file.with_suffix(".jsonl"), episode.close())


def _line(
    world: World, pressed: frozenset[str], newly: frozenset[str], camera: np.ndarray[Any, Any]
) -> Mapping[str, Any]:
    """One tick as the contractors' recorder wrote it."""
    dy, dx = (float(value) / DEGREES_PER_PIXEL for value in camera)
    return {
        "mouse": {
            "x": 640.0, "y": 360.0, "dx": dx, "dy": dy, "scaledX": 0.0, "scaledY": 0.0, "dwheel": 0.0,
            "buttons": sorted(MOUSE_BUTTONS[name] for name in pressed & MOUSE_BUTTONS.keys()),
            "newButtons": sorted(MOUSE_BUTTONS[name] for name in newly & MOUSE_BUTTONS.keys()),
        },
        "keyboard": {
            "keys": [f"key.keyboard.{KEYS[name]}" for name in sorted(pressed & KEYS.keys())],
            "newKeys": [f"key.keyboard.{KEYS[name]}" for name in sorted(newly & KEYS.keys())],
            "chars": "",
        },
        "hotbar": 0, "tick": world.ticks, "isGuiOpen": False, "milli": _FIRST_MS + _TICK_MS * world.ticks,
        "yaw": world.yaw, "pitch": world.pitch,
        "xpos": float(world.position[0]), "ypos": float(world.position[1]), "zpos": float(world.position[2]),
    }  # fmt: skip
