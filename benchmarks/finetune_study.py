"""Whether and how fine-tuning a 7-D pose policy to 8-D pays off: arms, seeds, numbers of demonstrations.

    python benchmarks/finetune_study.py --plan benchmarks/finetune_study_small.yaml --workdir data/study --json OUT
    python benchmarks/finetune_study.py --workdir data/study     # the full study: finetune_study.yaml, for a GPU
    python benchmarks/finetune_study.py --quick                  # every step once, with far too little to learn from

Every arm of a seed trains on the same demonstrations, is measured on the same held-out ones and rolled out in the same
scenes with the physics referee. Finished results are kept in the work folder, so the same command continues an
interrupted study; a changed plan needs a new folder. `verdict_calibration.py` uses the same results to find what
predicts success.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console
from rich.table import Table
from study_cells import Runner  # type: ignore[import-not-found]
from study_figures import draw_curves, draw_success  # type: ignore[import-not-found]
from study_plan import Plan, StudyError, read_plan  # type: ignore[import-not-found]
from study_summary import REACHED, collect, median_or_never, summarize  # type: ignore[import-not-found]

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.engine import processor_name
from diffusion_policy.storage import file_sha256, sha256, write_json, write_text

HERE = Path(__file__).resolve().parent
PLAN_KEPT = "plan.sha256"


def quick(plan: Plan) -> Plan:
    """Returns the arms that start from the study's own source, with two updates and one scene."""
    return dataclasses.replace(
        plan,
        seeds=plan.seeds[:1],
        demonstrations=(2,),
        held_out=1,
        updates=2,
        look_every=2,
        judged_at=(2,),
        scenes=dataclasses.replace(plan.scenes, along=1, last=1),
        arms=tuple(dataclasses.replace(a, demonstrations=None, seeds=None) for a in plan.arms if a.source is None),
    )


def run(plan: Plan, folder: Path, console: Console, *, so_far: bool = False) -> dict[str, Any]:
    """Runs all cells without a result (with ``so_far``, none); returns the study as plain JSON.

    Raises:
        StudyError: the folder holds another study.
    """
    _check_same(plan, folder)
    runner, cells = Runner(plan, folder), plan.cells()
    for number, cell in enumerate([] if so_far else cells, start=1):
        console.print(f"{number}/{len(cells)}  {cell.name}", highlight=False)
        runner.judged(cell)
    study = collect(folder, plan)
    begun = sorted({training["seed"] for training in study["trainings"]})
    study["source_loss"] = {str(seed): runner.source_loss(seed) for seed in begun}
    settings = dataclasses.asdict(plan)
    about = {"processor": processor_name(), "source_sha256": file_sha256(plan.source), "plan": settings}
    found: dict[str, Any] = summarize({**about, **study})
    return found


def _check_same(plan: Plan, folder: Path) -> None:
    text = repr(plan) + file_sha256(plan.source)
    digest, kept = sha256(text.encode()).hex(), folder / PLAN_KEPT
    if not kept.is_file():
        write_text(kept, digest)
    elif kept.read_text(encoding="utf-8") != digest:
        raise StudyError(f"{folder} holds results of another plan or source; name another --workdir")


def finals_table(study: dict[str, Any]) -> Table:
    """Returns the final figures of each arm."""
    table = Table(
        "demonstrations", "arm", "seeds", "success (95 %)", "by seed", "minus scratch (95 %)", "loss", "position mm",
        "first step mm", "gripper F1", title="after the last update",
    )  # fmt: skip
    for row in study["finals"]:
        success = row["success"]
        low, high = success["interval"]
        shown = f"{success['count']} of {success['of']} ({100 * low:.0f}-{100 * high:.0f} %)"
        by_seed = " ".join(f"{100 * share:.0f}" for share in row["success_by_seed"])
        figures = [_mean(row[name], form) for name, form in FIGURES.items()]
        seeds = str(len(row["seeds"]))
        gained = _difference(row["minus_scratch"])
        table.add_row(str(row["demonstrations"]), row["arm"], seeds, shown, by_seed, gained, *figures)
    return table


FIGURES = {"val_loss": ".4f", "position_mm": ".1f", "first_step_mm": ".1f", "gripper_f1": ".2f"}


def _mean(values: dict[str, float] | None, form: str) -> str:
    return "-" if values is None else f"{values['mean']:{form}} ({values['low']:{form}}-{values['high']:{form}})"


def _difference(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    low, high = found["interval"]
    return f"{100 * found['mean']:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"


def reach_table(study: dict[str, Any]) -> Table:
    """Returns updates, and core-minutes, needed to reach scratch's final figures: medians over seeds."""
    names = (*REACHED, "success")
    table = Table("demonstrations", "arm", *names, title="updates (core-minutes) to what scratch ends with, median")
    for count, arm in dict.fromkeys((row["demonstrations"], row["arm"]) for row in study["reach"]):
        rows = [row for row in study["reach"] if (row["demonstrations"], row["arm"]) == (count, arm)]
        cells = []
        for name in names:
            updates = [row["updates"][name] for row in rows if name in row["updates"]]
            minutes = [row["core_minutes"][name] for row in rows if name in row["updates"]]
            taken = median_or_never(updates, "{:.0f}".format)
            cells.append(taken if taken in ("-", "never") else f"{taken} ({median_or_never(minutes, '{:.1f}'.format)})")
        table.add_row(str(count), arm, *cells)
    return table


def claims_table(study: dict[str, Any]) -> Table:
    """Returns the guide's claims."""
    table = Table("the guide says", "verdict", "evidence", title="claims of the public guide")
    for claim in study["claims"]:
        table.add_row(claim["claim"], claim["verdict"], claim["evidence"])
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=HERE / "finetune_study.yaml", metavar="YAML")
    parser.add_argument("--workdir", type=Path, default=Path("data/finetune_study"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="one seed, two updates, one scene; in a separate folder")
    parser.add_argument("--so-far", action="store_true", help="run nothing; show tables of an interrupted study")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw curves and final success there")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cv2.setNumThreads(1)
    console = Console()
    try:
        plan = read_plan(arguments.plan)
        if arguments.quick:
            plan = dataclasses.replace(quick(plan), device="cpu", threads=1)
            with tempfile.TemporaryDirectory() as folder:
                study = run(plan, Path(folder), console)
        else:
            study = run(plan, arguments.workdir, console, so_far=arguments.so_far)
    except WorkspaceError as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues")
        return 130
    for table in (finals_table(study), reach_table(study), claims_table(study)):
        console.print(table)
    if arguments.json:
        write_json(arguments.json, study)
    if arguments.figures:
        draw_curves(study, [arm.name for arm in plan.arms], arguments.figures / "study_curves.png")
        draw_success(study, arguments.figures / "study_success.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
