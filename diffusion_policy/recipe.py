"""A sequence of this project's own commands: each is printed, run, and timed; the first failure is the last command."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_policy.command_line import Stopped, run_child
from diffusion_policy.commands import script_words
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.installation import script_path
from diffusion_policy.storage import write_json

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Step:
    """One command of a recipe: what it is for, and its words; the first is the script, as README names it.

    ``accepted`` are the exit statuses that are results; any other ends the recipe.
    """

    title: str
    words: tuple[str, ...]
    accepted: tuple[int, ...] = (0,)

    @property
    def script(self) -> str:
        """Name of the script."""
        return Path(self.words[0]).stem


@dataclass(frozen=True)
class Played:
    """What became of a recipe: exit status and wall-clock seconds of each command that ran."""

    statuses: tuple[int, ...]
    seconds: tuple[float, ...]


class Ended:
    """The commands of a recipe that have ended, by title, in a file that outlives the process.

    Args:
        file: a JSON list; made with the first command that ends.

    Raises:
        WorkspaceError: the file is there and is something else.
    """

    def __init__(self, file: Path):
        self._file = file
        self._titles: list[str] = []
        if file.is_file():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise WorkspaceError(f"{file}: is not JSON ({error}); expected the titles of commands") from error
            if not isinstance(found, list) or not all(isinstance(title, str) for title in found):
                raise WorkspaceError(f"{file}: expected a list of the titles of commands")
            self._titles = found

    def __contains__(self, step: Step) -> bool:
        return step.title in self._titles

    def __len__(self) -> int:
        return len(self._titles)

    @property
    def kept(self) -> str:
        """What an interruption leaves, in words."""
        return f"{len(self)} commands have ended and are kept in {self._file.parent}"

    def add(self, step: Step) -> None:
        """Its command has ended well."""
        self._titles.append(step.title)
        write_json(self._file, self._titles)


def prepare(folder: Path, marker: str) -> None:
    """Make ``folder`` empty; what is in it is removed only if it holds ``marker``, which an earlier run left there.

    Raises:
        WorkspaceError: it holds somebody else's files.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / marker).is_file():
            raise WorkspaceError(f"{folder} is not empty and was not made by this command; name another --workdir")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / marker).touch()


def play(steps: Sequence[Step], console: Console, ended: Ended | None = None) -> Played:
    """Run the commands in order, up to the first whose exit status is not accepted.

    Args:
        steps: what to run.
        console: where commands and times are printed.
        ended: those that ended before: they are not run again, and not among what is returned. None: all are run.

    Raises:
        Stopped: interrupted; says at which step.
    """
    statuses: list[int] = []
    seconds: list[float] = []
    for number, step in enumerate(steps, start=1):
        if ended is not None and step in ended:
            continue
        console.rule(f"[bold]{number}/{len(steps)}  {step.title}", align="left")
        line = f"$ {shlex.join([*script_words(step.script), *step.words[1:]])}"
        console.print(line, style="cyan", markup=False, highlight=False, soft_wrap=True)
        begun = time.monotonic()
        try:
            statuses.append(run_child([sys.executable, str(script_path(step.script)), *step.words[1:]], Path()))
        except KeyboardInterrupt as error:
            if ended is not None:
                raise Stopped(f"{ended.kept}; under way was: {step.title}", added=["--resume"]) from error
            raise Stopped(f"step {number} of {len(steps)} was under way, and all of them are made anew") from error
        seconds.append(time.monotonic() - begun)
        console.print(f"{seconds[-1]:.0f} s", style="dim")
        if statuses[-1] not in step.accepted:
            break
        if ended is not None:
            ended.add(step)
    return Played(tuple(statuses), tuple(seconds))
