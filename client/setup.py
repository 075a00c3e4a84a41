"""Builds the wheel for a robot's computer from the sources of the whole package: what its command imports, no more."""

import ast
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "diffusion_policy"
SCRIPT = "run_robot"
# What is imported when it is needed: by the script, by its messages, and by an arm of one's own.
ROOTS = (
    "serve.client",
    "serve.client.running",
    "serve.client.loop_figures",
    "installation",
    "command_line",
    "terminal",
)


def source_of(module):
    """The file of a module of the package; None: it is none."""
    path = ROOT.joinpath(*module.split("."))
    found = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in found if file.is_file()), None) if module.split(".")[0] == PACKAGE else None


def imported_by(file):
    """Names that a file imports as it is loaded: not in functions, and not for types alone."""
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def modules():
    """The files that are needed, sorted, relative to the checkout."""
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
        """Run in place of setuptools' own, which would look for the package in this folder."""
        if self.editable_mode:
            raise SetupError("it is built from the sources above: install it without --editable")
        if source_of(PACKAGE) is None:
            raise SetupError(f"{ROOT} has no {PACKAGE}: build it in a checkout, by `pip wheel --no-deps ./client`")
        shutil.rmtree(self.build_lib, ignore_errors=True)  # modules of an earlier build
        targets = {ROOT / file: Path(self.build_lib) / file for file in modules()}
        script = f"{SCRIPT}.py"
        targets[ROOT / "scripts" / script] = Path(self.build_lib) / PACKAGE / "scripts" / script
        for source, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)

    def get_source_files(self):
        """Of this folder there are none."""
        return []


def version():
    """The whole package's."""
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


if __name__ == "__main__":
    setup(version=version(), packages=[PACKAGE], cmdclass={"build_py": BuildClient})
