"""Recipes: sequences of this project's own commands. Each is printed, run and timed; the first failure ends them."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_policy.command_line import Stopped, run_child
from diffusion_policy.commands import script_words
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.installation import script_path
from diffusion_policy.storage import write_json
from diffusion_policy.terminal import show_heading, show_line


@dataclass(frozen=True)
class Step:
    """One command of a recipe: its title, and its words, of which the first is the script, as README names it.

    ``accepted`` are the exit statuses that count as results; any other ends the recipe.
    """

    title: str
    words: tuple[str, ...]
    accepted: tuple[int, ...] = (0,)

    @property
    def script(self) -> str:
        """Name of the script."""
        return Path(self.words[0]).stem


@dataclass(frozen=True)
class RecipeResult:
    """The result of a recipe: exit status and wall-clock seconds of each command that ran.

    ``failure`` is a sentence about the command that ended it early; None where all ran.
    """

    statuses: tuple[int, ...]
    seconds: tuple[float, ...]
    failure: str | None = None


class FinishedSteps:
    """The finished commands of a recipe, by title, stored in a file so that the recipe can be resumed.

    Args:
        file: a JSON list; created when the first command finishes.

    Raises:
        WorkspaceError: the file exists and is not such a list.
    """

    def __init__(self, file: Path):
        self._file = file
        self._titles: list[str] = []
        if file.is_file():
            try:
                stored = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise WorkspaceError(f"{file}: is not JSON ({error}); expected the titles of commands") from error
            if not isinstance(stored, list) or not all(isinstance(title, str) for title in stored):
                raise WorkspaceError(f"{file}: expected a list of the titles of commands")
            self._titles = stored

    def __contains__(self, step: Step) -> bool:
        return step.title in self._titles

    def __len__(self) -> int:
        return len(self._titles)

    @property
    def kept(self) -> str:
        """A sentence about what an interruption keeps."""
        return f"{len(self)} commands have ended and are kept in {self._file.parent}"

    def add(self, step: Step) -> None:
        """Records that a command has finished successfully."""
        self._titles.append(step.title)
        write_json(self._file, self._titles)


def prepare(folder: Path, marker: str) -> None:
    """Empties ``folder``; its content is removed only if it holds ``marker``, the file of an earlier run.

    Raises:
        WorkspaceError: the folder holds other files.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / marker).is_file():
            raise WorkspaceError(f"{folder} is not empty and was not made by this command; name another --workdir")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / marker).touch()


def run_recipe(steps: Sequence[Step], ended: FinishedSteps | None = None) -> RecipeResult:
    """Runs the commands in order, up to the first whose exit status is not accepted; prints each, and its time.

    Args:
        steps: the commands.
        ended: commands that finished earlier: they are neither run again nor part of the result. None: all are run.

    Raises:
        Stopped: interrupted; the message names the step.
    """
    statuses: list[int] = []
    seconds: list[float] = []
    failure = None
    for number, step in enumerate(steps, start=1):
        if ended is not None and step in ended:
            continue
        show_heading(f"{number}/{len(steps)}  {step.title}")
        line = f"$ {shlex.join([*script_words(step.script), *step.words[1:]])}"
        show_line(line, "cyan")
        begun = time.monotonic()
        try:
            statuses.append(run_child([sys.executable, str(script_path(step.script)), *step.words[1:]], Path()))
        except KeyboardInterrupt as error:
            if ended is not None:
                raise Stopped(f"{ended.kept}; interrupted: {step.title}", added=["--resume"]) from error
            raise Stopped(f"interrupted at step {number} of {len(steps)}; all steps run again") from error
        seconds.append(time.monotonic() - begun)
        show_line(f"{seconds[-1]:.0f} s", "dim")
        if statuses[-1] not in step.accepted:
            failure = f"{step.title!r} failed with status {statuses[-1]}; its message is above"
            break
        if ended is not None:
            ended.add(step)
    return RecipeResult(tuple(statuses), tuple(seconds), failure)
