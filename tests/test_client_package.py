"""What a robot's computer installs (client/): only the control loop, with only what it declares."""

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_factory import DescribedEngine, ServerThread, jpeg, settings

from diffusion_policy.serve.client import read_arm_log

REPOSITORY = Path(__file__).resolve().parents[1]
CLIENT = REPOSITORY / "client"
PROJECT = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
ARM = """
import time
from pathlib import Path

import numpy as np

from diffusion_policy.serve.client import Picture, Reading


class Still:
    def __init__(self, form):
        self.cameras, self.picture = form.cameras, Path("picture.jpg").read_bytes()

    def observe(self):
        now = time.monotonic()
        pictures = dict.fromkeys(self.cameras, Picture(self.picture, now))
        return Reading(np.array([0.5, 0, 0.3, 1, 0, 0, 0, 1]), now, pictures)

    def move(self, action):
        raise AssertionError("a dry run")

    hold = stop = lambda self, *reason: None
"""
PATIENT = "--answer-timeout 20 --max-action-age 30 --camera-max-age 9 --state-max-age 9 --longest-gap 9"


def required(names: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """Distributions with these names, and those that they require."""
    found: dict[str, importlib.metadata.Distribution] = {}
    while names:
        name = re.split(r"[^A-Za-z0-9_.-]", names.pop())[0]
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            names += [word for word in found[name].requires or () if ";" not in word]
    return found


@pytest.fixture(scope="module")
def computer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, and one with links to its requirements: all that is installed there."""
    folder = tmp_path_factory.mktemp("robot")
    for file in runpy.run_path(str(CLIENT / "setup.py"))["modules"]():
        (folder / "client" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / file, folder / "client" / file)
    (folder / "site").mkdir()
    for distribution in required(list(PROJECT["dependencies"])).values():
        for name in {file.parts[0] for file in distribution.files or () if ".." not in file.parts}:
            (folder / "site" / name).symlink_to(Path(str(distribution.locate_file(name))).resolve())
    (folder / "my_robot.py").write_text(ARM)
    (folder / "picture.jpg").write_bytes(jpeg(0))
    return folder


def run(computer: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs Python on that computer, without this environment's packages."""
    environment = os.environ | {"PYTHONPATH": f"{computer / 'client'}:{computer / 'site'}", "COLUMNS": "200"}
    command = [sys.executable, "-S", *words]
    return subprocess.run(command, cwd=computer, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ServerThread(DescribedEngine(), settings(None)) as server:
        yield f"127.0.0.1:{server.ports['line']}"


def test_every_module_of_it_can_be_imported(computer: Path) -> None:
    package = computer / "client"
    modules = [".".join(file.relative_to(package).with_suffix("").parts) for file in package.rglob("*.py")]
    names = [name.removesuffix(".__init__") for name in modules]
    assert "diffusion_policy.serve.client.control_loop" in names
    done = run(computer, "-c", f"import {', '.join(names)}, sys; print(*sys.path)")
    assert done.returncode == 0, done.stderr
    assert "site-packages" not in done.stdout


def test_an_arm_is_run_with_it(computer: Path, address: str) -> None:
    script = str(REPOSITORY / "scripts" / "run_robot.py")
    words = ["--arm", "my_robot:Still", "--server", address, "--seconds", "1", "--dry-run", *PATIENT.split()]
    done = run(computer, script, *words)
    assert done.returncode == 0, done.stderr
    (log,) = (computer / "data" / "logs" / "arm").iterdir()
    assert read_arm_log(log).of("move")


@pytest.mark.parametrize("option", ["--replay", pytest.param("--simulator", marks=pytest.mark.exhaustive)])
def test_what_needs_the_whole_package_is_refused(option: str, computer: Path, address: str) -> None:
    done = run(computer, str(REPOSITORY / "scripts" / "run_robot.py"), option, "something", "--server", address)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {option} needs diffusion_policy."), done.stderr
    assert done.stderr.endswith(f"use --arm here, or {option} where the whole package is installed\n")


def test_it_declares_what_the_whole_package_does() -> None:
    whole = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert set(PROJECT["dependencies"]) < set(whole["dependencies"])
    assert PROJECT["requires-python"] == whole["requires-python"]


@pytest.mark.exhaustive
def test_the_wheel_holds_these_modules_and_the_command(computer: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "build", "*.egg-info")
    for name in ("client", "diffusion_policy", "scripts"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    shutil.copy2(REPOSITORY / "pyproject.toml", source)
    gone = source / "client" / "build" / "lib" / "diffusion_policy" / "gone.py"
    gone.parent.mkdir(parents=True)
    gone.touch()  # left by an earlier build
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), str(source / "client")]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("diffusion_policy_client-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True)
    expected = {file.relative_to(computer / "client") for file in (computer / "client").rglob("*.py")}
    found = {file.relative_to(site) for file in (site / "diffusion_policy").rglob("*.py")}
    assert found == expected | {Path("diffusion_policy/scripts/run_robot.py")}
    environment = os.environ | {"PYTHONPATH": str(site)}
    helped = subprocess.run(
        [str(site / "bin" / "dp-run-robot"), "-h"], env=environment, capture_output=True, text=True, check=True
    )
    assert helped.stdout.startswith("usage: dp-run-robot ")


@pytest.mark.exhaustive
def test_outside_a_checkout_no_empty_wheel_is_built(tmp_path: Path) -> None:
    shutil.copytree(CLIENT, tmp_path / "client", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    shutil.copy2(REPOSITORY / "pyproject.toml", tmp_path)
    words = [sys.executable, "setup.py", "-q", "build_py"]
    done = subprocess.run(words, cwd=tmp_path / "client", capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "build it in a checkout with `pip wheel --no-deps ./client`" in done.stderr
