"""Builds the wheel for a robot's computer from the sources of the whole package: only what its command imports."""

import ast
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "diffusion_policy"
SCRIPT = "run_robot"
# Modules that are imported on demand: by the script, by its messages, and by a user's own arm.
ROOTS = (
    "serve.client",
    "serve.client.running",
    "serve.client.loop_figures",
    "installation",
    "command_line",
    "terminal",
)


def source_of(module):
    """Returns the file of a module of the package; None if it is not one."""
    path = ROOT.joinpath(*module.split("."))
    found = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in found if file.is_file()), None) if module.split(".")[0] == PACKAGE else None


def imported_by(file):
    """Returns the names that a file imports when loaded, not those in functions or only for types."""
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def modules():
    """Returns the required files, sorted, relative to the checkout."""
    found, waiting = set(), [f"{PACKAGE}.{root}" for root in ROOTS]
    while waiting:
        module = waiting.pop()
        file = source_of(module)
        if file is None or file in found:
            continue
        found.add(file)
        waiting += [*imported_by(file), module.rpartition(".")[0]]
    return sorted(file.relative_to(ROOT) for file in found)


class BuildClient(build_py):
    """Copies the modules and the script."""

    def run(self):
        """Runs in place of setuptools' own command, which would look for the package in this folder."""
        if self.editable_mode:
            raise SetupError("the wheel is built from the sources of the parent folder: install it without --editable")
        if source_of(PACKAGE) is None:
            raise SetupError(f"{ROOT} has no {PACKAGE}: build it in a checkout with `pip wheel --no-deps ./client`")
        shutil.rmtree(self.build_lib, ignore_errors=True)  # modules of an earlier build
        targets = {ROOT / file: Path(self.build_lib) / file for file in modules()}
        script = f"{SCRIPT}.py"
        targets[ROOT / "scripts" / script] = Path(self.build_lib) / PACKAGE / "scripts" / script
        for source, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)

    def get_source_files(self):
        """Returns no files, since there are none in this folder."""
        return []


def version():
    """Returns the version of the whole package."""
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


if __name__ == "__main__":
    setup(version=version(), packages=[PACKAGE], cmdclass={"build_py": BuildClient})
