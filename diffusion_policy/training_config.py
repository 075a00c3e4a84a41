"""The config of a training run: composed in one way to be run, checked or inspected.

A misspelled override is an error before anything starts, with the key that was probably meant. A config from elsewhere,
such as the public predecessor's, may lack settings added later: they take the defaults of the file in config/ that
trains the same policy, and are named. The identity of a policy (task, policy, horizon) is never filled in.
"""

from __future__ import annotations

import copy
import difflib
import logging
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_policy.commands import DEFAULT_CONFIG as DEFAULT
from diffusion_policy.commands import setting
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.installation import CONFIG
from diffusion_policy.resolvers import register_resolvers

logger = logging.getLogger(__name__)

# What a policy is and what it is trained on: if absent, they are missing, and no default applies.
NEVER_FILLED = frozenset({
    "_target_", "task", "shape_meta", "policy", "horizon", "n_obs_steps", "n_action_steps", "dataset_obs_steps",
    "obs_as_cond", "past_action_visible", "keypoint_visible_rate", "simulator",
})  # fmt: skip
# The learning rate, under this project's name and under that of torch's constructor.
RATES = ("optimizer.learning_rate", "optimizer.lr")
# Hydra's flag for an additional config folder.
_CONFIG_DIR = ("--config-dir", "-cd")
# Built by constructors, like any section with a `_target_`: their own defaults apply to absent options.
FILLED_AS_A_WHOLE = frozenset({"ema"})


class ConfigError(WorkspaceError):
    """A config that cannot be composed or used; the message names the entry."""


def compose_training(name: str = DEFAULT, overrides: Sequence[str] = ()) -> DictConfig:
    """The config that `python train.py --config-name=NAME OVERRIDES` runs.

    Args:
        name: of a config of config/; or the path of a YAML file, as for --config-path and --config-name.
        overrides: as for train.py.

    Raises:
        ConfigError: there is no such config, or an override does not exist.
    """
    register_resolvers()
    path = Path(name)
    elsewhere = path.suffix in (".yaml", ".yml") and path.is_file()
    where = [f"--config-path={path.resolve().parent}"] if elsewhere else []
    arguments = [*where, f"--config-name={path.stem if elsewhere else name}", *overrides]
    return compose_arguments(arguments)


def compose_config_file(path: Path) -> DictConfig | None:
    """A training config without overrides, its interpolations unresolved; None if there is no such file.

    Args:
        path: of a YAML file, or the name of one in config/.

    Raises:
        ConfigError: it does not compose, or has no policy.
    """
    candidates = (path, CONFIG / path, CONFIG / f"{path}.yaml")
    file = next((one for one in candidates if one.is_file() and one.suffix == ".yaml"), None)
    if file is None:
        return None
    register_resolvers()
    try:
        with initialize_config_dir(str(file.parent.resolve()), version_base=None):
            cfg = compose(file.stem)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{file}: cannot be composed: {error}") from error
    if "policy" not in cfg:
        raise ConfigError(f"{file}: has no `policy` section, so there is no model to change")
    OmegaConf.set_struct(cfg, value=False)  # keys may be added
    return cfg


def compose_arguments(arguments: Sequence[str], home: Path = CONFIG.parent) -> DictConfig:
    """The config of a command line of train.py.

    Args:
        arguments: its words after the script.
        home: what a relative --config-path is relative to.

    Raises:
        ConfigError: there is no such config, or an override does not exist.
    """
    register_resolvers()
    arguments = _located(arguments)
    parsed, _ = get_args_parser().parse_known_args(arguments)
    if not _is_left_to_hydra(parsed):
        return complete(_checked(arguments, parsed, home)[1])[0]
    with initialize_config_dir(str(_folder_of(parsed, home)), version_base="1.2"):
        return complete(compose(parsed.config_name or DEFAULT, overrides=parsed.overrides))[0]


def complete(cfg: DictConfig) -> tuple[DictConfig, tuple[str, ...]]:
    """A config with the defaults of `defaults_of` for settings that it lacks, and their names.

    Options of an optimizer are its policy's: those of another policy are not filled in.
    """
    base = _shipped(defaults_of(cfg))
    filled: list[str] = []
    theirs, ours = (OmegaConf.to_container(config, resolve=False) for config in (cfg, base))
    assert isinstance(theirs, dict)
    assert isinstance(ours, dict)
    foreign = {"optimizer"} if _policy_of(cfg) != _policy_of(base) else frozenset()
    _fill(theirs, {key: value for key, value in ours.items() if key not in NEVER_FILLED | foreign}, "", filled)
    task = theirs.get("task")
    if isinstance(task, dict) and "env_runner" not in task and "task" in ours:
        task["env_runner"] = copy.deepcopy(ours["task"]["env_runner"])
        filled.append("task.env_runner")
    if not filled:
        return cfg, ()
    completed = OmegaConf.create(theirs)
    OmegaConf.set_struct(completed, value=True)
    return completed, tuple(filled)


