"""The argument parsers of all scripts, and whether they accept a command line."""

import argparse
import runpy
import shlex
from functools import cache
from pathlib import Path
from unittest import mock

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from diffusion_policy.installation import CONFIG, ENTRY_POINTS, script_path
from diffusion_policy.resolvers import register_resolvers
from diffusion_policy.training_config import keys_of

SCRIPTS = sorted(set(ENTRY_POINTS.values()) - {"train"})


class CaughtError(Exception):
    """Carries the parser of a script out of its main function."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


@cache
def parser_of(script: str) -> argparse.ArgumentParser:
    def catch(self: argparse.ArgumentParser, *_: object, **__: object) -> argparse.Namespace:
        raise CaughtError(self)

    main = runpy.run_path(str(script_path(script)))["main"]
    with mock.patch.object(argparse.ArgumentParser, "parse_args", catch):
        try:
            main([])
        except CaughtError as caught:
            return caught.parser
    raise AssertionError(f"{script} parses no arguments")


@cache
def flags_of(script: str) -> frozenset[str]:
    """Every option of a script, those of its subcommands included."""
    found: set[str] = set()
    parsers = [parser_of(script)]
    while parsers:
        for action in parsers.pop()._actions:
            found |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                parsers.extend(action.choices.values())
    return frozenset(found)


def refusal(script: str, arguments: list[str]) -> str | None:
    """Returns why a script's parser refuses the arguments; None if it accepts them."""
    if script == "train":
        return _refusal_of_train(arguments)
    complaints: list[str] = []

    def note(self: argparse.ArgumentParser, message: str) -> None:
        complaints.append(message)
        raise CaughtError(self)

    with mock.patch.object(argparse.ArgumentParser, "error", note):
        try:
            parser_of(script).parse_args(arguments)
        except CaughtError:
            return complaints[0]
    return None


def _refusal_of_train(arguments: list[str]) -> str | None:
    """Checks only names of settings and choices; nothing is composed."""
    try:
        parsed = get_args_parser().parse_args(arguments)
        overrides = OverridesParser.create().parse_overrides(parsed.overrides)
    except (SystemExit, HydraException) as error:
        return str(error)
    known = known_settings()
    unknown = [o.input_line for o in overrides if o.key_or_group not in known and not (o.is_add() or o.is_force_add())]
    groups = {name.partition("=")[0] for name in known if "=" in name}
    chosen = [o for o in overrides if o.key_or_group in groups and not o.is_sweep_override()]
    unknown += [o.input_line for o in chosen if f"{o.key_or_group}={o.value()}" not in known]
    return f"no such settings: {unknown}" if unknown else None


@cache
def known_settings() -> frozenset[str]:
    """Keys of the training configs, and the choices of their groups as group=choice."""
    register_resolvers()
    with initialize_config_dir(str(CONFIG), version_base="1.2"):
        names = [path.stem for path in CONFIG.glob("train_*.yaml")]
        found = {key for name in names for key in keys_of(compose(name, return_hydra_config=True))}
    choices = {f"{path.parent.relative_to(CONFIG)}={path.stem}" for path in CONFIG.rglob("*.yaml")}
    return frozenset(found | choices | {choice.partition("=")[0] for choice in choices})


def script_called(words: list[str]) -> tuple[str, list[str]] | None:
    """The script that a command line runs, and its arguments; None if it runs none."""
    for i, word in enumerate(words):
        name = Path(word).name
        if name == "train.py" or (Path(word).parent.name == "scripts" and name.removesuffix(".py") in SCRIPTS):
            return name[:-3], words[i + 1 :]
        if name in ENTRY_POINTS:
            return ENTRY_POINTS[name], words[i + 1 :]
    return None


def refusal_of_line(line: str) -> str | None:
    """Returns why a pasted command line is refused; None if it is not, or runs no script."""
    called = script_called(shlex.split(line, comments=True))
    return None if called is None else refusal(*called)
