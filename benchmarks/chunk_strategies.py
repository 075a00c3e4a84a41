"""What happens between two action chunks: five strategies in closed loop, at injected latencies, scene by scene.

    python benchmarks/chunk_strategies.py CKPT [--scenes N] [--episodes OUT.jsonl] [--json OUT] [--picture OUT.png]
    python benchmarks/chunk_strategies.py CKPT --quick

The tabletop is run by the control loop of the robot's client, through the real server, on the
simulator's clock: latency is injected, so this machine's speed does not matter. All cells use the same scenes with
the same noise. One line per episode is written to --episodes; the same command continues an interrupted benchmark.

Jerk is the root mean square of the third difference of measured positions; the expert's is that of its demonstration in
the same scene. Seams are between the command that was due and the one that replaces it. Idle is the share of control
periods in which the arm held.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from diffusion_policy.adapt.pose_to_gripper import grow_7d_to_8d
from diffusion_policy.closed_loop.loop_rollout import LoopConditions, LoopEpisode, roll_out_in_loop
from diffusion_policy.closed_loop.server_actor import ServerActor, serve_settings, served
from diffusion_policy.closed_loop.simulated_arm import SimulatedArm
from diffusion_policy.command_line import positive_number, whole_number
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.installation import CONFIG, PRETRAINED
from diffusion_policy.intervals import mcnemar_exact, paired_bootstrap, wilson_interval
from diffusion_policy.serve.client import VirtualClock
from diffusion_policy.serve.client.strategies import STRATEGIES
from diffusion_policy.serve.engine import processor_name
from diffusion_policy.sim.expert import plan
from diffusion_policy.sim.tabletop_env import TabletopEnv
from diffusion_policy.storage import file_sha256, write_json
from diffusion_policy.tables import Table
from diffusion_policy.terminal import show

EXECUTED, ANSWERED = 8, 15  # steps of a chunk: executed before the next one takes over, and answered
EXPERT = "expert"
FIRST_SEED = 100_000
# A guard that never engages, since the policy is studied, not its limits. The real time of an answer does not matter.
GUARD = (
    "guard.max_step_m=1.0", "guard.max_step_rad=3.1", "guard.max_chunk_m=10.0", "guard.max_chunk_rad=3.1",
    "guard.on_workspace=clip", "guard.workspace_low=[-9,-9,-9]", "guard.workspace_high=[9,9,9]", "deadline_s=1e6",
)  # fmt: skip
FIGURES = ("steps", "jerk", "seam_mm", "seam_deg", "idle")


@dataclass(frozen=True)
class Cell:
    """One strategy at one latency; ``jitter_ms``: each answer is uniformly up to this much earlier or later.

    ``smoothing``: passes of the loop's filter.
    """

    strategy: str
    latency_ms: float
    jitter_ms: float = 0.0
    smoothing: int = 0

    def delay(self, scene: int, request: int) -> float:
        """Returns the seconds from a request to its answer, the same for all strategies."""
        draw = np.random.default_rng((scene, request)).uniform(-1, 1)
        return max(0.0, self.latency_ms + draw * self.jitter_ms) / 1000

    def __str__(self) -> str:
        jitter = f" +- {self.jitter_ms:g}" if self.jitter_ms else ""
        smoothing = f" smoothed {self.smoothing}" if self.smoothing else ""
        return f"{self.strategy}{smoothing}, {self.latency_ms:g}{jitter} ms"


def cells(strategies: Sequence[str], latencies: Sequence[float], jitter: float, smoothing: int = 0) -> list[Cell]:
    """Returns all strategies at all latencies, and with jitter at the middle latency."""
    found = [Cell(strategy, latency, smoothing=smoothing) for latency in latencies for strategy in strategies]
    middle = sorted(latencies)[len(latencies) // 2]
    return found + [Cell(strategy, middle, jitter, smoothing) for strategy in strategies if jitter and middle]


def jerk(path: Sequence[NDArray[np.float64]], hz: float) -> float:
    """Returns the RMS jerk of measured states (steps, D), whose first three are positions in meters: m/s^3."""
    positions = np.asarray(path)[:, :3]
    return float(np.sqrt((np.diff(positions, n=3, axis=0) ** 2).sum(axis=1).mean()) * hz**3)


def figures(episode: LoopEpisode, hz: float) -> dict[str, Any]:
    """Returns what is kept of an episode."""
    lines = episode.lines
    seams = [line["seam"] for line in lines if line["event"] == "answer" and line.get("seam")]
    (end,) = [line for line in lines if line["event"] == "end"]
    held = sum(end["holds"].values())
    return {
        "success": episode.result.success,
        "reason": episode.result.reason,
        "steps": episode.result.steps,
        "requests": episode.result.requests,
        "errors": dict(episode.result.refusals),
        "jerk": jerk(episode.path, hz),
        "seam_mm": statistics.fmean(seam["millimetres"] for seam in seams) if seams else None,
        "seam_deg": statistics.fmean(seam["degrees"] for seam in seams) if seams else None,
        "idle": held / max(1, held + end["moves"]),
    }


def expert_figures(simulator: Simulator, actor: ServerActor, seed: int) -> dict[str, Any]:
    """Returns figures of the expert's demonstration in a scene, measured like the policy's."""
    env, clock = simulator.make(), VirtualClock(0.0)
    assert isinstance(env, TabletopEnv)
    arm = SimulatedArm(simulator, env, actor.spec, actor.wire, clock, seed, max_steps=1000)
    for command in plan(env.tabletop.scene, np.random.default_rng(seed)):
        arm.move(np.append(command.pose, command.gripper))
        clock.advance(1 / simulator.control_hz)
        arm.observe()
    env.close()
    return {"success": arm.succeeded, "steps": arm.steps, "jerk": jerk(arm.path, simulator.control_hz), "idle": 0.0}


def episodes(
    checkpoint: Path, simulator: Simulator, wanted: Sequence[tuple[int, Cell | None]], max_steps: int
) -> Iterator[tuple[int, Cell | None, dict[str, Any]]]:
    """Runs the requested episodes in order: a scene in a cell, or None for the expert."""
    settings = serve_settings(checkpoint, None, [f"engine.n_action_steps={ANSWERED}", "engine.threads=1", *GUARD])
    with served(settings, simulator) as (actor, _):
        for scene, cell in wanted:
            if cell is None:
                yield scene, None, expert_figures(simulator, actor, FIRST_SEED + scene)
                continue
            settings.engine.seed = scene  # seeds the session's noise, equal in all cells of a scene
            conditions = LoopConditions(
                cell.strategy, EXECUTED, cell.delay, max_steps=max_steps, smoothing=cell.smoothing
            )
            (episode,) = roll_out_in_loop(simulator, actor, {scene: FIRST_SEED + scene}, conditions)
            yield scene, cell, figures(episode, simulator.control_hz)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns, by cell, success with its interval, mean figures, and comparisons with other cells by scene."""
    by_cell: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        by_cell.setdefault(row["cell"], {})[row["scene"]] = row
    found = {}
    for name, scenes in by_cell.items():
        entry = one_cell(list(scenes.values()))
        strategy = name.partition(",")[0]
        for title, other in (("no_latency", f"{strategy}, 0 ms"), ("wait_no_latency", "wait, 0 ms"), (EXPERT, EXPERT)):
            if other in by_cell and other != name and name != EXPERT:
                entry[f"against_{title}"] = compared(by_cell[other], scenes)
        found[name] = entry
    return found


