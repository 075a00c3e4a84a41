"""A misspelt override is an error before anything starts, with the key that was probably meant."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from diffusion_policy.commands import setting
from diffusion_policy.workspace import TrainingError


def check_overrides(config_folder: Path, config_name: str, arguments: Sequence[str]) -> None:
    """Refuse what Hydra would refuse, naming the closest key; anything else is left to Hydra.

    Args:
        config_folder: of the config files.
        config_name: used unless the arguments name another.
        arguments: of the command line.

    Raises:
        TrainingError: a key or a choice that does not exist.
    """
    parsed, _ = get_args_parser().parse_known_args(list(arguments))
    if parsed.multirun or parsed.help or parsed.hydra_help or parsed.info or parsed.config_dir or parsed.config_path:
        return
    name = parsed.config_name or config_name
    if not (config_folder / f"{name}.yaml").is_file() and not (config_folder / name).is_file():
        configs = sorted(path.stem for path in config_folder.glob("*.yaml"))
        raise TrainingError(f"--config-name={name}: no such config; there are {', '.join(configs)}")
    with initialize_config_dir(str(config_folder.resolve()), version_base="1.2"):
        try:
            composed = compose(name, overrides=parsed.overrides)
        except HydraException as error:
            known = keys_of(compose(name)) + _choices(config_folder)
            raise TrainingError(_explain(error, parsed.overrides, known)) from error
        if parsed.overrides:
            _check_numbers(composed, compose(name), parsed.overrides)


def _check_numbers(composed: DictConfig, default: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse an override that puts something else where a number stands; null may stand anywhere.

    Raises:
        TrainingError: the first such override.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        before, after = OmegaConf.select(default, key), OmegaConf.select(composed, key)
        if isinstance(before, bool) or not isinstance(before, (int, float)) or after is None:
            continue
        whole = isinstance(before, int)
        if isinstance(after, bool) or not isinstance(after, int if whole else (int, float)):
            raise TrainingError(
                f"{override.input_line}: expected a {'whole number' if whole else 'number'} (it is {before} by default)"
            )


def follower_overrides() -> list[str]:
    """Under torchrun, all processes but the first leave folders, files and the terminal to it."""
    if int(os.environ.get("RANK", "0")) == 0:
        return []
    return ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled"]


def keys_of(config: DictConfig) -> list[str]:
    """Dotted names of all entries."""
    names: list[str] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                name = f"{prefix}.{key}" if prefix else str(key)
                names.append(name)
                walk(name, entry)

    walk("", OmegaConf.to_container(config, resolve=False))
    return names


def _choices(config_folder: Path) -> list[str]:
    return [f"{path.parent.name}={path.stem}" for path in sorted(config_folder.glob("*/*.yaml"))]


def _explain(error: HydraException, overrides: Sequence[str], known: Sequence[str]) -> str:
    """One sentence about the first override that does not exist, or what Hydra says."""
    first_line = str(error).strip().splitlines()[0]
    if isinstance(error, OverrideParseException):
        written = error.override or ""
        key, _, value = written.partition("=")
        quoted = shlex.quote(setting(key, value))
        return f"{written}: cannot be read ({first_line}); a value with = or other signs needs quotes: {quoted}"
    groups = {name.split("=")[0] for name in known if "=" in name}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        written = f"{key}={override.value()}"
        if key in groups and written in known:
            continue
        if key in groups:
            closest = difflib.get_close_matches(written, [name for name in known if "=" in name], n=1)
            choices = [name for name in known if name.startswith(f"{key}=")]
            return f"{override.input_line}: no such choice; {_hint(closest)}there are {', '.join(choices)}"
        if key not in known and not override.is_add() and not key.startswith("hydra."):
            closest = difflib.get_close_matches(key, [name for name in known if "=" not in name], n=1, cutoff=0.5)
            return f"{override.input_line}: no such setting; {_hint(closest)}+{key}=... would add a new one"
    return first_line


def _hint(closest: Sequence[str]) -> str:
    return f"did you mean {closest[0]}? " if closest else ""
