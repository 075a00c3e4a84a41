"""Named axes of a policy's tensors: the policy class lists the axes, the config determines the slots along them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.rules import glob_regex
from diffusion_policy.policy.registry import class_of_options, policy_classes
from diffusion_policy.policy.tensor_axes import NamedTensor, Names
from diffusion_policy.resolvers import register_resolvers
from diffusion_policy.shape_meta import step_spec_of


@dataclass(frozen=True)
class NamedAxes:
    """The named axes of the tensors of source or target, and the names of the slots along each axis.

    Attributes:
        slots: names of the slots, by name of the axis.
        tensors: which tensors have which axes; the first entry whose pattern matches applies.
    """

    slots: Mapping[str, Names] = field(default_factory=dict)
    tensors: tuple[NamedTensor, ...] = ()

    def tensor(self, key: str) -> NamedTensor | None:
        """The entry whose pattern matches the tensor's name, or None."""
        for named in self.tensors:
            if glob_regex(named.pattern).fullmatch(key):
                return named
        return None

    def slots_of(self, key: str) -> dict[int, tuple[str, Names]]:
        """(axis name, slot names) by dimension of that tensor, for the axes whose slots are known."""
        named = self.tensor(key)
        axes = named.axes if named and named.init != "recompute" else {}
        return {axis: (name, self.slots[name]) for axis, name in axes.items() if name in self.slots}


def follows_from_config(key: str) -> bool:
    """Whether a tensor of the policy is a mask or a grid, which is computed from the config and not learned."""
    tensors = (named for kind in policy_classes() for named in kind.tensors.named)
    return any(named.init == "recompute" and glob_regex(named.pattern).fullmatch(key) for named in tensors)


def policy_config(cfg: DictConfig) -> dict[str, Any]:
    """The resolved `policy` section of a config; AdaptError if there is none."""
    if "policy" not in cfg:
        raise AdaptError(f"the config has no `policy` section; it has {list(map(str, cfg))}")
    register_resolvers()
    resolved = OmegaConf.to_container(cfg.policy, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def policy_axes(cfg: DictConfig) -> NamedAxes:
    """The named axes of the tensors of the policy that a config describes."""
    policy = policy_config(cfg)
    tensors = class_of_options(policy).tensors
    spec = step_spec_of(cfg)
    slots = {
        "action": spec.action_names,
        **tensors.slots(policy, spec),
        **{obs_field.key: obs_field.names for obs_field in spec.low_dim},
    }
    states = tuple(
        NamedTensor(f"normalizer.params_dict.{obs_field.key}.*", {0: obs_field.key}, "target")
        for obs_field in spec.low_dim
    )
    return NamedAxes(slots, (*tensors.named, *states))
