"""Which tensor of the robot policy has which named axis, and what a config calls the slots along it.

The tensors say how wide an axis is; the config says what its slots are. With both, growth needs no indices: "the target
has a slot ``gripper`` along ``sample`` that the source has not". The same table says which init keeps the function:
columns of an input projection start at zero, rows of an output projection may be anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.rules import glob_regex
from diffusion_policy.adapt.slots import Names
from diffusion_policy.resolvers import register_resolvers
from diffusion_policy.spec import StepSpec, read_shape_meta

IMAGE_FEATURES = 64


@dataclass(frozen=True)
class NamedTensor:
    """Axes of the tensors whose names match a glob.

    Attributes:
        pattern: glob of state_dict keys.
        axes: dimension -> name of its axis.
        init: as written in a rules file, for slots that are new; "recompute" for buffers that follow from the config.
    """

    pattern: str
    axes: Mapping[int, str]
    init: Any


ROBOT_TENSORS = (
    NamedTensor("model.input_emb.weight", {1: "sample"}, "zeros"),
    NamedTensor("model.head.weight", {0: "sample"}, {"normal": 0.02}),
    NamedTensor("model.head.bias", {0: "sample"}, "zeros"),
    NamedTensor("model.cond_obs_emb.weight", {1: "features"}, "zeros"),
    NamedTensor("model.pos_emb", {1: "position"}, {"normal": 0.02}),
    NamedTensor("model.cond_pos_emb", {1: "condition"}, {"normal": 0.02}),
    NamedTensor("normalizer.params_dict.action.*", {0: "action"}, "target"),
    NamedTensor("model.mask", {0: "position", 1: "position"}, "recompute"),
    NamedTensor("model.memory_mask", {0: "position", 1: "condition"}, "recompute"),
    NamedTensor("obs_encoder.*.pos_x", {}, "recompute"),
    NamedTensor("obs_encoder.*.pos_y", {}, "recompute"),
)


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
    spec = read_shape_meta(policy["shape_meta"])
    features = feature_names(spec)
    obs_as_cond, time_as_cond = policy.get("obs_as_cond", True), policy.get("time_as_cond", True)
    positions = tuple(f"step{index}" for index in range(policy["horizon"]))
    observed = tuple(f"obs{index}" for index in range(policy["n_obs_steps"])) if obs_as_cond else ()
    slots = {
        "action": spec.action_names,
        "sample": spec.action_names if obs_as_cond else (*spec.action_names, *features),
        "features": features,
        "position": positions if time_as_cond else ("time", *positions),
        "condition": ("time", *observed) if time_as_cond else observed,
        **{obs_field.key: obs_field.names for obs_field in spec.low_dim},
    }
    states = tuple(
        NamedTensor(f"normalizer.params_dict.{obs_field.key}.*", {0: obs_field.key}, "target")
        for obs_field in spec.low_dim
    )
    return Layout(slots, (*ROBOT_TENSORS, *states))


def feature_names(spec: StepSpec) -> Names:
    """Names of the observation encoder's output: per key in order, 64 numbers of an image, or the names of a state."""
    names: list[str] = []
    for obs_field in spec.obs:
        own = map(str, range(IMAGE_FEATURES)) if obs_field.kind == "rgb" else obs_field.names
        names.extend(f"{obs_field.key}.{name}" for name in own)
    return tuple(names)
