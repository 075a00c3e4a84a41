"""The bash launchers: they check their inputs, stop at the first error, and pass the pretrained path on."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_run
from hydra import compose, initialize_config_dir
from script_parsers import refusal

from diffusion_policy.commands import setting
from diffusion_policy.installation import PRETRAINED
from diffusion_policy.resolvers import register_resolvers
from diffusion_policy.workspace import preflight

REPOSITORY = Path(__file__).resolve().parents[2]
ADAPT_AND_TRAIN = "finetune_7d_to_8d.sh"
TRAIN = "train_cogact_finetune.sh"

# Stands in for the interpreter: logs its arguments, one call per line, and creates what the commands would leave
# behind.
FAKE_PYTHON = """#!/usr/bin/env bash
printf '%s|' "$@" >> "$CALLS"; echo >> "$CALLS"
[[ "$1" != "${FAIL_AT:-}" ]] || exit 7
[[ "$2" != "${FAIL_AT:-}" ]] || exit 2
previous=
for word in "$@"; do
    [[ "$previous" != --new_ckpt ]] || touch "$word"
    [[ "$previous" != --output ]] || { mkdir -p "$word"; touch "$word"/inference_log_{1,2}.json; }
    previous=$word
done
"""

SHIPPED = PRETRAINED / "tabletop_7d.ckpt"


@dataclass(frozen=True)
class Workbench:
    """A folder with the launchers' inputs, and an interpreter that only logs its calls."""

    folder: Path
    environment: dict[str, str]

    def run(self, launcher: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(REPOSITORY / "scripts" / launcher), *arguments],
            env=self.environment | settings,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[list[str]]:
        notes = self.folder / "calls.txt"
        return [line.rstrip("|").split("|") for line in notes.read_text().splitlines()] if notes.exists() else []

    def scripts(self) -> list[str]:
        """Returns what ran, except for the checks before it."""
        return [words[0] for words in self.calls() if words[0] != "-m"]


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    python = tmp_path / "fake_python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    (tmp_path / "old.ckpt").touch()
    (tmp_path / "set of mine.zarr").mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "CALLS": str(tmp_path / "calls.txt"),
        "PYTHON": str(python),
        "OLD_CKPT": str(tmp_path / "old.ckpt"),
        "INIT_CKPT": str(tmp_path / "new folder" / "init.ckpt"),
        "DATASET": str(tmp_path / "set of mine.zarr"),
        "RUN_DIR": str(tmp_path / "run"),
    }
    return Workbench(tmp_path, environment)


def with_init(bench: Workbench) -> Path:
    init = Path(bench.environment["INIT_CKPT"])
    init.parent.mkdir()
    init.touch()
    return init


def test_adapts_then_trains_from_what_it_adapted(bench: Workbench) -> None:
    finished = bench.run(ADAPT_AND_TRAIN, "1", "5", "dataloader.batch_size=8")
    assert finished.returncode == 0, finished.stderr
    check, adapt, train = bench.calls()
    assert check[:2] == ["-m", "diffusion_policy.workspace.preflight"]
    assert check[2:] == train[1:-1] + train[-1:], "what is trained is what was checked"
    init, dataset = bench.environment["INIT_CKPT"], bench.environment["DATASET"]
    assert adapt[0] == "scripts/finetune_from_7d_to_8d.py"
    assert adapt[1:5] == ["--old_ckpt", bench.environment["OLD_CKPT"], "--new_ckpt", init]
    assert adapt[5:] == ["--mode", "grow", "--dataset", dataset]
    assert train[:3] == ["train.py", "--config-name=train_cogact_robot", "experiment=finetune_8d"]
    assert {f"pretrained.path='{init}'", f"task.dataset_path='{dataset}'"} <= set(train)
    assert {"training.device=cuda:1", "training.num_epochs=5", "dataloader.batch_size=8"} <= set(train)


