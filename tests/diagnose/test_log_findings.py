"""Every trouble of a log, planted; plausible latencies; and unusable machines."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from log_factory import document, write_log
from report_factory import MACHINE, only, troubled

from diffusion_policy.diagnose.environment import environment_findings, look_at_environment
from diffusion_policy.diagnose.latency import latency_stages
from diffusion_policy.diagnose.log_evidence import LogEvidence, look_at_log
from diffusion_policy.diagnose.log_findings import log_findings, open_loop_findings
from diffusion_policy.model.cpu import kernels
from diffusion_policy.run_log import RunLog, read_log

GRASP = [1.0] * 20 + [0.02] * 15 + [0.97] * 10
CHATTER = [1.0, 0.0] * 30
ECHO = [1.0] * 4 + [0.0] * 4 + [1.0] * 4 + [0.0] * 4


@pytest.fixture
def good(tmp_path: Path) -> LogEvidence:
    return look_at_log(write_log(tmp_path / "good.json", GRASP, 3))


def test_a_sound_log_has_no_trouble(good: LogEvidence) -> None:
    assert {finding.severity for finding in log_findings(good)} == {"ok"}
    assert not good.offline


@pytest.mark.parametrize(
    ("commands", "options", "severity", "says"),
    [
        ([0.99] * 30, {}, "error", "never closes"),
        ([0.01] * 30, {}, "error", "never opens"),
        ([1.0] * 10 + [0.0] * 10, {"measured": [1.0] * 10 + [0.0] * 10}, "error", "pass-through"),
        ([0.98] * 10 + [0.0] * 10, {"measured": [1.0] * 10 + [0.0] * 10}, "error", "follows the measured gripper"),
        (ECHO, {"measured": [*ECHO[:4], 1.0, *ECHO[5:]]}, "note", "of its changes only repeat the measured gripper"),
        (CHATTER, {}, "warning", "chatters"),
        ([1.0] * 3, {}, "note", "too short"),
        ([1.0] * 20 + [0.28] * 5 + [0.72] * 9, {}, "note", "only 50% of the dead bands agree"),
    ],
    ids=[
        "never closes",
        "never opens",
        "pass-through",
        "follows",
        "mostly follows",
        "chatters",
        "too short",
        "dead band",
    ],
)
def test_gripper_trouble_is_found(
    tmp_path: Path, commands: list[float], options: dict[str, Any], severity: str, says: str
) -> None:
    finding = only(log_findings(look_at_log(write_log(tmp_path / "log.json", commands, **options))), "gripper-verdict")
    assert finding.severity == severity
    assert says in finding.evidence
    assert finding.remedy


def test_actions_that_are_not_n_by_8(tmp_path: Path) -> None:
    found = log_findings(look_at_log(write_log(tmp_path / "old.json", [0.05] * 20, 1, layout="rotvec")))
    assert only(found, "log-action").severity == "warning"
    assert "have 7 numbers" in only(found, "log-action").evidence


def test_a_log_without_a_step_is_only_too_short(tmp_path: Path) -> None:
    empty = log_findings(look_at_log(write_log(tmp_path / "empty.json", [])))
    assert [finding.code for finding in empty] == ["gripper-verdict"]


PLANTED: list[tuple[str, str, dict[str, Any], str]] = [
    ("log-near", "warning", {"command_distance_m": 0.3}, "300 mm from the measured position"),
    ("log-quaternions", "warning", {"quaternion_error": 0.2}, "0.200 away from 1"),
]


@pytest.mark.parametrize(("code", "severity", "changes", "says"), PLANTED, ids=[p[0] for p in PLANTED])
def test_planted_trouble_is_found(
    good: LogEvidence, code: str, severity: str, changes: dict[str, Any], says: str
) -> None:
    found = log_findings(replace(good, **changes))
    assert only(found, code).severity == severity
    assert says in only(found, code).evidence
    assert troubled(found) == [code]


def test_the_live_weights_were_run(good: LogEvidence) -> None:
    live = replace(good, log=replace(good.log, meta={"weights": "model"}))
    assert only(log_findings(live), "log-weights").severity == "note"
    averaged = replace(good, log=replace(good.log, meta={"weights": "ema_model"}))
    assert only(log_findings(averaged), "log-weights").severity == "ok"


def timed(tmp_path: Path, *timings: dict[str, float]) -> RunLog:
    log = document([1.0] * len(timings), 3)
    for step, timing in zip(log["steps"], timings, strict=True):
        step["timing"] = timing
    path = tmp_path / "timed.json"
    path.write_text(json.dumps(log))
    return read_log(path)


def test_stages_are_measured_on_one_clock_and_impossible_ones_left_out(tmp_path: Path) -> None:
    log = timed(
        tmp_path,
        {"infer_start": 10.0, "infer_end": 10.3, "transport_latency": -0.1},
        {"infer_start": 11.0, "infer_end": 11.4, "transport_latency": 1767864028.9},
        {"infer_start": 12.0, "infer_end": 12.5, "transport_latency": 0.02, "inference_latency": 9.0},
    )
    inference, transport = latency_stages(log)
    assert inference.name == "inference"
    np.testing.assert_allclose(inference.milliseconds, [300, 400, 500])
    assert inference.quantiles()[0] == pytest.approx(400)
    assert transport.name == "transport (two clocks)"
    np.testing.assert_allclose(transport.milliseconds, [20])
    assert transport.left_out == 2


def test_differences_in_milliseconds_and_of_the_own_server(tmp_path: Path) -> None:
    log = timed(
        tmp_path, {"inference_latency_ms": 300.0, "decode_ms": 4.0}, {"inference_latency": 0.2, "decode_ms": 6.0}
    )
    stages = {stage.name: stage.milliseconds.tolist() for stage in latency_stages(log)}
    assert stages == {"decode": [4.0, 6.0], "inference": [200.0, 300.0]}


def test_inference_that_is_too_slow(tmp_path: Path, good: LogEvidence) -> None:
    slow = timed(tmp_path, *({"inference_latency": 0.9} for _ in range(5)))
    finding = only(log_findings(replace(good, stages=latency_stages(slow))), "latency")
    assert finding.severity == "warning"
    assert "900 ms (median)" in finding.evidence


def test_open_loop_errors_beside_baselines() -> None:
    document = {
        "scores": {"policy": {"position_mm": 12.0, "rotation_deg": 2.0}},
        "episodes": [1, 2],
        "shortcomings": [],
    }
    (good,) = open_loop_findings(document)
    assert good.severity == "ok"
    lines = ["does not beat 'copy the measured gripper' in wrong at transitions: 0.5 against 0.4", "another"]
    (bad,) = open_loop_findings({**document, "shortcomings": lines})
    assert bad.severity == "error"
    assert re.search("copy the measured gripper.*, and 1 more", bad.evidence)


def test_a_sound_machine_has_no_trouble() -> None:
    assert {finding.severity for finding in environment_findings(MACHINE)} == {"ok"}


@pytest.mark.parametrize(
    ("code", "severity", "changes"),
    [
        ("packages", "error", {"unmet": ("zarr>=3.0",)}),
        ("gpu", "note", {"gpus": ()}),
        ("gpu", "warning", {"gpus": (("a GPU", 1 << 30),)}),
        ("kernels", "note", {"no_kernels": "they were not built"}),
        ("memory", "warning", {"memory": 1 << 30}),
        ("disk", "error", {"disk": 1 << 30}),
    ],
)
def test_a_machine_that_cannot_work(code: str, severity: str, changes: dict[str, Any]) -> None:
    finding = only(environment_findings(replace(MACHINE, **changes)), code)
    assert finding.severity == severity
    assert finding.remedy


def test_a_cpu_without_avx2_is_not_helped_by_a_compiler() -> None:
    finding = only(environment_findings(replace(MACHINE, no_kernels=kernels.NO_AVX2)), "kernels")
    assert "CPU" in finding.remedy
    assert "compiler" not in finding.remedy
    assert not finding.command


def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    machine = look_at_environment(tmp_path / "not" / "there")
    assert machine.versions["torch"]
    assert machine.disk > 0
    assert machine.cores >= 1
