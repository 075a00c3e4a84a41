"""The wheel, built and installed somewhere else: every command starts, and works in a folder that is not a checkout."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from trajectory_factory import write_trajectory

from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.installation import ENTRY_POINTS

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = ("diffusion_policy", "config", "scripts")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "train.py", "constraints.txt")
SHIPPED = tuple(
    f"data/pretrained/{name}" for name in ("tabletop_7d.ckpt", "grove_vpt.weights", "grove_vpt.weights.json")
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed in, as pip does; dependencies are those of the interpreter of the tests.

    Built from a copy without the compiled kernels (a minute), which the installation does not need.
    """
    work = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(REPOSITORY / name, work / "source" / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in (*FILES, *SHIPPED):
        (work / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, work / "source" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    without_compiler = os.environ | {"CC": "false", "CXX": "false"}
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(work), str(work / "source")]
    subprocess.run(build, env=without_compiler, check=True)
    (wheel,) = work.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(work / "site"), str(wheel)], check=True)
    return work / "site"


# Commands one after the other, each in a copy of one process that has loaded what is named; prints statuses. A copy
# ends without dismantling its modules, which would take longer than most of these commands.
COMMANDS = """
import importlib, json, os, runpy, sys
loaded, commands = json.loads(sys.argv[1])
for name in loaded:
    importlib.import_module(name)
for number, (folder, *words) in enumerate(commands):
    copy = os.fork()
    if copy == 0:
        for stream in (1, 2):
            os.dup2(os.open(f"{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
        os.chdir(folder)
        sys.argv = words
        sys.path[0] = os.path.dirname(words[0])
        status = 120  # it goes on after its end
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as ended:
            status = ended.code or 0
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]), flush=True)
"""
FOR_HELP = ("numpy", "omegaconf", "rich.console", "yaml")
FOR_WORK = ("hydra", "numpy", "omegaconf", "rich.console", "torch", "yaml", "zarr")
HELPS = [(command, "--help") for command in ENTRY_POINTS]
CONVERSION = ("dp-convert", "--input", "recorded", "--output", "set.zarr", "--resolution", "32", "18")
NO_DATASET = ("dp-train", "task.dataset_path=absent.zarr", "training.device=cpu")
NO_EXPERIMENT = ("dp-train", "experiment=quick_cpus")
Ended = dict[tuple[str, ...], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The empty folder where helps are requested, and the one where other commands work."""
    empty, work = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("work")
    write_trajectory(work / "recorded", episode_id=0, n_steps=12, size=(64, 36))
    return empty, work


@pytest.fixture(scope="module")
def ended(installed: Path, folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The commands of the installation, by their words; they ran with nothing of the checkout on any path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(installed), "PATH": f"{installed / 'bin'}:{os.environ['PATH']}", "COLUMNS": "200"}

    def run(lines: Sequence[tuple[str, ...]], folder: Path, loaded: Sequence[str]) -> Ended:
        said = tmp_path_factory.mktemp("said")
        words = [[str(folder), str(installed / "bin" / command), *arguments] for command, *arguments in lines]
        python = [sys.executable, "-c", COMMANDS, json.dumps([loaded, words])]
        done = subprocess.run(
            python, cwd=said, env=environment, capture_output=True, text=True, check=True, timeout=600
        )
        statuses = map(int, done.stdout.split())
        printed = [
            ((said / f"{number}.1").read_text(), (said / f"{number}.2").read_text()) for number in range(len(lines))
        ]
        return {
            line: subprocess.CompletedProcess(line, status, *streams)
            for line, status, streams in zip(lines, statuses, printed, strict=True)
        }

    empty, work = folders
    return run(HELPS, empty, FOR_HELP) | run([CONVERSION, NO_DATASET, NO_EXPERIMENT], work, FOR_WORK)


def test_every_command_helps(ended: Ended, folders: tuple[Path, Path]) -> None:
    for line in HELPS:
        command, helped = line[0], ended[line].stdout + ended[line].stderr
        assert ended[line].returncode == 0, f"{command}: {helped}"
        assert "python scripts/" not in helped, f"{command} shows files that are not there"
        assert command == "dp-train" or helped.startswith(f"usage: {command} ")
    assert not list(folders[0].iterdir()), "help writes nothing"


def test_recordings_are_converted_and_looked_at(ended: Ended, folders: tuple[Path, Path]) -> None:
    converted = ended[CONVERSION]
    assert converted.returncode == 0, converted.stderr
    assert ReplayBuffer.open(folders[1] / "set.zarr").n_steps == 12
    assert not list(REPOSITORY.glob("set.zarr*"))


def test_configs_are_found_and_a_refusal_names_a_command_that_is_there(ended: Ended) -> None:
    refused = ended[NO_DATASET]
    assert refused.returncode == 2, refused.stderr
    assert "dp-convert --input TRAJECTORIES --output absent.zarr" in refused.stderr
    misspelled = ended[NO_EXPERIMENT]
    assert "there are " in misspelled.stderr
    assert "experiment=quick_cpu" in misspelled.stderr