def test_defaults_without_arguments(bench: Workbench) -> None:
    assert bench.run(ADAPT_AND_TRAIN).returncode == 0
    assert {"training.device=cuda:0", "training.num_epochs=200"} <= set(bench.calls()[-1])


def test_a_failing_step_is_the_last(bench: Workbench) -> None:
    finished = bench.run(ADAPT_AND_TRAIN, FAIL_AT="scripts/finetune_from_7d_to_8d.py")
    assert finished.returncode == 7
    assert bench.scripts() == ["scripts/finetune_from_7d_to_8d.py"], "nothing trains after the adapter failed"


def test_logs_are_judged_when_asked_for(bench: Workbench) -> None:
    init = with_init(bench)
    finished = bench.run(TRAIN, LOGS="1", GPU="cpu")
    assert finished.returncode == 0, finished.stderr
    _, train, infer, validate = bench.calls()
    assert f"pretrained.path='{init}'" in train
    run = bench.environment["RUN_DIR"]
    assert infer[1:] == [
        f"{run}/checkpoints/latest.ckpt",
        bench.environment["DATASET"],
        *["--output", f"{run}/logs", "--device", "cpu"],
    ]
    assert validate[0] == "scripts/validate_gripper.py"
    assert [Path(log).name for log in validate[1:]] == ["inference_log_1.json", "inference_log_2.json"]


def test_the_verdict_is_the_exit_status(bench: Workbench) -> None:
    with_init(bench)
    assert bench.run(TRAIN, LOGS="1", FAIL_AT="scripts/validate_gripper.py").returncode == 7


@pytest.mark.parametrize("launcher", [ADAPT_AND_TRAIN, TRAIN])
def test_help_says_every_setting(bench: Workbench, launcher: str) -> None:
    finished = bench.run(launcher, "-h")
    assert finished.returncode == 0
    assert all(word in finished.stdout for word in ("usage: bash scripts/", "INIT_CKPT", "DATASET", "Exit status"))
    assert bench.calls() == []


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["first"], {}, "GPU is 'first'; expected an index"),
        (["0", "0"], {}, "EPOCHS is '0'; expected a positive number"),
        (["0", "many"], {}, "EPOCHS is 'many'"),
        ([], {"MODE": "guess"}, "MODE is 'guess'; expected grow or strip"),
        ([], {"OLD_CKPT": "absent.ckpt"}, "no checkpoint absent.ckpt"),
        ([], {"DATASET": "absent.zarr"}, "no dataset absent.zarr; make it with: "),
    ],
)
def test_adapting_refuses(bench: Workbench, arguments: list[str], settings: dict[str, str], message: str) -> None:
    finished = bench.run(ADAPT_AND_TRAIN, *arguments, **settings)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert bench.calls() == [], "nothing ran"


def test_an_adapted_checkpoint_is_never_overwritten(bench: Workbench) -> None:
    init = with_init(bench)
    finished = bench.run(ADAPT_AND_TRAIN)
    assert finished.returncode == 2
    assert f"{init} exists already" in finished.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"GPU": "-1"}, "GPU is '-1'"),
        ({"EPOCHS": "1.5"}, "EPOCHS is '1.5'"),
        ({"LOGS": "yes"}, "LOGS is 'yes'; expected 0 or 1"),
        ({"EXPERIMENT": "absent"}, "no config/experiment/absent.yaml"),
        ({"INIT_CKPT": "absent.ckpt"}, "make it with: "),
        ({"DATASET": "absent.zarr"}, "no dataset absent.zarr"),
    ],
)
def test_training_refuses(bench: Workbench, settings: dict[str, str], message: str) -> None:
    with_init(bench)
    finished = bench.run(TRAIN, **settings)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert bench.calls() == []


