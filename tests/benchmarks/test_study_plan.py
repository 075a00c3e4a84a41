"""A study's file, the trainings that it requests, and that finished work is not repeated."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from study_cells import AFTER, Runner
from study_plan import Cell, Plan, StudyError, read_plan

from diffusion_policy.storage import write_json

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PLANS = {name: read_plan(BENCHMARKS / name) for name in ("finetune_study.yaml", "finetune_study_small.yaml")}
CELLS = [
    pytest.param(name, cell, id=f"{name}-{cell.arm.name}")
    for name, plan in PLANS.items()
    for cell in plan.cells()
    if cell.seed == 0 and cell.demonstrations == max(plan.demonstrations)
]


def plan_with(tmp_path: Path, **changes: Any) -> Path:
    content = yaml.safe_load((BENCHMARKS / "finetune_study_small.yaml").read_text())
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


@pytest.mark.parametrize(("name", "cell"), CELLS)
def test_every_arm_composes(name: str, cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = PLANS[name]
    monkeypatch.setattr(Runner, "dataset", lambda self, cell: tmp_path / "data.zarr")
    monkeypatch.setattr(Runner, "_adapted", lambda self, cell: tmp_path / "adapted.ckpt")
    cfg = Runner(plan, tmp_path).config(cell)
    assert cfg.training.num_epochs * cfg.training.max_train_steps == plan.updates
    assert cfg.task.dataset.max_train_episodes == cell.demonstrations
    assert cfg.pretrained.path == (None if cell.arm.start == "scratch" else str(tmp_path / "adapted.ckpt"))
    assert cfg.checkpoint.topk.format_str == AFTER
    if "stages.0.steps" in cell.arm.set:
        assert cfg.stages[0].steps == cell.arm.set["stages.0.steps"] < plan.updates


def test_arms_differ_in_what_they_say(tmp_path: Path) -> None:
    plan = read_plan(BENCHMARKS / "finetune_study.yaml")
    arms = [(arm.start, arm.labels, arm.overrides, str(arm.set), arm.source) for arm in plan.arms]
    assert len(set(arms)) == len(arms)
    names = [cell.name for cell in plan.cells()]
    assert len(set(names)) == len(names) == 3 * 4 * len(plan.arms)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": 290}, "multiple of look_every"),
        ({"judged_at": [40, 120]}, "including the last one"),
        ({"judged_at": [30, 280]}, "odd multiples of 40"),
        ({"judged_at": [80, 280]}, "odd multiples of 40"),
        ({"tampered_from": ["nobody"]}, "tampered_from among them"),
        ({"seed": [1]}, "seed; expected some of"),
        ({"scenes": {"along": 1, "last": 1, "first": 1}}, "scenes has first"),
        ({"scenes": {"along": 1}}, "last"),
        ({"arms": {}}, "expected the ways to train by name"),
        ({"arms": {"a": {"start": "shrink"}}, "tampered_from": []}, "'shrink'; expected one of scratch"),
        ({"arms": {"a": {"start": "grow", "labels": "none"}}, "tampered_from": []}, "'none'; expected one of recorded"),
        ({"arms": {"a": {"start": "grow", "rate": 1}}, "tampered_from": []}, "arm 'a' has rate"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=message.replace("(", "\\(")):
        read_plan(plan_with(tmp_path, **changes))


class Counting(Runner):
    """A runner that trains and judges nothing, and counts."""

    def __init__(self, plan: Plan, folder: Path):
        super().__init__(plan, folder)
        self.trainings = self.judgments = 0

    def config(self, cell: Cell) -> Any:
        return None

    def _train(self, cfg: Any, run: Path) -> dict[str, Any]:
        self.trainings += 1
        for update in range(self.plan.look_every, self.plan.updates + 1, self.plan.look_every):
            write_json(run / "checkpoints" / AFTER.format(global_step=update), {})
        return {"seconds": 0.0}

    def _judge(self, cell: Cell, checkpoint: Path, result: Path, update: int, how: str | None = None) -> None:
        if self.judgments == 2:
            raise KeyboardInterrupt
        self.judgments += 1
        write_json(result, {"update": update})


def test_an_interrupted_study_continues_where_it_was(tmp_path: Path) -> None:
    plan = read_plan(plan_with(tmp_path, tampered_from=[], judged_at=[40, 120, 200, 280]))
    cell = plan.cells()[0]
    first = Counting(plan, tmp_path / "study")
    with pytest.raises(KeyboardInterrupt):
        first.judged(cell)
    again = Counting(plan, tmp_path / "study")
    again.judged(cell)
    again.judged(cell)
    assert (first.trainings, first.judgments) == (1, 2)
    assert (again.trainings, again.judgments) == (0, 2)
    kept = [path.name for path in (tmp_path / "study" / "runs" / cell.name / "checkpoints").iterdir()]
    assert kept == [AFTER.format(global_step=280)]
