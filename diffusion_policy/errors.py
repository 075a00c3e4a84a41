"""The base class of all errors that commands report, and the errors that several packages raise."""

from __future__ import annotations

from diffusion_policy.moved import former_names


class WorkspaceError(Exception):
    """An error that a user can act on: its message states what was found, what was expected, where, and what to do.

    Every error that this package raises for its input derives from this class; the command lines catch exactly it.
    """


class SpecError(WorkspaceError, ValueError):
    """A step, a shape_meta or stored semantics are invalid."""


class PathError(WorkspaceError):
    """A path or URL that cannot be reached, at least not in this environment."""


class AdaptError(WorkspaceError):
    """Weights cannot be adapted as requested; the message states which, why, and how to resolve it."""


__getattr__ = former_names(__name__, {"PlaceError": "PathError"})
