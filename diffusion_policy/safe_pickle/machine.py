"""The interpreter of pickles: a stack, a memo and the instructions that data needs."""

from __future__ import annotations

import pickletools
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.safe_pickle.instructions import INSTRUCTIONS, Reader
from diffusion_policy.safe_pickle.stand_ins import OpaqueObject, StandIn, may_be_data

MAX_BYTES = 256 * 2**20
MAX_INSTRUCTIONS = 2_000_000
MAX_INTEGER_BITS = 512


class UnsafePickleError(WorkspaceError):
    """A pickle that names something outside the allow-list, or that is broken or absurdly large."""


class NotPlainError(ValueError):
    """Content of an intact pickle that a recipe refuses; the message names it."""


@dataclass(frozen=True)
class Recipe:
    """The safe replacement of an allowed callable.

    Attributes:
        build: called with the arguments in the file, which it checks itself (TypeError or ValueError).
        makes: type of the objects whose state may be set.
        set_state: called with an object of type `makes` and its state in the file.
    """

    build: Callable[..., Any]
    makes: type | None = None
    set_state: Callable[[Any, Any], None] | None = None


Allowed = Mapping[tuple[str, str], Any]


def load(
    data: bytes | BinaryIO,
    *,
    allowed: Allowed,
    where: str,
    persistent_load: Callable[[Any], Any] | None = None,
    max_bytes: int = MAX_BYTES,
    stand_ins: bool = False,
) -> Any:
    """Load the object of a pickle, made of plain containers and of objects made by `allowed`.

    Args:
        data: the pickle; bytes after STOP are ignored.
        allowed: `Recipe` or constant by (module, name).
        where: name of the file, for messages.
        persistent_load: resolves references to external storage (PyTorch's tensors).
        max_bytes: the most bytes that are read.
        stand_ins: substitute `StandIn` and `OpaqueObject` for other programs' classes and for objects created from them
            as data (by NEWOBJ). Anything that is called, and any name from Python's own modules, torch or numpy, is
            still refused.

    Raises:
        UnsafePickleError: a name that is not in `allowed`, an instruction that data does not need, a broken or too
            large file.
    """
    content = data if isinstance(data, bytes) else data.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UnsafePickleError(f"{where}: the pickle is larger than {max_bytes} bytes, the most that is read.")
    machine = _Machine(allowed, persistent_load, where, budget=4 * len(content) + 2**20, stand_ins=stand_ins)
    return machine.run(content)


def length_of_first(data: bytes, where: str) -> int:
    """The length in bytes of the pickle at the start of some data; none of its instructions are executed.

    Raises:
        UnsafePickleError: it does not end, or is broken or absurdly long.
    """
    try:
        for count, (opcode, _, at) in enumerate(pickletools.genops(data)):
            if opcode.name == "STOP":
                return (at or 0) + 1
            if count >= MAX_INSTRUCTIONS:
                break
    except (ValueError, IndexError, OverflowError) as error:
        raise UnsafePickleError(f"{where}: the pickle is broken or truncated ({error}).") from error
    raise UnsafePickleError(f"{where}: the pickle has more than {MAX_INSTRUCTIONS} instructions, or no end.")


