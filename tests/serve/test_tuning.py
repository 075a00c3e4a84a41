"""diffusion_policy.serve.tuning: the cheapest sampler that is good enough."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_events import EventScore
from diffusion_policy.serve import tuning
from diffusion_policy.serve.candidates import DEFAULT_CANDIDATES, Candidate, parse_candidate
from diffusion_policy.serve.checks.seams import ServedChunk, measure_seam
from diffusion_policy.serve.engine import Inference
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.transport.protocol import MessageForm, Observation
from diffusion_policy.serve.tuning import Budget, Measured, measure, propose, tune
from diffusion_policy.spec import POSE_GRIPPER, ActionLayout


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
    candidates = ["ddim:2", "ddim:4:0.5", "ddim:3:rtc", "ddim:5:warm_start"]
    assert main([*arguments, "--candidates", *candidates, "--json", str(out)]) in (0, 1)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("ddim-4, warm 0.5", "ddim-3, rtc", "ddim-5, warm_start"))
    document = json.loads(out.read_text())
    found = document["measured"]
    assert (document["serve_settings"] is None) == (document["proposed"] is None) == (document["strategy"] is None)
    assert "closed_loop" not in document
    assert [entry["candidate"]["steps"] for entry in found] == [2, 4, 3, 5]
    assert document["delay_steps"] == 1
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
    assert parse_candidate("ddim:8:rtc") == Candidate("ddim", 8, continues="rtc")
    for word in ("ddim:many", "ddim:8:hurry", "ddim:8:0.5:rtc", "ddim:8:rtc:rtc"):
        with pytest.raises(WorkspaceError, match=r"expected SCHEDULER:STEPS\[:WARM\|:rtc"):
            parse_candidate(word)


class Counting:
    """An engine whose answer to request n has n in every number of its four steps; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Observation] = []

    def infer(self, observation: Observation, seed: int, remainder: object, stages: object) -> Inference:
        self.asked.append(observation)
        actions = np.full((4, 8), float(len(self.asked)))
        return Inference(actions, actions, 0, 0)


@pytest.mark.parametrize("mode", [None, "rtc", "warm_start"])
def test_until_an_answer_takes_over_the_chunk_before_is_executed(mode: str | None) -> None:
    wire = SimpleNamespace(layout=ActionLayout.of(POSE_GRIPPER))
    form = MessageForm(1, wire.layout)
    executed: list[NDArray[np.float64]] = []

    def score_events(number: int, chunks: NDArray[np.float64], tolerance_s: float) -> EventScore:
        executed.append(chunks[:, :, 0])
        return EventScore((), (), (), 0, 0.1)

    def observations(steps: NDArray[np.int64]) -> list[Observation]:
        frames = [np.zeros((4, 4, 3), dtype=np.uint8)]
        return [form.observation(frames, np.eye(8)[3:4], np.array([step / 10])) for step in steps.tolist()]

    requests = SimpleNamespace(
        numbers=(0,), episodes=[np.arange(0, 9, 3)], stride=3, wire=wire, observations=observations,
        recorded=lambda steps: (np.ones((3, 4, 8)), np.ones((3, 4), dtype=bool)), score_events=score_events,
    )  # fmt: skip
    engine, candidate = Counting(), Candidate("ddim", 2, continues=mode)  # type: ignore[arg-type]
    row = measure(engine, requests, candidate, 10.0, delay_steps=2)  # type: ignore[arg-type]
    # One step of a chunk of four is left after three, so the second step of delay has none of the chunk before.
    assert executed[0].tolist() == [[1, 1, 1, 1], [1, 2, 2, 2], [2, 3, 3, 3]]
    assert row.seam_mm is None, "the chunk before has ended when the answer takes over"
    first, *others = [one.continuation for one in engine.asked]
    assert first is None
    for number, one in enumerate(others, start=1):
        assert (one is None) == (mode is None)
        if one is not None:
            assert (one.mode, one.committed, one.actions.tolist()) == (mode, 1, [[float(number)] * 8])


def test_what_a_policy_lacks_is_refused_if_named_and_reported_if_a_default(
    served_checkpoint: Path, recorded_zarr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "DEFAULT_CANDIDATES", ("ddim:1", "ddim:1:rtc", "ddim:1:warm_start"))
    given: dict[str, Any] = {"budget": Budget(), "settings": EngineSettings(), "episodes": [0], "stride": 4}
    found = tune(served_checkpoint, recorded_zarr, None, **given)
    assert [row.candidate.name for row in found.measured] == ["ddim-1"]
    assert [reason.partition(":")[0] for reason in found.left_out] == ["ddim-1, rtc", "ddim-1, warm_start"]
    assert "left out: ddim-1, rtc: of an answer's 4 steps none remains" in found.table().caption
    with pytest.raises(WorkspaceError, match="candidate ddim-1, rtc: of an answer's 4 steps"):
        tune(served_checkpoint, recorded_zarr, [Candidate("ddim", 1, continues="rtc")], **given)
    for name, value in (("stride", 0), ("delay_steps", -1), ("candidates", [])):
        with pytest.raises(WorkspaceError, match=r"expected [01] or more"):
            tune(served_checkpoint, recorded_zarr, **{"candidates": None, **given, name: value})
    with pytest.raises(WorkspaceError, match=r"the stride is 99; the policy predicts [0-9]+ steps from now on"):
        tune(served_checkpoint, recorded_zarr, None, **{**given, "stride": 99})
    with pytest.raises(WorkspaceError, match="the delay is 9 steps; expected at most the "):
        tune(served_checkpoint, recorded_zarr, None, **{**given, "delay_steps": 9})
    assert all(parse_candidate(word) for word in DEFAULT_CANDIDATES)


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
