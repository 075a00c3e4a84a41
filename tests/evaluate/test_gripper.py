"""Verdicts: each one planted, and those on all real logs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from log_factory import document, write_log

from diffusion_policy.evaluate.gripper import GripperReport, Unreadable, judge_file
from diffusion_policy.evaluate.gripper_table import GroupComparison, validate_logs
from diffusion_policy.report.gripper_page import write_page
from diffusion_policy.run_log import RunLogError
from diffusion_policy.storage import StorageError

RNG = np.random.default_rng(7)
GRASP = [1.0] * 20 + [0.02] * 15 + [0.97] * 10
WANDERING = (1 - 0.02 * RNG.random(60)).tolist()


def report(tmp_path: Path, *arguments: Any, **options: Any) -> GripperReport:
    found = judge_file(write_log(tmp_path / "log.json", *arguments, **options))
    assert isinstance(found, GripperReport)
    return found


@pytest.mark.parametrize(
    ("commands", "verdict", "evidence", "naive"),
    [
        (GRASP, "opens and closes", "closes at step 20, opens at step 35; 2 changes in 45 steps", "learned"),
        ([1.0] * 20 + [0.1] * 3, "opens and closes", "closes at step 20; 1 change in 23 steps", "learned"),
        ([0.0] * 5 + [1.0] * 5, "opens and closes", "starts closed, opens at step 5", "learned"),
        ([*GRASP, 0.0, 1.0, 1.0], "opens and closes", "hesitates: 1 undone within 2 steps", "learned"),
        (WANDERING, "never closes", "commands stay in 0.98", "learned"),
        ([0.999] * 30, "never closes", "commands stay in 0.999-0.999", "not learned"),
        ([0.5, 0.6, 0.4] * 10, "never closes", "commands stay in 0.400-0.600", "learned"),
        ([0.0, 0.01] * 5, "never opens", r"10 steps, too few to be sure", "learned"),
        ([1.0, 0.0] * 10, "chatters", "19 changes in 20 steps, 18 of them undone within 2 steps", "learned"),
        ([0.9, 0.95, 0.9], "too short", "3 steps without a change", "learned"),
        ([1.0, 0.0], "opens and closes", "closes at step 1", "learned"),
    ],
)
def test_verdicts(tmp_path: Path, commands: list[float], verdict: str, evidence: str, naive: str) -> None:
    found = report(tmp_path, commands)
    assert found.verdict == verdict
    assert evidence in found.reason
    assert found.naive["verdict"] == naive
    assert found.opens_and_closes == found.learned == (verdict == "opens and closes")


def test_hesitation_in_a_long_run_is_not_chatter(tmp_path: Path) -> None:
    bursts = ([1.0] * 100 + [0.0, 1.0]) * 10
    assert report(tmp_path, bursts).verdict == "opens and closes"
    assert report(tmp_path, [1.0, 0.0] * 12 + [1.0] * 100).verdict == "chatters"


def test_pass_through(tmp_path: Path) -> None:
    found = report(tmp_path, GRASP, measured=GRASP)
    assert found.verdict == "pass-through of the measured gripper"
    assert found.equals_measured_gripper
    assert found.leads_measurement == 0


def test_a_noisy_copy_of_the_measurement_decides_nothing(tmp_path: Path) -> None:
    """A failure that exact comparison misses: the command is the current measurement with a little noise."""
    noisy = (np.array(GRASP) + 0.01 * RNG.standard_normal(len(GRASP))).tolist()
    found = report(tmp_path, noisy, measured=GRASP)
    assert found.verdict == "follows the measured gripper"
    assert found.reason.startswith("2 changes, the first close at step 20: none was commanded before it was measured")
    assert (found.leads_measurement, found.learned, found.firmness) == (0, False, 1.0)
    late = [1.0, *noisy[:-1]]
    assert report(tmp_path, late, measured=GRASP).verdict == "follows the measured gripper"


def test_a_decision_inside_a_chunk_counts(tmp_path: Path) -> None:
    """A chunk is executed before the next is requested, so the hand is already closed when a chunk begins closed."""
    log = document([1.0] * 10 + [0.0] * 10, measured=[1.0] * 10 + [0.0] * 10)
    log["steps"][0]["action"]["values"][0][-1] = 0.99
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    assert judge_file(path).verdict == "follows the measured gripper"
    for action in log["steps"][9]["action"]["values"][5:]:
        action[-1] = 0.02
    path.write_text(json.dumps(log))
    found = judge_file(path)
    assert isinstance(found, GripperReport)
    assert (found.verdict, found.leads_measurement) == ("opens and closes", 1)
    assert found.reason.endswith("1 change in 20 steps, 1 of them before the measured gripper")
    assert found.agrees_with_measurement == 1.0


def test_statistics(tmp_path: Path) -> None:
    found = report(tmp_path, GRASP, generation=3)
    assert found.events == ((20, "close"), (35, "open"))
    assert found.duty_closed == pytest.approx(15 / 45)
    assert found.dwell_steps == (15, 10)
    assert found.flips_per_minute == pytest.approx(2 / (45 * 0.8 / 60))
    assert (found.undecided, found.margin) == (0.0, pytest.approx(0.96))
    assert found.leads_measurement == 1, "the measurement stays open: closing leads, opening does not"
    assert found.firmness == 1.0
    assert {entry["events"] for entry in found.sweep} == {2}
    assert json.loads(json.dumps(found.to_json()))["events"] == [[20, "close"], [35, "open"]]


def test_settled_events_ignore_hesitation(tmp_path: Path) -> None:
    found = report(tmp_path, [1.0] * 10 + [0.0, 1.0] + [0.0] * 10)
    assert (len(found.events), found.bounces, found.settled_events) == (3, 2, 1)


def test_a_verdict_near_a_threshold_is_not_firm(tmp_path: Path) -> None:
    found = report(tmp_path, [1.0] * 10 + [0.27] * 10 + [1.0] * 10)
    assert found.verdict == "opens and closes"
    assert found.firmness == pytest.approx(0.5)


def test_layouts_without_a_gripper_command(tmp_path: Path) -> None:
    width = document([0.08, 0.07, 0.03, 0.03, 0.08], 1, layout="rotvec")
    for entry in width["outputs"]:
        entry["action"] = [row[:7] for row in entry["action"]]
    path = tmp_path / "width.json"
    for entry, command in zip(width["outputs"], [0.08, 0.07, 0.03, 0.03, 0.08], strict=True):
        entry["action"] = [[*row[:6], command] for row in entry["action"]]
    path.write_text(json.dumps(width))
    found = judge_file(path)
    assert isinstance(found, GripperReport)
    assert (found.verdict, found.layout, found.events, found.opens) == (
        "no gripper command",
        "xyz_rotvec_width",
        (),
        None,
    )
    assert found.width_events == ((2, "close"), (4, "open"))
    assert found.width_verdict == "opens and closes"
    assert "meters, not a 0..1 gripper: by its own thresholds opens and closes; closes at step 2" in found.reason
    assert (found.duty_closed, found.dwell_steps) == (pytest.approx(2 / 5), (2, 1))
    assert (
        "1 command a gripper width: by its own thresholds 1 of them open and close" in validate_logs([path]).summary()
    )

    poses = document([1.0] * 6)
    for step in poses["steps"]:
        step["action"]["values"] = [row[:7] for row in step["action"]["values"]]
    path.write_text(json.dumps(poses))
    found = judge_file(path)
    assert (found.verdict, found.reason) == (
        "no gripper command",
        "seven numbers, x y z qx qy qz qw: a pose without a gripper",
    )

    for step in poses["steps"]:
        step["action"]["values"] = [row[:3] for row in step["action"]["values"]]
    path.write_text(json.dumps(poses))
    assert "3 numbers per command that fit no known layout" in judge_file(path).reason
    path.write_text('{"steps": []}')
    assert judge_file(path).verdict == "too short"


def test_unreadable_logs_hide_no_other(tmp_path: Path) -> None:
    good = write_log(tmp_path / "inference_log_1.json", GRASP)
    torn = tmp_path / "inference_log_2.json"
    torn.write_text(good.read_text()[:-30])
    found = validate_logs([tmp_path])
    assert [type(entry) for entry in found.entries] == [GripperReport, Unreadable]
    assert found.exit_status == 2
    assert "torn" in found.entries[1].reason
    assert validate_logs([good], before=[torn]).exit_status == 2


def test_folders_without_logs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunLogError, match=r"no log in this folder; expected inference_log_\*.json, or"):
        validate_logs([tmp_path])


def write_session(path: Path, commands: list[float]) -> Path:
    """A run folder as written by this project's server."""
    path.mkdir()
    (path / "meta.json").write_text("{}")
    steps = document(commands, 2)["steps"]
    (path / "steps.jsonl").write_text("".join(json.dumps({**step, "input": seen(step)}) + "\n" for step in steps))
    (path / "images").mkdir()
    (path / "images" / "0.jpg").write_bytes(b"\xff\xd8")
    return path


