"""GR00T N1.5: names and shapes of every tensor, as formulas of the model's config.json.

The released model has 899 tensors: 585 of the vision-language backbone and 314 of the action head. The action head is::

    backbone features (B) -> vlln -> vl_self_attention (D) --------------------------+
    state (S) -> state_encoder -> 1 token (W) --+                                    v keys, values (X)
    future_tokens: T learned queries (W) -------+--> DiT of width I, output O --> action_decoder (H) -> actions (A)
    noisy actions -> action_encoder -> tokens --+

State and action encoders and the decoder hold one matrix per embodiment (axis 0), called ``W`` and ``b``, not
``weight`` and ``bias``. Widths that the picture joins must agree (`clashes`); no key or shape of a checkpoint shows
whether they do.

What each setting does is in `groot_n1_5_settings`. The backbone's own layers are in `groot_n1_5_backbone`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_policy.families.family import (
    ABSENT,
    Clash,
    Config,
    ConstructionError,
    Family,
    FamilyError,
    ModelDefinition,
    Shape,
    Shapes,
    lookup,
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
    GATED,
    HEAD,
    RELEASED,
    SETTINGS,
    VL,
)
from diffusion_policy.families.named_layers import Tensors, affine, linear, under

TIMESTEP_CHANNELS = 256  # sinusoidal features of the diffusion time
FEED_FORWARD_RATIO = 4


def value(config: Config, path: str) -> Any:
    """The value that the model's class uses: the configuration's, or the class default where the key is absent.

    Raises ConstructionError where neither exists.
    """
    found = lookup(config, path)
    if found is not ABSENT:
        return found
    setting = SETTINGS[path]
    if not setting.has_default:
        raise ConstructionError(f"{path} is absent and the class has no default for it", path)
    return setting.default


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
    """All tensors under the names of checkpoint files; of a config without a backbone, those of the action head."""
    described = lookup(config, "backbone_cfg") is not ABSENT
    out = shapes(config, ["backbone"]) if described else {}
    return out | {FAMILY.part + name: shape for name, shape in action_head(config)}


def inner_width(config: Config, transformer: str) -> int:
    """Heads x width of one head: I of the DiT, D of the self-attention over vision-language features."""
    return int(value(config, transformer + "num_attention_heads") * value(config, transformer + "attention_head_dim"))


def action_head(config: Config) -> Tensors:
    """The 314 tensors of the released action head, and what any configuration makes of them."""
    head = {name: value(config, HEAD + name) for name in _HEAD_WIDTHS}
    e, s, a, h, w = (head[name] for name in _HEAD_WIDTHS[:5])
    yield from under("model.", _dit(config))
    yield from under("state_encoder.", _per_embodiment(e, layer1=(s, h), layer2=(h, w)))
    yield from under("action_encoder.", _per_embodiment(e, W1=(a, w), W2=(2 * w, w), W3=(w, w)))
    yield from under("action_decoder.", _per_embodiment(e, layer1=(h, h), layer2=(h, a)))
    yield "future_tokens.weight", (head["num_target_vision_tokens"], w)
    if head["use_vlln"]:
        yield from affine("vlln", head["backbone_embedding_dim"])
        for i in range(value(config, VL + "num_layers")):
            yield from under(f"vl_self_attention.transformer_blocks.{i}.", _vl_block(config))
    if head["add_pos_embed"]:
        yield "position_embedding.weight", (head["max_seq_len"], w)


_HEAD_WIDTHS = (
    "max_num_embodiments", "max_state_dim", "action_dim", "hidden_size", "input_embedding_dim",
    "num_target_vision_tokens", "use_vlln", "backbone_embedding_dim", "add_pos_embed", "max_seq_len",
)  # fmt: skip


def _dit(config: Config) -> Tensors:
    """Diffusion transformer: width I; even blocks attend to the backbone's features (X), odd ones to themselves."""
    width, output = inner_width(config, DIT), value(config, DIT + "output_dim")
    features = value(config, DIT + "cross_attention_dim") or width
    interleave = value(config, DIT + "interleave_self_attention")
    scaled = value(config, DIT + "norm_elementwise_affine")
    yield from linear("timestep_encoder.timestep_embedder.linear_1", width, TIMESTEP_CHANNELS)
    yield from linear("timestep_encoder.timestep_embedder.linear_2", width, width)
    for i in range(value(config, DIT + "num_layers")):
        block = f"transformer_blocks.{i}."
        yield from under(block, _positions(config, DIT, width))
        if value(config, DIT + "norm_type") == "ada_norm":
            yield from linear(f"{block}norm1.linear", 2 * width, width)
        elif scaled:
            yield from affine(f"{block}norm1", width)
        keys_from = width if interleave and i % 2 else features
        yield from under(block, _attention(config, DIT, width, keys_from))
        if scaled:
            yield from affine(f"{block}norm3", width)
        yield from under(block, _feed_forward(config, DIT, width))
    yield from linear("proj_out_1", 2 * width, width)
    yield from linear("proj_out_2", output, width)


