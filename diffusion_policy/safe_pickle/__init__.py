"""Reads pickles without running code from them.

A pickle is a program. Python's unpickler imports the names in it and calls them, and even with a restricted
``find_class`` the program can patch classes (``BUILD`` on a class), use the extension registry, or allocate gigabytes
from twenty bytes (a memo index of two billion). This package therefore has its own interpreter, which only knows the
instructions that data needs. Names in the file are looked up in an allow-list given by the caller, whose values are
constants, which are never called, or `Recipe` objects. Everything else is refused with an error that names the
offending item. A caller that needs only part of a file may request stand-ins for other programs' classes, which hold
only a name.

Limits: size of the file, number of instructions, size of integers, bytes allocated by recipes, and dictionary keys
(flat ones only: a nested tuple can take exponential time to hash).
"""

from diffusion_policy.safe_pickle.machine import Allowed, Recipe, UnsafePickleError, length_of_first, load
from diffusion_policy.safe_pickle.numpy_recipes import NUMPY_GLOBALS
from diffusion_policy.safe_pickle.stand_ins import OpaqueObject, StandIn

__all__ = [
    "NUMPY_GLOBALS",
    "Allowed",
    "OpaqueObject",
    "Recipe",
    "StandIn",
    "UnsafePickleError",
    "length_of_first",
    "load",
]
