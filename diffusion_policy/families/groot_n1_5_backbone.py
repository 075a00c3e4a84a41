"""GR00T N1.5's vendored backbone: a vision tower and a language model of fixed widths; select_layer sets the depth."""

from __future__ import annotations

from diffusion_policy.families.named_layers import Tensors, affine, linear, under
from diffusion_policy.families.qwen3_vl import qwen3_layer

LLM_WIDTH, LLM_KEY_VALUE, LLM_INNER, LLM_HEAD, LLM_VOCABULARY, LLM_LAYERS = 2048, 1024, 6144, 128, 151680, 28
VISION_WIDTH, VISION_INNER, VISION_LAYERS, VISION_PATCH, VISION_POSITIONS = 1152, 4304, 27, 14, 256


def vision_tower() -> Tensors:
    """SigLIP 2 with its pooling head: names under ``eagle_model.vision_model.vision_model.``."""
    width, inner = VISION_WIDTH, VISION_INNER
    yield "embeddings.patch_embedding.weight", (width, 3, VISION_PATCH, VISION_PATCH)
    yield "embeddings.patch_embedding.bias", (width,)
    yield "embeddings.position_embedding.weight", (VISION_POSITIONS, width)
    for i in range(VISION_LAYERS):
        layer = f"encoder.layers.{i}."
        yield from affine(f"{layer}layer_norm1", width)
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from linear(f"{layer}self_attn.{name}", width, width)
        yield from affine(f"{layer}layer_norm2", width)
        yield from linear(f"{layer}mlp.fc1", inner, width)
        yield from linear(f"{layer}mlp.fc2", width, inner)
    yield from affine("post_layernorm", width)
    yield "head.probe", (1, 1, width)
    yield "head.attention.in_proj_weight", (3 * width, width)
    yield "head.attention.in_proj_bias", (3 * width,)
    yield from linear("head.attention.out_proj", width, width)
    yield from affine("head.layernorm", width)
    yield from linear("head.mlp.fc1", inner, width)
    yield from linear("head.mlp.fc2", width, inner)


def language_model(layers: int) -> Tensors:
    """Qwen 3 with its first `layers` layers: names under ``eagle_model.language_model.``."""
    width = LLM_WIDTH
    yield "model.embed_tokens.weight", (LLM_VOCABULARY, width)
    for i in range(layers):
        yield from under(f"model.layers.{i}.", qwen3_layer(width, LLM_KEY_VALUE, LLM_INNER, LLM_HEAD))
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (LLM_VOCABULARY, width)
