"""Configs of checkpoints hold small sums, `${eval:'${n_obs_steps}-1+${n_latency_steps}'}`: arithmetic, not Python.

The code base that wrote the users' checkpoints maps `eval` to Python's own. A checkpoint may come from anywhere, so
here `eval` knows only numbers and + - * / // % **, and every other resolver (`oc.env` reads the environment) is refused
before a config from a file is used.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from omegaconf.grammar_parser import parse

from diffusion_policy.errors import WorkspaceError

MAX_LENGTH = 200
MAX_MAGNITUDE = 2**63
MAX_EXPONENT = 64
MAX_TEXT = 4000
MAX_EXPANSION = 1_000_000
# Hydra's `now` only reads the clock; configs of the users' code base name run folders with it.
ALLOWED_RESOLVERS = ("eval", "now")

Number = int | float


class ArithmeticTextError(WorkspaceError, ValueError):
    """Text that is not plain arithmetic on numbers."""


class InterpolationError(WorkspaceError):
    """A config's interpolations use more than numbers and other entries of the config."""


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def register_resolvers() -> None:
    """Make `${eval:...}` in OmegaConf mean arithmetic on numbers. Calling it again changes nothing."""
    OmegaConf.register_new_resolver("eval", evaluate_arithmetic, replace=True)


def evaluate_arithmetic(text: str | Number) -> Number:
    """The value of a sum such as `"2-1+0"`.

    Raises:
        ArithmeticTextError: names, calls, comparisons, text; a division by zero; a result beyond 2**63.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return text
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        raise ArithmeticTextError(
            f"cannot evaluate {str(text)[:40]!r}: expected a sum written in at most {MAX_LENGTH} characters."
        )
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, text)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError) as error:
        if isinstance(error, ArithmeticTextError):
            raise
        raise ArithmeticTextError(f"cannot evaluate {text!r}: {error}.") from error


def _value(node: ast.expr, text: str) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        result = node.value
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        result = _UNARY[type(node.op)](_value(node.operand, text))
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left, text), _value(node.right, text)
        if isinstance(node.op, ast.Pow) and abs(right) > MAX_EXPONENT:
            raise ArithmeticTextError(f"cannot evaluate {text!r}: the exponent {right} is beyond {MAX_EXPONENT}.")
        result = _BINARY[type(node.op)](left, right)
    else:
        part = ast.unparse(node)
        raise ArithmeticTextError(
            f"cannot evaluate {text!r}: {part!r} is not arithmetic on numbers; only numbers, + - * / // % ** and "
            "parentheses are, and nothing was run."
        )
    if not isinstance(result, (int, float)) or abs(result) > MAX_MAGNITUDE:
        raise ArithmeticTextError(f"cannot evaluate {text!r}: a part of it is beyond {MAX_MAGNITUDE}.")
    return result


def flat_config(config: DictConfig) -> dict[str, Any]:
    """Entries by dotted name; if a reference cannot be resolved, all stay as they are written."""
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:
        plain = OmegaConf.to_container(config, resolve=False)
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, entry in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), entry)
        else:
            flat[prefix] = value

    walk("", plain)
    return flat


def check_interpolations(config: Any, where: str) -> None:
    """Refuse a config (plain containers, not yet resolved) whose interpolations are not harmless.

    Allowed are references to other entries and the resolvers `ALLOWED_RESOLVERS`. Refused are all other resolvers,
    computed references (`${${a}}`), circular references, and nested references that would expand to more than
    `MAX_EXPANSION` characters.

    Raises:
        InterpolationError: names the entry and what it uses.
    """
    try:
        _Expansion(config, where).of(())
    except RecursionError as error:
        raise InterpolationError(f"{where}: the config's references are nested too deeply to follow.") from error


class _Expansion:
    """The length of each entry once its references are followed; finds circular references on the way."""

    def __init__(self, config: Any, where: str) -> None:
        self.config = config
        self.where = where
        self.lengths: dict[tuple[str, ...], int | None] = {}

    def of(self, path: tuple[str, ...]) -> int:
        if path in self.lengths:
            length = self.lengths[path]
            if length is None:
                raise self._refusal(path, "refers to itself")
            return length
        self.lengths[path] = None
        length = self._measure(path, _lookup(self.config, path))
        if length > MAX_EXPANSION:
            raise self._refusal(path, f"unfolds to more than {MAX_EXPANSION} characters")
        self.lengths[path] = length
        return length

    def _measure(self, path: tuple[str, ...], value: Any) -> int:
        if isinstance(value, Mapping):
            return 1 + sum(self.of((*path, str(key))) for key in value)
        if isinstance(value, list):
            return 1 + sum(self.of((*path, str(index))) for index in range(len(value)))
        if not isinstance(value, str) or "${" not in value:
            return len(value) if isinstance(value, (str, bytes)) else 1
        return len(value) + sum(self.of(target) for target in self._references(path, value))

    def _references(self, path: tuple[str, ...], text: str) -> list[tuple[str, ...]]:
        if len(text) > MAX_TEXT:
            raise self._refusal(path, f"has an interpolation within {len(text)} characters of text")
        try:
            tree = parse(text)
        except GrammarParseError as error:
            raise self._refusal(path, f"is not a valid interpolation ({str(error).splitlines()[0][:80]})") from error
        targets, nodes = [], [tree]
        while nodes:
            node = nodes.pop()
            kind = type(node).__name__
            if kind == "ResolverNameContext" and node.getText() not in ALLOWED_RESOLVERS:
                raise self._refusal(path, f"asks for the resolver {node.getText()!r}")
            if kind == "InterpolationNodeContext":
                targets.append(self._target(path, node.getText()))
            nodes.extend(child for child in getattr(node, "children", None) or () if hasattr(child, "getText"))
        return targets

    def _target(self, path: tuple[str, ...], text: str) -> tuple[str, ...]:
        inner = text[2:-1].strip()
        if "${" in inner:
            raise self._refusal(path, f"computes the name that it refers to ({text})")
        name = inner.lstrip(".")
        up = len(inner) - len(name)
        base = path[: len(path) - up] if up else ()
        return (*base, *(part for part in re.split(r"[.\[\]]+", name) if part))

    def _refusal(self, path: tuple[str, ...], what: str) -> InterpolationError:
        entry = ".".join(path) or "the config"
        return InterpolationError(
            f"{self.where}: the config entry {entry!r} {what}, which a config from a file may not; it may refer to "
            f"other entries and use {' and '.join(ALLOWED_RESOLVERS)}; nothing was resolved."
        )


def _lookup(config: Any, path: tuple[str, ...]) -> Any:
    """The entry at `path`, or None: a dangling reference raises OmegaConf's own error when it is read."""
    for part in path:
        if isinstance(config, Mapping):
            config = next((value for key, value in config.items() if str(key) == part), None)
        elif isinstance(config, list) and part.isdecimal() and len(part) < 10 and int(part) < len(config):
            config = config[int(part)]
        else:
            return None
    return config
