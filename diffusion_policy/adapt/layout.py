"""Named axes of the robot policy's tensors: the table that its class brings, with the slots that a config tells."""

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
class Layout:
    """Names along the axes of one side's tensors.

    Attributes:
        slots: axis name -> names of its slots.
        tensors: which tensors have which axes; the first match counts.
    """

    slots: Mapping[str, Names] = field(default_factory=dict)
    tensors: tuple[NamedTensor, ...] = ()

    def tensor(self, key: str) -> NamedTensor | None:
        """What is known of that tensor, or None."""
        for named in self.tensors:
            if glob_regex(named.pattern).fullmatch(key):
                return named
        return None

    def slots_of(self, key: str) -> dict[int, tuple[str, Names]]:
        """Dimension -> (axis name, slot names) of that tensor, for the axes that this side knows."""
        named = self.tensor(key)
        axes = named.axes if named and named.init != "recompute" else {}
        return {axis: (name, self.slots[name]) for axis, name in axes.items() if name in self.slots}


def follows_from_config(key: str) -> bool:
    """Whether a tensor of the policy is a mask or a grid, made from the config and not learned."""
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


def robot_layout(cfg: DictConfig) -> Layout:
    """The layout of the robot policy that a config describes."""
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
    return Layout(slots, (*tensors.named, *states))
