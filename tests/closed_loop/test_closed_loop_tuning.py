"""diffusion_policy.closed_loop.tuning: candidates of the sampler by their success in the same scenes."""

import json
import runpy
import shlex
from pathlib import Path

import pytest
from evaluation_factory import write_dataset, write_tiny_checkpoint

from diffusion_policy.closed_loop.tuning import ClosedLoopTuning
from diffusion_policy.env_runner.document import ClosedLoop
from diffusion_policy.env_runner.results import SceneResult
from diffusion_policy.env_runner.tabletop_runner import SETTINGS
from diffusion_policy.serve.candidates import Candidate
from diffusion_policy.serve.settings import read_settings
from diffusion_policy.serve.tuning import Budget, Measured, Tuning


def measured(steps: int, mm: float, ms: float) -> Measured:
    return Measured(Candidate("ddim", steps), mm, 0.5, 1.0, ms, ms, None, None)


def ran(outcomes: str) -> ClosedLoop:
    """A run whose i-th scene was done where the i-th letter is "x"."""
    results = [SceneResult(i, i, letter == "x", 9) for i, letter in enumerate(outcomes)]
    return ClosedLoop({"latency_injected_ms": 30.0}, len(results), results)


def tuned(rows: list[tuple[Measured, str]], allowed_loss: float = 0.05) -> ClosedLoopTuning:
    tuning = Tuning(tuple(row for row, _ in rows), Budget(1.0, 0.5, 0.6), None)
    return ClosedLoopTuning(tuning, tuple(ran(outcomes) for _, outcomes in rows), allowed_loss)


FAST, MIDDLE, SLOW = measured(2, 5.5, 20), measured(8, 5.2, 60), measured(16, 5.0, 120)


@pytest.mark.parametrize(
    ("outcomes", "allowed", "proposed"),
    [
        (("x...", "xxx.", "xxxx"), 0.05, 16),
        (("x...", "xxx.", "xxxx"), 0.25, 8),
        (("xxxx", "xxx.", "xxxx"), 0.05, 2),
        (("....", "....", "...."), 0.05, 2),
        (("xxxx", "....", "...."), 0.0, 2),
    ],
)
def test_the_fastest_that_succeeds_as_often_is_proposed(
    outcomes: tuple[str, ...], allowed: float, proposed: int
) -> None:
    found = tuned(list(zip((FAST, MIDDLE, SLOW), outcomes, strict=True)), allowed)
    assert found.proposed == Candidate("ddim", proposed)
    assert f"proposed: ddim-{proposed}" in found.table().caption
    assert ("success chose nothing" in found.table().caption) == (outcomes[0] == "....")


def test_both_budgets_count() -> None:
    far = measured(1, 50.0, 5)
    found = tuned([(far, "xxxx"), (SLOW, "x...")])
    assert found.proposed is None
    assert "nothing fits both budgets" in found.table().caption
    assert tuned([(far, "xxxx"), (SLOW, "xxxx")]).proposed == SLOW.candidate


def test_too_few_scenes_are_reported() -> None:
    few = tuned([(FAST, "xxx."), (SLOW, "xxxx")], 0.3)
    assert few.proposed == FAST.candidate
    assert "do not rule out a loss of 75 points, more than the 30 allowed" in few.table().caption
    assert "do not rule out any loss" in tuned([(FAST, "."), (SLOW, "x")], 1.0 - 1e-12).table().caption
    assert "rule out" not in tuned([(FAST, "xxxx"), (SLOW, "xxxx")]).table().caption


def test_the_command_measures_success_and_prints_settings_to_paste(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(repository / "scripts" / "tune_inference.py"))["main"]
    checkpoint = write_tiny_checkpoint(tmp_path / "latest.ckpt")
    small = SETTINGS.read_text().replace("image_size: [320, 180]", "image_size: [64, 36]\n  max_steps: 8")
    (tmp_path / "small.yaml").write_text(small.replace("referee: physics", "referee: kinematic"))
    given = [
        str(checkpoint),
        str(write_dataset(tmp_path / "set.zarr")),
        "--candidates",
        "ddim:2",
        "ddim:1:0.5",
        "ddim:1:rtc",
    ]
    loop = ["--episodes", "0", "--stride", "2", "--hz", "0.1", "--simulator", str(tmp_path / "small.yaml")]
    out = tmp_path / "out.json"
    words = ["--scenes", "2", "--set", "guard.max_step_m=0.5", "--budget-mm", "1e9", "--budget-deg", "180"]
    assert main([*given, *loop, *words, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "closed loop, the same 2 scenes" in printed
    document = json.loads(out.read_text())
    runs = first, second, _ = document["closed_loop"]["candidates"]
    assert len({tuple(scene["seed"] for scene in run["scenes"]) for run in runs}) == 1
    assert [run["latency_injected_ms"] for run in runs] == [row["p50_ms"] for row in document["measured"]]
    assert [run["strategy"] for run in runs] == ["skip", "skip", "rtc"]
    assert (first["scheduler"], second["steps"], second["warm_start"]) == ("ddim", 1, 0.5)
    assert first["n_action_steps"] == 2
    assert first["against_best"]["neither"] == 2
    line = next(line for line in printed.splitlines() if "ckpt=" in line)
    engine = read_settings(None, [word for word in shlex.split(line) if "=" in word]).engine
    proposed = document["proposed"]
    continues = proposed.pop("continues")
    assert {"scheduler": engine.scheduler, "steps": engine.steps, "warm_start": engine.warm_start} == proposed
    assert f"--strategy {continues or 'skip'} --n-action-steps 2" in printed
    assert document["strategy"] == (continues or "skip")
    assert f"  steps: {engine.steps}" in printed.splitlines()
    for word, value, message in (
        ("--stride", "99", "the stride is 99; the policy predicts 7 steps"),
        ("--scenes", "0", "--scenes is 0"),
        ("--budget-points", "101", "expected 0 to 100"),
        ("--set", "guard.max_step=1", "guard.max_step"),
        ("--strategy", "hurry", "expected wait, skip"),
    ):
        assert main([*given, *loop, word, value]) == 2
        assert message in capsys.readouterr().err
