"""Inert replacements for the classes that users' pickles refer to: config containers, dill's types, VPT's spaces.

None of these libraries is imported to read a file. An OmegaConf container becomes an `Inert` object with its state, and
`to_plain` converts the whole content to dictionaries, lists, numbers, strings and tensors.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import torch

from diffusion_policy.safe_pickle import NUMPY_GLOBALS, Allowed, OpaqueObject, Recipe, StandIn
from diffusion_policy.tensor_file.opened import TensorFileError

MAX_DEPTH = 64
MAX_NODES = 500_000

_TYPE_NAMES = frozenset({"dict", "list", "tuple", "str", "int", "float", "bool", "bytes", "set", "NoneType"})
# Nodes of omegaconf that hold one value; the later ones occur in typed configs.
_NODES = ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "BytesNode", "PathNode")
# Lightning's dictionary of hyperparameters, by its module's names in different versions.
_ATTRIBUTE_DICTS = (
    "lightning.fabric.utilities.data", "lightning_fabric.utilities.data", "pytorch_lightning.utilities.parsing",
    "lightning.pytorch.utilities.parsing",
)  # fmt: skip
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_VALUES = frozenset({str, int, float, bool, bytes, type(None), torch.Tensor})


class Inert:
    """An object of a class that is not imported: the name of its class, and its state in the file."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: dict[str, Any] = {}


def to_plain(content: Any, where: str, stand_ins: Counter[str] | None = None) -> Any:
    """The content as plain Python: `Inert` containers are unwrapped, tuples and lists kept, arrays become tensors.

    Stand-ins become strings; their number per class is added to `stand_ins`.

    Raises:
        TensorFileError: nested deeper than `MAX_DEPTH`, more than `MAX_NODES` entries once shared parts are counted
            each time they occur, or something that is not data.
    """
    return _Plainer(where, Counter() if stand_ins is None else stand_ins).of(content, MAX_DEPTH)