@pytest.mark.parametrize("launcher", [ADAPT_AND_TRAIN, TRAIN])
def test_nothing_is_written_if_training_could_not_start(bench: Workbench, launcher: str) -> None:
    """The device, the dataset behind a URL and every override are asked about first."""
    if launcher == TRAIN:
        with_init(bench)
    before = sorted(bench.folder.rglob("*"))
    finished = bench.run(launcher, FAIL_AT="diffusion_policy.workspace.preflight", DATASET="s3://bucket/set.zarr")
    assert finished.returncode == 2, finished.stderr
    assert bench.scripts() == []
    assert sorted(path for path in bench.folder.rglob("*") if path.name != "calls.txt") == before


@pytest.mark.parametrize(
    "dataset", ["s3://bucket/a set.zarr", "it's a set.zarr", "set [1], ${x}=2.zarr", "set.zarr.zip"]
)
def test_datasets_of_any_name_and_in_a_store(bench: Workbench, dataset: str) -> None:
    with_init(bench)
    if "://" not in dataset:
        dataset = str(bench.folder / dataset)
        Path(dataset).touch()
    assert bench.run(TRAIN, DATASET=dataset).returncode == 0
    _, train = bench.calls()
    with initialize_config_dir(str(REPOSITORY / "config"), version_base="1.2"):
        register_resolvers()
        composed = compose("train_cogact_robot", overrides=train[2:])
    assert composed.task.dataset_path == dataset


def test_the_device_of_an_override_is_used_throughout(bench: Workbench) -> None:
    with_init(bench)
    assert bench.run(TRAIN, "training.device=cpu", LOGS="1").returncode == 0
    *_, infer, _ = bench.calls()
    assert infer[-2:] == ["--device", "cpu"]


def test_remedies_run_from_where_the_launcher_was_called(bench: Workbench) -> None:
    """Pasted into bash, with an interpreter that only logs its calls."""
    absent = str(bench.folder / "an absent, 'quoted' set.zarr")
    finished = bench.run(ADAPT_AND_TRAIN, DATASET=absent)
    remedy = finished.stderr.strip().partition("make it with: ")[2]
    subprocess.run(["bash", "-c", remedy], cwd=bench.folder, env=bench.environment, check=True)
    (convert,) = bench.calls()
    assert convert[0] == "scripts/convert_cogact_to_zarr.py"
    assert refusal("convert_cogact_to_zarr", convert[1:]) is None
    assert absent in convert


