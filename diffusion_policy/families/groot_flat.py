"""GR00T N1.6 and N1.7: names and shapes of every tensor, as formulas of the model's config.json, which is flat.

The action head is N1.5's without future_tokens, with an alternating DiT. N1.7 has ``vl_self_attention`` with its own
section, independent of ``use_vlln``. N1.6 never has it, but has a ``mask_token`` where ``state_dropout_prob`` is above
0. Only the head of N1.6 is covered: its backbone is another model.

Measured on built models (names, shapes and totals): 537 tensors and 1,620,515,968 numbers in the head of N1.7, 1,031
tensors in the whole checkpoint; 473 in the head of N1.6.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_policy.families.family import (
    ABSENT,
    Config,
    Conflict,
    ConstructionError,
    Family,
    FamilyError,
    ModelDefinition,
    Shape,
    Shapes,
    lookup,
)
from diffusion_policy.families.groot_blocks import (
    Values,
    action_networks,
    disagreeing,
    dit,
    settings_of_shapes,
    vl_block,
)
from diffusion_policy.families.groot_flat_settings import (
    ACTIVATIONS,
    CLASS_DIT,
    CLOSED,
    DIFFUSERS,
    DIT,
    N1_6,
    N1_7,
    RELEASED_N1_6,
    RELEASED_N1_7,
    SETTINGS,
    VL,
)
from diffusion_policy.families.named_layers import Tensors, affine, under
from diffusion_policy.families.qwen3_vl import LLM_LAYERS, qwen3_vl

HEAD = "action_head."
_TITLES = {N1_6: "GR00T N1.6", N1_7: "GR00T N1.7"}
_NAMES = {N1_6: "groot_n1_6", N1_7: "groot_n1_7"}


def values_of(config: Config) -> Values:
    """The values that the model's classes use for a configuration."""
    if lookup(config, DIT.rstrip(".")) is ABSENT:
        config = {**config, DIT.rstrip("."): CLASS_DIT}
    return Values(config, SETTINGS, ACTIVATIONS, DIFFUSERS)


def shapes(config: Config, parts: Sequence[str]) -> dict[str, Shape]:
    """Names and shapes in the order of the state_dict, for the parts "action_head" and "backbone".

    Names of the action head come without their prefix ``action_head.``, those of the backbone with ``backbone.``.
    Raises ConstructionError where a constructor would refuse the config.
    """
    out: dict[str, Shape] = {}
    if "backbone" in parts:
        out |= {f"backbone.{name}": shape for name, shape in backbone(config)}
    if "action_head" in parts:
        out |= dict(action_head(config))
    return out


def file_shapes(config: Config) -> dict[str, Shape]:
    """All tensors under the names of checkpoint files; of N1.6, those of the action head."""
    out = shapes(config, ["backbone"]) if _is_n1_7(config) else {}
    return out | {HEAD + name: shape for name, shape in action_head(config)}


def action_head(config: Config) -> Tensors:
    """The tensors of the action head for a configuration: 537 for the released N1.7."""
    value = values_of(config)
    embodiments, hidden, width = (value(name) for name in ("max_num_embodiments", "hidden_size", "input_embedding_dim"))
    features = value("backbone_embedding_dim")
    state = value("max_state_dim") * (value("state_history_length") if _is_n1_7(config) else 1)
    yield from under("model.", dit(value, DIT, features))
    yield from action_networks(embodiments, state, value("max_action_dim"), hidden, width)
    if value("use_vlln"):
        yield from affine("vlln", features)
    for i in range(_vl_layers(value)):
        yield from under(f"vl_self_attention.transformer_blocks.{i}.", vl_block(value, VL))
    if value("add_pos_embed"):
        yield "position_embedding.weight", (value("max_seq_len"), width)
    if not _is_n1_7(config) and value("state_dropout_prob") > 0:
        yield "mask_token", (1, 1, width)


def backbone(config: Config) -> Tensors:
    """Cosmos-Reason2-2B with its language model cut to `select_layer` layers."""
    if not _is_n1_7(config):
        raise FamilyError("only the action head of GR00T N1.6 is covered; its backbone is another model")
    layers = values_of(config)("select_layer")
    if layers < 0:
        raise ConstructionError(
            f"select_layer {layers}: the constructor removes layers until that many are left, and runs out of them",
            "select_layer",
        )
    return under("model.", qwen3_vl(min(layers, LLM_LAYERS)))