class _Machine:
    """The stack, memo and instructions of the pickle machine, without those that could run code."""

    def __init__(
        self,
        allowed: Allowed,
        persistent_load: Callable[[Any], Any] | None,
        where: str,
        budget: int,
        *,
        stand_ins: bool,
    ) -> None:
        self.stand_ins = stand_ins
        self.allowed = allowed
        self.persistent_load = persistent_load
        self.where = where
        self.budget = budget
        self.setters = [
            (recipe.makes, recipe.set_state)
            for recipe in allowed.values()
            if isinstance(recipe, Recipe) and recipe.makes is not None and recipe.set_state is not None
        ]
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        position = at = 0
        try:
            for _ in range(MAX_INSTRUCTIONS):
                position = at
                if at == len(content):
                    raise ValueError("it ends without STOP")
                read, handler = _BY_OPCODE[content[at]]
                argument, at = (None, at + 1) if read is None else read(content, at + 1)
                if handler is _stop:
                    return self.stack.pop()
                handler(self, argument)
            raise self._refusal(f"the pickle has more than {MAX_INSTRUCTIONS} instructions")
        except NotPlainError as error:
            raise self._refusal(f"the pickle holds {error}") from error
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, ArithmeticError, struct.error) as error:
            reason = f"{type(error).__name__}: {error}"[:200]
            raise UnsafePickleError(f"{self.where}: the pickle is broken near byte {position} ({reason}).") from error

    def _refusal(self, what: str) -> UnsafePickleError:
        return UnsafePickleError(f"{self.where}: {what}; it was refused and nothing was run.")

    # names and calls

    def _find(self, module: Any, name: Any) -> None:
        if isinstance(module, str) and isinstance(name, str) and (module, name) in self.allowed:
            self.stack.append(self.allowed[(module, name)])
        elif self.stand_ins and may_be_data(module, name):
            self.stack.append(StandIn(f"{module}.{name}"))
        else:
            raise self._not_allowed(f"{module}.{name}")

    def _not_allowed(self, name: str) -> UnsafePickleError:
        return self._refusal(f"the pickle asks for {name}"[:200] + ", which is not on the allow-list")

    def find_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._find(module, name)

    def find_stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._find(module, name)

    def refuse_instance(self, argument: str) -> None:
        raise self._refusal(f"the pickle asks for an instance of {argument.replace(' ', '.')}"[:200])

    def call(self, _: None) -> None:
        arguments, recipe = self.stack.pop(), self.stack.pop()
        if isinstance(recipe, StandIn):
            raise self._not_allowed(recipe.name)
        if not isinstance(recipe, Recipe) or type(arguments) is not tuple:
            raise self._refusal(f"the pickle calls a {type(recipe).__name__}, which cannot be called")
        self._push_made(recipe.build(*arguments))

    def instantiate(self, _: None) -> None:
        if len(self.stack) > 1 and isinstance(self.stack[-2], StandIn):
            self.stack[-2:] = [OpaqueObject(self.stack[-2].name)]
        else:
            self.call(None)

    def refer(self, _: None) -> None:
        if self.persistent_load is None:
            raise self._refusal("the pickle refers to outside storage, which this kind of file does not have")
        self._push_made(self.persistent_load(self.stack.pop()))

    def _push_made(self, made: Any) -> None:
        self._spend(made)
        self.stack.append(made)

    def _spend(self, made: Any) -> None:
        size = len(made) if isinstance(made, bytes) else made.nbytes if isinstance(made, np.ndarray) else 0
        self.budget -= size
        if self.budget < 0:
            raise self._refusal("the pickle expands to far more memory than its own size")

    def set_state(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, OpaqueObject):
            return
        setter = next((setter for made, setter in self.setters if isinstance(target, made)), None)
        if setter is None:
            raise self._refusal(f"the pickle sets the state of a {type(target).__name__}, which has none")
        setter(target, state)
        self._spend(target)

    # containers

    def mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._since_mark()

    def pop_mark(self, _: None) -> None:
        self._since_mark()

    def make_tuple(self, _: None) -> None:
        items = tuple(self._since_mark())
        self.stack.append(items)

    def make_list(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(items)

    def make_dict(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append({})
        self._set_items(items)

    def append(self, _: None) -> None:
        self._extend([self.stack.pop()])

    def extend(self, _: None) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], OpaqueObject):
            return
        if type(self.stack[-1]) is not list:
            raise self._refusal(f"the pickle appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def set_items(self, _: None) -> None:
        self._set_items(self._since_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, OpaqueObject):
            return
        if type(target) not in (dict, OrderedDict, defaultdict) or len(items) % 2:
            raise self._refusal(f"the pickle sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self._flat(key)] = value

    def add_items(self, _: None) -> None:
        items = self._since_mark()
        if type(self.stack[-1]) is not set:
            raise self._refusal(f"the pickle adds members to a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(self._flat(item) for item in items)

    def make_frozenset(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(frozenset(self._flat(item) for item in items))

    def _flat(self, key: Any) -> Any:
        if type(key) in _KEY_TYPES:
            return key
        parts = key if type(key) is tuple else (key,)
        if not all(type(part) in _KEY_TYPES for part in parts):
            raise self._refusal(f"the pickle uses a {type(key).__name__} as a key or set member, which is not plain")
        return key

    # constants and the memo

    def push(self, argument: Any) -> None:
        self.stack.append(argument)

    def push_integer(self, argument: int) -> None:
        if argument.bit_length() > MAX_INTEGER_BITS:
            raise self._refusal(f"the pickle has an integer of {argument.bit_length()} bits")
        self.stack.append(argument)

    def remember(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    def remember_next(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def recall(self, argument: int) -> None:
        self.stack.append(self.memo[argument])


_KEY_TYPES = frozenset({str, int, float, bool, bytes, type(None)})


def _pushes(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _pushes_tuple(width: int) -> Callable[[_Machine, Any], None]:
    def handler(machine: _Machine, _: Any) -> None:
        if len(machine.stack) < width:
            raise IndexError("the stack is too short for a tuple")
        machine.stack[-width:] = [tuple(machine.stack[-width:])]

    return handler


def _ignore(machine: _Machine, argument: Any) -> None:
    """Ignore PROTO and FRAME, which describe the encoding of the file and not its content."""


def _stop(machine: _Machine, argument: Any) -> None:
    """The object is complete."""


def _refuses(name: str) -> Callable[[_Machine, Any], None]:
    def handler(machine: _Machine, _: Any) -> None:
        raise machine._refusal(f"the pickle uses the instruction {name}, which data does not need")

    return handler


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _ignore),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4"), _Machine.push_integer),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Machine.push),
    "BYTEARRAY8": lambda machine, argument: machine.push(bytes(argument)),
    "NONE": _pushes(lambda: None),
    "NEWTRUE": _pushes(lambda: True),
    "NEWFALSE": _pushes(lambda: False),
    "EMPTY_TUPLE": _pushes(tuple),
    "EMPTY_LIST": _pushes(list),
    "EMPTY_DICT": _pushes(dict),
    "EMPTY_SET": _pushes(set),
    "TUPLE1": _pushes_tuple(1),
    "TUPLE2": _pushes_tuple(2),
    "TUPLE3": _pushes_tuple(3),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "TUPLE": _Machine.make_tuple,
    "LIST": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.make_frozenset,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.remember),
    "MEMOIZE": _Machine.remember_next,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.recall),
    "GLOBAL": _Machine.find_global,
    "STACK_GLOBAL": _Machine.find_stack_global,
    "INST": _Machine.refuse_instance,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.instantiate,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.refer,
    "STOP": _stop,
}
_BY_OPCODE: list[tuple[Reader | None, Callable[[_Machine, Any], None]]] = [
    (read, _HANDLERS.get(name) or _refuses(name)) for name, read in INSTRUCTIONS
]
