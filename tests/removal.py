"""A conversion that is killed while it removes a folder."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest


class Killed(BaseException):
    """What a kill is to the code that it hits."""


@contextmanager
def killed_amid_removal() -> Iterator[None]:
    """What runs in here is killed when it has removed one file of the first folder of frames that is to go."""

    def remove(folder: Path) -> None:
        frames = sorted(file for file in folder.rglob("*") if file.is_file() and file.name[0].isdigit())
        if not frames:
            shutil.rmtree(folder)
            return
        frames[0].unlink()
        raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "diffusion_policy.convert.placement.shutil", SimpleNamespace(rmtree=remove, copyfile=shutil.copyfile)
        )
        with pytest.raises(Killed):
            yield
