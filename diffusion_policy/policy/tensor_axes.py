"""The named axes of a policy's tensors, which growing, diagnosing and recognizing a checkpoint rely on.

The tensors give the width of an axis; the config names its slots. With both, growth needs no indices: "the target has a
slot ``gripper`` along ``sample`` that the source lacks". The same table says which init preserves the function: columns
of an input projection start at zero, rows of an output projection may have any values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffusion_policy.model.obs_encoder import IMAGE_FEATURES
from diffusion_policy.spec import StepSpec

Names = tuple[str, ...]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class NamedTensor:
    """Axes of the tensors whose names match a glob.

    Attributes:
        pattern: glob of state_dict keys.
        axes: dimension -> name of its axis.
        init: as written in a rules file, for new slots; "recompute" for buffers derived from the config.
    """

    pattern: str
    axes: Mapping[int, str]
    init: Any


@dataclass(frozen=True)
class Described:
    """Bare weights, presented as a checkpoint.

    Attributes:
        cfg: `policy` and `shape_meta`, derived from their shapes.
        state: the weights with the normalizer that goes with them.
        note: what was assumed, for people.
    """

    cfg: Mapping[str, Any]
    state: dict[str, Tensor]
    note: str


@dataclass(frozen=True)
class PolicyTensors:
    """What the tensors of one policy class are.

    Attributes:
        name: of this class of files, one word.
        title: its name in messages.
        marker: name of a tensor that all files of the class have, and no others.
        inside: first components of the names below ``model.``.
        entry: weight whose axis 1 is the sample, through which it enters the denoiser.
        head: weight whose axis 0 is the sample, through which the prediction leaves it.
        named: tensors with named axes; the first match is used.
        slots: (options of the policy, spec) -> names of the slots along each axis.
        settings: settings derived from shapes.
        summary: options of the policy that say what it is, for people who inspect a file.
        free: options that do not affect what the weights compute, although they do in other classes.
        dropped: (glob, why) of tensors that files of the class may hold but the policy does not use.
        described: (bare weights, where) -> a config for them, None for other weights; for classes whose files are bare.
    """

    name: str
    title: str
    marker: str
    inside: Names
    entry: str
    head: str
    named: tuple[NamedTensor, ...]
    slots: Callable[[Mapping[str, Any], StepSpec], dict[str, Names]]
    settings: Callable[[Shapes], dict[str, Any]]
    summary: Names
    free: Names = ()
    dropped: tuple[tuple[str, str], ...] = ()
    described: Callable[[Mapping[str, Tensor], str], Described | None] | None = None


# Shared by all policies with this project's encoder and normalizer.
SHARED_TENSORS = (
    NamedTensor("normalizer.params_dict.action.*", {0: "action"}, "target"),
    NamedTensor("obs_encoder.*.pos_x", {}, "recompute"),
    NamedTensor("obs_encoder.*.pos_y", {}, "recompute"),
)


def feature_names(spec: StepSpec) -> Names:
    """Names of the observation encoder's output: per key in order, 64 numbers for an image, or the names of a state."""
    names: list[str] = []
    for obs_field in spec.obs:
        own = map(str, range(IMAGE_FEATURES)) if obs_field.kind == "rgb" else obs_field.names
        names.extend(f"{obs_field.key}.{name}" for name in own)
    return tuple(names)


def camera_names(shapes: Shapes) -> list[str]:
    """Keys of the cameras that a state dict has encoders for."""
    return sorted({name.split(".")[2] for name in shapes if name.startswith("obs_encoder.obs_nets.")})


def encoder_width(shapes: Shapes) -> dict[str, int]:
    """The setting `encoder_width` of a state dict; empty if it has no camera."""
    width = next((shape[0] for name, shape in shapes.items() if name.endswith(".backbone.nets.0.weight")), None)
    return {} if width is None else {"encoder_width": width}
