"""Counts of the source tree, as a table: sizes, docstrings, annotations, errors, tests, imports, words.

    python tests/house_numbers.py             # print the table
    python tests/house_numbers.py --write     # write it into docs/development.md, between its markers
    python tests/house_numbers.py --help-times    # CPU seconds of `-h`, script by script

Library code is `diffusion_policy/`, `scripts/` and `train.py`. The length of a function excludes its docstring.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import test_house as house
from source_trees import REPOSITORY, parsed, python_files, walked, where

DOCUMENT = REPOSITORY / "docs" / "development.md"
BEGIN, END = "<!-- house numbers: begin -->", "<!-- house numbers: end -->"
SHAPE = re.compile(r"\((?:\.\.\.|[A-Z]\w{0,2}|\d+)(?:, ?(?:\.\.\.|[A-Za-z]\w{0,2}|\d+))*,?\)")
# Arrays whose last axis is an action's or a state's with the same numbers.
ACTIONS = re.compile(r"action|chunk|command|pose|state|predicted|recorded|held|drawn|copied|ours|theirs|measured")
WORDS = ("said", "beside", "lies", "Verdict", "Stage")
STOP = re.compile(r"^\d+\. `(diffusion_policy[\w.]*):([\w.]+)`", re.MULTILINE)
# Rows on what the tree must not do, or how large it may get: exact in the document.
LAWS = ("calls of print", "imports against the layers", "circles of imports",
        "modules outside policy/ and model/ that name a policy class", "stops of the four journeys")  # fmt: skip
# Rows that should fall: the document may give higher counts.
FALLING = ("action columns taken by number", "words")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def library() -> list[Path]:
    """Files of the library, the scripts and `train.py`."""
    return [*python_files("diffusion_policy", "scripts"), REPOSITORY / "train.py"]


def nodes(paths: list[Path], *kinds: type[ast.AST]) -> Iterator[ast.AST]:
    """All nodes of these kinds."""
    for path in paths:
        yield from (node for node in walked(path) if isinstance(node, kinds))


def length(function: Function) -> int:
    """Lines of a function without its docstring."""
    docstring = ast.get_docstring(function, clean=False)
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    return lines - (docstring.count("\n") + 1 if docstring else 0)


def is_annotated(function: Function) -> bool:
    """Whether its result and all its arguments except self and cls have types."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    named = [argument for argument in arguments if argument.arg not in ("self", "cls")]
    returns = function.returns is not None or function.name == "__init__"
    return returns and all(argument.annotation is not None for argument in named)


def share(holds: Callable[[ast.AST], object], among: list[ast.AST]) -> str:
    """Returns the percentage that it holds for."""
    return f"{100 * sum(map(bool, map(holds, among))) / len(among):.0f} %"


def is_documented(node: ast.AST) -> bool:
    """Whether it has a docstring."""
    return ast.get_docstring(node) is not None  # type: ignore[arg-type]


def has_column(node: ast.AST) -> bool:
    """Whether it takes a column of an action by a number, as `actions[..., 3:7]` does."""
    if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple)):
        return False
    last = node.slice.elts[-1]
    bounds = [last.lower, last.upper] if isinstance(last, ast.Slice) else [last]
    literal = any(_is_number(bound) for bound in bounds)
    return literal and ACTIONS.search(ast.unparse(node.value)) is not None


def _is_number(node: ast.expr | None) -> bool:
    inner = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(inner, ast.Constant) and isinstance(inner.value, int)


def offences(check: Callable[[], None]) -> int:
    """Returns the lines that a house test complains about."""
    try:
        check()
    except AssertionError as error:
        return str(error).split("\nassert")[0].count("\n") + 1
    return 0