def seen(step: dict[str, Any]) -> dict[str, Any]:
    return {**step["input"], "images": ["images/0.jpg"]}


def test_runs_of_the_server_are_found_beside_old_logs(tmp_path: Path) -> None:
    session = write_session(tmp_path / "run_20260108_171739", GRASP)
    write_log(tmp_path / "inference_log_20260108_101112.json", WANDERING)
    found = validate_logs([tmp_path]).entries
    assert [(entry.file, entry.verdict) for entry in found if isinstance(entry, GripperReport)] == [
        ("inference_log_20260108_101112.json", "never closes"),
        ("run_20260108_171739", "opens and closes"),
    ]
    (alone,) = validate_logs([session]).entries
    assert isinstance(alone, GripperReport)
    assert (alone.generation, alone.images) == (4, 45)


def test_groups_are_compared(tmp_path: Path) -> None:
    good, bad = write_log(tmp_path / "good.json", GRASP), write_log(tmp_path / "bad.json", WANDERING)
    short = write_log(tmp_path / "short.json", [1.0])
    better = validate_logs([good] * 12, before=[bad] * 12 + [short])
    assert better.comparison == GroupComparison((0, 12), (12, 12))
    assert better.comparison.probability > 0.999
    assert "the gripper improved: it opens and closes in 0 of 12 logs before, 12 of 12 after" in better.summary()
    assert "the gripper got worse" in validate_logs([bad] * 12, before=[good] * 12).summary()
    assert "no difference can be claimed" in validate_logs([good], before=[bad]).summary()
    better.write(tmp_path / "out.json")
    write_page(tmp_path / "out.html", better)
    result = json.loads((tmp_path / "out.json").read_text())
    assert (len(result["logs"]), len(result["before"])) == (12, 13)
    assert result["comparison"]["finding"] == "the gripper improved"
    page = (tmp_path / "out.html").read_text()
    assert page.index(">after</h2>") < page.index(">before</h2>")