class _Plainer:
    def __init__(self, where: str, stand_ins: Counter[str]) -> None:
        self.where = where
        self.stand_ins = stand_ins
        self.left = MAX_NODES
        self.arrays: dict[int, torch.Tensor] = {}

    def of(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0 or depth < 0:
            limit = f"more than {MAX_NODES} entries" if depth >= 0 else f"more than {MAX_DEPTH} levels"
            raise TensorFileError(f"{self.where}: the content expands to {limit}; it was refused.")
        if type(value) in _VALUES:
            return value
        if isinstance(value, dict):
            return {key: self.of(child, depth - 1) for key, child in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            children = [self.of(child, depth - 1) for child in value]
            return tuple(children) if isinstance(value, tuple) else children
        if isinstance(value, Inert):
            return self._opened(value, depth)
        if isinstance(value, torch.Tensor):
            return value
        if isinstance(value, (StandIn, OpaqueObject)):
            self.stand_ins[value.name] += 1
            return f"{'class' if isinstance(value, StandIn) else 'object of'} {value.name}, not read"
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            return self._tensor(value)
        raise TensorFileError(f"{self.where}: the content holds a {type(value).__name__}, which is not data.")

    def _opened(self, node: Inert, depth: int) -> Any:
        if node.kind in ("DictConfig", "ListConfig"):
            return self.of(node.state.get("_content"), depth)
        if node.kind == "AnyNode":
            return self.of(node.state.get("_val"), depth)
        if node.kind == "Namespace":
            return self.of(node.state, depth)
        return self.of({"type": node.kind, **node.state}, depth)

    def _tensor(self, array: np.ndarray[Any, Any]) -> Any:
        if array.dtype.kind in "SU":
            return self.of(array.tolist(), MAX_DEPTH)
        if id(array) not in self.arrays:
            try:
                self.arrays[id(array)] = torch.from_numpy(array.copy())
            except TypeError as error:
                raise TensorFileError(f"{self.where}: an array of {array.dtype} has no counterpart.") from error
        return self.arrays[id(array)]


def _set_inert_state(node: Inert, state: Any) -> None:
    if type(state) is not dict or not all(type(key) is str for key in state):
        raise ValueError(f"a {node.kind} whose state is not a dictionary")
    node.state = state


def _inert(kind: str) -> Recipe:
    def build() -> Inert:
        return Inert(kind)

    return Recipe(build, Inert, _set_inert_state)


def _set_dict_state(target: OrderedDict[Any, Any], state: Any) -> None:
    """Ignore `_metadata` of a module's state_dict, the versions of its layers, which no layer here reads."""
    if type(state) is not dict or set(state) - {"_metadata"}:
        raise ValueError("an OrderedDict with its own attributes")


def _ordered_dict() -> OrderedDict[Any, Any]:
    """An empty dictionary: its items follow as separate instructions, which are counted."""
    return OrderedDict()


def _empty_dict() -> dict[Any, Any]:
    return {}


def _default_dict(factory: Any = None) -> dict[Any, Any]:
    return {}


def _path(*parts: Any) -> str:
    """Replacement of pathlib's classes: the path as a string."""
    if not all(type(part) is str for part in parts):
        raise ValueError("a path whose parts are not strings")
    return "/".join(parts).replace("//", "/")


def _device(kind: Any, index: Any = None) -> str:
    """Replacement of `torch.device`: its name."""
    if type(kind) is not str or type(index) not in (int, type(None)):
        raise ValueError("a device that is not a name and a number")
    return kind if index is None else f"{kind}:{index}"


def _type_name(name: Any) -> str:
    """Replacement of `dill._dill._load_type`, which would look up any type by its name."""
    if name not in _TYPE_NAMES:
        raise ValueError(f"the type {name!r}, which is not a plain one"[:200])
    return f"type {name}"


def _tuple(items: Any = ()) -> tuple[Any, ...]:
    if type(items) not in (tuple, list) or len(items) > 64 or not all(type(item) is int for item in items):
        raise ValueError("a torch.Size that is not a few integers")
    return tuple(items)


CONTENT_GLOBALS: Allowed = {
    **NUMPY_GLOBALS,
    ("collections", "OrderedDict"): Recipe(_ordered_dict, OrderedDict, _set_dict_state),
    ("collections", "defaultdict"): Recipe(_default_dict),
    ("typing", "Any"): "typing.Any",
    ("torch", "Size"): Recipe(_tuple),
    ("torch", "device"): Recipe(_device),
    ("dill._dill", "_load_type"): Recipe(_type_name),
    ("omegaconf.base", "ContainerMetadata"): _inert("ContainerMetadata"),
    ("omegaconf.base", "Metadata"): _inert("Metadata"),
    ("omegaconf.dictconfig", "DictConfig"): _inert("DictConfig"),
    ("omegaconf.listconfig", "ListConfig"): _inert("ListConfig"),
    **{("omegaconf.nodes", name): _inert("AnyNode") for name in _NODES},
    **{(module, "AttributeDict"): Recipe(_empty_dict) for module in _ATTRIBUTE_DICTS},
    ("argparse", "Namespace"): _inert("Namespace"),
    ("types", "SimpleNamespace"): _inert("Namespace"),
    **{(module, name): Recipe(_path) for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{
        (module, name): f"type {name}"
        for module in ("__builtin__", "builtins")
        for name in sorted(_TYPE_NAMES - {"bytes"})
    },
    # As Python 3 calls `int` and `str` in protocol 2, which torch.save writes without dill.
    ("__builtin__", "long"): "type int",
    ("__builtin__", "unicode"): "type str",
}
"""Allow-list of names in checkpoints, without those of tensors (which `torch_zip` adds)."""

GYM3_GLOBALS: Allowed = {
    ("gym3.types", name): _inert(f"gym3.types.{name}") for name in ("DictType", "TensorType", "Discrete")
}
"""The spaces that VPT's `.model` files describe; they become dictionaries with their class under `type`."""