def defaults_of(cfg: DictConfig) -> str:
    """Which file of config/ has the defaults for a config: that of its policy, else its workspace, else the default."""
    return next((_families()[one] for one in (_policy_of(cfg), cfg.get("_target_")) if one in _families()), DEFAULT)


@cache
def _families() -> dict[str, str]:
    """Classes of policies and workspaces, and which config of config/ trains them; the default config comes first."""
    named: dict[str, str] = {}
    for name in (DEFAULT, *_training_configs(CONFIG)):
        written = OmegaConf.load(CONFIG / f"{name}.yaml")
        assert isinstance(written, DictConfig)
        for target in filter(None, (_policy_of(written), written.get("_target_"))):
            named.setdefault(target, name)
    return named


def _policy_of(cfg: DictConfig) -> str | None:
    """The class of a config's policy; None where it names none."""
    policy = cfg.get("policy")
    return policy.get("_target_") if isinstance(policy, DictConfig) else None


def _fill(theirs: dict[Any, Any], ours: Mapping[Any, Any], prefix: str, filled: list[str]) -> None:
    for key, value in ours.items():
        if key not in theirs:
            theirs[key] = copy.deepcopy(value)
            filled.append(f"{prefix}{key}")
        elif key in FILLED_AS_A_WHOLE or not isinstance(value, dict) or not isinstance(theirs[key], dict):
            continue
        elif "_target_" not in theirs[key]:
            _fill(theirs[key], value, f"{prefix}{key}.", filled)


def rate_setting(cfg: DictConfig) -> str:
    """Which entry of a config is its learning rate."""
    return next((name for name in RATES if OmegaConf.select(cfg, name) is not None), RATES[0])


@cache
def _shipped(name: str) -> DictConfig:
    """A config of config/ without overrides; the same object each time, only to be read."""
    register_resolvers()
    with initialize_config_dir(str(CONFIG), version_base="1.2"):
        return compose(name)


@contextmanager
def config_errors(cfg: DictConfig) -> Iterator[None]:
    """Makes OmegaConf's errors one sentence that names the entry.

    Args:
        cfg: that is read meanwhile; the sentence names the file that shows its settings.

    Raises:
        ConfigError: instead of them.
    """
    try:
        yield
    except OmegaConfBaseException as error:
        what = str(error).strip().splitlines()[0]
        if (error.full_key and "is not in struct" in what) or "Missing key" in what:
            what = f"the config has no {error.full_key}"
        elif error.full_key:
            what = f"{error.full_key}: {what}"
        raise ConfigError(f"{what}; config/{defaults_of(cfg)}.yaml shows every setting with its default") from error


def _completed(arguments: Sequence[str], parsed: Any, base: DictConfig, home: Path) -> list[str]:
    """The words of a command line, such that Hydra takes the settings and choices that its config lacks.

    For a config from elsewhere `pretrained.path=X` becomes `++pretrained.path=X`, `loss=plain` and `experiment=X`
    become `+loss=plain` and `+experiment=X`, and choices are looked up in config/ too.
    """
    folder, defaults = _folder_of(parsed, home), defaults_of(base)
    groups = {group: choice for group, choice in _groups(defaults).items() if group not in base}
    known = set(keys_of(_shipped(defaults))) - set(keys_of(base))
    if not groups and not known:
        return list(arguments)
    adapted = {override: _accepted(override, groups, known) for override in parsed.overrides}
    chosen = {override.lstrip("+").partition("=")[0] for override in adapted.values()}
    added = [f"+{group}={choice}" for group, choice in groups.items() if group not in chosen]
    if folder != CONFIG and groups and not any(word.startswith("hydra.searchpath") for word in arguments):
        added.append(setting("hydra.searchpath", [f"file://{CONFIG}"]))
    first = [word for word in arguments if word not in adapted]
    return [*first, *added, *(adapted[word] for word in arguments if word in adapted)]


def _located(arguments: Sequence[str]) -> list[str]:
    """The words of a command line, with --config-path instead of a --config-dir that holds the config.

    Hydra looks into the latter last, and would compose the one of the same name in config/.
    """
    words = list(arguments)
    parsed, _ = get_args_parser().parse_known_args(words)
    if parsed.config_dir is None or parsed.config_path is not None:
        return words
    folder, name = Path(parsed.config_dir).absolute(), parsed.config_name or DEFAULT
    if not any((folder / file).is_file() for file in (f"{name}.yaml", name)):
        return words
    behind = [word for before, word in zip(["", *words], words, strict=False) if before not in _CONFIG_DIR]
    return [f"--config-path={folder}", *(word for word in behind if word.partition("=")[0] not in _CONFIG_DIR)]


