"""The results of a study: final figures by arm, how soon an arm reaches scratch's, and the guide's claims.

Success is over all scenes of all seeds; seeds differ in demonstrations and training, so the range over seeds is given
with every mean. Two arms are compared scene by scene: the unit is a scene, its success the mean over the seeds.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from study_plan import Plan  # type: ignore[import-not-found]

from diffusion_policy.intervals import paired_bootstrap, wilson_interval

Record = dict[str, Any]


class Reached(NamedTuple):
    """When a goal is reached: after ``update`` (None: never), not yet after ``not_yet``; unknown in between."""

    update: int | None
    not_yet: int


SCRATCH = "scratch"
F1_LEARNED = 0.9  # from this value on, the gripper counts as learned
NEAR = 2.0  # times the old loss
# Figures of a training in which scratch is to be reached, and whether larger is better.
REACHED = {"val_loss": False, "val_position_error_mm": False, "val_gripper_f1": True}
TRUE, FALSE, NOT_MEASURABLE = "true here", "false here", "not measurable here"


def collect(folder: Path, plan: Plan) -> dict[str, Any]:
    """Returns everything in a study's folder, its trainings and judged checkpoints, as plain JSON."""
    trainings = []
    for cell in plan.cells():
        kept = folder / "runs" / cell.name / "training.json"
        if kept.is_file():
            about = {"arm": cell.arm.name, "demonstrations": cell.demonstrations, "seed": cell.seed}
            trainings.append({**about, "labels": cell.arm.labels, **json.loads(kept.read_text())})
    names = {cell.name for cell in plan.cells()}
    paths = [path for path in sorted((folder / "results").glob("*.json")) if path.stem.rsplit("-", 2)[0]]
    records = [json.loads(path.read_text()) for path in paths if any(path.name.startswith(f"{n}-") for n in names)]
    return {"trainings": trainings, "records": records}


def finals(records: Iterable[Record]) -> dict[tuple[str, int], list[Record]]:
    """Returns the last checkpoints by arm and number of demonstrations, in order of their seeds."""
    found: dict[tuple[str, int], list[Record]] = {}
    for record in sorted(records, key=lambda r: (r["demonstrations"], r["seed"])):
        if record["last"]:
            found.setdefault((record["arm"], record["demonstrations"]), []).append(record)
    return found


def outcome(records: Sequence[Record]) -> dict[str, Any]:
    """Returns the success of several seeds together, and each figure's mean and range over them."""
    done, of = (sum(record["closed_loop"][name] for record in records) for name in ("success", "of"))
    figures = {
        "val_loss": [record["validation"]["val_loss"] for record in records],
        "position_mm": [record["open_loop"]["position_mm"] for record in records],
        "first_step_mm": [record["open_loop"]["position_mm_by_step"][0] for record in records],
        "gripper_f1": [record["open_loop"]["gripper_f1"] for record in records],
    }
    return {
        "seeds": [record["seed"] for record in records],
        "success": {"count": done, "of": of, "interval": list(wilson_interval(done, of))},
        "success_by_seed": [record["closed_loop"]["success"] / record["closed_loop"]["of"] for record in records],
        **{name: spread(values) for name, values in figures.items()},
        "reasons": total(record["closed_loop"]["reasons"] for record in records),
    }


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Returns mean and range; None if a value is not defined."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return {"mean": statistics.mean(known), "low": min(known), "high": max(known)}


def total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Returns sums by name, the largest first."""
    found: dict[str, int] = {}
    for count in counts:
        for name, number in count.items():
            found[name] = found.get(name, 0) + number
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def difference(first: Sequence[Record], second: Sequence[Record]) -> dict[str, Any] | None:
    """Returns success of the second minus the first over common scenes and seeds; None without any."""
    theirs = {record["seed"]: record["closed_loop"]["scenes"] for record in first}
    pairs = [(theirs[r["seed"]], r["closed_loop"]["scenes"]) for r in second if r["seed"] in theirs]
    if not pairs:
        return None
    before, after = (np.mean([pair[side] for pair in pairs], axis=0) for side in (0, 1))
    mean, (low, high) = paired_bootstrap(before, after)
    return {"mean": mean, "interval": [low, high], "scenes": len(before), "seeds": len(pairs)}


def reached(training: Record, target: Record) -> dict[str, Reached]:
    """Returns after how many updates a training is first at least as good as another one's end."""
    goal = target["curves"][-1]
    found = {}
    for name, larger in REACHED.items():
        if name in goal:
            points = {point["global_step"]: point[name] for point in training["curves"] if name in point}
            found[name] = first_of({u: v >= goal[name] if larger else v <= goal[name] for u, v in points.items()})
    return found


def first_of(good: dict[int, bool]) -> Reached:
    """Returns the first update that is good, and the one measured before it."""
    updates = sorted(good)
    first = next((update for update in updates if good[update]), None)
    earlier = [update for update in updates if first is None or update < first]
    return Reached(first, earlier[-1] if earlier else 0)


def success_reached(records: Sequence[Record], goal: Record) -> Reached:
    """Returns the first judged checkpoint whose success over shared scenes is at least the goal's."""
    loops = {record["update"]: record["closed_loop"] for record in records}
    scenes = goal["closed_loop"]["scenes"]
    return first_of({update: loop["success"] >= sum(scenes[: loop["of"]]) for update, loop in loops.items()})


