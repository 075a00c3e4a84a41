"""VPT (openai/Video-Pre-Training): the agent policy as formulas of its keyword arguments.

Layers are norm -> linear or convolution -> ReLU, and have a bias only where they have no norm. A policy has 61 + 16 n
tensors in ``net`` for n recurrent blocks, 5 in ``value_head`` and 4 in ``pi_head``: 134 for the released depth of 4.
Published weight files may carry a second value head from reinforcement learning, ``aux_value_head``, with the same five
tensors: 139.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusion_policy.families.family import (
    Config,
    Conflict,
    ConstructionError,
    Effect,
    Family,
    ModelDefinition,
    Setting,
    Shape,
    Shapes,
)
from diffusion_policy.families.named_layers import Tensors, affine

CNN_WIDTH_OF_STACK_0 = 16  # impala_chans[0], multiplied by impala_width
DENSE = 256  # width between the convolutions and the recurrent trunk
RELATIVE_BASES = 10  # rows of b_nd: basis functions of the relative attention bias
BLOCKS_PER_STACK = 2
VALUE_HEAD = (
    "linear.weight",
    "linear.bias",
    "normalizer.running_mean",
    "normalizer.running_mean_sq",
    "normalizer.debiasing_term",
)

_FUNCTION, _UNUSED = Effect.FUNCTION, Effect.UNUSED
_WINDOW_NOTE = "only attention_memory_size - timesteps, the attention window, is used by the model"
_GROUPS_NOTE = "channels are normalized in other groups"

_P = "policy_kwargs."
SETTINGS = {
    _P + "hidsize": Setting("count", 512),
    _P + "impala_width": Setting("count", 1),
    _P + "impala_chans": Setting("counts", [16, 32, 32]),
    _P + "img_shape": Setting("counts"),
    _P + "n_recurrence_layers": Setting("count", 1),
    _P + "attention_heads": Setting("count", 8),
    _P + "attention_memory_size": Setting("count", 2048, _UNUSED, _WINDOW_NOTE),
    _P + "timesteps": Setting("count", effect=_UNUSED, note=_WINDOW_NOTE),
    _P + "pointwise_ratio": Setting("count", 4),
    _P + "attention_mask_style": Setting("text", "clipped_causal", _FUNCTION, "other frames are visible to each frame"),
    _P + "pointwise_use_activation": Setting(
        "flag", default=False, effect=_FUNCTION, note="each block gains or loses an activation"
    ),
    _P + "recurrence_is_residual": Setting(
        "flag", default=True, effect=_FUNCTION, note="the residual connection around attention is added or removed"
    ),
    _P + "impala_kwargs.post_pool_groups": Setting("count", 1, _FUNCTION, _GROUPS_NOTE),
    _P + "init_norm_kwargs.group_norm_groups": Setting("count", 1, _FUNCTION, _GROUPS_NOTE),
    _P + "init_norm_kwargs.batch_norm": Setting("flag", default=False, only=(False,)),
    _P + "recurrence_type": Setting("text", "transformer", only=("transformer",)),
    _P + "use_pointwise_layer": Setting("flag", default=True, only=(True,)),
    _P + "use_pre_lstm_ln": Setting("flag", default=False, only=(False,)),
    _P + "diff_mlp_embedding": Setting("flag", default=False, effect=_UNUSED, note="the constructor ignores it"),
    _P + "only_img_input": Setting("flag", default=True, effect=_UNUSED, note="the constructor ignores it"),
    "pi_head_kwargs.temperature": Setting("number", 1.0, _FUNCTION, "log-probabilities are divided by another number"),
    "action_space.camera.n": Setting("count"),
    "action_space.buttons.n": Setting("count"),
    "aux_value_head": Setting("flag", default=False),
}

RELEASED_2X: Config = {
    "policy_kwargs": {
        "attention_heads": 16, "attention_mask_style": "clipped_causal", "attention_memory_size": 256,
        "diff_mlp_embedding": False, "hidsize": 2048, "img_shape": [128, 128, 3], "impala_chans": [16, 32, 32],
        "impala_kwargs": {"post_pool_groups": 1}, "impala_width": 8,
        "init_norm_kwargs": {"batch_norm": False, "group_norm_groups": 1}, "n_recurrence_layers": 4,
        "only_img_input": True, "pointwise_ratio": 4, "pointwise_use_activation": False, "recurrence_is_residual": True,
        "recurrence_type": "transformer", "timesteps": 128, "use_pointwise_layer": True, "use_pre_lstm_ln": False,
    },
    "pi_head_kwargs": {"temperature": 2.0},
    "action_space": {"camera": {"n": 121}, "buttons": {"n": 8641}},
    "aux_value_head": False,
}  # fmt: skip


def released(scale: int) -> dict[str, Any]:
    """Keyword arguments of the released 1x, 2x (the default) and 3x models: all widths scale, heads are 128 wide."""
    config = copy.deepcopy(dict(RELEASED_2X))
    config["policy_kwargs"] |= {"hidsize": 1024 * scale, "impala_width": 4 * scale, "attention_heads": 8 * scale}
    return config


def shapes(config: Config, parts: Sequence[str] = ("model",)) -> dict[str, Shape]:
    """Names and shapes of the policy's tensors, in the order of its state_dict.

    config: {"policy_kwargs", "pi_head_kwargs", "action_space", "aux_value_head"} as in `RELEASED_2X`. Raises
    ConstructionError where the width cannot be split into heads.
    """
    kwargs = config["policy_kwargs"]
    width, heads = kwargs["hidsize"], kwargs["attention_heads"]
    if width % heads:
        raise ConstructionError(f"hidsize {width} cannot be split into {heads} attention heads", _P + "attention_heads")
    out = dict(_image_encoder(kwargs))
    for i in range(kwargs["n_recurrence_layers"]):
        out |= {f"net.recurrent_layer.blocks.{i}.{name}": shape for name, shape in _block(kwargs)}
    out |= dict(_layer("net.lastlayer", (width, width), width))
    out |= dict(affine("net.final_ln", width))
    out |= _value_head("value_head", width)
    for action, space in config["action_space"].items():
        out |= {
            f"pi_head.{action}.linear_layer.weight": (space["n"], width),
            f"pi_head.{action}.linear_layer.bias": (space["n"],),
        }
    if config.get("aux_value_head"):
        out |= _value_head("aux_value_head", width)
    return out


def _image_encoder(kwargs: Config) -> Tensors:
    """Three stacks of convolutions, each halving the image (rounding up), then two dense layers."""
    height, image_width, channels = kwargs["img_shape"]
    for i, chans in enumerate(kwargs["impala_chans"]):
        stack, out = f"net.img_process.cnn.stacks.{i}", chans * kwargs["impala_width"]
        if i == 0:  # the image itself is not normalized, so this convolution has a bias
            yield f"{stack}.firstconv.layer.weight", (out, channels, 3, 3)
            yield f"{stack}.firstconv.layer.bias", (out,)
        else:
            yield from _layer(f"{stack}.firstconv", (out, channels, 3, 3), channels)
        yield from affine(f"{stack}.n", out)
        for block in range(BLOCKS_PER_STACK):
            for conv in ("conv0", "conv1"):
                yield from _layer(f"{stack}.blocks.{block}.{conv}", (out, out, 3, 3), out)
        height, image_width, channels = -(-height // 2), -(-image_width // 2), out
    flat = channels * height * image_width
    yield from _layer("net.img_process.cnn.dense", (DENSE, flat), flat)
    yield from _layer("net.img_process.linear", (kwargs["hidsize"], DENSE), DENSE)


def _block(kwargs: Config) -> Tensors:
    """One recurrent block: 16 tensors."""
    width, inner = kwargs["hidsize"], kwargs["hidsize"] * kwargs["pointwise_ratio"]
    bias_rows = RELATIVE_BASES * kwargs["attention_heads"]
    yield from _layer("mlp0", (inner, width), width)
    yield "mlp1.layer.weight", (width, inner)
    yield "mlp1.layer.bias", (width,)
    yield from affine("pre_r_ln", width)
    yield "r.orc_block.b_nd", (RELATIVE_BASES, max(0, window(kwargs)))
    for name, rows, biased in (
        ("q", width, True),
        ("k", width, False),
        ("v", width, False),
        ("proj", width, True),
        ("r", bias_rows, True),
    ):
        yield f"r.orc_block.{name}_layer.weight", (rows, width)
        if biased:
            yield f"r.orc_block.{name}_layer.bias", (rows,)


def _layer(name: str, weight: Shape, normed: int) -> Tensors:
    """Norm of the input (`normed` channels), then a linear layer or convolution without a bias."""
    yield from affine(f"{name}.norm", normed)
    yield f"{name}.layer.weight", weight


def _value_head(name: str, width: int) -> dict[str, Shape]:
    return dict(zip((f"{name}.{tensor}" for tensor in VALUE_HEAD), ((1, width), (1,), (1,), (1,), ()), strict=True))


def window(kwargs: Config) -> int:
    """Number of frames that attention spans: each frame itself and the preceding ones."""
    return int(kwargs["attention_memory_size"]) - int(kwargs["timesteps"])


def settings_from(tensors: Shapes) -> dict[str, Any]:
    """All settings that can be read from the shapes of a policy's tensors.

    Shapes do not determine the temperature, the numbers of norm groups, and memory size and timesteps, except for the
    difference of the last two, the window.
    """
    head = "net.recurrent_layer.blocks.0."
    bases, frames = tensors[head + "r.orc_block.b_nd"]
    inner, width = tensors[head + "mlp0.layer.weight"]
    blocks = {name.split(".")[3] for name in tensors if name.startswith("net.recurrent_layer.blocks.")}
    out = {
        "hidsize": width,
        "impala_width": tensors["net.img_process.cnn.stacks.0.firstconv.layer.weight"][0] // CNN_WIDTH_OF_STACK_0,
        "n_recurrence_layers": len(blocks),
        "attention_heads": tensors[head + "r.orc_block.r_layer.weight"][0] // bases,
        "window": frames,
        "pointwise_ratio": inner // width,
    }
    for action in ("camera", "buttons"):
        weight = tensors.get(f"pi_head.{action}.linear_layer.weight")
        if weight is not None:
            out[f"{action} choices"] = weight[0]
    out["aux_value_head"] = any(name.startswith("aux_value_head.") for name in tensors)
    return out


def _conflicts(config: Config) -> list[Conflict]:
    frames = window(config["policy_kwargs"])
    if frames >= 1:
        return []
    return [
        Conflict(
            (_P + "attention_memory_size", _P + "timesteps"),
            f"attention_memory_size - timesteps is {frames}: the attention window must hold at least one frame",
        )
    ]


def definition(scale: int = 2) -> ModelDefinition:
    """The definition of the released model of that scale."""
    return ModelDefinition(
        name="vpt" if scale == 2 else f"vpt_{scale}x",
        title=f"VPT agent policy, {scale}x",
        config=released(scale),
        settings=SETTINGS,
        home="policy_kwargs",
        shapes=shapes,
        conflicts=_conflicts,
        parts=lambda paths: ["model"],
        file_shapes=shapes,
    )


FAMILY = Family(
    name="vpt",
    title="VPT agent policy",
    marker="net.img_process.cnn.stacks.0.firstconv.layer.weight",
    part="net.",
    inside=("img_process", "recurrent_layer", "lastlayer", "final_ln"),
    prefixes={"module.policy.": "STEVE-1", "mine_policy.": "MineStudio"},
    settings=settings_from,
)

DEFINITIONS: Mapping[str, Callable[[], ModelDefinition]] = {
    "vpt": definition, "vpt_1x": lambda: definition(1), "vpt_2x": definition, "vpt_3x": lambda: definition(3),
}  # fmt: skip
