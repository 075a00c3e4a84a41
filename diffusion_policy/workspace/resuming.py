"""How a run goes on: the checkpoint it is resumed from, and the command. Loads nothing heavy: Ctrl-C must not wait."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import yaml

from diffusion_policy.commands import config_words, script_words, setting

LATEST = "latest.ckpt"


def resume_command(folder: Path) -> str:
    """The command that continues a run: its own config and overrides, which Hydra keeps in the run folder.

    Under torchrun it starts as many processes; with several machines, each needs its launcher's rendezvous options too.
    """
    hydra, overrides = (_kept(folder / ".hydra" / name) for name in ("hydra.yaml", "overrides.yaml"))
    replaced = ("training.resume=", "hydra.run.dir=")
    same = [text for text in overrides or [] if not text.lstrip("+~").startswith(replaced)]
    resumed = ("training.resume=True", setting("hydra.run.dir", folder))
    return shlex.join([*script_words("train", _launcher()), *config_words(hydra), *same, *resumed])


def _launcher() -> list[str]:
    """What starts train.py in place of the interpreter: torchrun tells its processes how many there are."""
    local, machines = (os.environ.get(name, "1") for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    if (local, machines) == ("1", "1"):
        return []
    return ["torchrun", *(["--nnodes", machines] if machines != "1" else []), "--nproc-per-node", local]


def _kept(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.is_file() else None
