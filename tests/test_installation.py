"""The wheel, built and installed somewhere else: every command starts, and works in a folder that is no checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from trajectory_factory import write_trajectory

from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.installation import ENTRY_POINTS

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = ("diffusion_policy", "config", "scripts")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "train.py", "constraints.txt")
POSE_POLICY = "data/pretrained/tabletop_7d.ckpt"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed in, as pip does; dependencies are those of the interpreter of the tests.

    Built from a copy, without the compiled kernels (a minute), which the installation does without.
    """
    work = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(REPOSITORY / name, work / "source" / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in (*FILES, POSE_POLICY):
        (work / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, work / "source" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    without_compiler = os.environ | {"CC": "false", "CXX": "false"}
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(work), str(work / "source")]
    subprocess.run(build, env=without_compiler, check=True)
    (wheel,) = work.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(work / "site"), str(wheel)], check=True)
    return work / "site"


def run(site: Path, folder: Path, command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command of the installation in a folder, with nothing of the checkout on any path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(site), "PATH": f"{site / 'bin'}:{os.environ['PATH']}", "COLUMNS": "200"}
    words = [str(site / "bin" / command), *map(str, arguments)]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)


# Each command with --help in a copy of one process, which has loaded what many of them take: its output and status.
HELPS = """
import os, runpy, sys
import hydra, numpy, omegaconf, rich.console, yaml
for command in sys.argv[1:]:
    copy = os.fork()
    if copy == 0:
        printed = os.open(os.path.basename(command), os.O_WRONLY | os.O_CREAT)
        os.dup2(printed, 1), os.dup2(printed, 2)
        sys.argv = [command, "--help"]
        sys.path[0] = os.path.dirname(command)
        runpy.run_path(command, run_name="__main__")
        sys.exit("it goes on after its help")
    status = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
    print(os.path.basename(command), status, flush=True)
"""


def test_every_command_helps(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "200"}
    commands = [str(installed / "bin" / command) for command in ENTRY_POINTS]
    words = [sys.executable, "-c", HELPS, *commands]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    statuses = dict(line.split() for line in done.stdout.splitlines())
    assert list(statuses) == list(ENTRY_POINTS)
    for command, status in statuses.items():
        helped = (tmp_path / command).read_text()
        assert status == "0", f"{command}: {helped}"
        assert "python scripts/" not in helped, f"{command} shows files that are not there"
        assert command == "dp-train" or helped.startswith(f"usage: {command} ")
    assert {path.name for path in tmp_path.iterdir()} == set(ENTRY_POINTS), "help writes nothing"


def test_recordings_are_converted_and_looked_at(installed: Path, tmp_path: Path) -> None:
    write_trajectory(tmp_path / "recorded", episode_id=0, n_steps=12, size=(64, 36))
    converted = run(
        installed, tmp_path, "dp-convert", "--input", "recorded", "--output", "set.zarr", "--resolution", 32, 18
    )
    assert converted.returncode == 0, converted.stderr
    assert ReplayBuffer.open(tmp_path / "set.zarr").n_steps == 12
    assert not list(REPOSITORY.glob("set.zarr*"))


def test_configs_are_found_and_a_refusal_names_a_command_that_is_there(installed: Path, tmp_path: Path) -> None:
    refused = run(installed, tmp_path, "dp-train", "task.dataset_path=absent.zarr", "training.device=cpu")
    assert refused.returncode == 2, refused.stderr
    assert "dp-convert --input TRAJECTORIES --output absent.zarr" in refused.stderr
    misspelled = run(installed, tmp_path, "dp-train", "experiment=quick_cpus")
    assert "there are " in misspelled.stderr
    assert "experiment=quick_cpu" in misspelled.stderr
