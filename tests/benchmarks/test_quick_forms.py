"""Benchmarks run in their smallest form, and report what they leave out."""

import json
from pathlib import Path

import chunk_strategies
import gpu
import numpy as np
import pytest
import vpt_forward
import vpt_study

from diffusion_policy.model.vpt.network import VPTSettings


@pytest.mark.exhaustive  # trains the policy at its full size
def test_the_gpu_benchmark_s_dry_run_measures_every_part(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--dry-run", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["training"]) == {name for name in gpu.TRAINING if "compiled" not in name}
    assert all(row["samples_per_s"] > 0 for row in found["training"].values())
    assert found["serving"]["float32, continuing"]["new frames"]["total"][0] > 0
    assert all(np.isfinite(row["val_loss"]) for row in found["learning"].values())
    assert found["left_out"] == []


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 2
    assert "--dry-run tries all parts" in capsys.readouterr().err


def test_without_time_variants_are_left_out_by_name(tmp_path: Path) -> None:
    call = gpu.Call(gpu.argparse.Namespace(device="cpu", dry_run=False, minutes=0.0, json=None), tmp_path)
    call.run("serving", "float32", dict)
    assert call.found["left_out"] == ["serving: float32"]


def row(cell: str, scene: int, success: bool, jerk: float = 1.0) -> dict[str, object]:
    figures = {"steps": 50, "jerk": jerk, "seam_mm": 2.0, "seam_deg": 1.0, "idle": 0.1}
    return {"cell": cell, "scene": scene, "success": success, **figures}


def test_cells_are_compared_scene_by_scene() -> None:
    rows = [row("skip, 0 ms", scene, success=True) for scene in range(8)]
    rows += [row("skip, 400 ms", scene, success=scene < 2, jerk=3.0) for scene in range(8)]
    found = chunk_strategies.summary(rows)["skip, 400 ms"]
    assert (found["success"], found["scenes"]) == (2, 8)
    against = found["against_no_latency"]
    assert (against["lost"], against["gained"]) == (6, 0)
    assert against["p"] < 0.05
    assert against["jerk_difference"] == pytest.approx(2.0)


def test_an_interrupted_study_continues_and_another_s_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    assert chunk_strategies.known(path, {"checkpoint": "a"}) == []
    with path.open("a") as file:
        file.write(json.dumps(row("skip, 0 ms", 0, success=True)) + "\n")
    assert [found["scene"] for found in chunk_strategies.known(path, {"checkpoint": "a"})] == [0]
    with pytest.raises(chunk_strategies.WorkspaceError, match="another study"):
        chunk_strategies.known(path, {"checkpoint": "b"})


def test_jerk_of_a_cubic_is_its_third_derivative() -> None:
    times = np.arange(20) / 10
    path = [np.array([0.1 * t**3, 0.0, 0.0]) for t in times]
    assert chunk_strategies.jerk(path, 10.0) == pytest.approx(0.6)


def test_vpt_written_out_answers_as_the_policy() -> None:
    tiny = VPTSettings(
        hidsize=16, impala_width=1, impala_chans=(2, 2, 2), n_recurrence_layers=2, attention_heads=2,
        attention_memory_size=16, timesteps=8, img_shape=(16, 16, 3),
    )  # fmt: skip
    rows, furthest = vpt_forward.measure(tiny, rounds=2)
    assert furthest < 1e-4
    assert rows["plain"]["cpu_against_plain"] == 1


def test_the_study_of_vpt_trains_and_plays_every_arm_and_seed_in_the_same_way(tmp_path: Path) -> None:
    steps = vpt_study.steps_of(tmp_path, vpt_study.ARMS, 2, quick=False)
    played = [step.words for step in steps if step.script == "evaluate_closed_loop"]
    assert len(played) == 1 + 2 * (len(vpt_study.ARMS) - 1)
    assert len({words[2 : words.index("--json")] for words in played}) == 1, "the same episodes"
    trained = [step.words for step in steps if step.script == "train"]
    assert len({words[-1] for words in trained}) == len(trained), "a run folder each"
    clones = [words for words in trained if "--config-name=train_vpt_bc" in words]
    assert all(f"training.num_epochs={vpt_study.EPOCHS}" in words for words in clones), "as many updates"


@pytest.mark.exhaustive  # a dozen commands, each in its own process
def test_the_study_of_vpt_runs_through(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    assert vpt_study.main([str(tmp_path / "work"), "--quick", "--json", str(out)]) == 0
    found = json.loads(out.read_text())["arms"]
    assert set(found) == set(vpt_study.ARMS)
    assert all(entry["of"] == 2 for entry in found.values())
    assert len(found["scratch"]["against_cloned"]) == 1
