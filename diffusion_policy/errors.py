"""The error that every command catches, and the one of what does not mean what it must."""

from __future__ import annotations

from diffusion_policy.moved import former_names


class WorkspaceError(Exception):
    """What a user can act on: says what was found, what was expected, where, and what to do.

    Every error that this package raises for its input derives from it; the command lines catch exactly this.
    """


class SpecError(WorkspaceError, ValueError):
    """A step, a shape_meta or a set of semantics is not what it must be."""


class PathError(WorkspaceError):
    """A location that cannot be reached, or not in this environment."""


class AdaptError(WorkspaceError):
    """Weights cannot be taken over as asked; says which, why, and what would settle it."""


__getattr__ = former_names(__name__, {"PlaceError": "PathError"})
