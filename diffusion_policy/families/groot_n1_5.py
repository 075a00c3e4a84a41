"""GR00T N1.5: names and shapes of every tensor, as formulas of the model's config.json.

The released model has 899 tensors: 585 of the vision-language backbone and 314 of the action head. The action head is::

    backbone features (B) -> vlln -> vl_self_attention (D) --------------------------+
    state (S) -> state_encoder -> 1 token (W) --+                                    v keys, values (X)
    future_tokens: T learned queries (W) -------+--> DiT of width I, output O --> action_decoder (H) -> actions (A)
    noisy actions -> action_encoder -> tokens --+

State and action encoders and the decoder hold one matrix per embodiment (axis 0), called ``W`` and ``b``, not
``weight`` and ``bias``. Widths that are connected in the diagram must agree (`conflicts`); keys and shapes of a
checkpoint do not show whether they do.

The effect of each setting is in `groot_n1_5_settings`, the layers of the backbone are in `groot_n1_5_backbone`.
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
from diffusion_policy.families.groot_n1_5_backbone import (
    LLM_LAYERS,
    LLM_WIDTH,
    VISION_WIDTH,
    language_model,
    vision_tower,
)
from diffusion_policy.families.groot_n1_5_settings import (
    ACTIVATIONS,
    BACKBONE,
    CLOSED,
    DIT,
    HEAD,
    RELEASED,
    SETTINGS,
    VL,
)
from diffusion_policy.families.named_layers import Tensors, affine, linear, under


def values_of(config: Config) -> Values:
    """The values that the model's classes use for a configuration."""
    return Values(config, SETTINGS, ACTIVATIONS, "0.30.2")


def shapes(config: Config, parts: Sequence[str]) -> dict[str, Shape]:
    """Names and shapes in the order of the state_dict, for the parts "action_head" and "backbone".

    Names of the action head come without their prefix ``action_head.``, those of the backbone with ``backbone.``, as
    the published comparisons of this model write them. Raises ConstructionError where a constructor would refuse the
    config.
    """
    out: dict[str, Shape] = {}
    if "backbone" in parts:
        out |= {f"backbone.{name}": shape for name, shape in backbone(config)}
    if "action_head" in parts:
        out |= dict(action_head(config))
    return out


def file_shapes(config: Config) -> dict[str, Shape]:
    """All tensors under the names of checkpoint files; for a config without a backbone, those of the action head."""
    described = lookup(config, "backbone_cfg") is not ABSENT
    out = shapes(config, ["backbone"]) if described else {}
    return out | {FAMILY.part + name: shape for name, shape in action_head(config)}


def action_head(config: Config) -> Tensors:
    """The tensors of the action head for a configuration: 314 for the released model."""
    value = values_of(config)
    head = {name: value(HEAD + name) for name in _HEAD_WIDTHS}
    e, s, a, h, w = (head[name] for name in _HEAD_WIDTHS[:5])
    features = value(DIT + "cross_attention_dim") or value.inner_width(DIT)
    yield from under("model.", dit(value, DIT, features))
    yield from action_networks(e, s, a, h, w)
    yield "future_tokens.weight", (head["num_target_vision_tokens"], w)
    if head["use_vlln"]:
        yield from affine("vlln", head["backbone_embedding_dim"])
        for i in range(value(VL + "num_layers")):
            yield from under(f"vl_self_attention.transformer_blocks.{i}.", vl_block(value, VL))
    if head["add_pos_embed"]:
        yield "position_embedding.weight", (head["max_seq_len"], w)


_HEAD_WIDTHS = (
    "max_num_embodiments", "max_state_dim", "action_dim", "hidden_size", "input_embedding_dim",
    "num_target_vision_tokens", "use_vlln", "backbone_embedding_dim", "add_pos_embed", "max_seq_len",
)  # fmt: skip


def backbone(config: Config) -> Tensors:
    """The vision tower, the language model cut to `select_layer` layers, and the projector between them."""
    if lookup(config, "backbone_cfg") is ABSENT:
        raise FamilyError("this config.json has no backbone_cfg: only its action head is covered")
    value = values_of(config)
    yield from under("eagle_model.vision_model.vision_model.", vision_tower())
    layers = value(BACKBONE + "select_layer")
    if layers < 0:
        raise ConstructionError(
            f"select_layer {layers}: the constructor removes layers until that many are left, and runs out of them",
            BACKBONE + "select_layer",
        )
    yield from under("eagle_model.language_model.", language_model(min(layers, LLM_LAYERS)))
    yield from linear("eagle_model.mlp1.0", LLM_WIDTH, VISION_WIDTH)
    projected = value(BACKBONE + "project_to_dim")
    if projected is not None:
        yield from linear("eagle_linear", projected, LLM_WIDTH)


