"""What README and docs/*.md name in backticks exists: files, folders, modules, and names of the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from source_trees import REPOSITORY, python_files, walked

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# Folders that a path may start in.
STARTS = [REPOSITORY / name for name in (".", "diffusion_policy", "docs", "scripts", "tests", "config", "benchmarks")]
SOURCE = re.compile(r"[\w./*-]+\.(?:py|md|yaml|sh|cpp|toml|css|js)")
FOLDER = re.compile(r"(?:diffusion_policy|config|scripts|tests|benchmarks|docs)/(?:[\w-]+/)*[\w-]*")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?:\(\))?")
# Names of other projects, and of things in their files.
OF_OTHERS = {"droid", "umi", "train_real_robot_7d", "peft", "base_layer", "lora_A", "shadow_params", "TMPDIR"}


def backticked(text: str) -> Iterator[str]:
    """What stands in backticks, outside blocks of code."""
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def is_there(path: str) -> bool:
    """Whether a path names a file or a folder of the repository; NAME and the like match anything."""
    pattern = re.sub(r"NAME|RUN|MACHINE", "*", path.rstrip("/"))
    return any(next(start.glob(pattern), None) is not None for start in STARTS)


def known_names() -> set[str]:
    """Names in Python code, words of its strings, words of configs and scripts, and what tests define."""
    known: set[str] = set()
    for path in [*python_files("diffusion_policy", "scripts", "benchmarks"), REPOSITORY / "train.py"]:
        for node in walked(path):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                known.add(node.name)
            elif isinstance(node, ast.arg):
                known.add(node.arg)
            elif isinstance(node, ast.Name):
                known.add(node.id)
            elif isinstance(node, ast.Attribute):
                known.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                known.update(re.findall(r"\w+", node.value))
    configs = sorted((REPOSITORY / "config").rglob("*.yaml"))
    known.update(path.stem for path in configs)
    others = [*configs, *(REPOSITORY / "scripts").glob("*.sh")]
    others += [REPOSITORY / name for name in ("Makefile", "pyproject.toml")]
    of_tests = (re.findall(r"(?:def|class) (\w+)|^(\w+) = ", path.read_text(), re.M) for path in python_files("tests"))
    known.update(name for found in of_tests for pair in found for name in pair)
    return known.union(*(re.findall(r"\w+", path.read_text()) for path in others))


def absent(text: str, known: set[str]) -> list[str]:
    """Returns what a page names that does not exist."""
    found = []
    for named in backticked(text):
        if SOURCE.fullmatch(named) or FOLDER.fullmatch(named):
            found += [] if is_there(named) else [named]
        elif NAME.fullmatch(named) and named not in OF_OTHERS:
            found += [] if named.removesuffix("()").rpartition(".")[2] in known else [named]
    return found


def test_what_the_pages_name_is_there() -> None:
    known = known_names().union(path.stem for start in STARTS for path in start.glob("*"))
    offences = [f"{page.name}: {named}" for page in PAGES for named in absent(page.read_text(), known)]
    assert not offences, "\n".join(offences)


def test_what_is_absent_is_seen() -> None:
    text = "`report/gone.py` `spec/steps.py` `no_such_function` `known()` `config/NAME.yaml` `a.known` `docs/gone/`"
    expected = ["report/gone.py", "no_such_function", "docs/gone/"]
    gone = [] if Path(REPOSITORY / "diffusion_policy/spec/steps.py").exists() else ["spec/units.py"]
    assert sorted(absent(text, {"known"})) == sorted(expected + gone)
