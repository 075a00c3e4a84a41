"""The sources of the library, the scripts and `train.py` as syntax trees, each file parsed once per process."""

import ast
import gc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def python_files(*folders: str) -> list[Path]:
    """All Python files of these folders of the repository."""
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def where(path: Path) -> str:
    """The path of a file in the repository."""
    return str(path.relative_to(REPOSITORY))


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file.

    Without garbage collection: a traceback that is logged when an object ends is parsed, too, for its marks, and Python
    3.11 cannot parse while it parses.
    """
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()


@cache
def walked(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of the syntax tree of a file."""
    return tuple(ast.walk(parsed(path)))


def spoken(path: Path) -> Iterator[tuple[int, str]]:
    """Returns strings of a file that may be printed, with their lines: all except docstrings."""
    holders = (node for node in walked(path) if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef))
    firsts = [node.body[0] for node in holders if node.body]
    silent = {id(first.value) for first in firsts if isinstance(first, ast.Expr)}
    for node in walked(path):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.lineno, node.value
