"""The tensors of VPT's policy, under the released names; see `tensor_axes`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from diffusion_policy.commands import command
from diffusion_policy.minecraft.actions import VPT_ACTION
from diffusion_policy.model.normalizer import LinearNormalizer, SingleFieldLinearNormalizer
from diffusion_policy.policy.observation_batch import PolicyError
from diffusion_policy.policy.tensor_axes import SHARED_TENSORS, Described, PolicyTensors, Shapes
from diffusion_policy.policy.vpt_weights import AUXILIARY, check_trunk, prefix_of, settings_of
from diffusion_policy.spec import StepSpec, read_shape_meta

_TARGET = "diffusion_policy.policy.vpt_image_policy.VPTImagePolicy"
MINEDOJO = "minedojo_head."
_FIRST = "img_process.cnn.stacks.0.firstconv.layer.weight"

# Options read from a file's shapes under the same name; the window is the difference of two upstream options.
SIZES = (
    "hidsize", "impala_width", "impala_chans", "n_recurrence_layers", "attention_heads", "pointwise_ratio",
)  # fmt: skip


def options_of(shapes: Shapes) -> dict[str, Any]:
    """Sizes read from the shapes, as options of the policy; they do not determine the temperature.

    Raises:
        VPTError: they are not a VPT policy's.
    """
    found = settings_of(shapes)
    sizes = {name: value for name, value in asdict(found).items() if name in SIZES}
    heads = {"head": "minedojo" if any(name.startswith(MINEDOJO) for name in shapes) else "joint"}
    return {**sizes, "impala_chans": list(found.impala_chans), "window": found.window, **heads}


def described(weights: Mapping[str, Tensor], where: str) -> Described | None:
    """The config of bare weights, from their shapes, and their state with a normalizer; None for other weights.

    Chunks are as long as the window, and the temperature is the released one: shapes determine neither.

    Raises:
        VPTError: ``net.`` was stripped from the names, or tensors are missing.
        PolicyError: every name starts with a wrapper's prefix.
    """
    if not any(name.endswith(_FIRST) for name in weights):
        return None
    prefix = prefix_of(weights)
    if prefix:
        repair = command("load_vpt", where, "--repair", "--out", "PLAIN.weights")
        raise PolicyError(f"{where}: every name begins with {prefix!r}, added by a wrapper; remove it: {repair}")
    check_trunk(where, weights)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    options, size = options_of(shapes), settings_of(shapes).img_shape
    shape_meta = {
        "obs": {"pov": {"shape": [3, *size[:2]], "type": "rgb"}},
        "action": {"shape": [len(VPT_ACTION)], "names": list(VPT_ACTION)},
    }
    policy = {"_target_": _TARGET, "shape_meta": shape_meta, "horizon": options["window"], **options}
    normalizer = identity_normalizer(read_shape_meta(shape_meta)).state_dict(prefix="normalizer.")
    note = f"weights without a config: {TENSORS.title}, with sizes read from the shapes; nothing is normalized"
    return Described({"shape_meta": shape_meta, "policy": policy}, {**weights, **normalizer}, note)


def identity_normalizer(spec: StepSpec) -> LinearNormalizer:
    """The normalizer of a policy that has seen no data: nothing is scaled."""
    normalizer = LinearNormalizer()
    for key, width in ((spec.rgb[0].key, 1), ("action", spec.action_dim)):
        numbers = {"min": -1.0, "max": 1.0, "mean": 0.0, "std": 1.0}
        normalizer[key] = identity({name: torch.full((width,), number) for name, number in numbers.items()})
    return normalizer


def identity(statistics: Mapping[str, Tensor]) -> SingleFieldLinearNormalizer:
    """A normalizer with these statistics that leaves data unchanged."""
    one = torch.ones_like(statistics["std"])
    return SingleFieldLinearNormalizer.create_manual(one, torch.zeros_like(one), dict(statistics))


TENSORS = PolicyTensors(
    name="vpt_image_policy",
    title="VPT agent policy",
    marker=f"net.{_FIRST}",
    inside=("img_process", "recurrent_layer", "lastlayer", "final_ln"),
    entry="",  # nothing is denoised
    head="pi_head.buttons.linear_layer.weight",
    named=SHARED_TENSORS,
    slots=lambda options, spec: {},
    settings=options_of,
    summary=("horizon", "n_obs_steps", "n_action_steps", *SIZES, "window", "temperature", "head"),
    free=("horizon", "n_obs_steps"),  # attention takes chunks of any length
    dropped=((f"{AUXILIARY}*", "a second value head, of reinforcement learning, which the policy does not have"),),
    described=described,
)
