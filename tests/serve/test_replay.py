"""diffusion_policy.serve.replay: a run is recomputed to the last bit, and another policy is recognized."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from evaluation_factory import write_tiny_checkpoint
from serve_factory import ServerThread, observation_message, settings

from diffusion_policy.run_log.session_log import SessionLogError
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.replay import event_differences, read_steps, replay
from diffusion_policy.serve.settings import ServeSettings


def run_of(checkpoint: Path, folder: Path, *overrides: str) -> Path:
    """Four steps in two episodes, with frames that consecutive steps share."""
    chosen: ServeSettings = settings(
        folder, "guard.quaternion_tolerance=0.9", "guard.on_workspace=clip", f"ckpt={checkpoint}", *overrides
    )
    engine = PolicyEngine.open(checkpoint, chosen.engine)
    with ServerThread(engine, chosen) as server, server.client() as client:
        for step in range(3):
            assert client.ask(observation_message(step))["type"] == "action"
        client.ask({"type": "reset"})
        assert client.ask(observation_message(0))["type"] == "action"
    (run,) = folder.glob("run_*")
    return run


@pytest.mark.parametrize(
    "overrides", [["engine.steps=4"], ["engine.steps=3", "engine.scheduler=ddpm"], ["engine.warm_start=0.5"]]
)
def test_the_same_settings_give_the_same_bits(served_checkpoint: Path, tmp_path: Path, overrides: list[str]) -> None:
    run = run_of(served_checkpoint, tmp_path, *overrides)
    report = replay(run, served_checkpoint)
    assert report.same_settings
    assert report.same_machine
    assert (report.bit_equal, report.steps, report.largest) == (4, 4, 0.0)
    assert report.passed
    assert report.differences == ()


def test_other_steps_and_other_checkpoints_are_compared_and_not_judged(served_checkpoint: Path, tmp_path: Path) -> None:
    run = run_of(served_checkpoint, tmp_path, "engine.steps=4")
    fewer = replay(run, served_checkpoint, {"steps": 2})
    assert not fewer.same_settings
    assert fewer.passed
    assert fewer.largest > 0
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    moved = next(line for line in lines if line.get("step") == 2)
    moved["predicted"]["values"][moved["predicted"]["first"]][0] += 5.0
    (run / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    far = replay(run, served_checkpoint, {"steps": 2})
    assert far.furthest_step == 2
    assert far.furthest_mm > 3000
    other = write_tiny_checkpoint(tmp_path / "other.ckpt", seed=3)
    assert not replay(run, other).same_settings


def test_the_command_says_whether_the_log_is_reproduced(
    served_checkpoint: Path, tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(repository / "scripts" / "replay_log.py"))["main"]
    run = run_of(served_checkpoint, tmp_path, "engine.steps=2")
    arguments = [str(run), "--ckpt", str(served_checkpoint)]
    assert main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    assert "the log is reproduced" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["passed"] is True
    steps = run / "steps.jsonl"
    lines = [json.loads(line) for line in steps.read_text().splitlines()]
    lines[0]["predicted"]["values"][1][0] += 1e-6
    steps.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(arguments) == 1
    assert "NOT reproduced: not bit-equal on the same machine" in capsys.readouterr().out
    meta = json.loads((run / "meta.json").read_text())
    (run / "meta.json").write_text(json.dumps({**meta, "processor": "another, 64 threads"}))
    assert main(arguments) == 0, "elsewhere a tolerance holds"
    lines[0]["predicted"]["values"][1][0] += 0.01
    steps.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(arguments) == 1
    assert "NOT reproduced: beyond 1e-04" in capsys.readouterr().out
    assert main([str(tmp_path), "--ckpt", str(served_checkpoint)]) == 2


def test_where_decisions_differ_is_described_in_words() -> None:
    a, b = np.ones(12), np.ones(12)
    a[8:], b[5:] = 0, 0
    assert event_differences(a, b, range(40, 52)) == ["B closes 3 steps earlier, at step 45 (A at 48)"]
    assert event_differences(np.ones(12), b, range(12)) == ["B closes at step 5, where A does not"]
    assert event_differences(b, np.ones(12), range(12)) == ["B does not close where A does, at step 5"]


def test_steps_that_a_log_lacks_are_reported_and_counted(served_checkpoint: Path, tmp_path: Path) -> None:
    run = run_of(served_checkpoint, tmp_path, "engine.steps=2")
    steps = run / "steps.jsonl"
    lines = [json.loads(line) for line in steps.read_text().splitlines()]
    numbers = [line["step"] for line in lines if "action" in line]
    lost = numbers[2]
    steps.write_text("".join(json.dumps(line) + "\n" for line in lines if line.get("step") != lost))
    report = replay(run, served_checkpoint)
    assert report.differences[0] == f"steps {lost} are missing (1 of {len(numbers)}), and were not replayed"
    a, b = np.ones(6), np.ones(6)
    a[4:], b[3:] = 0, 0
    assert event_differences(a, b, [0, 1, 2, 3, 9, 10]) == ["B closes 6 steps earlier, at step 3 (A at 9)"]


def test_what_cannot_be_replayed_is_reported(tmp_path: Path) -> None:
    old = tmp_path / "inference_log_20260108_171739.json"
    old.write_text("{}")
    with pytest.raises(SessionLogError, match="holds no seeds"):
        read_steps(old)
    (tmp_path / "meta.json").write_text("{}")
    (tmp_path / "steps.jsonl").write_text('{"event": "reset"}\n')
    with pytest.raises(SessionLogError, match="no observation of this run was answered"):
        read_steps(tmp_path)
    (tmp_path / "steps.jsonl").write_text('{"step": 0, "action": {}}\n')
    with pytest.raises(SessionLogError, match="step 0 lacks what a replay needs"):
        read_steps(tmp_path)


def test_a_log_with_fewer_frames_than_the_policy_reads_is_refused(served_checkpoint: Path, tmp_path: Path) -> None:
    run = run_of(served_checkpoint, tmp_path, "engine.steps=2")
    steps = run / "steps.jsonl"
    lines = [json.loads(line) for line in steps.read_text().splitlines()]
    for line in (line for line in lines if "action" in line):
        for key in ("states", "images", "timestamps"):
            line["input"][key] = line["input"][key][-1:]
    steps.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SessionLogError, match="have 1 frames, this policy reads 2"):
        replay(run, served_checkpoint)
