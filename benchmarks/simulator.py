"""How many control steps per second the tabletop makes, with and without its camera, with both referees.

    python benchmarks/simulator.py [--quick] [--episodes N] [--json OUT]

One process, one thread: the expert's plan of each episode is played through ``TabletopEnv``, whose observation holds a
320x180 frame, and through the tabletop alone. The best episode is reported, which a busy machine affects least, next to
the median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from diffusion_policy.command_line import positive_number
from diffusion_policy.serve.engine import processor_name
from diffusion_policy.sim.expert import Command, plan
from diffusion_policy.sim.referees import REFEREES, make_tabletop
from diffusion_policy.sim.tabletop_env import TabletopEnv
from diffusion_policy.sim.tasks import TASKS

FRAME = (320, 180)


def alone(env: TabletopEnv, commands: Sequence[Command]) -> None:
    tabletop = make_tabletop(env.tabletop.scene, env.referee)
    for command in commands:
        tabletop.step(command.pose, command.gripper)


def with_frames(env: TabletopEnv, commands: Sequence[Command]) -> None:
    for command in commands:
        env.step(np.append(command.pose, command.gripper).astype(np.float32))


def steps_per_second(task: str, referee: str, episodes: int) -> dict[str, float]:
    """Returns the best and median over the episodes."""
    env = TabletopEnv(task, referee, FRAME)
    rates: dict[str, list[float]] = {"alone": [], "with_frames": []}
    for seed in range(episodes):
        for name, play in (("alone", alone), ("with_frames", with_frames)):
            env.reset(seed=seed)
            commands = plan(env.tabletop.scene, np.random.default_rng(seed))
            start = time.perf_counter()
            play(env, commands)
            rates[name].append(len(commands) / (time.perf_counter() - start))
    return {
        f"{name}_{kind}": round(choose(values), 1)
        for name, values in rates.items()
        for kind, choose in (("best", max), ("median", statistics.median))
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 episodes")
    parser.add_argument("--episodes", type=positive_number, default=10)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args(argv)
    cv2.setNumThreads(1)
    table = Table(
        "task", "referee", "steps/s alone: best (median)", "with a 320x180 frame: best (median)", title="control steps"
    )
    found: dict[str, Any] = {"processor": processor_name(), "frame": list(FRAME), "steps_per_second": {}}
    for task in TASKS:
        for referee in REFEREES:
            rate = steps_per_second(task, referee, 2 if arguments.quick else arguments.episodes)
            found["steps_per_second"][f"{task}, {referee}"] = rate
            shown = [f"{rate[f'{name}_best']:.0f} ({rate[f'{name}_median']:.0f})" for name in ("alone", "with_frames")]
            table.add_row(task, referee, *shown)
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