def test_preflight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = tiny_run.write_dataset(tmp_path / "set.zarr")
    fine = [f"task.dataset_path={dataset}", "training.device=cpu"]
    assert preflight.main(fine) == 0
    for wrong, message in [
        ("training.device=cuda:7", "training.device=cuda:7: "),
        (f"task.dataset_path={tmp_path / 'absent.zarr'}", "no zarr dataset there"),
        ("training.num_epoch=3", "did you mean training.num_epochs?"),
        (f"pretrained.path={SHIPPED}", "finetune_from_7d_to_8d.py"),
    ]:
        assert preflight.main([*fine, wrong]) == 2
        assert message in capsys.readouterr().err
    assert preflight.main([*fine, f"pretrained.path={tmp_path / 'grown_later.ckpt'}"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["set.zarr"], "asking writes nothing"
    own = tmp_path / "it's a run" / "checkpoints" / "latest.ckpt"
    own.parent.mkdir(parents=True)
    own.touch()
    resumed = [*fine, f"pretrained.path={SHIPPED}", setting("hydra.run.dir", own.parents[1])]
    assert preflight.main(resumed) == 0, "a run that goes on starts from its own checkpoint"


# ---- VPT as it is ----

ZERO_SHOT = "evaluate_vpt_zero_shot.sh"


def test_weights_play_as_they_are(bench: Workbench) -> None:
    """The guide's command, from any folder, with a path that has a space; with arguments that the script accepts."""
    weights = bench.folder / "my model.weights"
    weights.touch()
    finished = bench.run(ZERO_SHOT, "1", "auto", "100", weights.name, "--greedy", OUT="my results", TASK="wool")
    assert finished.returncode == 0, finished.stderr
    (words,) = bench.calls()
    assert words[0] == str(REPOSITORY / "scripts" / "evaluate_closed_loop.py")
    assert words[1:4] == ["my model.weights", "--simulator", str(REPOSITORY / "config/simulator/grove.yaml")]
    assert refusal("evaluate_closed_loop", words[1:]) is None
    asked = dict(zip(words[4:-1:2], words[5:-1:2], strict=True)) | {"--env": words[5:8:2]}
    assert asked == {
        "--env": ["game=grove", "max_steps=100"], "--task": "wool", "--scenes": "1", "--seed": "100000",
        "--device": "auto", "--output": "my results", "--video": "1", "--json": "my results/result.json",
    }  # fmt: skip
    assert words[-1] == "--greedy"


def test_weights_are_found_in_the_environment_and_defaults_are_reported(bench: Workbench) -> None:
    assert bench.run(ZERO_SHOT, "9", VPT_WEIGHTS=bench.environment["OLD_CKPT"], GAME="minedojo").returncode == 0
    (words,) = bench.calls()
    assert {"game=minedojo", "max_steps=1200", "harvest_milk", "data/vpt_zero_shot", "4"} <= set(words)
    assert words[1] == bench.environment["OLD_CKPT"]
    helped = bench.run(ZERO_SHOT, "-h")
    assert helped.returncode == 0
    assert all(word in helped.stdout for word in ("usage: bash scripts/", "GAME", "VPT_WEIGHTS", "Exit status"))


def test_the_guide_s_file_is_found_and_what_ships_is_played_only_when_named(bench: Workbench) -> None:
    """Its command without arguments: ten episodes of 1200 steps, `false` for printing no actions."""
    released = bench.folder / "data/pretrained/vpt/rl-from-early-game-2x.weights"
    refused = bench.run(ZERO_SHOT)
    assert refused.returncode == 2
    line = refused.stderr.rpartition("ship with the project: ")[2]
    released.parent.mkdir(parents=True)
    released.touch()
    for arguments in ((), ("10", "auto", "1200", "false")):
        assert bench.run(ZERO_SHOT, *arguments).returncode == 0
    first, second = bench.calls()
    assert first == second
    assert first[1] == str(released.relative_to(bench.folder))
    assert {"max_steps=1200", "10"} <= set(first)
    subprocess.run(["bash", "-c", line], env=bench.environment, cwd=bench.folder, check=True)
    assert bench.calls()[-1][1:] == [str(PRETRAINED / "grove_vpt.weights"), *first[2:]]


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("none",), {}, "EPISODES is 'none'"),
        (("1", "gpu"), {}, "DEVICE is 'gpu'; expected auto, cpu, or cuda:0"),
        (("1", "cpu", "0"), {}, "STEPS is '0'"),
        (("1", "cpu", "9", "absent.weights"), {}, "no weights absent.weights; the README of openai/Video-Pre-Training"),
        (("1", "cpu", "9", "true"), {}, "DEBUG_ACTIONS is 'true'; actions are not printed here, and VIDEOS=1"),
        ((), {"VPT_WEIGHTS": ""}, "no weights data/pretrained/vpt/rl-from-early-game-2x.weights; the README"),
        (("1",), {"GAME": "chess"}, "GAME is 'chess'; expected grove or minedojo"),
        (("1",), {"SEED": "-1"}, "SEED is '-1'"),
        (("1",), {"VIDEOS": "all"}, "VIDEOS is 'all'"),
    ],
)
def test_playing_refuses(bench: Workbench, arguments: tuple[str, ...], settings: dict[str, str], message: str) -> None:
    finished = bench.run(ZERO_SHOT, *arguments, **{"VPT_WEIGHTS": bench.environment["OLD_CKPT"]} | settings)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert bench.calls() == []
    assert not (bench.folder / "data").exists()