def _vl_block(config: Config) -> Tensors:
    """One block of the self-attention over vision-language features: 16 tensors as released."""
    width = inner_width(config, VL)
    yield from _positions(config, VL, width)
    yield from affine("norm1", width)
    yield from _attention(config, VL, width, width)
    yield from affine("norm3", width)
    yield from _feed_forward(config, VL, width)


def _positions(config: Config, transformer: str, width: int) -> Tensors:
    """A persistent buffer per block, only for the string "sinusoidal"."""
    if value(config, transformer + "positional_embeddings") == "sinusoidal":
        yield "pos_embed.pe", (1, value(config, transformer + "max_num_positional_embeddings"), width)


def _attention(config: Config, transformer: str, width: int, keys_from: int) -> Tensors:
    biased = value(config, transformer + "attention_bias")
    for name, columns in (("to_q", width), ("to_k", keys_from), ("to_v", keys_from)):
        yield f"attn1.{name}.weight", (width, columns)
        if biased:
            yield f"attn1.{name}.bias", (width,)
    yield from linear("attn1.to_out.0", width, width)


def _feed_forward(config: Config, transformer: str, width: int) -> Tensors:
    activation = value(config, transformer + "activation_fn")
    if activation not in ACTIVATIONS:
        raise ConstructionError(
            f"{transformer.removeprefix(HEAD)}activation_fn {activation!r} is not one that diffusers 0.30.2, the "
            f"version this model is pinned to, can build; it has {', '.join(ACTIVATIONS)}",
            transformer + "activation_fn",
        )
    inner = FEED_FORWARD_RATIO * width
    yield from linear("ff.net.0.proj", 2 * inner if activation in GATED else inner, width)
    yield from linear("ff.net.2", width, inner)


def _per_embodiment(embodiments: int, **layers: tuple[int, int]) -> Tensors:
    """Linear layers with one matrix per embodiment: W (E, in, out), b (E, out)."""
    for name, (rows, columns) in layers.items():
        yield f"{name}.W", (embodiments, rows, columns)
        yield f"{name}.b", (embodiments, columns)


def backbone(config: Config) -> Tensors:
    """The vision tower, the language model cut to `select_layer` layers, and the projector between them."""
    if lookup(config, "backbone_cfg") is ABSENT:
        raise FamilyError("this config.json has no backbone_cfg: only its action head is described")
    yield from under("eagle_model.vision_model.vision_model.", vision_tower())
    layers = value(config, BACKBONE + "select_layer")
    if layers < 0:
        raise ConstructionError(
            f"select_layer {layers}: the constructor removes layers until that many are left, and runs out of them",
            BACKBONE + "select_layer",
        )
    yield from under("eagle_model.language_model.", language_model(min(layers, LLM_LAYERS)))
    yield from linear("eagle_model.mlp1.0", LLM_WIDTH, VISION_WIDTH)
    projected = value(config, BACKBONE + "project_to_dim")
    if projected is not None:
        yield from linear("eagle_linear", projected, LLM_WIDTH)


def clashes(config: Config) -> list[Clash]:
    """Widths of the forward pass that disagree: what no comparison of keys and shapes can show."""
    dit, vl = inner_width(config, DIT), inner_width(config, VL)
    head = {name: value(config, HEAD + name) for name in (*_HEAD_WIDTHS, "action_horizon")}
    features, attended = head["backbone_embedding_dim"], value(config, DIT + "cross_attention_dim") or dit
    heads = ("num_attention_heads", "attention_head_dim")
    dit_heads, vl_heads = tuple(DIT + name for name in heads), tuple(VL + name for name in heads)
    pairs = [
        ("the DiT's heads x head width", dit, dit_heads, "input_embedding_dim", head["input_embedding_dim"],
         (HEAD + "input_embedding_dim",)),
        ("the DiT's output_dim", value(config, DIT + "output_dim"), (DIT + "output_dim",), "hidden_size",
         head["hidden_size"], (HEAD + "hidden_size",)),
        ("cross_attention_dim", attended, (DIT + "cross_attention_dim",), "backbone_embedding_dim", features,
         (HEAD + "backbone_embedding_dim",)),
    ]  # fmt: skip
    if head["use_vlln"]:
        pairs.append(("vl_self_attention's heads x head width", vl, vl_heads, "backbone_embedding_dim", features,
                      (HEAD + "backbone_embedding_dim",)))  # fmt: skip
    if lookup(config, "backbone_cfg") is not ABSENT:
        projected = value(config, BACKBONE + "project_to_dim") or LLM_WIDTH
        pairs.append(("the backbone's output", projected, (BACKBONE + "project_to_dim",), "backbone_embedding_dim",
                      features, (HEAD + "backbone_embedding_dim",)))  # fmt: skip
    found = [Clash(left_keys + right_keys, f"{left} is {a}, {right} is {b}: the two must be equal")
             for left, a, left_keys, right, b, right_keys in pairs if a != b]  # fmt: skip
    return found + _too_long(config, head)


