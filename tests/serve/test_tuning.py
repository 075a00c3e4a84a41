"""diffusion_policy.serve.tuning: the cheapest sampler that is good enough."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.checks.seams import ServedChunk, measure_seam
from diffusion_policy.serve.tuning import Budget, Candidate, Measured, parse_candidate, propose


def row(steps: int, mm: float, ms: float, f1: float = 1.0) -> Measured:
    return Measured(Candidate("ddim", steps), mm, 0.5, f1, ms, ms * 1.2, None, None)


def test_the_fastest_within_the_budget_is_proposed() -> None:
    rows = [row(2, 9.0, 20), row(8, 5.5, 60), row(16, 5.1, 120), row(50, 5.0, 500)]
    assert propose(rows, Budget(1.0, 0.5, 0.6)) == Candidate("ddim", 8)
    assert propose(rows, Budget(0.2, 0.5, 0.6)) == Candidate("ddim", 16)
    assert propose(rows, Budget(5.0, 0.5, 0.6)) == Candidate("ddim", 2)
    assert propose(rows, Budget(0.05, 0.5, 0.1)) is None, "the only good one is too slow"


def test_gripper_events_come_first() -> None:
    assert propose([row(4, 5.0, 30, f1=0.5), row(16, 5.0, 90)], Budget()) == Candidate("ddim", 16)


def test_the_command_measures_recorded_episodes(
    served_checkpoint: Path, recorded_zarr: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(repository / "scripts" / "tune_inference.py"))["main"]
    arguments = [str(served_checkpoint), str(recorded_zarr), "--episodes", "0", "--stride", "2", "--hz", "0.1"]
    out = tmp_path / "tuning.json"
    assert main([*arguments, "--candidates", "ddim:2", "ddim:4:0.5", "--json", str(out)]) in (0, 1)
    assert "ddim-4, warm 0.5" in capsys.readouterr().out
    document = json.loads(out.read_text())
    found = document["measured"]
    assert (document["serve_settings"] is None) == (document["proposed"] is None)
    assert "closed_loop" not in document
    assert [entry["candidate"]["steps"] for entry in found] == [2, 4]
    assert all(np.isfinite([entry["position_mm"], entry["seam_mm"], entry["p95_ms"]]).all() for entry in found)
    assert main([*arguments, "--candidates", "ddim"]) == 2
    assert main([*arguments, "--candidates", "euler:4"]) == 2
    assert main([*arguments[:2], "--hz", "0"]) == 2
    assert "--hz is 0.0; expected more than 0" in capsys.readouterr().err
    assert main([*arguments, "--latency", "100"]) == 2
    assert "add --simulator YAML" in capsys.readouterr().err


def test_a_candidate_is_named_as_it_is_written() -> None:
    assert parse_candidate("ddim:8:0.5") == Candidate("ddim", 8, 0.5)
    assert parse_candidate("ddpm:100").name == "ddpm-100"
    with pytest.raises(WorkspaceError, match="expected SCHEDULER:STEPS"):
        parse_candidate("ddim:many")


def test_seams_compare_what_would_have_come_next_with_what_comes() -> None:
    poses = np.zeros((6, 8))
    poses[:, 0], poses[:, 3] = np.arange(6) / 100, 1.0
    served = ServedChunk(poses, first=1, timestamp=10.0)
    later = poses + [0.02, 0, 0, 0, 0, 0, 0, 0.5]  # noqa: RUF005 - arrays
    seam = served.seam(later, 10.2, hz=10)
    assert seam is not None
    assert seam.millimetres == pytest.approx(0.0), "two steps later the arm is two centimeters further"
    assert seam.gripper == pytest.approx(0.5)
    assert served.seam(later, 10.6, hz=10) is None, "the old chunk had ended"
    np.testing.assert_array_equal(served.remainder(10.2, hz=10), poses[2:])
    turned = measure_seam(np.array([0, 0, 0, 1, 0, 0, 0, 1.0]), np.array([0, 0, 0.001, -1, 0, 0, 0, 1.0]))
    assert (turned.millimetres, turned.degrees) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-6))
