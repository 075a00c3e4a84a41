"""Command lines of a run: the one that started it, and the one that continues it. No heavy imports."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from diffusion_policy.commands import config_words, script_words, setting
from diffusion_policy.run_folder import RunFolderError


def started_with(run: Path) -> tuple[str, ...]:
    """Returns the arguments of a run's command line from .hydra/; empty if Hydra did not store them.

    Raises:
        RunFolderError: hydra.yaml or overrides.yaml is not as Hydra writes it.
    """
    folder = run / ".hydra"
    files = (folder / "hydra.yaml", folder / "overrides.yaml")
    if not all(file.is_file() for file in files):
        return ()
    try:
        hydra, settings = (yaml.safe_load(file.read_bytes()) for file in files)
        return (*config_words(hydra), *map(str, settings or ()))
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise RunFolderError(f"{folder}: hydra.yaml or overrides.yaml is not as Hydra writes it ({error!r})") from error


def setting_of(word: str) -> str:
    """Returns the setting that an override changes: `optimizer.learning_rate` for `+optimizer.learning_rate=1e-4`."""
    return word.lstrip("+~").partition("=")[0]


def command_line(arguments: Sequence[str], *changes: str, launcher: Sequence[str] = ()) -> str:
    """Returns a command line of train.py in which changes replace arguments for the same settings."""
    changed = {setting_of(change) for change in changes}
    kept = [word for word in arguments if "=" not in word or setting_of(word) not in changed]
    return shlex.join([*script_words("train", launcher), *kept, *changes])


def command_to_resume(arguments: Sequence[str], run: Path, *changes: str, launcher: Sequence[str] = ()) -> str:
    """Returns the command line that continues a run that was started with these arguments."""
    where = ("training.resume=True", setting("hydra.run.dir", run))
    return command_line(arguments, *where, *changes, launcher=launcher)


def resume_command(run: Path) -> str:
    """Returns the command that continues this process's run, with its config and overrides.

    Under torchrun it starts the same number of processes; with several machines, each also needs its launcher's
    rendezvous options.

    Raises:
        RunFolderError: hydra.yaml or overrides.yaml is not as Hydra writes it.
    """
    return command_to_resume(started_with(run) or config_words(None), run, launcher=_launcher())


def _launcher() -> list[str]:
    """Returns what starts train.py in place of the interpreter; torchrun passes the number of processes to each."""
    local, machines = (os.environ.get(name, "1") for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    if (local, machines) == ("1", "1"):
        return []
    return ["torchrun", *(["--nnodes", machines] if machines != "1" else []), "--nproc-per-node", local]
