"""The demo's own part: its recipe, which folder it may empty, and when it stops; test_end_to_end.py runs it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from diffusion_policy import recipe
from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.spec import POSE

REPOSITORY = Path(__file__).resolve().parents[2]


def script_main(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


demo = script_main("demo")
make_demo_trajectories = script_main("make_demo_trajectories")
pretrain_demo_policy = script_main("pretrain_demo_policy")

SHIPPED = REPOSITORY / "data" / "pretrained" / "tabletop_7d.ckpt"
EVENTS = [[10, "close"], [20, "open"]]


def test_the_recipe_uses_the_scripts_of_the_readme() -> None:
    steps = demo.recipe(Path("data/demo"), seed=3, quick=False)
    readme = (REPOSITORY / "README.md").read_text()
    scripts = {step.words[0] for step in steps} - {"scripts/make_demo_trajectories.py"}
    assert all((REPOSITORY / path).is_file() for path in scripts)
    assert all(path in readme for path in scripts), "the recording is made; the rest is the README's recipe"
    assert not any("max_train_steps" in word for step in steps for word in step.words)


def test_each_step_reads_what_an_earlier_one_wrote() -> None:
    words = [" ".join(step.words) for step in demo.recipe(Path("work"), seed=0, quick=True)]
    assert f"evaluate_closed_loop.py {SHIPPED} --scenes 1" in words[0]
    assert "--output work/trajectories" in words[1]
    assert "--input work/trajectories --output work/tabletop.zarr" in words[2]
    assert f"--old_ckpt {SHIPPED} --new_ckpt work/grown.ckpt" in words[3]
    assert "pretrained.path=work/grown.ckpt hydra.run.dir=work/finetuned" in words[4]
    assert "experiment=demo_scratch hydra.run.dir=work/scratch" in words[5]
    assert "work/finetuned/checkpoints/latest.ckpt" in words[6]
    assert "work/scratch/checkpoints/latest.ckpt" in words[7]
    assert "--compare work/rollouts_finetuned.json" in words[7]
    assert "work/finetuned/checkpoints/latest.ckpt work/tabletop.zarr --output work/logs" in words[8]
    assert "work/logs" in words[9]
    assert "--run work/finetuned --checkpoint work/finetuned/checkpoints/latest.ckpt" in words[10]
    assert "--closed-loop work/rollouts_finetuned.json work/rollouts_scratch.json" in words[10]


def test_all_policies_are_rolled_out_alike() -> None:
    steps = demo.recipe(Path("work"), seed=5, quick=False)
    rollouts = [step.words for step in steps if step.script == "evaluate_closed_loop"]
    assert len(rollouts) == 3
    for words in rollouts:
        assert words[words.index("--n-action-steps") + 1] == "8"
        assert "--seed" not in words, "the scenes are those of every demo"


def test_the_shipped_policy_is_small_and_tells_where_it_comes_from() -> None:
    assert SHIPPED.stat().st_size < 5_000_000
    found = read_checkpoint(SHIPPED)
    assert found.provenance is not None
    origin = found.provenance["pretraining"]
    commands = pretrain_demo_policy.recipe(Path("data/demo_pretraining"), episodes=400, seed=7, epochs=12)
    assert origin["commands"] == [" ".join(step.words) for step in commands]
    assert tuple(found.cfg.shape_meta.action.names) == POSE
    weights = found.state_dict("ema_model")
    assert {str(value.dtype) for name, value in weights.items() if name.startswith("normalizer.")} == {"torch.float32"}


def test_somebody_elses_folder_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(WorkspaceError, match="is not empty and was not made by this command"):
        recipe.prepare(tmp_path, demo.MARKER)
    assert demo.main(["--workdir", str(tmp_path)]) == 2
    assert (tmp_path / "thesis.txt").read_text() == "three years"


def test_its_own_folder_is_made_anew(tmp_path: Path) -> None:
    work = tmp_path / "data" / "demo"
    recipe.prepare(work, demo.MARKER)
    (work / "old.txt").touch()
    recipe.prepare(work, demo.MARKER)
    assert [path.name for path in work.iterdir()] == [demo.MARKER]


@pytest.mark.parametrize(
    ("second", "accepted", "statuses"), [("sys.exit(7)", (0,), (0, 7)), ("sys.exit(1)", (0, 1), (0, 1, 0))]
)
def test_an_unexpected_status_is_the_last(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    second: str,
    accepted: tuple[int, ...],
    statuses: tuple[int, ...],
) -> None:
    monkeypatch.setattr(recipe, "script_path", lambda script: tmp_path / f"{script}.py")
    for number, program in enumerate(["pass", second, "pass"]):
        written = f"import sys; open({str(tmp_path / 'ran')!r}, 'a').write('x'); {program}"
        (tmp_path / f"part_{number}.py").write_text(written)
    steps = [recipe.Step("part", (f"scripts/part_{n}.py",), accepted) for n in range(3)]
    played = recipe.run_recipe(steps)
    assert played.statuses == statuses
    assert (played.failure is None) == (statuses[-1] in accepted)
    assert len(played.seconds) == len(statuses)
    assert (tmp_path / "ran").read_text() == "x" * len(statuses)


def rollouts(before: int, after: int) -> dict[str, Any]:
    def share(count: int) -> dict[str, Any]:
        return {"success": {"count": count, "of": 40, "interval": [0.0, 1.0]}, "grasped": None, "reasons": {}}

    return {"pose": share(before), "finetuned": share(after), "scratch": share(0)}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["opens and closes", "learned"], "opens and closes in 2 of 2 held-out episodes"),
        (["opens and closes", "never closes"], "opens and closes in 1 of 2 held-out episodes"),
    ],
)
def test_rollouts_and_recordings_are_distinguished(verdicts: list[str], expected: str) -> None:
    logs = [{"verdict": verdict, "events": EVENTS, "leads_measurement": 2} for verdict in verdicts]
    title, recordings = demo.headline(rollouts(0, 35)), demo.how_firm(logs)
    assert title == "Block in the tray: 0 of 40 scenes before, 35 of 40 after"
    assert len(title) < 76, "it fits a terminal of 80 columns"
    assert expected in recordings
    assert "the rollouts show" in recordings
    for word in ("learned", "grasp"):
        assert word not in title + recordings, "commands on recordings do not show that"


def test_a_missing_pose_policy_is_an_error_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "PRETRAINED", tmp_path)
    assert demo.main(["--workdir", str(tmp_path / "demo")]) == 2
    assert "pretrain_demo_policy" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_recording_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path), "--episodes", "1", "--resolution", "64", "36"]
    assert make_demo_trajectories.main(arguments) == 0
    assert (tmp_path / "episode_0000" / "data.pkl").is_file()
    assert make_demo_trajectories.main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