def _too_long(config: Config, head: Mapping[str, Any]) -> list[Clash]:
    """Sequences that no longer fit their position embeddings."""
    found, horizon = [], head["action_horizon"]
    if head["add_pos_embed"] and horizon > head["max_seq_len"]:
        found.append(Clash((HEAD + "action_horizon", HEAD + "max_seq_len"),
                           f"action_horizon {horizon} is longer than max_seq_len {head['max_seq_len']}"))  # fmt: skip
    positions = value(config, DIT + "max_num_positional_embeddings")
    length = 1 + head["num_target_vision_tokens"] + horizon
    if value(config, DIT + "positional_embeddings") == "sinusoidal" and length > positions:
        found.append(Clash(
            (DIT + "positional_embeddings", DIT + "max_num_positional_embeddings", HEAD + "num_target_vision_tokens",
             HEAD + "action_horizon"),
            f"the DiT's sequence of {length} tokens (1 state + future tokens + horizon) is longer than its {positions} "
            "position embeddings"))  # fmt: skip
    return found


def trainable(config: Config, names: Sequence[str]) -> list[str]:
    """Those of the action head's `names` that train under the config's tune_projector and tune_diffusion_model.

    The vendor's code makes everything trainable, then freezes: no flag reaches vlln, vl_self_attention or
    future_tokens.
    """
    frozen: set[str] = set()
    if not value(config, HEAD + "tune_projector"):
        frozen |= {"state_encoder", "action_encoder", "action_decoder", "position_embedding"}
    if not value(config, HEAD + "tune_diffusion_model"):
        frozen |= {"model"}
    return [name for name in names if name.partition(".")[0] not in frozen]


def settings_from(tensors: Shapes) -> dict[str, Any]:
    """Shape-bearing settings read off an action head's tensors (names without ``action_head.``).

    Heads and head width appear only as their product: how it is split, no tensor shows.
    """
    embodiments, action, width = tensors["action_encoder.W1.W"]
    out: dict[str, Any] = {
        "action_dim": action,
        "max_state_dim": tensors["state_encoder.layer1.W"][1],
        "max_num_embodiments": embodiments,
        "hidden_size": tensors["state_encoder.layer1.W"][2],
        "input_embedding_dim": width,
        "diffusion_model_cfg heads x head width": tensors["model.proj_out_2.weight"][1],
        "diffusion_model_cfg.num_layers": _blocks(tensors, "model."),
        "diffusion_model_cfg.output_dim": tensors["model.proj_out_2.weight"][0],
    }
    optional = {"num_target_vision_tokens": "future_tokens.weight", "max_seq_len": "position_embedding.weight",
                "backbone_embedding_dim": "vlln.weight"}  # fmt: skip
    out |= {setting: tensors[name][0] for setting, name in optional.items() if name in tensors}
    if "vl_self_attention.transformer_blocks.0.norm1.weight" in tensors:
        out["vl_self_attention_cfg.num_layers"] = _blocks(tensors, "vl_self_attention.")
        first = "vl_self_attention.transformer_blocks.0.norm1.weight"
        out["vl_self_attention_cfg heads x head width"] = tensors[first][0]
    return out


def _blocks(tensors: Shapes, transformer: str) -> int:
    start = f"{transformer}transformer_blocks."
    return len({name[len(start) :].partition(".")[0] for name in tensors if name.startswith(start)})


def _parts(paths: Sequence[str]) -> list[str]:
    """The parts that settings touch: the action head, unless only the backbone is changed."""
    touched = ["backbone"] if any(path.startswith(BACKBONE) for path in paths) else []
    head = any(not path.startswith(BACKBONE) for path in paths)
    return [*touched, "action_head"] if head or not touched else touched


def definition(config: Config = RELEASED) -> ModelDefinition:
    """The released model, or the one that a config.json describes, for `adapt.whatif`."""
    return ModelDefinition(
        name="groot_n1_5",
        title="GR00T N1.5",
        config=config,
        settings=SETTINGS,
        home=HEAD.rstrip("."),
        shapes=shapes,
        clashes=clashes,
        parts=_parts,
        file_shapes=file_shapes,
        closed=CLOSED,
    )


def read_config(path: Path) -> dict[str, Any] | None:
    """The configuration in a GR00T N1.5 config.json, or None if the file is of something else."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FamilyError(f"{path}: cannot be read as a JSON configuration: {error}") from error
    return config if isinstance(config, dict) and "action_head_cfg" in config else None


FAMILY = Family(
    name="groot_n1_5",
    title="GR00T N1.5",
    marker="action_head.action_encoder.W1.W",
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
