"""The log of a run: three generations are read, the third is written, all else is refused by file and place."""

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from log_factory import document, write_log

from diffusion_policy.run_log import LogStep, RunLogError, read_log, reading, write_inference_log

START = datetime(2026, 1, 8, 12, 34, 56)
COMMANDS = [1.0, 0.9, 0.1, 0.0]


def saved(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "inference_log_20260108_123456.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_reads_every_generation(tmp_path: Path, generation: int) -> None:
    log = read_log(saved(tmp_path, document(COMMANDS, generation)))
    assert (log.generation, log.layout, len(log.steps), log.unanswered) == (generation, "xyz_quat_gripper", 4, 0)
    assert log.actions.shape == (4, 8, 8)
    assert log.states.shape == (4, 8)
    np.testing.assert_array_equal(log.commands[:, -1], COMMANDS)
    np.testing.assert_array_equal(log.grippers[0].measured, np.ones(4))
    assert log.meta == ({"checkpoint": "latest.ckpt"} if generation == 3 else {})
    assert [step.frames for step in log.steps] == [{"image": b"\xff\xd8\xff"} if generation == 3 else {}] * 4
    assert log.step_period == (None if generation == 1 else pytest.approx(0.8, abs=1e-6))


def test_first_generation_may_end_with_an_unanswered_input(tmp_path: Path) -> None:
    content = document(COMMANDS, 1)
    content["outputs"].pop()
    log = read_log(saved(tmp_path, content))
    assert (len(log.steps), log.unanswered) == (3, 1)


def test_layouts_are_recognized_by_what_numbers_mean(tmp_path: Path) -> None:
    width = document([0.03, 0.08, 0.05], 1, layout="rotvec")
    for entry in width["inputs"]:
        entry["state"][-1] = 1.0
    for entry in width["outputs"]:
        entry["action"] = [row[:7] for row in entry["action"]]
    log = read_log(saved(tmp_path, width))
    assert log.layout == "xyz_rotvec_width"
    np.testing.assert_array_equal(log.grippers[0].measured, np.ones(3))

    poses = document([1.0, 1.0], 2)
    for step in poses["steps"]:
        step["action"]["values"] = [row[:7] for row in step["action"]["values"]]
        step["input"]["state"].pop()
    log = read_log(saved(tmp_path, poses))
    assert log.layout == "xyz_quat"
    assert log.grippers == ()

    shrunk = document([1.0, 1.0], 2)
    for step in shrunk["steps"]:
        step["action"]["values"] = (np.array(step["action"]["values"]) * 0.5).tolist()
    assert read_log(saved(tmp_path, shrunk)).layout == "unknown"


def test_names_in_the_log_settle_the_layout(tmp_path: Path) -> None:
    content = document([1.0, 1.0], 3)
    for step in content["steps"]:
        step["action"]["values"] = (np.array(step["action"]["values"]) * 0.5).tolist()
    assert read_log(saved(tmp_path, content)).layout == "unknown"
    content["meta"]["action_semantics"] = {"names": ["x", "y", "z", "qx", "qy", "qz", "qw", "gripper"]}
    assert read_log(saved(tmp_path, content)).layout == "xyz_quat_gripper"
    for strange in ({"names": ["x", "y", "z", "rx", "ry", "rz", "width"]}, {"names": 3}, {"names": [[]]}, "xyz"):
        content["meta"]["action_semantics"] = strange
        assert read_log(saved(tmp_path, content)).layout == "unknown"


def test_an_empty_log_is_a_log(tmp_path: Path) -> None:
    log = read_log(saved(tmp_path, {"steps": []}))
    assert (len(log.steps), log.layout, log.grippers, log.step_period) == (0, "unknown", (), None)
    assert log.actions.shape == (0, 0, 0)


def test_a_stopped_clock_gives_no_period(tmp_path: Path) -> None:
    assert read_log(saved(tmp_path, document(COMMANDS, 2, seconds=0.0))).step_period is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", r"not valid JSON, Expecting value at line 1, column 1"),
        (json.dumps(document(COMMANDS))[:-40], r"the file is torn: it ends at line 1"),
        (json.dumps(document(COMMANDS))[:400], r"the file is torn: it ends at line 1"),
        ("", r"the file is torn"),
        ("[" * 100_000, r"not a log \(maximum recursion|the file is torn"),
        ("[1, 2]", r"holds a list; expected an object"),
        ({"history": []}, r"not an inference log; it has the entries \['history'\]"),
        ({"steps": {}}, r"steps: is \{\}; expected a list"),
        ({"steps": [3]}, r"steps\[0\]: is 3; expected an object"),
        ({"meta": [], "steps": []}, r"meta: is \[\]; expected an object"),
        ('{"steps": [NaN]}', r"holds NaN, which is not a number"),
        ('{"steps": [-Infinity]}', r"holds -Infinity, which is not a number"),
        ('{"steps": [' + "9" * 5000 + "]}", r"not a log"),
    ],
)
def test_refuses_what_is_not_a_log(tmp_path: Path, content: Any, message: str) -> None:
    path = saved(tmp_path, content)
    with pytest.raises(RunLogError, match=message) as caught:
        read_log(path)
    assert str(caught.value).startswith(str(path))


