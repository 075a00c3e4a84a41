"""Checks a policy's input before any of it reaches the network.

A robot acts on the answer, so input that does not fit is refused, never reshaped, clipped or filled in.

Legend of shapes: B batch, To observation steps, C H W image, D width of a low-dimensional key.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.spec import ObsField, StepSpec


class PolicyError(WorkspaceError, ValueError):
    """The policy's options are incompatible, or it cannot act on its input."""


def observation_batch(
    spec: StepSpec, obs: Mapping[str, Tensor], n_steps: int, device: torch.device, *, check_finite: bool
) -> dict[str, Tensor]:
    """The first ``n_steps`` observed steps, as floats on ``device``.

    Args:
        spec: the expected keys; others in ``obs`` are ignored.
        obs: per key (B, at least n_steps, ...): images (C, H, W) as uint8 or as floats in [0, 1], states (D,).
        n_steps: steps to take.
        device: where the policy is.
        check_finite: refuse states that are NaN or infinite. This waits for the device; training does without, since
            its loss shows them.

    Returns:
        per key of ``spec``: images (B, n_steps, C, H, W) in [0, 1], states (B, n_steps, D).

    Raises:
        PolicyError: a key is missing, or has a wrong shape, type or value.
    """
    missing = [field.key for field in spec.obs if field.key not in obs]
    if missing:
        raise PolicyError(f"observation lacks {missing}; it has {sorted(obs)}")
    batch = {}
    for field in spec.obs:
        value = obs[field.key]
        _check_shape(field, value, n_steps)
        value = value[:, :n_steps].to(device)
        batch[field.key] = _image(field, value) if field.kind == "rgb" else _state(field, value, check_finite)
    sizes = {key: len(value) for key, value in batch.items()}
    if len(set(sizes.values())) != 1:
        raise PolicyError(f"observation keys differ in batch size: {sizes}")
    return batch


def _check_shape(field: ObsField, value: Tensor, n_steps: int) -> None:
    if not isinstance(value, Tensor):
        raise PolicyError(f"observation {field.key!r} is {type(value).__name__}; expected a torch tensor")
    if value.ndim != 2 + len(field.shape) or tuple(value.shape[2:]) != field.shape or value.shape[1] < n_steps:
        expected = ", ".join(map(str, field.shape))
        raise PolicyError(
            f"observation {field.key!r} has shape {tuple(value.shape)}; expected (B, {n_steps} or more, {expected})"
        )


def _image(field: ObsField, value: Tensor) -> Tensor:
    if value.dtype == torch.uint8:
        return value.float() / 255
    if not value.is_floating_point():
        raise PolicyError(f"images {field.key!r} are {value.dtype}; expected uint8, or floats in [0, 1]")
    if not ((value >= 0) & (value <= 1)).all():  # also false for NaN
        raise PolicyError(
            f"images {field.key!r} hold values from {value.min():.4g} to {value.max():.4g}; "
            "floats must be in [0, 1] (pass raw pixels as uint8)"
        )
    return value.float()


def _state(field: ObsField, value: Tensor, check_finite: bool) -> Tensor:
    if not value.is_floating_point():
        raise PolicyError(f"observation {field.key!r} is {value.dtype}; expected floats")
    if check_finite and not value.isfinite().all():
        raise PolicyError(f"observation {field.key!r} holds NaN or infinity")
    return value
