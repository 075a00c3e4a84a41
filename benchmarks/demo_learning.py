"""Whether the fast mode learns what float32 learns: the demo's 8-D task from scratch, with three seeds each.

Everything except `training.precision` (float32, auto) is the same in the two runs of a seed: initial weights,
batches and noise, all of which differ between seeds. The modes are equal within noise if the mean difference between
the runs of one seed is below the spread of the seeds (standard deviation of the float32 runs). It runs on the CPU;
``gpu.py`` runs it on a GPU.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from rich.table import Table

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.resolvers import register_resolvers
from diffusion_policy.sim.recorder import make_trajectories
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

CONFIG = str(Path(__file__).resolve().parents[1] / "config")
FIGURES = (
    "val_loss",
    "val_position_error_mm",
    "val_rotation_error_deg",
    "val_gripper_f1",
    "val_gripper_frame_accuracy",
)
SEEDS, MODES = (0, 1, 2), ("float32", "auto")
EPISODES = 12


def compare_learning(folder: Path, n_epochs: int, fast: str, *, quick: bool) -> dict[str, Any]:
    """Trains each mode with each seed; returns the last figures of all runs, and a table. `fast` describes auto."""
    dataset = demonstrations(folder, quick=quick)
    seeds = SEEDS[:1] if quick else SEEDS
    figures = {mode: [train(dataset, folder, mode, seed, n_epochs, quick) for seed in seeds] for mode in MODES}
    return {
        "figures": figures,
        "epochs": n_epochs,
        "seeds": len(seeds),
        "auto": fast,
        "table": table(figures, n_epochs, fast),
    }


def demonstrations(folder: Path, *, quick: bool) -> Path:
    """Returns the dataset that all runs learn from."""
    recordings, dataset = folder / "trajectories", folder / "demo.zarr"
    make_trajectories(recordings, 4 if quick else EPISODES, 0, (320, 180))
    convert(ConversionSettings(source=recordings, output=dataset, resolution=(160, 90)))
    return dataset


def train(
    dataset: Path,
    folder: Path,
    mode: str,
    seed: int,
    n_epochs: int,
    quick: bool,
    device: str = "cpu",
    words: Sequence[str] = (),
) -> dict[str, float]:
    """Trains one run; returns its validation after the last epoch. ``words`` are further settings."""
    register_resolvers()
    overrides = [
        "experiment=demo", f"task.dataset_path={dataset}", f"training.seed={seed}", f"training.precision={mode}",
        f"training.num_epochs={n_epochs}", f"training.max_train_steps={2 if quick else 'null'}", "checkpoint.topk.k=0",
        "checkpoint.save_last_ckpt=false", "task.dataset.val_ratio=0.2", f"training.device={device}", *words,
    ]  # fmt: skip
    with initialize_config_dir(CONFIG, version_base="1.2"):
        cfg = compose("train_cogact_robot", overrides=overrides)
    run = folder / f"{mode}_{seed}"
    TrainDiffusionTransformerHybridWorkspace(cfg, run).run()
    last = read_metrics(run / "logs.json.txt")[-1]
    return {name: float(last.get(name, math.nan)) for name in (*FIGURES, "samples_per_second")}


def table(figures: dict[str, list[dict[str, float]]], n_epochs: int, fast: str) -> Table:
    """Returns means over seeds, the spread of seeds in each mode, and the difference of the modes, seed by seed."""
    n_seeds = len(next(iter(figures.values())))
    title = f"{n_epochs} epochs, {n_seeds} seeds; auto is {fast}"
    found = Table("", "float32", "auto", "spread, float32", "spread, auto", "difference", "by seed", title=title)
    for name in (*FIGURES, "samples_per_second"):
        values = {mode: [run[name] for run in runs] for mode, runs in figures.items()}
        means = {mode: statistics.mean(numbers) for mode, numbers in values.items()}
        spreads = [statistics.stdev(values[mode]) if n_seeds > 1 else math.nan for mode in MODES]
        differences = [auto - plain for plain, auto in zip(values["float32"], values["auto"], strict=True)]
        found.add_row(
            name,
            *(f"{means[mode]:.4g}" for mode in MODES),
            *(f"{spread:.3g}" for spread in spreads),
            f"{statistics.mean(differences):+.3g}",
            " ".join(f"{difference:+.3g}" for difference in differences),
        )
    return found