def broken(generation: int, *place: str | int, value: Any) -> dict[str, Any]:
    content = document(COMMANDS, generation)
    target: Any = content
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (broken(2, "steps", 1, "step", value="1"), r'steps\[1\].step: is "1"; expected a whole number'),
        (broken(2, "steps", 1, "step", value=None), r"steps\[1\].step: is missing"),
        (broken(2, "steps", 1, "input", value=None), r"steps\[1\].input: is missing; expected an object"),
        (broken(2, "steps", 1, "input", "state", value=["a"] * 8), r"steps\[1\].input.state: is .* expected numbers"),
        (
            broken(2, "steps", 1, "input", "state", value=[1.0] * 7),
            r"state of step 1 has shape \(7,\), of step 0 \(8,\)",
        ),
        (broken(2, "steps", 1, "input", "state", 2, value=None), r"expected numbers"),
        (broken(2, "steps", 1, "input", "state", 2, value=True), r"expected numbers"),
        (broken(2, "steps", 1, "input", "state", 2, value=10**400), r"expected numbers"),
        (
            broken(2, "steps", 2, "input", "state", value=[]),
            r"steps\[2\].input.state: has shape \(0,\)|expected numbers",
        ),
        (broken(2, "steps", 2, "action", "values", value=None), r"steps\[2\].action.values: is missing"),
        (broken(2, "steps", 2, "action", "values", value=[1.0]), r"has shape \(1,\); expected a list of lists"),
        (broken(2, "steps", 2, "action", "values", 3, value=[1.0]), r"rows of different lengths"),
        (broken(2, "steps", 2, "action", "values", value=[[0.1] * 7] * 8), r"actions of step 2 has shape \(8, 7\)"),
        (broken(2, "steps", 0, "input", "timestamp", value="now"), r"input.timestamp: is \"now\"; expected numbers"),
        (broken(3, "steps", 0, "timing", value=3), r"timing: is 3; expected an object"),
        (
            broken(3, "steps", 0, "timing", "infer_start", value=[1]),
            r"infer_start: has shape \(1,\); expected a number",
        ),
        (broken(3, "steps", 0, "input", "image_base64", value=7), r"image_base64: is a int; expected base64"),
        (broken(3, "steps", 0, "input", "image_base64", value="%%"), r"image_base64: not base64"),
        (broken(1, "outputs", 1, "step", value=5), r"outputs\[1\] has step 5, inputs\[1\] has step 1"),
        (broken(1, "inputs", value=[]), r"4 outputs for 0 inputs"),
    ],
)
def test_refuses_broken_steps_and_names_the_place(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(RunLogError, match=message):
        read_log(saved(tmp_path, content))


def test_refuses_a_number_too_large_for_a_float(tmp_path: Path) -> None:
    text = json.dumps(document(COMMANDS)).replace("0.2,", "1e999,", 1)
    with pytest.raises(RunLogError, match=r"steps\[0\].*holds an infinite number"):
        read_log(saved(tmp_path, text))


def test_refuses_missing_binary_and_huge_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunLogError, match=r"cannot be read \(No such file"):
        read_log(tmp_path / "absent.json")
    with pytest.raises(RunLogError, match=r"cannot be read \(Is a directory"):
        read_log(tmp_path)
    path = tmp_path / "binary.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunLogError, match="not UTF-8 text at byte 0"):
        read_log(path)
    monkeypatch.setattr(reading, "MAX_LOG_BYTES", 2)
    with pytest.raises(RunLogError, match="3 bytes; a log has at most 2"):
        read_log(path)