def test_pages_escape_what_logs_say(tmp_path: Path) -> None:
    log = write_log(tmp_path / "<b>log.json", GRASP)
    page = tmp_path / "pages" / "page.html"
    write_page(page, validate_logs([log]))
    assert "&lt;b&gt;log.json" in page.read_text()
    assert "<b>log" not in page.read_text()
    (tmp_path / "file").write_text("")
    assert page.read_text().count("<polyline") == 1
    assert "0.3-0.7 opens and closes (2 changes)" in page.read_text()
    with pytest.raises(StorageError, match="cannot be written"):
        validate_logs([log]).write(tmp_path / "file" / "out.json")


def test_all_real_logs(shared_data: Path) -> None:
    expected = json.loads((shared_data / "real_logs" / "expected.json").read_text())
    found = {entry.file: entry.to_json() for entry in validate_logs([shared_data / "real_logs"]).entries}
    assert found.keys() == expected.keys()
    for name, facts in expected.items():
        assert {key: json.loads(json.dumps(found[name][key])) for key in facts} == facts, name
        verdict = found[name]["verdict"]
        if facts["action_dim"] == 7:
            assert verdict == "no gripper command"
        elif facts["equals_measured_gripper"]:
            assert verdict == "pass-through of the measured gripper"
        elif not facts["closes"]:
            assert verdict == "never closes"
        elif not facts["opens"]:
            assert verdict == "never opens"
        elif len(facts["events"]) == 83:
            assert verdict == "chatters"
        else:
            # In one log something else closes the hand for one step; no chunk had commanded it.
            assert (verdict != "opens and closes") == (name == "inference_log_20251124_230323.json")
            assert (verdict == "opens and closes") == (found[name]["leads_measurement"] > 0)
