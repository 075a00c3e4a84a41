"""The whole life cycle on a CPU: recordings, dataset, 7-D training, growth, fine-tuning, inference, verdict.

Once on recordings that the tabletop makes, and once on recordings of a real robot and a checkpoint of the reference,
if those are available. Commands are called as users call them; only sizes are small.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import warm_process

REPOSITORY = Path(__file__).resolve().parents[1]

# The README's recipe takes the same way by default, and CI runs these too.
pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


def run(*words: object, expect: int | None = 0) -> str:
    """Run a command; returns what it printed. ``expect`` None allows status 0 or 1, as from a command that judges."""
    finished = warm_process.run(words, REPOSITORY)
    statuses = (0, 1) if expect is None else (expect,)
    assert finished.returncode in statuses, f"{finished.args}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout + finished.stderr


def metrics(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / "logs.json.txt").read_text().splitlines()]


def check_sums(ledger: dict[str, Any]) -> None:
    """Every key of the target is accounted for once."""
    for part in ("model", "ema_model"):
        counted = sum(ledger["counts"][part][action]["keys"] for action in ("copied", "grown", "recomputed", "fresh"))
        assert counted == ledger["target_totals"][part]["keys"] > 0


def test_made_recordings_to_verdict_and_rollout(tmp_path: Path) -> None:
    """The demo in its quick form: every step runs, and it reports that two updates taught nothing."""
    work = tmp_path / "demo"
    printed = run("scripts/demo.py", "--quick", "--workdir", work, expect=1)
    assert "Block in the tray: 0 of 1 scenes before, 0 of 1 after" in printed
    assert "157 tensors inherited" in printed
    check_sums(json.loads((work / "ledger.json").read_text()))
    first, *_, last = metrics(work / "finetuned")
    assert first["start"] == "pretrained"
    assert (first["inherited_tensors"], first["grown_tensors"], first["fresh_tensors"]) == (157, 9, 0)
    assert f"{first['val_loss_before_first_update']:.4f} before the first update" in printed
    assert last["global_step"] == 2
    assert metrics(work / "scratch")[0]["start"] == "scratch"
    (verdict,) = json.loads((work / "verdicts.json").read_text())
    assert (verdict["generation"], verdict["layout"], verdict["action_dim"]) == (3, "xyz_quat_gripper", 8)
    assert verdict["equals_measured_gripper"] is False
    assert (work / "rollouts" / "outcomes.png").stat().st_size > 10_000
    assert len(list((work / "rollouts").glob("*.mp4"))) == 1


def test_real_recordings_and_a_real_checkpoint(shared_data: Path, reference_checkpoint: Path, tmp_path: Path) -> None:
    dataset, grown, tuned = tmp_path / "real.zarr", tmp_path / "grown.ckpt", tmp_path / "tuned"
    recordings = shared_data / "real_trajectories"
    run("scripts/convert_cogact_to_zarr.py", "--input", recordings, "--output", dataset, "--resolution", 320, 180)
    run("scripts/finetune_from_7d_to_8d.py", "--old_ckpt", reference_checkpoint, "--new_ckpt", grown)
    check_sums(json.loads(grown.with_name("grown.ckpt.ledger.json").read_text()))
    # The sizes are those of the checkpoint; the rest makes two epochs take seconds.
    sizes = ("policy.n_layer=2", "policy.n_emb=64", "training.num_epochs=2", "training.max_train_steps=2")
    loaders = [
        f"{loader}.{setting}"
        for loader in ("dataloader", "val_dataloader")
        for setting in ("batch_size=2", "num_workers=0", "persistent_workers=false")
    ]
    run(
        *("train.py", "--config-name=train_cogact_robot", f"task.dataset_path={dataset}", f"pretrained.path={grown}"),
        *(f"hydra.run.dir={tuned}", "training.device=cpu", "training.max_val_steps=1", "sampler.steps=2"),
        *("sampler.max_episodes=1", "training.lr_warmup_steps=2", *sizes, *loaders),
    )
    first, *_, last = metrics(tuned)
    assert (first["start"], first["fresh_tensors"]) == ("pretrained", 0)
    assert (last["global_step"], last["epoch"]) == (4, 1)
    checkpoint, logs, verdicts = tuned / "checkpoints" / "latest.ckpt", tmp_path / "logs", tmp_path / "verdicts.json"
    everything = ("--episodes", "all", "--steps", 2, "--stride", 8)
    run("scripts/run_offline_inference.py", checkpoint, dataset, "--output", logs, *everything)
    run("scripts/validate_gripper.py", logs, "--json", verdicts, expect=None)
    judged = json.loads(verdicts.read_text())
    assert len(judged) == 6
    assert {(log["generation"], log["layout"]) for log in judged} == {(3, "xyz_quat_gripper")}
    assert not any(log["equals_measured_gripper"] for log in judged)