# ---- rounds of corrections ----

ITERATIONS = "run_dagger_iteration.sh"
ITERATION = ("--task", "log", "--continue-from", "a run.ckpt", "--iterations")


def test_the_guide_s_split_of_episodes(bench: Workbench) -> None:
    """50 demonstrations where there is no dataset, then rounds of 30, 20 and so on; the scripts accept all of it."""
    (bench.folder / "a run.ckpt").touch()
    finished = bench.run(
        ITERATIONS, *ITERATION, "3", "--control", "--set", "training.device=cpu", DATASET="my data.zarr"
    )
    assert finished.returncode == 0, finished.stderr
    record, convert, dagger = bench.calls()
    for words in (record, convert, dagger):
        assert refusal(Path(words[0]).stem, words[1:]) is None
    assert record[1:7] == ["--output", "my data_recordings", "--task", "log", "--episodes", "50"]
    assert convert[1:5] == ["--input", "my data_recordings", "--output", "my data.zarr"]
    assert dagger[1:13] == [
        "a run.ckpt", "--dataset", "my data.zarr", "--simulator", "grove", "--task", "log", "--rounds", "3", "--scenes",
        "30", "20",
    ]  # fmt: skip
    assert dagger[13:] == ["20", "--workdir", "data/dagger_log", "--control", "--set", "training.device=cpu"]


def test_further_options_of_the_guide_are_those_of_dagger(bench: Workbench) -> None:
    words = "--continue-from old.ckpt --task harvest_1_log --iterations 2 --collect-episodes 5 --eval-episodes 7"
    finished = bench.run(ITERATIONS, *words.split(), "--max-steps", "99", "--device", "cuda:1", "--updates", "9")
    assert finished.returncode == 0, finished.stderr
    assert "harvest_1_log is a task of MineDojo; here the grove's log task is played" in finished.stderr
    (dagger,) = bench.calls()
    assert refusal("dagger", dagger[1:]) is None
    command = " ".join(dagger[4:])
    assert command == (
        "--simulator grove --task log --rounds 2 --scenes 5 5 --workdir data/dagger_log --evaluation-scenes 7 "
        "--env max_steps=99 --updates 9 --set training.device=cuda:1"
    )


def test_a_dataset_that_is_there_is_taken(bench: Workbench) -> None:
    (bench.folder / "a run.ckpt").touch()
    assert bench.run(ITERATIONS, *ITERATION, "1", EPISODES="4").returncode == 0
    (dagger,) = bench.calls()
    assert dagger[1:4] == ["a run.ckpt", "--dataset", bench.environment["DATASET"]]
    assert dagger[8:12] == ["--rounds", "1", "--scenes", "4"]
    helped = bench.run(ITERATIONS, "-h")
    assert helped.returncode == 0
    assert all(word in helped.stdout for word in ("usage: bash scripts/", "BASE_EPISODES", "Exit status"))


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((), {}, "--continue-from names the checkpoint"),
        (("--task",), {}, "--task needs a value"),
        (("--eval-episodes", "few"), {}, "--eval-episodes is 'few'; expected a positive number"),
        (("--dagger-epochs", "30"), {}, "a round here makes the same number of updates, --updates 400"),
        (("--skip-eval",), {}, "make them few, --eval-episodes 10"),
        (("--skip-collect",), {}, "go on with the same command and --resume"),
        (("--start-iteration", "2"), {}, "go on with the same command and --resume"),
        (("--clean-restart",), {}, "begin in another folder, WORKDIR=data/dagger_again"),
        (("--failure-window", "10"), {}, "no frames are chosen"),
        (("--random-sample-rate", "0.1"), {}, "no frames are chosen"),
        (("--continue-from", "old.ckpt", "--device", "mps"), {}, "--device is 'mps'; expected auto, cpu, or cuda:0"),
        (("--task", "chess"), {}, "--task is 'chess'"),
        (("--task", "log"), {}, "--continue-from names the checkpoint"),
        (("--task", "log", "--continue-from"), {}, "--continue-from needs a value"),
        (("--task", "log", "--continue-from", "absent.ckpt"), {}, "no checkpoint absent.ckpt"),
        (("--task", "log", "--continue-from", "old.ckpt", "--iterations", "0"), {}, "--iterations is '0'"),
        (("--task", "log", "--continue-from", "old.ckpt"), {"EPISODES": "30,20"}, "EPISODES is '30,20'"),
        (("--task", "log", "--continue-from", "old.ckpt"), {"BASE_EPISODES": "few"}, "BASE_EPISODES is 'few'"),
        (
            ("--task", "log", "--continue-from", "old.ckpt", "--bogus"),
            {},
            "--bogus is an option neither of this launcher",
        ),
        (
            ("--task", "log", "--continue-from", "old.ckpt", "--update=9"),
            {"DATASET": "new.zarr"},
            "--update=9 is an op",
        ),
    ],
)
def test_iterating_refuses(
    bench: Workbench, arguments: tuple[str, ...], settings: dict[str, str], message: str
) -> None:
    finished = bench.run(ITERATIONS, *arguments, **settings)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert bench.calls() == []


