"""The policy classes that a config or a checkpoint may name; nothing else is built from a checkpoint.

A class is known by its path, since files name it by path (`policy._target_`), and is imported on demand.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diffusion_policy.commands import command, in_grove
from diffusion_policy.policy.observation_batch import PolicyError

if TYPE_CHECKING:
    from diffusion_policy.policy.contract import PolicyModule
    from diffusion_policy.policy.tensor_axes import Described, PolicyTensors

POLICY_TARGETS = (
    "diffusion_policy.policy.diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy",
    "diffusion_policy.policy.diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy",
    "diffusion_policy.policy.vpt_image_policy.VPTImagePolicy",
)


def policy_class(target: Any) -> type[PolicyModule]:
    """The class with that path.

    Raises:
        PolicyError: it is not one of `POLICY_TARGETS`.
    """
    if target not in POLICY_TARGETS:
        raise PolicyError(f"the policy's _target_ is {target!r}; expected {' or '.join(POLICY_TARGETS)}")
    module, _, name = str(target).rpartition(".")
    kind: type[PolicyModule] = getattr(importlib.import_module(module), name)
    return kind


def class_of_options(options: Mapping[str, Any]) -> type[PolicyModule]:
    """The class by whose names and axes a `policy` section is read.

    A section that names no class, or one from elsewhere (a fork's path), is read as the first class. Nothing is built
    here.
    """
    target = options.get("_target_")
    return policy_class(target if target in POLICY_TARGETS else POLICY_TARGETS[0])


def refuse_memory(options: Mapping[str, Any], where: object) -> None:
    """Refuse a policy that remembers frames, for readers that ask for the answer to one observation.

    Args:
        options: its `policy` section.
        where: the checkpoint.

    Raises:
        PolicyError: it does; has the command that plays it.
    """
    from diffusion_policy.policy.contract import RecurrentPolicy

    if issubclass(class_of_options(options), RecurrentPolicy):
        play = command("evaluate_closed_loop", where, *in_grove())
        raise PolicyError(
            f"{where}: its policy remembers the frames since its episode began, and here observations are answered one "
            f"by one; play it: {play}"
        )


def policy_classes() -> tuple[type[PolicyModule], ...]:
    """All policy classes."""
    return tuple(policy_class(target) for target in POLICY_TARGETS)


def described_weights(content: Any, where: str) -> Described | None:
    """Bare weights of a class whose options follow from shapes, with a config; None for anything else.

    Raises:
        WorkspaceError: they are such weights under other names; the message says how to fix that.
    """
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        return None
    asked = (kind.tensors.described for kind in policy_classes())
    found = (ask(content, where) for ask in asked if ask is not None)
    return next((one for one in found if one is not None), None)


def without_place(names: Iterable[str], tensors: PolicyTensors) -> list[tuple[str, str]]:
    """(glob, why) of the names that occur here and that files of a class may hold, but the policy does not use."""
    names = list(names)
    return [(glob, why) for glob, why in tensors.dropped if fnmatch.filter(names, glob)]


def with_a_place(state: Mapping[str, Tensor], tensors: PolicyTensors) -> dict[str, Tensor]:
    """The state dict without those names."""
    globs = [glob for glob, _ in without_place(state, tensors)]
    return {name: value for name, value in state.items() if not any(fnmatch.fnmatchcase(name, glob) for glob in globs)}
