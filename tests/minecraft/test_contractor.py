"""Lines of contractors' recordings, and recordings of the grove in the same format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from diffusion_policy.minecraft.actions import BUTTONS, VPT_ACTION, MinecraftError
from diffusion_policy.minecraft.contractor import KEYS, MOUSE_BUTTONS, Played, read_lines
from diffusion_policy.minecraft.expert import Expert
from diffusion_policy.minecraft.recorder import record_grove
from diffusion_policy.minecraft.world import TASKS, draw_world


def _tick(**changes: Any) -> dict[str, Any]:
    mouse = {"x": 640.0, "y": 360.0, "dx": 0.0, "dy": 0.0, "buttons": [], "newButtons": [], **changes.pop("mouse", {})}
    return {"mouse": mouse, "keyboard": {"keys": [], **changes.pop("keyboard", {})}, "hotbar": 0, **changes}


def _read(*ticks: dict[str, Any]) -> Played:
    return read_lines((json.dumps(tick) for tick in ticks), "a.jsonl")


def _down(played: Played) -> list[set[str]]:
    return [{name for name, value in zip(BUTTONS, row, strict=False) if value} for row in played.action]


@pytest.mark.parametrize("button", [*KEYS, *MOUSE_BUTTONS])
def test_every_button_is_read_from_its_key(button: str):
    held = (
        _tick(keyboard={"keys": [f"key.keyboard.{KEYS[button]}"]})
        if button in KEYS
        else _tick(mouse={"buttons": [MOUSE_BUTTONS[button]]})
    )
    played = _read(_tick(), held)
    assert _down(played) == [set(), {button}]
    assert list(played.null) == [True, False]


def test_the_camera_keeps_its_fractions():
    played = _read(_tick(mouse={"dx": 37.5, "dy": -3.0}), _tick(mouse={"dx": 1.0}))
    assert VPT_ACTION[-2:] == ("camera_pitch", "camera_yaw")
    np.testing.assert_allclose(played.action[:, -2:], [[-0.45, 5.625], [0.0, 0.15]], rtol=1e-6)
    assert not played.null.any()


def test_an_attack_that_is_down_from_the_start_is_up_until_it_is_pressed():
    held = {"buttons": [0]}
    played = _read(
        _tick(mouse={**held, "newButtons": [0]}),
        _tick(mouse=held),
        _tick(mouse={**held, "newButtons": [0]}),
        _tick(mouse=held),
    )
    assert _down(played) == [set(), set(), {"attack"}, {"attack"}]
    assert played.stuck == 2


def test_a_change_of_the_hotbar_is_a_press_and_other_keys_are_counted():
    other = {"keys": ["key.keyboard.escape", "key.keyboard.f", "key.keyboard.w", "key.keyboard.p"]}
    played = _read(_tick(), _tick(hotbar=3), _tick(hotbar=3, mouse={"buttons": [2]}), _tick(hotbar=3, keyboard=other))
    assert _down(played) == [set(), {"hotbar.4"}, set(), {"forward"}]
    assert played.ignored == {"pickItem": 1, "ESC": 1, "swapHands": 1}


def test_the_cursor_is_known_where_a_window_is_open():
    played = _read(_tick(), _tick(isGuiOpen=True, mouse={"x": 12.0, "y": 34.0}))
    assert np.isnan(played.cursor[0]).all()
    np.testing.assert_array_equal(played.cursor[1], [12.0, 34.0])


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("", "is not JSON"),
        ("[1, 2]", "mouse is None"),
        ("{}", "mouse is None"),
        (json.dumps({**_tick(), "mouse": 5}), "mouse is 5"),
        (json.dumps({**_tick(), "keyboard": {}}), "keys is None"),
        (json.dumps(_tick(mouse={"buttons": 0})), "buttons is 0"),
        (json.dumps(_tick(mouse={"dx": float("nan")})), "mouse.dx is nan"),
        (json.dumps(_tick(mouse={"dy": 1e300})), "mouse.dy is 1e"),
        (json.dumps(_tick(mouse={"dx": "3"})), "mouse.dx is '3'"),
        (json.dumps(_tick(hotbar=9)), "hotbar is 9"),
        ("[" * 100_000, "is not JSON"),
        (" " * (1 << 20) + "{}", "expected a tick's JSON of at most"),
    ],
)
def test_an_invalid_line_is_named(line: str, found: str):
    with pytest.raises(MinecraftError, match=found) as error:
        read_lines([json.dumps(_tick()), line], "a.jsonl")
    assert str(error.value).startswith("a.jsonl:2: ")


def test_a_recording_without_lines_is_refused():
    with pytest.raises(MinecraftError, match="is empty"):
        read_lines([], "a.jsonl")


@pytest.mark.parametrize("task", TASKS)
def test_a_recorded_episode_of_the_expert_reads_as_it_was_played(tmp_path: Path, task: str):
    (file,) = record_grove(tmp_path, 1, seed=4, task=task)
    with file.with_suffix(".jsonl").open() as lines:
        played = read_lines(lines, file.name)
    rng = np.random.default_rng([4, 0])
    world, acted = draw_world(TASKS[task], rng), []
    expert = Expert(rng, 0.5)
    while not world.done:
        action = expert.act(world)
        acted.append([*(action[name] for name in BUTTONS), *action["camera"]])
        world.step({name for name in BUTTONS if action[name]}, action["camera"])
    np.testing.assert_allclose(played.action, acted, atol=1e-5)
    with av.open(str(file)) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(played)
    with pytest.raises(MinecraftError, match="exists already"):
        next(record_grove(tmp_path, 1, seed=4, task=task))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".jsonl", ".mp4"]


def test_an_interrupted_recording_continues_with_the_episodes_that_it_lacks(tmp_path: Path):
    whole = [file.read_bytes() for file in record_grove(tmp_path / "whole", 2, seed=1, task="log")]
    (first,) = record_grove(tmp_path / "parts", 1, seed=1, task="log")
    before = first.stat().st_mtime_ns
    parts = list(record_grove(tmp_path / "parts", 2, seed=1, task="log", resume=True))
    assert [file.read_bytes() for file in parts] == whole
    assert parts[0].stat().st_mtime_ns == before
    with pytest.raises(MinecraftError, match=r"recorded with \{'variation': 0.5.*'variation': 0.1"):
        next(record_grove(tmp_path / "parts", 3, seed=1, task="log", variation=0.1, resume=True))
    (tmp_path / "parts" / "log_1.json").write_text("{")
    with pytest.raises(MinecraftError, match="is not JSON"):
        next(record_grove(tmp_path / "parts", 3, seed=1, task="log", resume=True))


def test_an_expert_that_does_not_finish_leaves_nothing(tmp_path: Path):
    with pytest.raises(MinecraftError, match="did not finish log in 5 steps"):
        next(record_grove(tmp_path, 1, seed=4, max_steps=5))
    assert list(tmp_path.iterdir()) == []
