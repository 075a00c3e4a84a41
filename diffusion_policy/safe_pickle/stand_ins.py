"""Stand-ins for classes of other programs, for readers that need only the rest of a file.

Lightning pickles hyperparameters unchanged: dataclasses and configs of the training program. Whether a name denotes a
class cannot be known without importing it. So only what is created as an object (NEWOBJ) is replaced, but nothing that
is called (REDUCE), as enums are, and no name from a module whose names denote code.
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
    """Takes the place of an object of such a class. Its state, items and arguments are skipped."""

    name: str


def may_be_data(module: Any, name: Any) -> bool:
    """Whether a name may be another program's class: not from Python's own modules, torch or numpy."""
    if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > _MAX_NAME:
        return False
    parts = [*module.split("."), *name.split(".")]
    return all(part.isidentifier() and part.isascii() for part in parts) and parts[0] not in _OF_CODE
