"""What recordings predict about closed loop: verdict, gripper F1 and open-loop errors against success.

    python benchmarks/verdict_calibration.py                       # for the committed study
    python benchmarks/verdict_calibration.py STUDY.json --also RUNS.json --json OUT --figure PNG

STUDY.json is the output of `finetune_study.py --json`: policies of all qualities, from all stages of training and
broken on purpose, each judged on held-out recordings and in scenes with the physics referee. `judge_run.py` adds
others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from calibration_fit import (  # type: ignore[import-not-found]
    SUCCEEDS,
    Figure,
    errors,
    judge_figure,
)
from calibration_picture import draw  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from diffusion_policy.evaluate.verdicts import OPENS_AND_CLOSES
from diffusion_policy.storage import write_json

RESULTS = Path(__file__).resolve().parent / "results" / "amd_epyc_avx512_bf16_2_cores"
FIRM = 0.7  # share of dead bands that agree, below which a verdict is not firm

FIGURES = (
    Figure("position_mm", "position error, whole chunk (mm)", larger=False),
    Figure("first_step_mm", "position error, first step (mm)", larger=False),
    Figure("grasp_mm", "position error at the grasp (mm)", larger=False),
    Figure("gripper_f1", "gripper F1", larger=True),
    Figure("gripper_at_transitions", "gripper wrong at transitions (share)", larger=False),
    Figure("open_and_close", "logs with verdict 'opens and closes' (share)", larger=True),
    Figure("firmness", "firmness of the verdict (mean)", larger=True),
    Figure("ahead", "changes before the measured gripper (share)", larger=True),
    Figure("rotation_deg", "rotation error (degrees)", larger=False),
    Figure("val_loss", "held-out loss", larger=False),
)


def policies(study: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns one entry for every judged policy: its run, its success, its figures."""
    found = []
    for record in study["records"]:
        loop, logs, measured = record["closed_loop"], record["logs"], record["open_loop"]
        changes = sum(log["changes"] for log in logs)
        ahead = [log["ahead"] for log in logs if log["ahead"] is not None]
        firm = [log["firmness"] for log in logs if log["firmness"] is not None]
        opens = [log["verdict"] == OPENS_AND_CLOSES for log in logs]
        found.append(
            {
                "run": f"{record['arm']}, {record['demonstrations']}, seed {record['seed']}",
                "update": record["update"],
                "broken": record["broken"],
                "success": loop["success"] / loop["of"],
                "scenes": loop["of"],
                "position_mm": measured["position_mm"],
                "first_step_mm": measured["position_mm_by_step"][0],
                "grasp_mm": measured["position_mm_by_phase"]["grasp"],
                "rotation_deg": measured["rotation_deg"],
                "gripper_f1": measured["gripper_f1"],
                "gripper_at_transitions": measured["gripper_at_transitions"],
                "open_and_close": float(np.mean(opens)),
                "firm_yes": all(opens) and len(firm) == len(logs) and min(firm) >= FIRM,
                "yes": all(opens),
                "firmness": float(np.mean(firm)) if firm else None,
                "ahead": sum(ahead) / changes if changes and ahead else 0.0,
                "val_loss": (record["validation"] or {}).get("val_loss"),
            }
        )
    return found


def calibrate(study: dict[str, Any]) -> dict[str, Any]:
    """Returns figures against success, verdicts against success, and the policies themselves."""
    found = policies(study)
    success = np.array([policy["success"] for policy in found])
    good = success >= SUCCEEDS
    figures = {}
    for figure in FIGURES:
        rows = [policy for policy in found if policy[figure.name] is not None]
        values = np.array([policy[figure.name] for policy in rows], dtype=np.float64)
        of_rows = np.array([policy["success"] for policy in rows])
        figures[figure.name] = judge_figure(figure, values, of_rows, [policy["run"] for policy in rows])
    verdicts = {
        name: {**errors(np.array([policy[key] for policy in found]), good), **_success_of(found, key)}
        for name, key in (("all logs open and close", "yes"), ("all logs open and close, firmly", "firm_yes"))
    }
    return {
        "processor": study.get("processor"),
        "source_sha256": study.get("source_sha256"),
        "succeeds": SUCCEEDS,
        "policies": len(found),
        "runs": len({policy["run"] for policy in found}),
        "succeed": int(good.sum()),
        "verdicts": verdicts,
        "figures": figures,
        "after_verdict": after_verdict(found),
        "by_policy": found,
    }


def _success_of(found: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    """Returns the mean success of the policies with a positive verdict."""
    shares = [policy["success"] for policy in found if policy[key]]
    return {"mean_success_of_yes": float(np.mean(shares)) if shares else None}


def after_verdict(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns what a further figure shows among policies whose logs all open and close."""
    rows = [policy for policy in found if policy["yes"]]
    told = {}
    for figure in FIGURES:
        known = [policy for policy in rows if policy[figure.name] is not None]
        if known:
            values = np.array([policy[figure.name] for policy in known], dtype=np.float64)
            success = np.array([policy["success"] for policy in known])
            told[figure.name] = judge_figure(figure, values, success, [policy["run"] for policy in known])
    return told


def tables(found: dict[str, Any]) -> list[Table]:
    """Returns tables for the terminal."""
    title = f"{found['policies']} policies of {found['runs']} runs, {found['succeed']} of them succeed"
    verdicts = Table("verdict", "yes", "yes that fail (95 %)", "no that succeed (95 %)", title=title)
    for name, entry in found["verdicts"].items():
        shares = (_shown(entry[key]) for key in ("yes_that_fail", "no_that_succeed"))
        verdicts.add_row(name, str(entry["yes"]), *shares)
    made = [verdicts]
    for name, figures in (("all policies", found["figures"]), ("after 'opens and closes'", found["after_verdict"])):
        table = Table(
            "figure", "rank correlation", "area", "threshold", "yes that fail", "no that succeed",
            title=f"{name}: threshold fitted without the run that it is tested on",
        )  # fmt: skip
        for entry in figures.values():
            numbers = (_number(entry[key]) for key in ("rank_correlation", "area", "threshold"))
            tried = entry["left_out"]
            rates = (
                ("-", "-") if tried is None else tuple(_shown(tried[k]) for k in ("yes_that_fail", "no_that_succeed"))
            )
            table.add_row(entry["figure"], *numbers, *rates)
        made.append(table)
    return made


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _shown(share: dict[str, Any]) -> str:
    low, high = share["interval"]
    return f"{share['count']} of {share['of']} ({100 * low:.0f}-{100 * high:.0f} %)" if share["of"] else "none of 0"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?", default=RESULTS / "finetune_study.json", metavar="STUDY.json")
    parser.add_argument("--also", type=Path, nargs="+", default=[], metavar="JSON", help="output of judge_run.py")
    parser.add_argument("--quick", action="store_true", help="has no effect: it takes only a second")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--figure", type=Path, metavar="PNG")
    arguments = parser.parse_args(argv)
    console = Console()
    if not arguments.study.is_file():
        made = "python benchmarks/finetune_study.py --json OUT"
        console.print(f"{arguments.study} does not exist; make it with: {made}", style="red", soft_wrap=True)
        return 2
    study, *others = (json.loads(path.read_text(encoding="utf-8")) for path in (arguments.study, *arguments.also))
    found = calibrate({**study, "records": study["records"] + [r for other in others for r in other["records"]]})
    for table in tables(found):
        console.print(table)
    if arguments.json:
        write_json(arguments.json, found)
    if arguments.figure:
        draw(found, FIGURES, arguments.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
