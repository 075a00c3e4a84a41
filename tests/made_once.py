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
            folder = tempfile.TemporaryDirectory(prefix="made_once_")
            atexit.register(folder.cleanup)
            made[key] = write(Path(folder.name) / "written", *arguments, **options)
        return Path(shutil.copytree(made[key], path))

    return copy
