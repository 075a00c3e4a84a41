"""Qwen3-VL as used in GR00T N1.7's backbone (Cosmos-Reason2-2B): fixed widths, names as in the transformers library.

Totals equal those reported for the real files: 315 tensors and 406,957,056 parameters of the vision tower.
"""

from __future__ import annotations

from diffusion_policy.families.named_layers import Tensors, affine, linear, under

LLM_WIDTH, LLM_KEY_VALUE, LLM_INNER, LLM_HEAD, LLM_VOCABULARY, LLM_LAYERS = 2048, 1024, 6144, 128, 151936, 28
VISION_WIDTH, VISION_INNER, VISION_LAYERS, VISION_PATCH, VISION_FRAMES, VISION_POSITIONS = 1024, 4096, 24, 16, 2, 2304
MERGED = 4  # tokens that become one
DEEPSTACK = 3  # layers whose features go into the language model, too


def qwen3_vl(layers: int) -> Tensors:
    """The backbone with its first `layers` language layers: names under ``backbone.model.``."""
    yield from under("model.visual.", _vision_tower())
    yield from under("model.language_model.", _language_model(layers))
    yield "lm_head.weight", (LLM_VOCABULARY, LLM_WIDTH)


def _vision_tower() -> Tensors:
    width, inner = VISION_WIDTH, VISION_INNER
    yield "patch_embed.proj.weight", (width, 3, VISION_FRAMES, VISION_PATCH, VISION_PATCH)
    yield "patch_embed.proj.bias", (width,)
    yield "pos_embed.weight", (VISION_POSITIONS, width)
    for i in range(VISION_LAYERS):
        block = f"blocks.{i}."
        yield from affine(f"{block}norm1", width)
        yield from affine(f"{block}norm2", width)
        yield from linear(f"{block}attn.qkv", 3 * width, width)
        yield from linear(f"{block}attn.proj", width, width)
        yield from linear(f"{block}mlp.linear_fc1", inner, width)
        yield from linear(f"{block}mlp.linear_fc2", width, inner)
    yield from _merger("merger.", width)
    for i in range(DEEPSTACK):
        yield from _merger(f"deepstack_merger_list.{i}.", MERGED * width)


def _merger(name: str, normalized: int) -> Tensors:
    """Four neighboring tokens become one of the language model's width; the norm is before or after they are joined."""
    joined = MERGED * VISION_WIDTH
    yield from affine(f"{name}norm", normalized)
    yield from linear(f"{name}linear_fc1", joined, joined)
    yield from linear(f"{name}linear_fc2", LLM_WIDTH, joined)


def _language_model(layers: int) -> Tensors:
    width = LLM_WIDTH
    yield "embed_tokens.weight", (LLM_VOCABULARY, width)
    for i in range(layers):
        yield from under(f"layers.{i}.", qwen3_layer(width, LLM_KEY_VALUE, LLM_INNER, LLM_HEAD))
    yield "norm.weight", (width,)


def qwen3_layer(width: int, key_value: int, inner: int, head: int) -> Tensors:
    """The 11 tensors of one layer of Qwen 3's language model."""
    for name, rows in (("q_proj", width), ("k_proj", key_value), ("v_proj", key_value)):
        yield f"self_attn.{name}.weight", (rows, width)
    yield "self_attn.o_proj.weight", (width, width)
    yield "self_attn.q_norm.weight", (head,)
    yield "self_attn.k_norm.weight", (head,)
    yield "mlp.gate_proj.weight", (inner, width)
    yield "mlp.up_proj.weight", (inner, width)
    yield "mlp.down_proj.weight", (width, inner)
    yield "input_layernorm.weight", (width,)
    yield "post_attention_layernorm.weight", (width,)