def one_cell(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns means over the scenes of a cell; for steps, over those that succeeded."""
    won = sum(row["success"] for row in rows)
    entry: dict[str, Any] = {"scenes": len(rows), "success": won, "interval": wilson_interval(won, len(rows))}
    for name in FIGURES:
        known = [row[name] for row in rows if row.get(name) is not None and (name != "steps" or row["success"])]
        entry[name] = statistics.fmean(known) if known else None
    return entry


def compared(before: Mapping[int, Mapping[str, Any]], after: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Compares two cells on their common scenes: success by McNemar's test, and the difference of their jerks."""
    scenes = sorted(before.keys() & after.keys())
    pairs = [(before[scene], after[scene]) for scene in scenes]
    lost, gained = (sum(a["success"] > b["success"] for a, b in order) for order in (pairs, [p[::-1] for p in pairs]))
    mean, interval = paired_bootstrap([a["jerk"] for a, _ in pairs], [b["jerk"] for _, b in pairs])
    return {
        "scenes": len(scenes), "lost": lost, "gained": gained, "p": mcnemar_exact(lost, gained),
        "jerk_difference": mean, "jerk_interval": list(interval) if np.isfinite(interval).all() else None,
    }  # fmt: skip


def table(found: Mapping[str, Mapping[str, Any]], hz: float) -> Table:
    """Returns a table with a row per cell."""
    shown = Table("cell", "success", "95 %", "jerk, m/s^3", "seam, mm", "seam, deg", "idle, %", "s to success")
    for name, entry in found.items():
        low, high = entry["interval"]
        factors = {"jerk": 1.0, "seam_mm": 1.0, "seam_deg": 1.0, "idle": 100.0, "steps": 1 / hz}
        numbers = ["-" if entry[key] is None else f"{factor * entry[key]:.1f}" for key, factor in factors.items()]
        shown.add(name, f"{entry['success']} of {entry['scenes']}", f"{low:.0%}-{high:.0%}", *numbers)
    return shown


def draw(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws success, jerk, seam and idle time over latency, with a line per strategy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {"success": "success, % (95 % interval)", "jerk": "jerk, m/s^3", "seam_mm": "seam, mm", "idle": "idle, %"}
    figure, axes = pyplot.subplots(1, len(panels), figsize=(15, 4.4), layout="constrained")
    series = list(dict.fromkeys(name.partition(",")[0] for name in found if name != EXPERT))
    for shift, strategy in enumerate(series):
        points = {name: entry for name, entry in found.items() if name.startswith(f"{strategy},") and "+-" not in name}
        at = [float(name.rpartition(", ")[2].split()[0]) + 7 * (shift - (len(series) - 1) / 2) for name in points]
        for axis, key in zip(axes, panels, strict=True):
            if key == "success":
                shares = [100 * entry["success"] / entry["scenes"] for entry in points.values()]
                ends = [[100 * bound for bound in entry["interval"]] for entry in points.values()]
                reach = [[max(0, s - e[0]) for s, e in zip(shares, ends, strict=True)],
                         [max(0, e[1] - s) for s, e in zip(shares, ends, strict=True)]]  # fmt: skip
                axis.errorbar(at, shares, yerr=reach, marker="o", capsize=3, label=strategy)
            else:
                factor = 100 if key == "idle" else 1
                axis.plot(at, [np.nan if e[key] is None else factor * e[key] for e in points.values()], marker="o")
    for axis, (key, title) in zip(axes, panels.items(), strict=True):
        axis.set(xlabel="latency, ms", title=title)
        axis.grid(alpha=0.3)
        if key == "jerk" and EXPERT in found:
            axis.axhline(found[EXPERT]["jerk"], color="gray", linestyle="--", label="expert")
            axis.legend()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(series))
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        metavar="CKPT",
        help="checkpoint to study (with --quick, by default one that fails)",
    )
    parser.add_argument("--scenes", type=positive_number, default=100, metavar="N")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--latencies", type=float, nargs="+", default=[0, 100, 200, 400], metavar="MS")
    parser.add_argument(
        "--jitter", type=float, default=150, metavar="MS", help="jitter at the middle latency; 0 for none"
    )
    parser.add_argument("--smoothing", type=whole_number, default=0, metavar="N", help="passes of the loop's filter")
    parser.add_argument("--referee", choices=("physics", "kinematic"), default="physics")
    parser.add_argument(
        "--episodes", type=Path, metavar="OUT.jsonl", help="file with a line per episode; existing ones are kept"
    )
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--picture", type=Path, metavar="OUT.png")
    parser.add_argument("--quick", action="store_true", help="one scene of 20 steps in four cells")
    arguments = parser.parse_args(argv)
    cv2.setNumThreads(1)
    if arguments.checkpoint is None and not arguments.quick:
        parser.error(
            "CKPT is missing: the checkpoint to study, such as the demo's data/demo/finetuned/checkpoints/latest.ckpt"
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.checkpoint is None:
                arguments.checkpoint = Path(folder) / "grown.ckpt"
                grow_7d_to_8d(PRETRAINED / "tabletop_7d.ckpt", arguments.checkpoint)
            return work(arguments)
    except WorkspaceError as error:
        parser.exit(2, f"{error}\n")


def work(arguments: argparse.Namespace) -> int:
    """Runs the missing episodes, then shows all."""
    chosen, scenes, max_steps = (
        cells(arguments.strategies, arguments.latencies, arguments.jitter, arguments.smoothing),
        arguments.scenes,
        1000,
    )
    if arguments.quick:
        chosen, scenes, max_steps = cells(["skip", "rtc"], [0, 200], 0), 1, 20
    simulator = Simulator.load(CONFIG / "simulator" / "tabletop.yaml", referee=arguments.referee)
    about = {
        "checkpoint_sha256": file_sha256(arguments.checkpoint), "simulator": simulator.describe(),
        "executed": EXECUTED, "answered": ANSWERED, "max_steps": max_steps,
    }  # fmt: skip
    kept = arguments.episodes
    rows = known(kept, about)
    done = {(row["scene"], row["cell"]) for row in rows}
    wanted = [
        (scene, cell) for scene in range(scenes) for cell in (None, *chosen)
        if (scene, EXPERT if cell is None else str(cell)) not in done
    ]  # fmt: skip
    for scene, cell, found in episodes(arguments.checkpoint, simulator, wanted, max_steps):
        row = {"scene": scene, "cell": EXPERT if cell is None else str(cell), **(asdict(cell) if cell else {}), **found}
        rows.append(row)
        if kept is not None:
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    results = summary(rows)
    show(table(results, simulator.control_hz))
    if arguments.json:
        write_json(arguments.json, {"processor": processor_name(), **about, "cells": results})
    if arguments.picture:
        draw(results, arguments.picture)
    return 0


def known(path: Path | None, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the episodes already in a file, which is created if missing; WorkspaceError for another study's file."""
    if path is None:
        return []
    if not path.exists():
        path.write_text(json.dumps({"about": about}) + "\n", encoding="utf-8")
        return []
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    if json.loads(first)["about"] != json.loads(json.dumps(about)):
        raise WorkspaceError(
            f"{path} holds another study's episodes: {first[:200]}; expected {about}. Name another file"
        )
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    sys.exit(main())