def _accepted(override: str, groups: Mapping[str, str], known: set[str]) -> str:
    """An override in a form that a config without that entry takes."""
    key = override.partition("=")[0]
    if key in groups or (key == "experiment" and groups):
        return f"+{override}"
    return f"++{override}" if key in known else override


@cache
def _groups(name: str) -> dict[str, str]:
    """The groups of settings of a config of config/, and which choice it takes."""
    listed = OmegaConf.load(CONFIG / f"{name}.yaml").defaults
    pairs = [pair for entry in listed if isinstance(entry, DictConfig) for pair in entry.items()]
    return {str(group): str(choice) for group, choice in pairs if group not in NEVER_FILLED | {"experiment"}}


def _is_left_to_hydra(parsed: Any) -> bool:
    """Whether a command line asks for something else than one run of a config that can be composed here."""
    return bool(parsed.multirun or parsed.help or parsed.hydra_help or parsed.info or parsed.config_dir)


def _folder_of(parsed: Any, home: Path) -> Path:
    """The location of the config."""
    return CONFIG if parsed.config_path is None else (home / parsed.config_path).resolve()


def _composed(parsed: Any, home: Path) -> DictConfig:
    """The config that a command line names, without its overrides.

    Raises:
        ConfigError: there is none, or it does not compose.
    """
    folder, name = _folder_of(parsed, home), parsed.config_name or DEFAULT
    if not (folder / f"{name}.yaml").is_file() and not (folder / name).is_file():
        there = ", ".join(_training_configs(folder)) or "none"
        raise ConfigError(f"--config-name={name}: no such config; there are {there} in {folder}")
    try:
        if folder == CONFIG:
            return copy.deepcopy(_shipped(name))
        with initialize_config_dir(str(folder), version_base="1.2"):
            return compose(name)
    except HydraException as error:
        raise ConfigError(f"{folder / name}: {str(error).strip().splitlines()[0]}") from error


def _training_configs(folder: Path) -> list[str]:
    """Names of the configs in a folder that name a workspace."""
    names_one = re.compile("^_target_:", re.MULTILINE)
    return sorted(path.stem for path in folder.glob("*.yaml") if names_one.search(path.read_text("utf-8")))


def checked_arguments(arguments: Sequence[str], home: Path = CONFIG.parent) -> list[str]:
    """The words of a command line, such that Hydra takes the settings and choices that its config lacks.

    What Hydra would refuse is refused, naming the closest key; anything else is left to Hydra.

    Args:
        arguments: of train.py.
        home: what a relative --config-path is relative to.

    Raises:
        ConfigError: a config, a key or a choice that does not exist, or something other than a number where one is
            expected.
    """
    arguments = _located(arguments)
    parsed, _ = get_args_parser().parse_known_args(arguments)
    return arguments if _is_left_to_hydra(parsed) else _checked(arguments, parsed, home)[0]


def _checked(arguments: Sequence[str], parsed: Any, home: Path) -> tuple[list[str], DictConfig]:
    """Like `checked_arguments`, with the config that Hydra composes from them."""
    base = _composed(parsed, home)
    words = _completed(arguments, parsed, base, home)
    adapted, _ = get_args_parser().parse_known_args(words)
    if not adapted.overrides:
        return words, base
    with initialize_config_dir(str(_folder_of(parsed, home)), version_base="1.2"):
        try:
            composed = compose(parsed.config_name or DEFAULT, overrides=adapted.overrides)
        except HydraException as error:
            known = keys_of(complete(base)[0]) + _choices(CONFIG)
            raise ConfigError(_explain(error, parsed.overrides, known)) from error
    if parsed.overrides:
        _check_numbers(composed, complete(base)[0], parsed.overrides)
    return words, composed


def _check_numbers(composed: DictConfig, default: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse an override that replaces a number with something else; null is allowed anywhere.

    Raises:
        ConfigError: the first such override.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        before, after = OmegaConf.select(default, key), OmegaConf.select(composed, key)
        if isinstance(before, bool) or not isinstance(before, (int, float)) or after is None:
            continue
        whole = isinstance(before, int)
        if isinstance(after, bool) or not isinstance(after, int if whole else (int, float)):
            raise ConfigError(
                f"{override.input_line}: expected a {'whole number' if whole else 'number'} (it is {before} by default)"
            )


def follower_overrides() -> list[str]:
    """Under torchrun, all processes but the first leave folders, files and the terminal to that one."""
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
    """One sentence about the first override that does not exist, or else Hydra's message."""
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
