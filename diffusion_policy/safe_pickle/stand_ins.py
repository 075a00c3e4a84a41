"""Stand-ins for classes of other programs, for readers who want only the rest of a file.

Lightning pickles hyperparameters as they are: dataclasses and configs of the training program. Whether a name is that
of a class cannot be known without importing it. So only what is made like an object (NEWOBJ) is replaced, nothing that
is called (REDUCE), which enums are; and no name of a module whose names denote code.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

# Modules whose names denote code, or create code from arguments.
_OF_CODE = sys.stdlib_module_names | {
    "__builtin__", "cPickle", "commands", "copy_reg", "torch", "numpy", "dill", "cloudpickle",
}  # fmt: skip
_MAX_NAME = 200


@dataclass(frozen=True)
class StandIn:
    """Takes the place of a class that is not on the allow-list; it is never imported, only its name is known."""

    name: str


@dataclass(frozen=True)
class OpaqueObject:
    """Takes the place of an object of such a class. Its state, items and arguments are read past, and not kept."""

    name: str


def may_be_data(module: Any, name: Any) -> bool:
    """Whether a name may be that of another program's class: none of Python's own, of torch or of numpy."""
    if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > _MAX_NAME:
        return False
    parts = [*module.split("."), *name.split(".")]
    return all(part.isidentifier() and part.isascii() for part in parts) and parts[0] not in _OF_CODE
