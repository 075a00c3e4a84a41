"""Transformers of GR00T's action heads as formulas of their section of a configuration, shared by all releases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion_policy.families.family import ABSENT, Config, ConstructionError, Setting, Shapes, lookup
from diffusion_policy.families.named_layers import Tensors, affine, linear, under

TIMESTEP_CHANNELS = 256  # sinusoidal features of the diffusion time
FEED_FORWARD_RATIO = 4
GATED = ("geglu", "swiglu")  # their first layer has twice the rows


@dataclass(frozen=True)
class Values:
    """The values that a model's classes use for a configuration.

    Attributes:
        config: the configuration.
        settings: the settings by dotted path, with the class's defaults.
        activations: activation functions that the pinned version of diffusers has.
        diffusers: the pinned version of diffusers.
    """

    config: Config
    settings: Mapping[str, Setting]
    activations: tuple[str, ...]
    diffusers: str

    def __call__(self, path: str) -> Any:
        """The configuration's value, or the class default where the key is absent.

        Raises ConstructionError where neither exists.
        """
        result = lookup(self.config, path)
        if result is not ABSENT:
            return result
        setting = self.settings[path]
        if not setting.has_default:
            raise ConstructionError(f"{path} is absent and the class has no default for it", path)
        return setting.default

    def inner_width(self, transformer: str) -> int:
        """Heads x width of one head."""
        return int(self(transformer + "num_attention_heads") * self(transformer + "attention_head_dim"))


def dit(values: Values, section: str, features: int) -> Tensors:
    """The diffusion transformer: even blocks have cross-attention to features of that width, odd ones self-attention
    if `interleave_self_attention` is set, else cross-attention as well.
    """
    width, output = values.inner_width(section), values(section + "output_dim")
    interleave = values(section + "interleave_self_attention")
    scaled = values(section + "norm_elementwise_affine")
    yield from linear("timestep_encoder.timestep_embedder.linear_1", width, TIMESTEP_CHANNELS)
    yield from linear("timestep_encoder.timestep_embedder.linear_2", width, width)
    for i in range(values(section + "num_layers")):
        block = f"transformer_blocks.{i}."
        yield from under(block, _positions(values, section, width))
        if values(section + "norm_type") == "ada_norm":
            yield from linear(f"{block}norm1.linear", 2 * width, width)
        elif scaled:
            yield from affine(f"{block}norm1", width)
        yield from under(block, _attention(values, section, width, width if interleave and i % 2 else features))
        if scaled:
            yield from affine(f"{block}norm3", width)
        yield from under(block, _feed_forward(values, section, width))
    yield from linear("proj_out_1", 2 * width, width)
    yield from linear("proj_out_2", output, width)


def vl_block(values: Values, section: str) -> Tensors:
    """One block of the self-attention over vision-language features: 16 tensors as released."""
    width = values.inner_width(section)
    yield from _positions(values, section, width)
    yield from affine("norm1", width)
    yield from _attention(values, section, width, width)
    yield from affine("norm3", width)
    yield from _feed_forward(values, section, width)


def _positions(values: Values, section: str, width: int) -> Tensors:
    """A persistent buffer per block, only for the string "sinusoidal"."""
    if values(section + "positional_embeddings") == "sinusoidal":
        yield "pos_embed.pe", (1, values(section + "max_num_positional_embeddings"), width)


def _attention(values: Values, section: str, width: int, keys_from: int) -> Tensors:
    biased = values(section + "attention_bias")
    for name, columns in (("to_q", width), ("to_k", keys_from), ("to_v", keys_from)):
        yield f"attn1.{name}.weight", (width, columns)
        if biased:
            yield f"attn1.{name}.bias", (width,)
    yield from linear("attn1.to_out.0", width, width)


def _feed_forward(values: Values, section: str, width: int) -> Tensors:
    activation = values(section + "activation_fn")
    if activation not in values.activations:
        raise ConstructionError(
            f"{section.rpartition('_cfg.')[0].rpartition('.')[2]}_cfg.activation_fn {activation!r} is not one that "
            f"diffusers {values.diffusers}, the version this model is pinned to, can build; it has "
            f"{', '.join(values.activations)}",
            section + "activation_fn",
        )
    inner = FEED_FORWARD_RATIO * width
    yield from linear("ff.net.0.proj", 2 * inner if activation in GATED else inner, width)
    yield from linear("ff.net.2", width, inner)


def per_embodiment(embodiments: int, **layers: tuple[int, int]) -> Tensors:
    """Linear layers with one matrix per embodiment: W (E, in, out), b (E, out)."""
    for name, (rows, columns) in layers.items():
        yield f"{name}.W", (embodiments, rows, columns)
        yield f"{name}.b", (embodiments, columns)


def action_networks(embodiments: int, state: int, action: int, hidden: int, width: int) -> Tensors:
    """State encoder, action encoder and action decoder."""
    yield from under("state_encoder.", per_embodiment(embodiments, layer1=(state, hidden), layer2=(hidden, width)))
    encoder = per_embodiment(embodiments, W1=(action, width), W2=(2 * width, width), W3=(width, width))
    yield from under("action_encoder.", encoder)
    decoder = per_embodiment(embodiments, layer1=(hidden, hidden), layer2=(hidden, action))
    yield from under("action_decoder.", decoder)


def count_blocks(tensors: Shapes, transformer: str) -> int:
    """How many blocks a transformer has, from the names of its tensors."""
    start = f"{transformer}transformer_blocks."
    return len({name[len(start) :].partition(".")[0] for name in tensors if name.startswith(start)})


def settings_of_shapes(tensors: Shapes, action: str) -> dict[str, Any]:
    """Settings read from the shapes of an action head's tensors (names without ``action_head.``).

    The number of heads and their width appear only as their product, since no shape depends on the factors.

    Args:
        tensors: shapes of the head.
        action: name of the setting for the width of actions.
    """
    embodiments, actions, width = tensors["action_encoder.W1.W"]
    out: dict[str, Any] = {
        action: actions,
        "max_state_dim": tensors["state_encoder.layer1.W"][1],
        "max_num_embodiments": embodiments,
        "hidden_size": tensors["state_encoder.layer1.W"][2],
        "input_embedding_dim": width,
        "diffusion_model_cfg heads x head width": tensors["model.proj_out_2.weight"][1],
        "diffusion_model_cfg.num_layers": count_blocks(tensors, "model."),
        "diffusion_model_cfg.output_dim": tensors["model.proj_out_2.weight"][0],
    }
    optional = {"num_target_vision_tokens": "future_tokens.weight", "max_seq_len": "position_embedding.weight",
                "backbone_embedding_dim": "vlln.weight"}  # fmt: skip
    out |= {setting: tensors[name][0] for setting, name in optional.items() if name in tensors}
    first = "vl_self_attention.transformer_blocks.0.norm1.weight"
    if first in tensors:
        out["vl_self_attention_cfg.num_layers"] = count_blocks(tensors, "vl_self_attention.")
        out["vl_self_attention_cfg heads x head width"] = tensors[first][0]
    return out


def disagreeing(
    pairs: Sequence[tuple[str, int, tuple[str, ...], str, int, tuple[str, ...]]],
) -> list[tuple[tuple[str, ...], str]]:
    """The settings and a sentence for each pair (name, value, settings, name, value, settings) with unequal values."""
    return [
        (left_keys + right_keys, f"{left} is {a}, {right} is {b}: the two must be equal")
        for left, a, left_keys, right, b, right_keys in pairs
        if a != b
    ]
