"""Logs in every gripper scale: no verdict without it, the right one with it; and logs with gaps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gripper_scales import FOREIGN, GRASP, written
from log_factory import document, write_log

from diffusion_policy.evaluate.gripper import GripperReport, Unreadable, judge_file
from diffusion_policy.evaluate.gripper_table import validate_logs
from diffusion_policy.gripper_scale import parse_scales

# Gripper sequences of a log, 0 closed .. 1 open, and their verdicts.
BEHAVIOURS = {
    "opens and closes": GRASP,
    "never closes": [0.98, 1.0, 0.99] * 12,
    "never opens": [0.0, 0.01, 0.02] * 12,
    "chatters": [1.0, 0.0] * 15,
}


def judged(path: Path, scale: str | None = None) -> GripperReport:
    found = judge_file(path, parse_scales(scale))
    assert isinstance(found, GripperReport), found
    return found


def in_scale(tmp_path: Path, name: str, values: list[float], generation: int = 2) -> Path:
    command = written(name, values)
    return write_log(tmp_path / "log.json", command, generation, measured=[command[0], command[0], *command[:-2]])


@pytest.mark.parametrize("verdict", BEHAVIOURS)
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_scale_gets_no_firm_word_until_it_is_declared(tmp_path: Path, name: str, verdict: str) -> None:
    path = in_scale(tmp_path, name, BEHAVIOURS[verdict])
    found = judged(path)
    if found.gripper_scale is not None:  # it stays near 1, like an open gripper in 0..1
        assert found.gripper_scale == "open1"
        assert found.gripper_min is not None
        assert found.gripper_min > 0.95
    else:
        assert (found.verdict, found.firmness, found.events, found.sweep) == ("unknown scale", None, (), ())
        assert (found.opens, found.closes, found.scale_origin) == (None, None, "unknown")
        assert f"commands are {found.gripper_min:.3g} to {found.gripper_max:.3g}" in found.reason
        assert "--gripper-scale " in found.reason
        assert validate_logs([path]).exit_status == 1
        assert not found.opens_and_closes
    report = judged(path, name)
    assert (report.verdict, report.gripper_scale, report.scale_origin) == (verdict, name, "declared")
    np.testing.assert_allclose(report.commands, BEHAVIOURS[verdict], atol=1e-9)
    assert (report.gripper_min, report.gripper_max) == (found.gripper_min, found.gripper_max), "as logged"


@pytest.mark.parametrize("generation", [1, 2, 3])
@pytest.mark.parametrize("name", FOREIGN)
def test_every_generation_is_converted(tmp_path: Path, name: str, generation: int) -> None:
    report = judged(in_scale(tmp_path, name, GRASP, generation), name)
    assert report.events == ((20, "close"), (35, "open"))
    assert report.leads_measurement == 2
    assert "converted to 0..1" in report.reason


@pytest.mark.parametrize("name", FOREIGN)
def test_the_flag_that_is_proposed_settles_it(tmp_path: Path, name: str) -> None:
    found = judged(in_scale(tmp_path, name, GRASP))
    proposed = found.reason.split("--gripper-scale ")[1].split()[0]
    again = judged(tmp_path / "log.json", proposed)
    assert again.scale_origin == "declared"
    if "0.03" not in name:  # for a width that closes at 3 cm, the range does not show where closed is
        assert again.verdict == "opens and closes"


def test_a_log_that_names_its_scale_needs_no_flag(tmp_path: Path) -> None:
    for entry, values in (({"open": 100, "closed": 0}, "percent"), ({"open": -1.0, "closed": 1.0}, "signed_closed1")):
        command = written(values)
        content = document(command, 3, measured=[command[0], *command[:-1]])
        content["meta"]["action_semantics"] = {"gripper": entry}
        path = tmp_path / "log.json"
        path.write_text(json.dumps(content))
        found = judged(path)
        assert (found.events, found.scale_origin) == (((20, "close"), (35, "open")), "labeled")
    content["meta"]["action_semantics"] = {"gripper": {"open": 1.0, "closed": 0.0}}
    path.write_text(json.dumps(content))
    assert judged(path).verdict == "unknown scale", "its label is contradicted by its numbers"
    content["meta"]["action_semantics"] = {"gripper": "open"}
    path.write_text(json.dumps(content))
    assert isinstance(judge_file(path), Unreadable)


def test_what_contradicts_the_flag_is_an_error(tmp_path: Path) -> None:
    path = in_scale(tmp_path, "percent", GRASP)
    found = judge_file(path, parse_scales("signed_open1"))
    assert isinstance(found, Unreadable)
    assert "gripper scale signed_open1 (-1 closed, 1 open): the command is 0 to 100" in found.reason
    assert validate_logs([path], declared=parse_scales("signed_open1")).exit_status == 2


def test_two_kinds_in_one_log(tmp_path: Path) -> None:
    """Binary commands above a width in meters."""
    width = [0.08] * 22 + [0.06, 0.045] + [0.03] * 13 + [0.08] * 8
    for name in ("open1", "closed1", "signed_open1", "signed_closed1"):
        path = write_log(tmp_path / "log.json", written(name), measured=width)
        found = judged(path)
        assert (found.verdict, found.gripper_scale, found.measured_scale) == ("opens and closes", name, None)
        assert found.leads_measurement is None, "an unknown measurement is left aside, and said to be"
        assert f"--gripper-scale {name}/meters:0.08" in found.reason
        report = judged(path, f"{name}/meters:0.03:0.08")
        assert (report.verdict, report.measured_scale, report.leads_measurement) == (
            "opens and closes",
            "meters:0.03:0.08",
            2,
        )
    path = write_log(tmp_path / "log.json", written("percent"), measured=[1.0, *GRASP[:-1]])
    assert judged(path).verdict == "unknown scale"
    assert judged(path, "percent").leads_measurement == 2, "the measurement keeps its own scale, 0..1"


def test_a_copy_is_a_copy_in_any_scale(tmp_path: Path) -> None:
    for name in FOREIGN:
        path = write_log(tmp_path / "log.json", written(name), measured=written(name))
        assert judged(path).verdict == "pass-through of the measured gripper"
        assert judged(path, name).verdict == "pass-through of the measured gripper"


def test_a_width_of_seven_numbers_can_be_declared(tmp_path: Path) -> None:
    values = written("meters:0.03:0.08")
    content = document(values, 1, measured=values, layout="rotvec")
    for entry in content["outputs"]:
        assert len(entry["action"][0]) == 7
    path = tmp_path / "log.json"
    path.write_text(json.dumps(content))
    assert judged(path).verdict == "no gripper command"
    for entry in content["inputs"]:
        entry["state"][-1] = 0.08
    path.write_text(json.dumps(content))
    report = judged(path, "meters:0.03:0.08")
    assert (report.verdict, report.events) == ("opens and closes", ((20, "close"), (35, "open")))


def holed(values: list[float], *gaps: tuple[int, int], first: int = 0, every: int = 1) -> dict[str, Any]:
    """A log that lacks the steps of each gap (first, last), numbered from `first` in strides of `every`."""
    content = document(values)
    content["steps"] = [s for s in content["steps"] if not any(low <= s["step"] <= high for low, high in gaps)]
    for step in content["steps"]:
        step["step"] = first + every * step["step"]
    return content


@pytest.mark.parametrize("every", [1, 6])
@pytest.mark.parametrize("first", [0, 1, 100])
def test_a_hole_is_reported_and_counted(tmp_path: Path, first: int, every: int) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(holed(GRASP, (22, 30), (40, 40), first=first, every=every)))
    found = judged(path)
    number = [first + every * step for step in range(45)]
    assert found.events == ((number[20], "close"), (number[35], "open"))
    assert found.missing_steps == ((number[22], number[30]), (number[40], number[40]))
    assert found.dwell_steps == (15, 10), "what is missing has passed all the same"
    assert f"steps {number[22]}-{number[30]}, {number[40]} are missing (10 of 45)" in found.reason
    assert found.flips_per_minute == pytest.approx(2 / (45 * 0.8 / 60))


def test_an_event_in_a_hole_lies_between_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(holed(GRASP, (15, 24))))
    assert judged(path).reason.startswith("closes between steps 14 and 25, opens at step 35")


def test_reversals_on_either_side_of_a_hole_are_not_chatter(tmp_path: Path) -> None:
    values = ([1.0] * 5 + [0.0] * 5) * 12
    gaps = [(10 * k + 1, 10 * k + 3) for k in range(12)] + [(10 * k + 6, 10 * k + 8) for k in range(12)]
    path = tmp_path / "log.json"
    path.write_text(json.dumps(holed(values, *gaps)))
    found = judged(path)
    assert (found.verdict, found.bounces) == ("opens and closes", 0)


def test_numbers_that_go_back_are_reported(tmp_path: Path) -> None:
    content = document(GRASP)
    for i, step in enumerate(content["steps"]):
        step["step"] = i % 20
    path = tmp_path / "log.json"
    path.write_text(json.dumps(content))
    found = judged(path)
    assert found.events == ((20, "close"), (35, "open"))
    assert "step numbers repeat or go back, so steps are counted by position" in found.reason


def test_trial_of_signed_commands(trial: Callable[..., Path]) -> None:
    logs = sorted(trial("40").glob("*.json"))
    assert [judged(log).verdict for log in logs] == ["unknown scale"] * 4
    assert [judged(log, "signed_open1").verdict for log in logs[:2]] == ["opens and closes"] * 2
    assert judged(logs[0], "signed_open1").events == ((30, "close"), (60, "open"))
    assert judged(logs[1], "signed_closed1").events == ((30, "close"), (60, "open"))
    assert judged(logs[2], "signed_closed1").verdict == "never closes"
    assert judged(logs[2], "signed_open1").verdict == "never opens"


def test_trial_of_percent(trial: Callable[..., Path]) -> None:
    logs = sorted(trial("41").glob("*.json"))
    assert [judged(log).verdict for log in logs] == ["unknown scale"] * 2
    assert judged(logs[0], "percent").events == ((30, "close"), (60, "open"))
    assert judged(logs[1], "percent").verdict == "never closes"


def test_trial_of_odd_logs(trial: Callable[..., Path]) -> None:
    found = [judge_file(log) for log in sorted(trial("43").glob("*.json"))]
    assert [isinstance(entry, Unreadable) for entry in found] == [True, False, False, True, True, False, True]
    hole, stamps, nine = (entry for entry in found if isinstance(entry, GripperReport))
    assert "steps 20-44 are missing (25 of 90)" in hole.reason
    assert hole.events == ((45, "close"), (60, "open"))
    assert "closes between steps 19 and 45, opens at step 60" in hole.reason
    assert stamps.flips_per_minute is None
    assert nine.verdict == "no gripper command"