def conflicts(config: Config) -> list[Conflict]:
    """Settings whose widths disagree in the forward pass, which a comparison of keys and shapes cannot show."""
    value = values_of(config)
    width, vl = value.inner_width(DIT), value.inner_width(VL)
    head = {name: value(HEAD + name) for name in (*_HEAD_WIDTHS, "action_horizon")}
    features, attended = head["backbone_embedding_dim"], value(DIT + "cross_attention_dim") or width
    heads = ("num_attention_heads", "attention_head_dim")
    dit_heads, vl_heads = tuple(DIT + name for name in heads), tuple(VL + name for name in heads)
    pairs = [
        ("the DiT's heads x head width", width, dit_heads, "input_embedding_dim", head["input_embedding_dim"],
         (HEAD + "input_embedding_dim",)),
        ("the DiT's output_dim", value(DIT + "output_dim"), (DIT + "output_dim",), "hidden_size",
         head["hidden_size"], (HEAD + "hidden_size",)),
        ("cross_attention_dim", attended, (DIT + "cross_attention_dim",), "backbone_embedding_dim", features,
         (HEAD + "backbone_embedding_dim",)),
    ]  # fmt: skip
    if head["use_vlln"]:
        pairs.append(("vl_self_attention's heads x head width", vl, vl_heads, "backbone_embedding_dim", features,
                      (HEAD + "backbone_embedding_dim",)))  # fmt: skip
    if lookup(config, "backbone_cfg") is not ABSENT:
        projected = value(BACKBONE + "project_to_dim") or LLM_WIDTH
        pairs.append(("the backbone's output", projected, (BACKBONE + "project_to_dim",), "backbone_embedding_dim",
                      features, (HEAD + "backbone_embedding_dim",)))  # fmt: skip
    return [Conflict(*one) for one in disagreeing(pairs)] + _too_long(value, head)


def _too_long(value: Values, head: Mapping[str, Any]) -> list[Conflict]:
    """Sequences that no longer fit their position embeddings."""
    result, horizon = [], head["action_horizon"]
    if head["add_pos_embed"] and horizon > head["max_seq_len"]:
        result.append(Conflict((HEAD + "action_horizon", HEAD + "max_seq_len"),
                           f"action_horizon {horizon} is longer than max_seq_len {head['max_seq_len']}"))  # fmt: skip
    positions = value(DIT + "max_num_positional_embeddings")
    length = 1 + head["num_target_vision_tokens"] + horizon
    if value(DIT + "positional_embeddings") == "sinusoidal" and length > positions:
        result.append(Conflict(
            (DIT + "positional_embeddings", DIT + "max_num_positional_embeddings", HEAD + "num_target_vision_tokens",
             HEAD + "action_horizon"),
            f"the DiT's sequence of {length} tokens (1 state + future tokens + horizon) is longer than its {positions} "
            "position embeddings"))  # fmt: skip
    return result


def trainable(config: Config, names: Sequence[str]) -> list[str]:
    """Those of the action head's `names` that train under the config's tune_projector and tune_diffusion_model.

    The vendor's code makes everything trainable, then freezes: no flag reaches vlln, vl_self_attention or
    future_tokens.
    """
    value, frozen = values_of(config), set[str]()
    if not value(HEAD + "tune_projector"):
        frozen |= {"state_encoder", "action_encoder", "action_decoder", "position_embedding"}
    if not value(HEAD + "tune_diffusion_model"):
        frozen |= {"model"}
    return [name for name in names if name.partition(".")[0] not in frozen]


def settings_from(tensors: Shapes) -> dict[str, Any]:
    """Settings read from the shapes of an action head's tensors (names without ``action_head.``)."""
    return settings_of_shapes(tensors, "action_dim")


def _parts(paths: Sequence[str]) -> list[str]:
    """The parts that depend on the settings: the action head, unless only the backbone is changed."""
    touched = ["backbone"] if any(path.startswith(BACKBONE) for path in paths) else []
    head = any(not path.startswith(BACKBONE) for path in paths)
    return [*touched, "action_head"] if head or not touched else touched


def definition(config: Config = RELEASED) -> ModelDefinition:
    """The definition of the released model, or of the one that a config.json describes."""
    return ModelDefinition(
        name="groot_n1_5",
        title="GR00T N1.5",
        config=config,
        settings=SETTINGS,
        home=HEAD.rstrip("."),
        shapes=shapes,
        conflicts=conflicts,
        parts=_parts,
        file_shapes=file_shapes,
        closed=CLOSED,
    )


def read_config(path: Path) -> dict[str, Any] | None:
    """The configuration in a GR00T N1.5 config.json; None for any other JSON file."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FamilyError(f"{path}: cannot be read as a JSON configuration: {error}") from error
    return config if isinstance(config, dict) and "action_head_cfg" in config else None


FAMILY = Family(
    name="groot_n1_5",
    title="GR00T N1.5",
    marker="action_head.future_tokens.weight",
    part="action_head.",
    inside=(
        "model",
        "state_encoder",
        "action_encoder",
        "action_decoder",
        "future_tokens",
        "vlln",
        "vl_self_attention",
        "position_embedding",
    ),
    prefixes={"_groot_model.": "LeRobot's GrootPolicy"},
    settings=lambda tensors: settings_from(
        {name.removeprefix("action_head."): shape for name, shape in tensors.items()}
    ),
)
