"""Datasets that are written once per process; each test that requests one gets a copy."""

import atexit
import shutil
import tempfile
from collections.abc import Callable, Hashable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec

Options = ParamSpec("Options")


def made_once(write: Callable[Concatenate[Path, Options], Path]) -> Callable[Concatenate[Path, Options], Path]:
    """Wraps a function that writes a folder (the same one for the same options) into one that copies it."""
    made: dict[Hashable, Path] = {}

    @wraps(write)
    def copy(path: Path, *arguments: Options.args, **options: Options.kwargs) -> Path:
        key = (arguments, tuple(sorted(options.items())))
        if key not in made:
            # No TemporaryDirectory: it would end in a forked process, whose exit handlers Python 3.13 forgets.
            folder = Path(tempfile.mkdtemp(prefix="made_once_"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            made[key] = write(folder / "written", *arguments, **options)
        return Path(shutil.copytree(made[key], path))

    return copy