def reach_table(study: Record) -> list[Record]:
    """Returns, by arm, demonstrations and seed, updates and core-minutes to scratch's final figures."""
    trainings = {(t["arm"], t["demonstrations"], t["seed"]): t for t in study["trainings"]}
    judged: dict[tuple[str, int, int], list[Record]] = {}
    for record in study["records"]:
        if record["broken"] is None:
            judged.setdefault((record["arm"], record["demonstrations"], record["seed"]), []).append(record)
    rows = []
    for (arm, count, seed), training in trainings.items():
        target = trainings.get((SCRATCH, count, seed))
        if target is None or arm == SCRATCH or training["labels"] != target["labels"]:
            continue
        found = reached(training, target)
        goal = next((r for r in judged.get((SCRATCH, count, seed), []) if r["last"]), None)
        if goal is not None and goal["closed_loop"]["success"]:
            found["success"] = success_reached(judged.get((arm, count, seed), []), goal)
        in_all = training["curves"][-1]["global_step"]
        minutes = training["core_seconds"] / 60 / in_all
        rows.append(
            {
                "arm": arm,
                "demonstrations": count,
                "seed": seed,
                "updates": {name: reach.update for name, reach in found.items()},
                "not_yet": {name: reach.not_yet for name, reach in found.items()},
                "core_minutes": {
                    name: None if reach.update is None else round(reach.update * minutes, 2)
                    for name, reach in found.items()
                },
                "of_updates": in_all,
            }
        )
    return rows


def claims(study: Record) -> list[Record]:
    """Returns what the public guide claims about fine-tuning, and what this study finds."""
    return [saves_two_thirds(study), starts_near(study), gripper_between(study)]


def saves_two_thirds(study: Record) -> Record:
    """Whether fine-tuning reaches scratch's final figures after a third of the updates, by every measured figure."""
    evidence, told = [], set()
    for arm in ("strip", "grow"):
        chosen = [row for row in study["reach"] if row["arm"] == arm]
        for name in (*REACHED, "success"):
            within = [within_a_third(row, name) for row in chosen if name in row["updates"]]
            if within:
                unclear = f", {within.count(None)} between two measurements" if None in within else ""
                evidence.append(f"{arm}: {name} in {within.count(True)} of {len(within)} trainings{unclear}")
                told |= set(within)
    verdict = FALSE if False in told else TRUE if told == {True} else NOT_MEASURABLE
    said = "fine-tuning saves two thirds of the epochs"
    return {"claim": said, "verdict": verdict, "evidence": "within a third of the updates: " + "; ".join(evidence)}


def within_a_third(row: Record, name: str) -> bool | None:
    """Whether a figure of scratch was reached in a third of the updates; None if it was between two measurements."""
    update, not_yet, third = row["updates"][name], row["not_yet"][name], row["of_updates"] / 3
    if update is not None and update <= third:
        return True
    return None if update is not None and not_yet < third else False


def starts_near(study: Record) -> Record:
    """Whether the loss before the first update is at most NEAR times that of the source on the same episodes."""
    old, ratios = study["source_loss"], {}
    for arm in ("strip", "grow"):
        chosen = [t for t in study["trainings"] if t["arm"] == arm and str(t["seed"]) in old]
        values = [t["curves"][0]["val_loss_before_first_update"] / old[str(t["seed"])] for t in chosen]
        if values:
            ratios[arm] = values
    if not ratios:
        verdict = NOT_MEASURABLE
    else:
        verdict = TRUE if all(value <= NEAR for values in ratios.values() for value in values) else FALSE
    words = [f"{arm}: {min(values):.3g} to {max(values):.3g} times" for arm, values in ratios.items()]
    said = "a fine-tune starts near the old loss"
    return {"claim": said, "verdict": verdict, "evidence": "of the source's loss, " + "; ".join(words)}


def gripper_between(study: Record) -> Record:
    """Whether F1 first reaches F1_LEARNED between epochs 50 and 150."""
    epochs: list[float] = []
    never = 0
    for training in study["trainings"]:
        if training["arm"] not in ("grow", "strip"):
            continue
        good = [p["global_step"] for p in training["curves"] if p.get("val_gripper_f1", 0) >= F1_LEARNED]
        never += not good
        epochs += [min(good) / training["updates_an_epoch"]] if good else []
    if not epochs:
        verdict, evidence = NOT_MEASURABLE, f"F1 {F1_LEARNED} was reached in none of {never} trainings"
    else:
        verdict = TRUE if all(50 <= epoch <= 150 for epoch in epochs) else FALSE
        evidence = f"F1 {F1_LEARNED} after {min(epochs):.1f} to {max(epochs):.1f} epochs in {len(epochs)} trainings"
        evidence += f", not at all in {never}" if never else ""
    return {"claim": "the gripper is learned between epochs 50 and 150", "verdict": verdict, "evidence": evidence}


def summarize(study: Record) -> Record:
    """Returns the tables as plain JSON, with the data that they are made from."""
    last = finals(study["records"])
    study["reach"] = reach_table(study)
    study["finals"] = [
        {
            "arm": arm,
            "demonstrations": count,
            **outcome(records),
            "minus_scratch": difference(last.get((SCRATCH, count), []), records) if arm != SCRATCH else None,
            "minus_grow": difference(last.get(("grow", count), []), records) if arm != "grow" else None,
        }
        for (arm, count), records in last.items()
    ]
    study["claims"] = claims(study)
    return study


def median_or_never(values: Sequence[int | float | None], shown: Callable[[float], str]) -> str:
    """Returns the median of several seeds; "never" if most did not get there."""
    known = sorted(value if value is not None else float("inf") for value in values)
    if not known:
        return "-"
    middle = known[(len(known) - 1) // 2]
    return "never" if middle == float("inf") else shown(middle)
