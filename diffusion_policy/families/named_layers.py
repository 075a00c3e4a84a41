"""Names and shapes of the tensors of torch's common layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from diffusion_policy.families.family import Shape

Tensors = Iterator[tuple[str, Shape]]


def linear(name: str, rows: int, columns: int) -> Tensors:
    """A linear layer from `columns` to `rows` features, with a bias."""
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def affine(name: str, width: int) -> Tensors:
    """Weight and bias of a norm."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def under(prefix: str, tensors: Iterable[tuple[str, Shape]]) -> Tensors:
    """The same tensors under a prefix."""
    return ((prefix + name, shape) for name, shape in tensors)