def conflicts(config: Config) -> list[Conflict]:
    """Settings that disagree in the forward pass, and violated assertions of the head; shapes do not show it."""
    value = values_of(config)
    features, heads = value("backbone_embedding_dim"), ("num_attention_heads", "attention_head_dim")
    dit_heads, vl_heads = tuple(DIT + name for name in heads), tuple(VL + name for name in heads)
    pairs = [
        ("the DiT's heads x head width", value.inner_width(DIT), dit_heads, "input_embedding_dim",
         value("input_embedding_dim"), ("input_embedding_dim",)),
        ("the DiT's output_dim", value(DIT + "output_dim"), (DIT + "output_dim",), "hidden_size",
         value("hidden_size"), ("hidden_size",)),
    ]  # fmt: skip
    if _vl_layers(value):
        pairs.append(("vl_self_attention's heads x head width", value.inner_width(VL), vl_heads,
                      "backbone_embedding_dim", features, ("backbone_embedding_dim",)))  # fmt: skip
    result = [Conflict(*one) for one in disagreeing(pairs)]
    if value("use_alternate_vl_dit") and not value(DIT + "interleave_self_attention"):
        keys = ("use_alternate_vl_dit", DIT + "interleave_self_attention")
        result.append(Conflict(keys, "the alternating DiT asserts interleave_self_attention when it runs"))
    horizon, longest = value("action_horizon"), value("max_seq_len")
    if value("add_pos_embed") and horizon > longest:
        reason = f"action_horizon {horizon} is longer than max_seq_len {longest}"
        result.append(Conflict(("action_horizon", "max_seq_len"), reason))
    return result


def trainable(config: Config, names: Sequence[str]) -> list[str]:
    """Those of the action head's `names` that train under tune_projector, tune_diffusion_model and tune_vlln."""
    value = values_of(config)
    groups = {
        "tune_projector": {"state_encoder", "action_encoder", "action_decoder", "position_embedding", "mask_token"},
        "tune_diffusion_model": {"model"},
        "tune_vlln": {"vlln", "vl_self_attention"},
    }
    frozen = {name for flag, group in groups.items() if not value(flag) for name in group}
    return [name for name in names if name.partition(".")[0] not in frozen]


def settings_from(tensors: Shapes) -> dict[str, Any]:
    """Settings read from the shapes of an action head's tensors, named with or without ``action_head.``."""
    return settings_of_shapes({name.removeprefix(HEAD): shape for name, shape in tensors.items()}, "max_action_dim")


def definition(config: Config = RELEASED_N1_7) -> ModelDefinition:
    """The definition of a released model, or of the one that a config.json describes."""
    kind = lookup(config, "model_type")
    return ModelDefinition(
        name=_NAMES[kind],
        title=_TITLES[kind],
        config=config,
        settings=SETTINGS,
        home="",
        shapes=shapes,
        conflicts=conflicts,
        parts=_parts,
        file_shapes=file_shapes,
        closed=CLOSED,
    )


def read_config(path: Path) -> Mapping[str, Any] | None:
    """The configuration in a config.json of N1.6 or N1.7; None for any other JSON file."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FamilyError(f"{path}: cannot be read as a JSON configuration: {error}") from error
    return config if isinstance(config, dict) and config.get("model_type") in _NAMES else None


def _is_n1_7(config: Config) -> bool:
    return bool(lookup(config, "model_type") == N1_7)


def _vl_layers(value: Values) -> int:
    """Number of blocks of vl_self_attention: 0 in N1.6 and without its section."""
    if not _is_n1_7(value.config) or not isinstance(lookup(value.config, VL.rstrip(".")), Mapping):
        return 0
    return int(value(VL + "num_layers"))


def _parts(paths: Sequence[str]) -> list[str]:
    """The parts that depend on the settings: the action head, unless only the backbone is changed."""
    touched = ["backbone"] if "select_layer" in paths else []
    return [*touched, "action_head"] if any(path != "select_layer" for path in paths) or not touched else touched


def _family(kind: str, title: str, marker: str) -> Family:
    inside = ("model", "state_encoder", "action_encoder", "action_decoder", "vlln", "vl_self_attention")
    return Family(
        name=_NAMES[kind],
        title=title,
        marker=HEAD + marker,
        part=HEAD,
        inside=(*inside, "position_embedding", "mask_token"),
        prefixes={"_groot_model.": "LeRobot's GrootPolicy"},
        settings=settings_from,
    )


# The first family whose marker exists is chosen: N1.5 has future_tokens, N1.7 vl_self_attention, N1.6 neither.
FAMILIES = (
    _family(N1_7, _TITLES[N1_7], "vl_self_attention.transformer_blocks.0.norm1.weight"),
    _family(N1_6, f"{_TITLES[N1_6]} (or N1.7 without vl_self_attention)", "action_encoder.W1.W"),
)
DEFINITIONS = {"groot_n1_7": definition, "groot_n1_6": lambda: definition(RELEASED_N1_6)}
