"""The demo's own part: its recipe, whose folder it may empty, and when it stops; test_end_to_end.py runs it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from diffusion_policy.spec import WorkspaceError

REPOSITORY = Path(__file__).resolve().parents[2]


def door(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


demo = door("demo")
make_demo_trajectories = door("make_demo_trajectories")


def quiet() -> Console:
    return Console(quiet=True)


def test_the_recipe_uses_the_doors_of_the_readme() -> None:
    steps = demo.recipe(Path("data/demo"), seed=3, quick=False)
    readme = (REPOSITORY / "README.md").read_text()
    doors = [step.words[0] for step in steps]
    assert all((REPOSITORY / path).is_file() for path in doors)
    assert all(path in readme for path in doors[1:]), "the recording is made; the rest is the README's recipe"
    assert not any("max_train_steps" in word for step in steps for word in step.words)


def test_each_step_reads_what_an_earlier_one_wrote() -> None:
    words = [" ".join(step.words) for step in demo.recipe(Path("work"), seed=0, quick=True)]
    assert "--output work/trajectories" in words[0]
    assert "--input work/trajectories --output work/tabletop.zarr" in words[1]
    assert "hydra.run.dir=work/pose_policy" in words[2]
    assert "--old_ckpt work/pose_policy/checkpoints/latest.ckpt --new_ckpt work/grown.ckpt" in words[3]
    assert "pretrained.path=work/grown.ckpt hydra.run.dir=work/finetuned" in words[4]
    assert "work/finetuned/checkpoints/latest.ckpt work/tabletop.zarr --output work/logs" in words[5]
    assert "work/logs" in words[6]


def test_somebody_elses_folder_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(WorkspaceError, match="is not empty and was not made by the demo"):
        demo.prepare(tmp_path)
    assert demo.main(["--workdir", str(tmp_path)]) == 2
    assert (tmp_path / "thesis.txt").read_text() == "three years"


def test_its_own_folder_is_made_anew(tmp_path: Path) -> None:
    work = tmp_path / "data" / "demo"
    demo.prepare(work)
    (work / "old.txt").touch()
    demo.prepare(work)
    assert [path.name for path in work.iterdir()] == [demo.MARKER]


@pytest.mark.parametrize(("second", "status", "ran"), [("sys.exit(7)", 7, 2), ("pass", 0, 3)])
def test_the_first_failure_is_the_last_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str, status: int, ran: int
) -> None:
    monkeypatch.setattr(demo, "script_path", lambda script: tmp_path / f"{script}.py")
    for number, program in enumerate(["pass", second, "pass"]):
        written = f"import sys; open({str(tmp_path / 'ran')!r}, 'a').write('x'); {program}"
        (tmp_path / f"part_{number}.py").write_text(written)
    found, seconds = demo.play([demo.Step("part", (f"scripts/part_{n}.py",)) for n in range(3)], quiet())
    assert (found, len(seconds)) == (status, ran)
    assert (tmp_path / "ran").read_text() == "x" * ran


@pytest.mark.parametrize(
    ("verdicts", "ahead", "said"),
    [
        (["opens and closes", "learned"], 2, "The gripper opens and closes, by its commands on recordings"),
        (["opens and closes", "never closes"], 2, "opens and closes in 1 of 2 held-out episodes"),
        (["opens and closes", "opens and closes"], 0, "only 0 of 4 times before the measured one: it may be a copy"),
    ],
)
def test_the_headline_is_the_verdict(verdicts: list[str], ahead: int, said: str) -> None:
    events = [[10, "close"], [20, "open"]]
    logs = [{"verdict": verdict, "events": events, "leads_measurement": ahead} for verdict in verdicts]
    assert said in demo.headline(logs)
    for word in ("learned", "grasp"):
        assert word not in demo.headline(logs) + demo.how_firm(logs), "commands on recordings do not show that"
    assert "only a rollout shows" in demo.how_firm(logs)


def test_recording_is_a_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path), "--episodes", "1", "--resolution", "64", "36"]
    assert make_demo_trajectories.main(arguments) == 0
    assert (tmp_path / "episode_0000" / "data.pkl").is_file()
    assert make_demo_trajectories.main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
