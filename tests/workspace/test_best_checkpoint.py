"""best.ckpt holds the best measurement of the run, whenever it was made, and records by which figures it was chosen."""

import pytest
import tiny_run

from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.workspace.checkpointing import Ranking
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

# Measured after every epoch; a checkpoint is due only after the first and the last one.
SETTINGS = (
    "training.num_epochs=5",
    "training.checkpoint_every=50",
    "training.sample_every=1",
    "training.val_every=1",
    "training.max_train_steps=2",
    "dataloader.batch_size=3",
    "checkpoint.topk.k=1",
)
RANKING = Ranking(("val_gripper_f1", "val_position_error_mm", "val_loss"), ("max", "min", "min"))


class StoppedError(Exception):
    """Stands for a kill."""


def workspace(dataset, folder, *overrides, ends_at=None, f1=(0.2, 0.4, 0.8, 0.6, 0.1)):
    """A run with a given F1 after each epoch; it ends with an exception in the middle of epoch `ends_at`."""

    class Measured(TrainDiffusionTransformerHybridWorkspace):
        def _prepare(self, processes, stack):
            super()._prepare(processes, stack)
            after_epoch = self._evaluator.after_epoch

            def measured(progress, *rest):
                found = after_epoch(progress, *rest)
                value = f1[progress.epoch]
                return {key: v for key, v in found.items() if key != "val_gripper_f1"} | (
                    {} if value is None else {"val_gripper_f1": value}
                )

            self._evaluator.after_epoch = measured

        def _write_line(self, line):
            super()._write_line(line)
            if ends_at is not None and line["epoch"] == ends_at and "val_loss" not in line:
                raise StoppedError

    return Measured(tiny_run.settings(dataset, *SETTINGS, *overrides), folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr", (13, 12))


@pytest.fixture(scope="module")
def straight(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    workspace(dataset, folder).run()
    return folder


def best_line(folder):
    lines = [line for line in read_metrics(folder / "logs.json.txt") if "val_loss" in line]
    return max(lines, key=RANKING.score)


def test_a_measurement_between_two_checkpoints_becomes_the_best(straight):
    found, line = read_checkpoint(straight / "checkpoints" / "best.ckpt"), best_line(straight)
    assert (line["epoch"], line["val_gripper_f1"]) == (2, 0.8)
    assert found.pickles["global_step"] == line["global_step"]
    measured = found.provenance["measured"]
    assert measured["figures"]["val_gripper_f1"] == 0.8
    assert measured["figures"]["val_position_error_mm"] == line["val_position_error_mm"]
    asked = {key: measured["with"][key] for key in ("scheduler", "steps", "tolerance_s", "weights")}
    assert asked == {"scheduler": "ddim", "steps": 2, "tolerance_s": 1.0, "weights": "ema_model"}
    ranking = read_checkpoint(straight / "checkpoints" / "latest.ckpt").run_state["ranking"]
    assert (ranking["best_global_step"], ranking["best_metrics"]["val_gripper_f1"]) == (line["global_step"], 0.8)
    assert ranking["best_measured_with"] == measured["with"]


@pytest.mark.parametrize(
    "ends_at", [1, pytest.param(3, marks=pytest.mark.exhaustive)], ids=lambda epoch: f"in epoch {epoch}"
)
def test_a_killed_and_resumed_run_has_the_same_best(dataset, straight, tmp_path, ends_at):
    with pytest.raises(StoppedError):
        workspace(dataset, tmp_path, ends_at=ends_at).run()
    workspace(dataset, tmp_path).run()
    for name in ("best.ckpt", "latest.ckpt"):
        ours, theirs = (read_checkpoint(folder / "checkpoints" / name) for folder in (tmp_path, straight))
        assert ours.run_state["ranking"] == theirs.run_state["ranking"]
        assert ours.provenance["measured"] == theirs.provenance["measured"]
        weights = zip(ours.state_dict("model").values(), theirs.state_dict("model").values(), strict=True)
        assert all((a == b).all() for a, b in weights)
    assert best_line(tmp_path) == {
        **best_line(straight),
        "samples_per_second": best_line(tmp_path)["samples_per_second"],
    }


def test_an_undefined_f1_is_passed_over_and_the_next_figure_decides(dataset, tmp_path):
    workspace(dataset, tmp_path, "training.num_epochs=3", f1=(None, None, None)).run()
    line = best_line(tmp_path)
    best = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert "val_gripper_f1" not in best.provenance["measured"]["figures"]
    positions = [m["val_position_error_mm"] for m in read_metrics(tmp_path / "logs.json.txt") if "val_loss" in m]
    assert line["val_position_error_mm"] == min(positions)
    assert best.pickles["global_step"] == line["global_step"]


def test_an_epoch_without_an_update_has_no_loss(dataset, tmp_path):
    """If every update was skipped, a loss of 0 would be the best of all."""

    class Skipping(TrainDiffusionTransformerHybridWorkspace):
        def _count(self, metrics):
            if self.progress.epoch == 0:
                return {"global_step": metrics.result.global_step, "epoch": 0, "skipped": True, "lr": 0.0}
            return super()._count(metrics)

    Skipping(tiny_run.settings(dataset, *SETTINGS, "training.num_epochs=2", "training.sample_every=0"), tmp_path).run()
    lines = [line for line in read_metrics(tmp_path / "logs.json.txt") if "val_loss" in line]
    assert lines[0]["train_loss"] is None
    assert lines[1]["train_loss"] > 0
    kept = [path.name for path in (tmp_path / "checkpoints").glob("epoch=*")]
    assert len(kept) == 1
    assert kept[0].startswith("epoch=0001")
