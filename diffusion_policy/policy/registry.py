"""The policy classes that a config or a checkpoint may name; nothing else is built from a checkpoint.

A class is known by its path, since files name it by path (`policy._target_`), and loaded when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusion_policy.policy.observation_batch import PolicyError

if TYPE_CHECKING:
    from diffusion_policy.policy.contract import PolicyModule

POLICY_TARGETS = (
    "diffusion_policy.policy.diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy",
    "diffusion_policy.policy.diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy",
)


def policy_class(target: Any) -> type[PolicyModule]:
    """The class of that path.

    Raises:
        PolicyError: it is not one of `POLICY_TARGETS`.
    """
    if target not in POLICY_TARGETS:
        raise PolicyError(f"the policy's _target_ is {target!r}; expected {' or '.join(POLICY_TARGETS)}")
    module, _, name = str(target).rpartition(".")
    kind: type[PolicyModule] = getattr(importlib.import_module(module), name)
    return kind


def class_of_options(options: Mapping[str, Any]) -> type[PolicyModule]:
    """The class whose names and axes a `policy` section is read by.

    One that names no class, or one from elsewhere (a fork's path), is read as the first class. Nothing is built here.
    """
    target = options.get("_target_")
    return policy_class(target if target in POLICY_TARGETS else POLICY_TARGETS[0])


def policy_classes() -> tuple[type[PolicyModule], ...]:
    """All of them."""
    return tuple(policy_class(target) for target in POLICY_TARGETS)
