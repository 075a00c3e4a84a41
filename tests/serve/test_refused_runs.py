"""A run in which every answer was refused is reported as such by every reader."""

import json
import logging
import runpy
from pathlib import Path

import numpy as np
import pytest
from serve_factory import FakeEngine, OldClient, ServerThread, observation_message, settings

from diffusion_policy.diagnose.log_evidence import look_at_log
from diffusion_policy.diagnose.log_findings import log_findings
from diffusion_policy.evaluate.gripper import judge_file
from diffusion_policy.run_log import RunLogError, read_log
from diffusion_policy.run_log.exports import to_inference_log, to_rerun, to_vlalab
from diffusion_policy.run_log.session_log import SessionLogError
from diffusion_policy.run_log.to_trajectories import convert_logs
from diffusion_policy.serve.replay import read_steps

NO_MOTION = np.full((10, 8), np.nan)
WHY = {
    "refused": {},
    "bad_image": {"images": ["", ""]},
    "bad_state": {"poses": [[0.5, 0, 0.3, 2, 0, 0, 0]] * 2},
    "stale": {"timestamps": [-5.0, -4.9]},
    "wrong_frames": {"poses": [[0.5, 0, 0.3, 1, 0, 0, 0]] * 3},
    "malformed": {"grippers": "open"},
}


def ask(client: OldClient, count: int, code: str) -> None:
    for step in range(10, 10 + count):
        assert client.ask(observation_message(step, **WHY[code]))["code"] == code


def refused_run(folder: Path, code: str, count: int = 6, *, answers: int = 0) -> Path:
    """A run with this many errors of one code, preceded by this many answers (at least one if it is "stale")."""
    chunk = iter([None] * answers + [NO_MOTION] * 100)
    engine = FakeEngine(lambda observation: next(chunk))
    with ServerThread(engine, settings(folder)) as server, server.client() as client:
        for step in range(answers):
            assert client.ask(observation_message(step))["type"] == "action"
        ask(client, count, code)
    (run,) = folder.glob("run_*")
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return refused_run(tmp_path / "runs", "refused")


@pytest.mark.parametrize("code", [code for code in WHY if code != "stale"])
def test_the_reader_counts_errors_by_code(code: str, tmp_path: Path) -> None:
    log = read_log(refused_run(tmp_path, code))
    assert log.errors == {code: 6}
    assert log.is_refused
    assert log.why_empty == (
        f"no message was answered with an action; 6 of 6 messages got an error and no action (6 {code})"
    )


@pytest.mark.parametrize("code", WHY)
def test_errors_beside_answers_are_an_oddity_of_the_log(code: str, tmp_path: Path) -> None:
    log = read_log(refused_run(tmp_path, code, 3, answers=4))
    assert not log.is_refused
    assert log.oddities == (f"3 of 7 messages got an error and no action (3 {code})",)
    (finding,) = (found for found in log_findings(look_at_log(log.path)) if found.code == "log-answered")
    assert finding.severity == "warning"
    assert f"most were {code}" in finding.remedy


def test_errors_that_were_not_all_logged_are_counted_all_the_same(tmp_path: Path) -> None:
    log = read_log(refused_run(tmp_path, "refused", 40))
    assert log.errors == {"refused": 32}, "the 20 first, and the 32nd, which says its number"
    assert len((log.path / "steps.jsonl").read_text().splitlines()) == 21


def test_what_newer_observations_superseded_is_not_odd(tmp_path: Path) -> None:
    run = refused_run(tmp_path, "refused", 1, answers=4)
    text = (run / "steps.jsonl").read_text()
    (run / "steps.jsonl").write_text(text.replace('"code": "refused"', '"code": "superseded"'))
    log = read_log(run)
    assert log.errors == {"superseded": 1}
    assert log.oddities == ()


@pytest.mark.parametrize("line", ['{"event": "error", "code": 3}', "[1]", '{"event": "error", "in_a_row": "x"}'])
def test_a_hostile_line_is_not_counted(line: str, run: Path) -> None:
    with (run / "steps.jsonl").open("a") as file:
        file.write(line + "\n")
    assert read_log(run).errors == {"refused": 6}


def test_the_validator_says_it(run: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = judge_file(run)
    assert report.verdict == "every answer refused"
    assert "no message was answered with an action; 6 of 6 messages" in report.reason
    assert report.to_json()["errors"] == {"refused": 6}
    main = runpy.run_path(str(repository / "scripts" / "validate_gripper.py"))["main"]
    assert main([str(run), "--json", str(run / "verdicts.json")]) == 1
    assert "every answer refused" in " ".join(capsys.readouterr().out.split())
    (entry,) = json.loads((run / "verdicts.json").read_text())
    assert entry["verdict"] == "every answer refused"


def test_the_doctor_says_it_and_nothing_else_of_the_log(run: Path) -> None:
    findings = log_findings(look_at_log(run))
    (trouble,) = (finding for finding in findings if finding.severity != "ok")
    assert (trouble.code, trouble.severity) == ("log-answered", "error")
    assert "6 of 6 messages got an error" in trouble.evidence


def test_exports_and_replay_refuse_it_by_its_reason(run: Path, tmp_path: Path) -> None:
    pattern = r"(nothing to export|with an action): no message was answered with an action; 6 of 6 .*\(6 refused\)"
    with pytest.raises(RunLogError, match=pattern):
        to_inference_log(run, tmp_path / "out")
    with pytest.raises(SessionLogError, match=pattern):
        to_vlalab(run, tmp_path / "out")
    with pytest.raises(SessionLogError, match=pattern):
        read_steps(run)
    assert not (tmp_path / "out").exists()
    pytest.importorskip("rerun", reason="the extra 'rerun' is not installed")
    with pytest.raises(SessionLogError, match=pattern):
        to_rerun(run, tmp_path / "out.rrd")


def test_the_way_back_to_data_refuses_it_where_nothing_else_is_there(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with pytest.raises(RunLogError, match=r"no episode was written:\n.*6 of 6 messages got an error"):
        convert_logs([run], tmp_path / "data")
    assert not (tmp_path / "data").exists()
