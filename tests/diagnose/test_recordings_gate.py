"""The advice that rests on the calibration: its numbers are the committed ones, and it is given where it applies."""

import json
from pathlib import Path

import pytest
from report_factory import metrics, only, write_run

from diffusion_policy.diagnose import recordings_gate
from diffusion_policy.diagnose.log_findings import open_loop_findings
from diffusion_policy.diagnose.recordings_gate import (
    LARGEST_POSITION_MM,
    POSITION_ERROR,
    Mispredicted,
    position_finding,
)
from diffusion_policy.diagnose.training_findings import run_findings
from diffusion_policy.run_folder.reading import open_run

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "amd_epyc_avx512_bf16_2_cores"


def test_thresholds_and_odds_are_those_of_the_committed_calibration() -> None:
    found = json.loads((RESULTS / "verdict_calibration.json").read_text())
    position, verdict = found["figures"]["position_mm"], found["verdicts"]["all logs open and close"]
    assert round(position["threshold"], 1) == LARGEST_POSITION_MM
    findings = {
        "OPEN_AND_CLOSE_BUT_FAIL": verdict["yes_that_fail"],
        "NEAR_BUT_FAIL": position["left_out"]["yes_that_fail"],
        "FAR_BUT_SUCCEED": position["left_out"]["no_that_succeed"],
    }
    for name, share in findings.items():
        assert getattr(recordings_gate, name) == Mispredicted(share["count"], share["of"])
    assert f"{found['policies']} policies" in (RESULTS.parents[2] / "docs" / "evaluation.md").read_text()


@pytest.mark.parametrize(("error", "severity"), [(0.0, "ok"), (LARGEST_POSITION_MM, "ok"), (80.0, "note")])
def test_positions_are_near_enough_or_not(error: float, severity: str) -> None:
    finding = position_finding(error, "run", "look")
    assert (finding.severity, finding.command) == (severity, "look" if severity == "note" else "")
    assert f"{error:.3g} mm" in finding.evidence
    assert "in the simulator" in finding.evidence


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"val_position_error_mm": 80.0}, ["note"]),
        ({"val_position_error_mm": 80.0, "test_success": 0.9}, []),
        ({"val_gripper_events_recorded": None}, []),
        ({"val_position_error_mm": None}, []),
    ],
)
def test_a_run_that_was_not_rolled_out_is_judged_by_its_positions(
    tmp_path: Path, changes: dict[str, float | None], expected: list[str]
) -> None:
    lines = [{**line, **{k: v for k, v in changes.items() if "val_loss" in line}} for line in metrics()]
    found = [f for f in run_findings(open_run(write_run(tmp_path / "run", lines))) if f.code == POSITION_ERROR]
    assert [finding.severity for finding in found] == expected
    assert all("evaluate_closed_loop" in finding.command for finding in found)


def test_open_loop_errors_are_judged_where_there_is_a_gripper() -> None:
    policy = {"position_mm": 80.0, "rotation_deg": 2.0, "gripper_at_transitions": 0.1}
    document = {"scores": {"policy": policy}, "episodes": [1], "shortcomings": []}
    assert only(open_loop_findings(document, "a.ckpt"), POSITION_ERROR).severity == "note"
    policy["gripper_at_transitions"] = None  # as for a pose policy
    assert [finding.code for finding in open_loop_findings(document)] == ["beats-baselines"]
