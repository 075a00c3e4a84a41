"""Reads pickles without running anything that they ask for.

A pickle is a program. Python's own machine imports what it names and calls it, and even with ``find_class``
narrowed it can patch the classes it was given (``BUILD`` on a class), use the extension registry, or allocate
gigabytes from twenty bytes (a memo index of two billion). So the program is interpreted here, by a machine that knows
only the instructions which data needs. A name in the file is looked up in a table that the caller gives; what the
table holds is either a constant, which can never be called, or a `Recipe` of ours. Everything else is refused
by name in one sentence.

Bounded on purpose: size of the file, number of instructions, size of integers, bytes made by recipes, and
dictionary keys (flat ones only: a nested tuple can take exponential time to hash).
"""

from diffusion_policy.safe_pickle.machine import Allowed, Recipe, UnsafePickleError, length_of_first, load
from diffusion_policy.safe_pickle.numpy_recipes import NUMPY_GLOBALS

__all__ = ["NUMPY_GLOBALS", "Allowed", "Recipe", "UnsafePickleError", "length_of_first", "load"]
