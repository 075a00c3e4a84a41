"""The loop: its commands, its table, and that it resumes wherever it was killed without repeating anything.

Converting is real and tiny; rollouts, recordings and training write what the real commands would, with invented
outcomes.
"""

import importlib.util
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from script_parsers import refusal
from trajectory_factory import write_trajectory

from diffusion_policy import recipe, safe_pickle
from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.dagger import rounds
from diffusion_policy.dagger.corrections import DOCUMENT, Collected
from diffusion_policy.dagger.rounds import (
    RoundError,
    RoundPlan,
    Work,
    conversion_words,
    evaluation,
    gathering,
    learning,
    split_updates,
)
from diffusion_policy.dagger.table import compared
from diffusion_policy.dataset.image_codecs import image_codec
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.env_runner.document import ClosedLoop
from diffusion_policy.env_runner.results import SceneResult
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.recipe import FinishedSteps, Step
from diffusion_policy.spec import INTERVENTION

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = ["--scenes", "2", "--updates", "2", "--evaluation-scenes", "4", "--camera-size", "64", "36", "--control"]


def door(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_door", REPOSITORY / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dagger = door("dagger")


def record(folder: Path, number: int, *, at: float, marked_from: int | None = None) -> None:
    """A recording of a few steps, distinguished from others by its time."""
    path = write_trajectory(folder, episode_id=number, n_steps=14, size=(64, 36))
    data = safe_pickle.load((path / "data.pkl").read_bytes(), allowed=safe_pickle.NUMPY_GLOBALS, where="test")
    data["timestamp"] = data["timestamp"] + at
    if marked_from is not None:
        data[INTERVENTION] = np.arange(len(data["timestamp"])) >= marked_from
    (path / "data.pkl").write_bytes(pickle.dumps(data))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    for number in range(2):
        record(folder / "recorded", number, at=100.0 * number)
    convert(ConversionSettings(folder / "recorded", folder / "data.zarr", resolution=(40, 36), workers=1))
    return folder / "data.zarr"


def value(words: Sequence[str], option: str) -> str:
    return words[words.index(option) + 1]


class Commands:
    """Stands in for ``recipe.run_child``; ``stop_at`` interrupts a command, before or after its work."""

    def __init__(self, episodes: Callable[[int], int] = lambda number: 2) -> None:
        self.ran: list[list[str]] = []
        self.episodes = episodes
        self.stop_at: tuple[int, bool] | None = None

    def __call__(self, words: Sequence[str], folder: Path) -> int:
        script, arguments = Path(words[1]).stem, list(words[2:])
        stopped, afterwards = self.stop_at or (-1, False)
        here = len(self.ran) == stopped
        self.ran.append([script, *arguments])
        if here and not afterwards:
            raise KeyboardInterrupt
        getattr(self, script)(arguments)
        if here:
            raise KeyboardInterrupt
        return 0

    def evaluate_closed_loop(self, words: list[str]) -> None:
        """The initial policy never succeeds; each round of corrections gains two scenes, each of demonstrations one."""
        won = 0
        if "run_" in words[0]:
            won = int(words[0].partition("run_")[2].partition("/")[0]) * (2 if "corrections" in words[0] else 1)
        first = int(value(words, "--seed"))
        scenes = int(value(words, "--scenes"))
        results = [SceneResult(n, first + n, n < won, 10, None if n < won else "dropped") for n in range(scenes)]
        Path(value(words, "--json")).write_text(json.dumps(ClosedLoop({}, scenes, results).to_json()))

    def collect_corrections(self, words: list[str]) -> None:
        if "--marked" in words:
            assert door("collect_corrections").main(words) == 0
            return
        out, first = Path(value(words, "--output")), int(value(words, "--first-number"))
        if (out / DOCUMENT).exists():
            return
        out.mkdir(parents=True, exist_ok=True)
        taken = []
        for number in range(first, first + self.episodes(first // 1000)):
            record(out, number, at=1000.0 * number)
            name = f"episode_{number:04d}"
            taken.append({"scene": 0, "seed": 0, "step": 3, "why": "stood still", "episode": name, "frames": 14})
        (out / DOCUMENT).write_text(json.dumps(Collected({}, 0, [], taken).to_json()))

    def make_demo_trajectories(self, words: list[str]) -> None:
        out = Path(value(words, "--output"))
        assert not out.exists(), "as the real command, it refuses to replace episodes"
        for number in range(int(value(words, "--episodes"))):
            record(out, number, at=float(value(words, "--seed")) + 100.0 * number)

    def convert_cogact_to_zarr(self, words: list[str]) -> None:
        assert door("convert_cogact_to_zarr").main([*words, "--workers", "1"]) == 0

    def train(self, words: list[str]) -> None:
        chosen = dict(word.split("=", 1) for word in words if "=" in word)
        run = Path(chosen["hydra.run.dir"])
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        updates = int(chosen["training.num_epochs"]) * int(chosen["training.max_train_steps"])
        (run / "logs.json.txt").write_text(json.dumps({"global_step": updates}) + "\n")
        (run / "checkpoints" / "latest.ckpt").touch()


def run(commands: Commands, dataset: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    monkeypatch.setattr(recipe, "run_child", commands)
    # Composing a config takes a second each time.
    monkeypatch.setattr(rounds, "split_updates", lambda plan: (1, plan.updates))
    status: int = dagger.main(["start.ckpt", "--dataset", str(dataset), "--workdir", str(folder), *SMALL, *more])
    return status


def test_two_rounds_and_their_table(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands, before = Commands(), sorted(path.stat().st_mtime_ns for path in dataset.rglob("*"))
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "table.json"
    assert run(commands, dataset, tmp_path / "work", monkeypatch, "--json", str(out)) == 0
    rows = json.loads(out.read_text())["rounds"]
    keys = ("arm", "round", "demonstrations", "corrections", "updates")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("start", 0, 2, 0, 0),
        ("corrections", 1, 2, 2, 2),
        ("demonstrations", 1, 4, 0, 2),
        ("corrections", 2, 2, 4, 4),
        ("demonstrations", 2, 6, 0, 4),
    ]
    assert [row["success"]["count"] for row in rows] == [0, 2, 1, 4, 2]
    assert rows[1]["before"]["only_second"] == 2
    assert rows[3]["against_demonstrations"]["only_second"] == 2
    assert rows[4]["against_demonstrations"] is None
    assert rows == json.loads((tmp_path / "work" / "rounds.json").read_text())["rounds"]
    for arm in ("corrections", "demonstrations"):
        held = ReplayBuffer.open(tmp_path / "work" / arm / "data.zarr")
        assert len(held.episode_ends) == 6
        assert [row["frames"] for row in rows if row["arm"] == arm][-1] == held.episode_ends[-1]
    assert before == sorted(path.stat().st_mtime_ns for path in dataset.rglob("*")), "the dataset is only read"
    printed = capsys.readouterr().out
    assert "2 won, 0 lost, p = 0.5" in printed
    assert "4 of 4 (51-100 %)" in printed


def test_each_round_starts_from_the_one_before_and_both_arms_are_alike(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = Commands()
    run(commands, dataset, tmp_path / "work", monkeypatch)
    trained = [words for words in commands.ran if words[0] == "train"]
    starts = [next(word for word in words if word.startswith("pretrained.path=")) for words in trained]
    arms = ("corrections", "demonstrations")
    earlier = [f"pretrained.path={tmp_path}/work/{arm}/run_1/checkpoints/latest.ckpt" for arm in arms]
    assert starts == [*["pretrained.path=start.ckpt"] * 2, *earlier]

    def alike(words: list[str]) -> list[str]:
        return [word for word in words if "/work/" not in word and not word.startswith("pretrained.path=")]

    assert alike(trained[0]) == alike(trained[1])
    assert alike(trained[2]) == alike(trained[3])
    seeds = [value(words, "--seed") for words in commands.ran if words[0] == "collect_corrections"]
    assert seeds == ["300000", "300002"], "no scene is corrected twice"
    evaluated = {value(words, "--seed") for words in commands.ran if words[0] == "evaluate_closed_loop"}
    assert evaluated == {"100000"}, "all in the same scenes"


@pytest.mark.parametrize("afterwards", [False, True], ids=["under way", "ended, and not noted"])
@pytest.mark.parametrize("stop_at", [2, 5, *(pytest.param(at, marks=pytest.mark.exhaustive) for at in (0, 3))])
def test_killed_at_any_command_it_continues(
    stop_at: int, afterwards: bool, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = Commands()
    commands.stop_at = (stop_at, afterwards)
    work = tmp_path / "work"
    assert run(commands, dataset, work, monkeypatch, "--rounds", "1") == 130
    assert len(commands.ran) == stop_at + 1
    assert run(commands, dataset, work, monkeypatch, "--rounds", "1", "--resume") == 0
    assert len(commands.ran) == 9 + 1, "only the command that was under way ran twice"
    assert len(ReplayBuffer.open(work / "corrections" / "data.zarr").episode_ends) == 4
    assert len(ReplayBuffer.open(work / "demonstrations" / "data.zarr").episode_ends) == 4
    rows = json.loads((work / "rounds.json").read_text())["rounds"]
    assert [row["success"]["count"] for row in rows] == [0, 2, 1]
    assert run(commands, dataset, work, monkeypatch, "--rounds", "1", "--resume") == 0
    assert len(commands.ran) == 9 + 1, "what is done is only shown again"


def test_nothing_to_correct_ends_the_loop(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = Commands(episodes=lambda number: 2 if number == 1 else 0)
    assert run(commands, dataset, tmp_path / "work", monkeypatch) == 0
    assert commands.ran[-1][0] == "collect_corrections"
    assert "round 2: nothing to correct in 2 scenes" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "work" / "rounds.json").read_text())["rounds"]) == 3


@pytest.mark.parametrize("stop_at", [None, 0, 2])
def test_a_round_of_a_robot_s_marked_recordings(
    stop_at: int | None, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands, work = Commands(), tmp_path / "work"
    monkeypatch.setattr(recipe, "run_child", commands)
    monkeypatch.setattr(rounds, "split_updates", lambda plan: (1, plan.updates))
    for number in range(2):
        record(tmp_path / "raw", number, at=7000.0 + 100.0 * number, marked_from=5)
    words = ["start.ckpt", "--dataset", str(dataset), "--workdir", str(work), "--updates", "2"]
    words += ["--marked", str(tmp_path / "raw")]
    if stop_at is not None:
        commands.stop_at = (stop_at, True)
        assert dagger.main(words) == 130
        words.append("--resume")
    assert dagger.main(words) == 0
    assert {ran[0] for ran in commands.ran} == {"collect_corrections", "convert_cogact_to_zarr", "train"}
    start, row = json.loads((work / "rounds.json").read_text())["rounds"]
    assert (start["corrections"], row["corrections"], row["updates"], row["success"]) == (0, 2, 2, None)
    ends = ReplayBuffer.open(work / "corrections" / "data.zarr").episode_ends
    assert ends.tolist() == [14, 28, 37, 46]
    assert row["frames"] == 46


@pytest.mark.parametrize("more", [["--rounds", "2"], ["--control"]])
def test_marked_recordings_are_one_round(
    more: list[str], dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["start.ckpt", "--dataset", str(dataset), "--workdir", str(tmp_path / "work"), "--marked", "raw", *more]
    assert dagger.main(words) == 2
    assert "--marked is one round of a robot's recordings" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_command_that_fails_ends_the_loop_with_its_status(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "run_child", lambda words, folder: 2)
    words = ["start.ckpt", "--dataset", str(dataset), "--workdir", str(tmp_path / "work"), *SMALL]
    assert dagger.main(words) == 2
    assert not (tmp_path / "work" / "done.json").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [("training.device=cuda:99", "training.device=cuda:99: "), ("training.devise=cpu", "training.devise")],
)
def test_what_training_would_refuse_is_refused_before_any_rollout(
    setting: str, message: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["start.ckpt", "--dataset", str(dataset), "--workdir", str(tmp_path / "work"), *SMALL, "--set", setting]
    assert dagger.main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_another_loop_is_not_gone_on_with(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands, work = Commands(), tmp_path / "work"
    commands.stop_at = (1, False)
    run(commands, dataset, work, monkeypatch)
    assert run(commands, dataset, work, monkeypatch) == 2
    assert "is not empty; name another --workdir, or continue with --resume" in capsys.readouterr().err
    assert run(commands, dataset, work, monkeypatch, "--updates", "7", "--resume") == 2
    assert "updates is 2; here it is 7" in capsys.readouterr().err
    assert len(commands.ran) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "rounds is 0; expected 1 or more"),
        ({"updates": 0}, "updates is 0; expected 1 or more"),
        ({"seed": 100_039}, "the scenes of evaluation .100000 to 100039. and of corrected rollouts .100039 to 100078."),
        ({"seed": 99_961}, "overlap; choose seeds that are further apart"),
        ({"control_seed": 100_000}, "of evaluation .* and of the control's demonstrations"),
        ({"control_seed": 300_020}, "of corrected rollouts .* and of the control's demonstrations"),
    ],
)
def test_scenes_are_kept_apart(change: dict[str, int], message: str) -> None:
    with pytest.raises(RoundError, match=message):
        RoundPlan("a.ckpt", "a.zarr", **change)


def test_updates_do_not_depend_on_what_was_added(dataset: Path, tmp_path: Path) -> None:
    for updates in (1, 5, 33):
        plan = RoundPlan("a.ckpt", str(dataset), updates=updates)
        epochs, batches = split_updates(plan)
        assert updates <= epochs * batches < updates + epochs
        frames = ReplayBuffer.open(dataset).episode_ends[-1]
        assert batches * 16 <= frames, "an epoch of the first dataset has as many"


@pytest.mark.parametrize(
    "made",
    [
        {"codec": image_codec("jpeg", 90)},
        {"zarr_format": 3, "shard": 64, "gripper_lead": 1},
        {"gripper_command": "next-measured", "quaternion_sign": "keep"},
    ],
)
def test_the_dataset_s_own_settings_are_appended_with(made: dict[str, object], tmp_path: Path) -> None:
    for number, name in enumerate(("first", "second")):
        record(tmp_path / name, number, at=100.0 * number)
    data = tmp_path / "data.zarr"
    convert(ConversionSettings(tmp_path / "first", data, resolution=(40, 36), workers=1, **made))
    words = [
        "--input",
        str(tmp_path / "second"),
        "--output",
        str(data),
        *conversion_words(RoundPlan("a.ckpt", str(data)), data),
        "--append",
    ]
    assert door("convert_cogact_to_zarr").main(words) == 0
    assert len(ReplayBuffer.open(data).episode_ends) == 2


def test_settings_of_training_are_passed_on(dataset: Path, tmp_path: Path) -> None:
    plan = RoundPlan("a.ckpt", str(dataset), settings=("optimizer.learning_rate=0.001",), experiment="finetune_8d")
    work = Work(tmp_path, plan)
    work.begin(resume=False)
    work.copy_dataset("corrections")
    _, train = learning(work, "corrections", 1)
    assert {"optimizer.learning_rate=0.001", "experiment=finetune_8d"} <= set(train.words)


@pytest.mark.parametrize("simulator", ["tabletop", "grove"])
def test_commands_are_those_that_the_scripts_take(
    simulator: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Covers all commands of a round in either simulator, and the limit on an episode in the grove."""
    monkeypatch.setattr(rounds, "split_updates", lambda plan: (1, plan.updates))
    task, config = ("wool", "train_vpt_bc") if simulator == "grove" else ("distractors", "train_cogact_robot")
    plan = RoundPlan("a.ckpt", str(dataset), task=task, simulator=simulator, env=("max_steps=9",), scenes=(3, 2))
    work = Work(tmp_path, plan)
    for arm in ("corrections", "demonstrations"):
        work.copy_dataset(arm)
    (tmp_path / "corrections" / "recorded_2").mkdir()
    taken = {"scene": 0, "seed": 0, "step": 3, "why": "stood still", "episode": "episode_2000", "frames": 14}
    (tmp_path / "corrections" / "recorded_2" / DOCUMENT).write_text(json.dumps(Collected({}, 0, [], [taken]).to_json()))
    gathered = gathering(work, "corrections", 2)
    steps = [evaluation(work, "corrections", 1), gathered, gathering(work, "demonstrations", 2)]
    for arm in ("corrections", "demonstrations"):
        steps += learning(work, arm, 2)
    for step in steps:
        script, *words = step.words
        if Path(script).stem == "train":
            assert f"--config-name={config}" in words
        else:
            assert refusal(Path(script).stem, words) is None, step.words
    assert (value(gathered.words, "--scenes"), value(gathered.words, "--seed")) == ("2", "300003")
    assert all("max_steps=9" in step.words for step in steps[:2])
    assert all(task in step.words for step in steps[:3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scenes": (3,)}, "scenes are of 1 rounds; expected one number, or 2"),
        ({"scenes": (3, 0)}, "expected 1 or more"),
        ({"simulator": "chess"}, "simulator is 'chess'; expected tabletop or grove"),
    ],
)
def test_plans_that_make_no_sense(change: dict[str, object], message: str) -> None:
    with pytest.raises(RoundError, match=message):
        RoundPlan("a.ckpt", "a.zarr", **change)


def test_a_loop_from_before_the_grove_continues(dataset: Path, tmp_path: Path) -> None:
    work = Work(tmp_path, RoundPlan("a.ckpt", str(dataset)))
    work.begin(resume=False)
    plan = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({k: v for k, v in plan.items() if k not in ("simulator", "env")}))
    work.begin(resume=True)


def test_ended_commands_survive_the_process(tmp_path: Path) -> None:
    step = Step("Record", ("scripts/make_demo_trajectories.py",))
    FinishedSteps(tmp_path / "done.json").add(step)
    assert step in FinishedSteps(tmp_path / "done.json")
    (tmp_path / "done.json").write_text("{}")
    with pytest.raises(WorkspaceError, match="expected a list of the titles"):
        FinishedSteps(tmp_path / "done.json")


def test_a_comparison_in_words() -> None:
    assert compared(None) == "-"
    assert compared({"only_second": 8, "only_first": 2, "p_value": 0.109375}) == "8 won, 2 lost, p = 0.11"