# ---- several GPUs ----

SEVERAL = "train_ddp.sh"


def started(bench: Workbench, *arguments: str, **settings: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The output of the launcher for several GPUs, and the arguments with which it starts the processes."""
    finished = subprocess.run(
        ["bash", str(REPOSITORY / "train_scripts" / SEVERAL), *arguments],
        env=bench.environment | settings, cwd=bench.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    calls = bench.calls()
    if finished.returncode == 0 and calls:
        check, run = calls
        assert check[:2] == ["-m", "diffusion_policy.workspace.preflight"]
        assert check[2:] == run[run.index("train_ddp.py") + 1 :], "what is trained is what was checked"
        return finished, run
    return finished, []


@pytest.mark.parametrize(
    ("arguments", "n", "words"),
    [
        ((), 8, ["--config-name=train_cogact_robot"]),
        (("4",), 4, ["--config-name=train_cogact_robot"]),
        (("4", "2,3,4,5", "training.seed=1"), 4, ["--config-name=train_cogact_robot", "training.seed=1"]),
        (("2", "cpu"), 2, ["--config-name=train_cogact_robot", "training.device=cpu"]),
        (("training.seed=1",), 8, ["--config-name=train_cogact_robot", "training.seed=1"]),
    ],
)
def test_so_many_processes_train(bench: Workbench, arguments: tuple[str, ...], n: int, words: list[str]) -> None:
    finished, run = started(bench, *arguments)
    assert finished.returncode == 0, finished.stderr
    assert run == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "train_ddp.py", *words]


def test_they_train_the_config_that_is_named(bench: Workbench) -> None:
    _, run = started(bench, "2", CONFIG="train_theirs", CONFIG_DIR="/their configs")
    assert run[-2:] == ["--config-dir=/their configs", "--config-name=train_theirs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("0",), "N_GPUS is '0'"),
        (("many",), "N_GPUS is 'many'"),
        (("4", "first"), "GPU_IDS is 'first'"),
        (("4", "0,1"), "GPU_IDS names 2 GPUs (0,1) for 4 processes"),
    ],
)
def test_several_gpus_are_refused(bench: Workbench, arguments: tuple[str, ...], message: str) -> None:
    finished, _ = started(bench, *arguments)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert bench.calls() == []


def test_the_launcher_for_several_gpus_explains_itself(bench: Workbench) -> None:
    finished, _ = started(bench, "-h")
    assert finished.returncode == 0
    assert all(word in finished.stdout for word in ("usage: bash train_scripts/", "GPU_IDS", "CONFIG", "Exit status"))
