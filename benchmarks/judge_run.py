"""Adds a training run to the data of `verdict_calibration.py`: its checkpoint, and copies broken on purpose.

    python benchmarks/judge_run.py "demo" data/demo/finetuned data/demo/tabletop.zarr --json OUT
    python benchmarks/verdict_calibration.py STUDY.json --also OUT

The scenes, the number of steps executed and the ways to break a policy are those of the study's plan, and the output
has the form of its results. OUT is extended if it exists.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console
from study_cells import CURVES, judgment, scenes_of  # type: ignore[import-not-found]
from study_data import TAMPERINGS, tamper  # type: ignore[import-not-found]
from study_plan import Plan, read_plan  # type: ignore[import-not-found]

from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.storage import write_json
from diffusion_policy.workspace.metrics import read_metrics

HERE = Path(__file__).resolve().parent


def records(name: str, run: Path, dataset: Path, plan: Plan, *, broken: bool) -> list[dict[str, Any]]:
    """Judges the checkpoint of a run and, with ``broken``, copies that are broken on purpose."""
    checkpoint = run / "checkpoints" / "latest.ckpt"
    found = read_checkpoint(checkpoint)
    trained = len(((found.provenance or {}).get("split") or {}).get("trained", ()))
    update, measured = int(found.pickles["global_step"]), read_metrics(run / "logs.json.txt")[-1]
    about = {"arm": name, "demonstrations": trained, "seed": int(found.cfg.training.seed), "update": update}
    validation = {key: measured[key] for key in CURVES if key in measured}
    whole = judgment(checkpoint, dataset, scenes_of(plan, plan.scenes.last))
    made = [{**about, "last": True, "broken": None, "validation": validation, **whole}]
    with tempfile.TemporaryDirectory() as folder:
        for how in TAMPERINGS if broken else ():
            copy = Path(folder) / "broken.ckpt"
            tamper(checkpoint, how, copy)
            judged = judgment(copy, dataset, scenes_of(plan, plan.scenes.along))
            made.append({**about, "last": False, "broken": how, "validation": None, **judged})
    return made


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="name of the run, in tables")
    parser.add_argument("run", type=Path, nargs="?", help="its folder")
    parser.add_argument(
        "dataset", type=Path, nargs="?", metavar="ZARR", help="dataset with the episodes that it held out"
    )
    parser.add_argument("--plan", type=Path, default=HERE / "finetune_study_small.yaml", metavar="YAML")
    parser.add_argument("--broken", action="store_true", help="also judge copies that are broken on purpose")
    parser.add_argument("--quick", action="store_true", help="does nothing: there is no run to judge")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args(argv)
    console = Console()
    cv2.setNumThreads(1)
    if arguments.quick:
        return 0
    if arguments.dataset is None:
        parser.error("expected NAME RUN ZARR")
    try:
        made = records(
            arguments.name, arguments.run, arguments.dataset, read_plan(arguments.plan), broken=arguments.broken
        )
    except WorkspaceError as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 2
    for record in made:
        loop, error_mm = record["closed_loop"], record["open_loop"]["position_mm"]
        console.print(f"{record['broken'] or 'whole'}: {loop['success']} of {loop['of']} scenes, {error_mm:.1f} mm")
    if arguments.json:
        kept = json.loads(arguments.json.read_text(encoding="utf-8"))["records"] if arguments.json.is_file() else []
        write_json(arguments.json, {"records": [*kept, *made]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