def steps_to_write(n_steps: int = 3) -> list[LogStep]:
    rng = np.random.default_rng(0)
    return [
        LogStep(i, rng.random(8), rng.random((8, 8)), {"infer_start": float(i)}, {"image": b"jpeg"})
        for i in range(n_steps)
    ]


@pytest.mark.parametrize("frames", [{}, {"image": b"jpeg"}, {"wrist": b"near", "front": b"far"}], ids=len)
def test_what_is_written_is_read_again(tmp_path: Path, frames: dict[str, bytes]) -> None:
    steps = [replace(step, frames=frames) for step in steps_to_write()]
    path = write_inference_log(tmp_path / "logs", steps, {"checkpoint": "a.ckpt", "seed": 3}, START)
    log = read_log(path)
    assert path.name == "inference_log_20260108_123456.json"
    assert log.generation == 3
    assert log.meta == {"start_time": "2026-01-08 12:34:56", "checkpoint": "a.ckpt", "seed": 3}
    np.testing.assert_array_equal(log.actions, np.stack([step.actions for step in steps]))
    np.testing.assert_array_equal(log.states, np.stack([step.state for step in steps]))
    assert [(step.number, step.timing, step.frames) for step in log.steps] == [
        (step.number, step.timing, step.frames) for step in steps
    ]
    assert log.cameras == tuple(frames)


def test_an_existing_log_is_never_replaced(tmp_path: Path) -> None:
    names = [write_inference_log(tmp_path, steps_to_write(n), {}, START).name for n in (1, 2, 3)]
    assert names == [f"inference_log_20260108_1234{second}.json" for second in (56, 57, 58)]
    assert [len(read_log(tmp_path / name).steps) for name in names] == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == names, "nothing temporary is left"


@pytest.mark.parametrize(
    ("steps", "meta", "message"),
    [
        ([], {}, "the run has no step"),
        ([LogStep(0, np.full(8, np.nan), np.zeros((8, 8)))], {}, "step 0 holds NaN or infinity"),
        ([LogStep(0, np.zeros(8), np.zeros((8, 8))), LogStep(1, np.zeros(7), np.zeros((8, 8)))], {}, "state of step 1"),
        ([LogStep(0, np.zeros(8), np.zeros((8, 8)))], {"bad": float("inf")}, "not plain finite JSON"),
        ([LogStep(0, np.zeros(8), np.zeros((8, 8)))], {"bad": Path()}, "not plain finite JSON"),
    ],
)
def test_refuses_to_write_what_is_not_true(
    tmp_path: Path, steps: list[LogStep], meta: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunLogError, match=message):
        write_inference_log(tmp_path, steps, meta, START)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunLogError, match="the log cannot be written"):
        write_inference_log(tmp_path / "file", steps_to_write(), {}, START)


def test_real_logs(shared_data: Path) -> None:
    expected = json.loads((shared_data / "real_logs" / "expected.json").read_text())
    for name, facts in expected.items():
        log = read_log(shared_data / "real_logs" / name)
        found = (log.generation, log.layout, len(log.steps), log.commands.shape[1])
        assert found == tuple(facts[key] for key in ("generation", "layout", "steps", "action_dim")), name
        assert sum(bool(step.frames) for step in log.steps) == facts["images"], name
        # Times of the oldest logs went through float32: 128 s apart, no period can be told from them.
        assert log.step_period is None or 0.5 < log.step_period < 0.9, name


def test_written_in_the_factory(tmp_path: Path) -> None:
    assert len(read_log(write_log(tmp_path / "log.json", COMMANDS, 3)).steps) == 4
