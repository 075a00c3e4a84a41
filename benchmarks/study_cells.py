"""One training of a study, and its checkpoints' results on recordings and in closed loop; each result is a JSON file.

Results that have a file are not computed again, so an interrupted study continues where it was.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from study_data import TAMPERINGS, dataset_of, tamper  # type: ignore[import-not-found]
from study_plan import Cell, Plan, StudyError  # type: ignore[import-not-found]

from diffusion_policy.adapt.pose_to_gripper import grow_7d_to_8d
from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.closed_loop.evaluation import ClosedLoop, Evaluation, evaluate
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.evaluate.gripper import judge
from diffusion_policy.evaluate.open_loop import POLICY
from diffusion_policy.evaluate.open_loop_report import EpisodeOpenLoop, OpenLoopReport, evaluate_open_loop
from diffusion_policy.installation import CONFIG
from diffusion_policy.run_log import LogStep, read_log, write_inference_log
from diffusion_policy.storage import file_sha256, write_json
from diffusion_policy.training_config import compose_training
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

NAME = "train_cogact_robot"
CURVES = ("train_loss", "val_loss", "val_position_error_mm", "val_gripper_f1")
BEFORE = "val_loss_before_first_update"
AFTER = "update={global_step:05d}.ckpt"


class Runner:
    """Runs the cells of a plan in a folder.

    Args:
        plan: the study's plan.
        folder: folder for data, runs and results.
    """

    def __init__(self, plan: Plan, folder: Path):
        self.plan, self.folder = plan, folder

    # ---- training ----

    def trained(self, cell: Cell) -> Path:
        """Returns the run folder of a cell, training it first if needed. `training.json` in it holds its curves."""
        run: Path = self.folder / "runs" / cell.name
        if not (run / "training.json").is_file():
            shutil.rmtree(run, ignore_errors=True)
            write_json(run / "training.json", self._train(self.config(cell), run))
        return run

    def config(self, cell: Cell) -> DictConfig:
        """Returns the training's config."""
        plan, arm = self.plan, cell.arm
        episodes = max(plan.demonstrations) + plan.held_out
        where = [
            f"task.dataset_path={self.dataset(cell)}", f"task.dataset.val_ratio={plan.held_out / episodes}",
            f"task.dataset.max_train_episodes={cell.demonstrations}", f"training.seed={cell.seed}",
        ]  # fmt: skip
        if arm.start != "scratch":
            where.append(f"pretrained.path={self._adapted(cell)}")
        cfg = compose_training(NAME, [*arm.overrides, *plan.overrides, *where, *self._rhythm(plan.updates)])
        for key, value in arm.set.items():
            OmegaConf.update(cfg, key, value, force_add=False)
        return cfg

    def _rhythm(self, updates: int) -> list[str]:
        """Returns settings that make an "epoch" the updates between two measurements, whatever the demonstrations."""
        plan = self.plan
        return [
            f"training.max_train_steps={plan.look_every}", f"training.num_epochs={updates // plan.look_every}",
            "training.val_every=1", "training.sample_every=2", "training.checkpoint_every=1",
            f"training.device={plan.device}", f"training.threads={plan.threads or 'null'}", "checkpoint.topk.k=1000",
            "checkpoint.topk.monitor_key=global_step", "checkpoint.topk.mode=max",
            f"checkpoint.topk.format_str='{AFTER}'", f"sampler.max_episodes={plan.held_out}",
        ]  # fmt: skip

    def dataset(self, cell: Cell) -> Path:
        """Its demonstrations."""
        episodes = max(self.plan.demonstrations) + self.plan.held_out
        found: Path = dataset_of(self.folder / "data", cell.seed, episodes, cell.arm.labels)
        return found

    def _adapted(self, cell: Cell) -> Path:
        source = cell.arm.source or self.plan.source
        made = self.folder / "adapted" / f"{cell.arm.start}_{file_sha256(source)[:12]}.ckpt"
        if not made.is_file():
            made.parent.mkdir(parents=True, exist_ok=True)
            grow_7d_to_8d(source, made, cell.arm.start)
        return made

    def _train(self, cfg: DictConfig, run: Path) -> dict[str, Any]:
        begun, core_begun = time.monotonic(), time.process_time()
        summary = TrainDiffusionTransformerHybridWorkspace(cfg, run).run()
        if summary is None or summary.interrupted is not None:
            raise KeyboardInterrupt
        lines = [line for line in read_metrics(run / "logs.json.txt") if "val_loss" in line or BEFORE in line]
        curves = [{name: line[name] for name in ("global_step", BEFORE, *CURVES) if name in line} for line in lines]
        data = (read_checkpoint(run / "checkpoints" / "latest.ckpt").run_state or {})["data"]
        if data["batches"] < cfg.training.max_train_steps:
            raise StudyError(
                f"{run.name}: an epoch has {data['batches']} updates; look_every is {cfg.training.max_train_steps}, "
                "expected at most that of the smallest number of demonstrations"
            )
        return {
            "seconds": round(time.monotonic() - begun, 2),
            "core_seconds": round(time.process_time() - core_begun, 2),
            "updates_an_epoch": -(-data["n_windows"] // data["batch_size"]),
            "curves": curves,
        }

    def source_loss(self, seed: int) -> float:
        """Returns the held-out loss of the 7-D source on the poses of a seed's demonstrations."""
        plan, kept = self.plan, self.folder / "runs" / f"source-seed{seed}"
        if not (kept / "training.json").is_file():
            shutil.rmtree(kept, ignore_errors=True)
            cell = next(cell for cell in plan.cells() if cell.seed == seed and cell.arm.labels == "recorded")
            episodes = max(plan.demonstrations) + plan.held_out
            overrides = ["experiment=demo_finetune", "observation_dropout=none", "task=cogact_robot_7d"]
            where = [
                f"task.dataset_path={self.dataset(cell)}", f"task.dataset.val_ratio={plan.held_out / episodes}",
                f"pretrained.path={plan.source}",
            ]  # fmt: skip
            rhythm = [*self._rhythm(plan.look_every), "training.max_train_steps=1"]
            cfg = compose_training(NAME, [*overrides, *plan.overrides, *where, *rhythm])
            write_json(kept / "training.json", self._train(cfg, kept))
            shutil.rmtree(kept / "checkpoints")
        return float(read_metrics(kept / "logs.json.txt")[0][BEFORE])

    # ---- judging ----

    def judged(self, cell: Cell) -> None:
        """Judges the cell's checkpoints on recordings and in scenes; those of earlier updates are then removed."""
        plan = self.plan
        for update in plan.judged_at:
            result = self.result(cell, update)
            if not result.is_file():
                checkpoint = self.trained(cell) / "checkpoints" / AFTER.format(global_step=update)
                self._judge(cell, checkpoint, result, update)
        last = AFTER.format(global_step=plan.updates)
        if cell.arm.name in plan.tampered_from and cell.demonstrations == max(plan.demonstrations):
            for how in TAMPERINGS:
                result = self.result(cell, plan.updates, how)
                if not result.is_file():
                    broken = self.folder / "broken.ckpt"
                    tamper(self.trained(cell) / "checkpoints" / last, how, broken)
                    self._judge(cell, broken, result, plan.updates, how)
                    broken.unlink()
        for checkpoint in (self.folder / "runs" / cell.name / "checkpoints").glob("*.ckpt"):
            if checkpoint.name != last:
                checkpoint.unlink()

    def result(self, cell: Cell, update: int, how: str | None = None) -> Path:
        """Returns where the result of a checkpoint is written."""
        broken = "" if how is None else "-" + "_".join(how.replace("%", "percent").split())
        return self.folder / "results" / f"{cell.name}-{update:05d}{broken}.json"

    def _judge(self, cell: Cell, checkpoint: Path, result: Path, update: int, how: str | None = None) -> None:
        if not checkpoint.is_file():
            raise StudyError(f"{checkpoint} does not exist any more; remove {checkpoint.parents[1]} to train it again")
        last = update == self.plan.updates and how is None
        curves = read_metrics(self.trained(cell) / "logs.json.txt")
        measured = next(line for line in curves if line["global_step"] == update and "val_loss" in line)
        about = {
            "arm": cell.arm.name,
            "start": cell.arm.start,
            "labels": cell.arm.labels,
            "seed": cell.seed,
            "demonstrations": cell.demonstrations,
            "update": update,
            "last": last,
            "broken": how,
            "validation": {name: measured[name] for name in CURVES if name in measured} if how is None else None,
        }
        evaluation = scenes_of(self.plan, self.plan.scenes.of(last=last))
        write_json(result, {**about, **judgment(checkpoint, self.dataset(cell), evaluation)})


def scenes_of(plan: Plan, n_scenes: int) -> Evaluation:
    """Returns the closed-loop evaluation of a plan."""
    return Evaluation(
        Simulator.load(CONFIG / "simulator" / "tabletop.yaml"),
        n_scenes,
        plan.scenes.seed,
        plan.scenes.n_action_steps,
        device=plan.device,
        threads=plan.threads,
    )


def judgment(checkpoint: Path, dataset: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Returns a checkpoint's results on its held-out recordings, and in scenes."""
    begun = time.process_time()
    report = evaluate_open_loop(checkpoint, dataset, samples=1, device=evaluation.device)
    loop = evaluate(checkpoint, evaluation)
    return {
        "open_loop": open_loop(report),
        "logs": verdicts(report),
        "closed_loop": closed_loop(loop),
        "core_seconds": round(time.process_time() - begun, 2),
    }


def open_loop(report: OpenLoopReport) -> dict[str, Any]:
    """Returns the policy's figures on held-out recordings."""
    score = report.scores[POLICY]
    return {
        **score.means(),
        "position_mm_by_step": score.errors.per_horizon_step()["position_mm"],
        "position_mm_by_phase": {phase: means["position_mm"] for phase, means in score.per_phase().items()},
        "shortcomings": len(report.shortcomings()),
    }


def verdicts(report: OpenLoopReport) -> list[dict[str, Any]]:
    """Returns the verdicts of `validate_gripper.py` on the commands, one log per episode."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for episode in report.episodes:
            log = judge(read_log(write_inference_log(folder, steps_of(episode), {"checkpoint": report.checkpoint})))
            found.append(
                {
                    "verdict": log.verdict,
                    "firmness": log.firmness,
                    "changes": len(log.events),
                    "ahead": log.leads_measurement,
                }
            )
    return found


def steps_of(episode: EpisodeOpenLoop) -> list[LogStep]:
    """Returns an episode as the steps of a log."""
    return [
        LogStep(number, state, chunk)
        for number, (state, chunk) in enumerate(zip(episode.measured, episode.samples[0], strict=True))
    ]


def closed_loop(loop: ClosedLoop) -> dict[str, Any]:
    """Returns success by scene, and reasons for failure."""
    document = loop.to_json()
    scenes = [int(scene["success"]) for scene in document["scenes"]]
    return {"success": sum(scenes), "of": len(scenes), "scenes": scenes, "reasons": document["reasons"]}