def circles(paths: list[Path]) -> int:
    """Whether modules of the package import each other in a circle when loaded: 0 or 1.

    A module below a package imports that package in any case, which is not counted.
    """
    names = {_module(path): path for path in paths if house.PACKAGE in path.parents}
    graph = {}
    for name, path in names.items():
        imported = set()
        for node in parsed(path).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        graph[name] = {other for other in imported & names.keys() if not f"{name}.".startswith(f"{other}.")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return 1
    return 0


def _module(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def journeys() -> dict[str, list[tuple[str, str]]]:
    """Returns the document's journeys by title: their stops, as (module, function)."""
    text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    chapter = text.partition("\n## Journeys\n")[2].partition("\n## ")[0]
    parts = chapter.split("\n### ")[1:]
    return {part.partition("\n")[0]: STOP.findall(part) for part in parts}


def _sizes(paths: list[Path]) -> dict[str, str]:
    lines = [path.read_text(encoding="utf-8").count("\n") for path in paths]
    functions = list(nodes(paths, ast.FunctionDef, ast.AsyncFunctionDef))
    lengths = [length(function) for function in functions]  # type: ignore[arg-type]
    classes, modules = list(nodes(paths, ast.ClassDef)), [parsed(path) for path in paths]
    documented = [ast.get_docstring(node) or "" for node in functions if is_documented(node)]  # type: ignore[arg-type]
    shaped = sum(SHAPE.search(docstring) is not None for docstring in documented)
    return {
        "files / lines": f"{len(paths)} / {sum(lines) / 1000:.1f}k",
        "file median / max": f"{statistics.median(lines):.0f} / {max(lines)}",
        "function median / max": f"{statistics.median(lengths):.0f} / {max(lengths)}",
        "functions of at most 50 lines": f"{100 * sum(size <= 50 for size in lengths) / len(lengths):.1f} %",
        "functions / classes / modules with docstring": " / ".join(
            share(is_documented, group) for group in (functions, classes, list[ast.AST](modules))
        ),
        "docstrings of functions that give a shape": f"{100 * shaped / len(documented):.0f} %",
        "functions annotated": share(is_annotated, functions),  # type: ignore[arg-type]
    }


def _errors(paths: list[Path]) -> dict[str, str]:
    handlers = [node.type for node in nodes(paths, ast.ExceptHandler)]  # type: ignore[attr-defined]
    broad = sum(kind is not None and ast.unparse(kind) in ("Exception", "BaseException") for kind in handlers)
    calls = [node for node in nodes(paths, ast.Call) if isinstance(node.func, ast.Name)]  # type: ignore[attr-defined]
    prints = sum(node.func.id == "print" for node in calls)  # type: ignore[attr-defined]
    raised = [node.exc for node in nodes(paths, ast.Raise) if node.exc is not None]  # type: ignore[attr-defined]
    made = [error for error in raised if isinstance(error, ast.Call)]
    tests = python_files("tests")
    cases = sum(node.name.startswith("test_") for node in nodes(tests, ast.FunctionDef))  # type: ignore[attr-defined]
    raises = [node for node in nodes(tests, ast.Call) if ast.unparse(node.func) == "pytest.raises"]  # type: ignore[attr-defined]
    matched = sum(any(word.arg == "match" for word in node.keywords) for node in raises)  # type: ignore[attr-defined]
    return {
        "calls of print": str(prints),
        "bare / broad except": f"{handlers.count(None)} / {broad}",
        "errors raised with a message": f"{sum(bool(error.args) for error in made)} of {len(made)}",
        "tests: functions / raises (with match)": f"{cases} / {len(raises)} ({matched})",
    }


def _structure(paths: list[Path]) -> dict[str, str]:
    outside = [path for path in paths if not where(path).startswith("diffusion_policy/spec/")]
    columns = [path for path in outside for node in walked(path) if has_column(node)]
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    counts = {word: len(re.findall(rf"\b{word}\b", text)) for word in WORDS}
    stops = [len(stops) for stops in journeys().values()]
    second = offences(house.test_nothing_but_its_own_package_knows_a_policy_class)
    return {
        "imports against the layers": str(offences(house.test_imports_point_down)),
        "circles of imports": str(circles(paths)),
        "modules outside policy/ and model/ that name a policy class": str(second),
        "action columns taken by number": f"{len(columns)} in {len(set(columns))} files",
        "stops of the four journeys": " / ".join(map(str, stops)),
        "words: " + " / ".join(WORDS): " / ".join(map(str, counts.values())),
    }


def numbers() -> dict[str, str]:
    """The counts, by what is counted."""
    paths = library()
    return {**_sizes(paths), **_errors(paths), **_structure(paths)}


def table() -> str:
    """The counts as Markdown."""
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {count} |" for name, count in numbers().items())])


def written() -> dict[str, str]:
    """The counts that the document holds."""
    section = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    return dict(re.findall(r"^\| (.+?) \| (.+?) \|$", section, re.MULTILINE)[1:])


def help_times() -> str:
    """CPU seconds that the `-h` of each script takes, the slowest first."""
    found = []
    for script in [*python_files("scripts"), REPOSITORY / "train.py"]:
        before = os.times()
        subprocess.run([sys.executable, script, "-h"], check=True, capture_output=True)
        after = os.times()
        found.append((after[2] + after[3] - before[2] - before[3], script.name))
    return "\n".join(f"{seconds:.1f} s  {name}" for seconds, name in sorted(found, reverse=True))


def main() -> None:
    """Print the table, or write it into the document."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="into docs/development.md")
    parser.add_argument("--help-times", action="store_true", help="CPU seconds of each script's -h instead")
    arguments = parser.parse_args()
    if arguments.help_times:
        sys.stdout.write(f"{help_times()}\n")
    elif arguments.write:
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    else:
        sys.stdout.write(f"{table()}\n")


if __name__ == "__main__":
    main()
