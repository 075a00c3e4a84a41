"""GR00T N1.5: the released configuration, and the effect of each setting on a pretrained checkpoint.

Defaults are those of the model's classes. They apply where the configuration lacks the key, so removing a key is a
change, too. `believed` is the impact of a setting according to a widely copied compatibility guide; `whatif` reports
where it is wrong.
"""

from __future__ import annotations

from diffusion_policy.families.family import Config, Effect, Impact, Setting

HEAD, BACKBONE = "action_head_cfg.", "backbone_cfg."
DIT, VL = HEAD + "diffusion_model_cfg.", HEAD + "vl_self_attention_cfg."
CLOSED = (DIT.rstrip("."), VL.rstrip("."))  # constructed with **cfg: an unknown key is a TypeError

ACTIVATIONS = ("gelu", "gelu-approximate", "geglu", "geglu-approximate", "swiglu")  # of diffusers 0.30.2

RELEASED: Config = {
    "action_dim": 32,
    "action_head_cfg": {
        "action_dim": 32, "action_horizon": 16, "add_pos_embed": True, "backbone_embedding_dim": 2048,
        "diffusion_model_cfg": {
            "attention_head_dim": 48, "cross_attention_dim": 2048, "dropout": 0.2, "final_dropout": True,
            "interleave_self_attention": True, "norm_type": "ada_norm", "num_attention_heads": 32, "num_layers": 16,
            "output_dim": 1024, "positional_embeddings": None,
        },
        "hidden_size": 1024, "input_embedding_dim": 1536, "max_action_dim": 32, "max_state_dim": 64,
        "model_dtype": "float32", "noise_beta_alpha": 1.5, "noise_beta_beta": 1.0, "noise_s": 0.999,
        "num_inference_timesteps": 4, "num_target_vision_tokens": 32, "num_timestep_buckets": 1000,
        "tune_diffusion_model": True, "tune_projector": True, "use_vlln": True,
        "vl_self_attention_cfg": {
            "attention_head_dim": 64, "dropout": 0.2, "final_dropout": True, "num_attention_heads": 32, "num_layers": 4,
            "positional_embeddings": None,
        },
    },
    "action_horizon": 16,
    "backbone_cfg": {
        "eagle_path": "NVEagle/eagle_er-qwen3_1_7B-Siglip2_400M_stage1_5_128gpu_er_v7_1mlp_nops", "load_bf16": False,
        "project_to_dim": None, "reproject_vision": False, "select_layer": 12, "tune_llm": False, "tune_visual": True,
        "use_flash_attention": True,
    },
    "hidden_size": 2048,
    "model_type": "gr00t_n1_5",
}  # fmt: skip

_FUNCTION, _UNUSED, _TRAINING = Effect.FUNCTION, Effect.UNUSED, Effect.TRAINING
_SAFE, _BREAKING = Impact.SAFE, Impact.BREAKING
_SPLIT = "the same matrices are split into other heads"
_FROZEN = "which tensors train, not what they compute; no flag freezes vlln, vl_self_attention or future_tokens"

_DEPTH_ADVICE = (
    "deeper: config/adapt/groot_n1_5_deeper.yaml starts new blocks as identity; shallower: the last blocks are lost"
)


def transformer_settings(*, believed: bool) -> dict[str, Setting]:
    """Settings shared by all transformers of GR00T's heads; `believed`: with the impact according to the guide."""
    safe, breaking = (_SAFE, _BREAKING) if believed else (None, None)
    return {
        "num_attention_heads": Setting("count", 8, _FUNCTION, _SPLIT, breaking),
        "attention_head_dim": Setting("count", 64, _FUNCTION, _SPLIT, breaking),
        "num_layers": Setting("count or 0", 12, believed=breaking,
                              advice=_DEPTH_ADVICE),
        "output_dim": Setting("count", 26, believed=breaking),
        "dropout": Setting("number", 0.1, _TRAINING, believed=safe),
        "final_dropout": Setting("flag", default=True, effect=_TRAINING, believed=safe),
        "attention_bias": Setting("flag", default=True, believed=safe),
        "activation_fn": Setting("text", "gelu-approximate", _FUNCTION, "another curve on the same tensors", safe),
        "positional_embeddings": Setting("text?", "sinusoidal", _UNUSED, 'only "sinusoidal" adds positions', safe,
                                         advice="pos_embed.pe is a buffer that loaders leave as uninitialized memory"),
        "max_num_positional_embeddings": Setting("count", 512, _UNUSED, "it is read with sinusoidal positions only"),
        "num_embeds_ada_norm": Setting("integer?", 1000, _UNUSED, "no layer is built from it"),
        "upcast_attention": Setting("flag", default=False, effect=_UNUSED, note="the softmax is in float32 already"),
        "interleave_self_attention": Setting("flag", default=False, effect=_FUNCTION,
                                             note="odd blocks attend to other tokens"),
        "compute_dtype": Setting("text", "float32", _FUNCTION, "numbers are rounded differently"),
    }  # fmt: skip


_VL = transformer_settings(believed=True) | {
    "output_dim": Setting("count", 26, _UNUSED, "this transformer has no output projection", _BREAKING),
    "interleave_self_attention": Setting("flag", default=False, effect=_UNUSED, note="this transformer never reads it"),
}
_DIT = transformer_settings(believed=False) | {
    "cross_attention_dim": Setting("count?", None),
    "norm_type": Setting("text", "ada_norm", only=("ada_norm", "layer_norm")),
    "norm_elementwise_affine": Setting(
        "flag", default=False, advice="new scales of 1 and offsets of 0 change nothing, if they are initialized at all"
    ),
    "norm_eps": Setting("number", 1e-5, _FUNCTION, "another epsilon in every norm"),
}
_ACTION_DIM_ADVICE = (
    "config/adapt/groot_n1_5_action_dim.yaml grows it. The tensors are called W and b; the vendor's own partial copy "
    "looks for weight and bias, finds neither, and leaves action_encoder.W1.W, action_decoder.layer2.W and layer2.b "
    "random for all dimensions"
)
_HEAD = {
    "action_dim": Setting("count", advice=_ACTION_DIM_ADVICE),
    "max_action_dim": Setting("count", None, _UNUSED, "the head never reads it: only action_dim counts", _BREAKING),
    "max_state_dim": Setting("count", advice="no script of the vendor handles it: axis 1 of state_encoder.layer1.W"),
    "action_horizon": Setting("count", effect=_FUNCTION, note="another number of actions is predicted at once"),
    "max_seq_len": Setting("count", 1024, _UNUSED, "it sizes position_embedding, which add_pos_embed switches off"),
    "max_num_embodiments": Setting("count", 32, advice="embodiment ids must stay below it"),
    "hidden_size": Setting("count", 1024),
    "input_embedding_dim": Setting("count", 1536),
    "backbone_embedding_dim": Setting("count", 1536, _FUNCTION, "features of another width are expected"),
    "num_target_vision_tokens": Setting(
        "count", 32, believed=_SAFE,
        advice="future_tokens.weight is trained and in the checkpoint, though the constructor draws it at random",
    ),
    "add_pos_embed": Setting("flag", default=True),
    "use_vlln": Setting("flag", default=True),
    "num_inference_timesteps": Setting("count", effect=_FUNCTION, note="another number of integration steps"),
    "num_timestep_buckets": Setting("count", 1000, _FUNCTION, "diffusion times map to other embeddings"),
    "noise_beta_alpha": Setting("number", 1.5, _TRAINING),
    "noise_beta_beta": Setting("number", 1.0, _TRAINING),
    "noise_s": Setting("number", 0.999, _TRAINING),
    "model_dtype": Setting("text", "float32", _FUNCTION, "numbers are rounded differently"),
    "tune_projector": Setting("flag", default=True, effect=_TRAINING, note=_FROZEN),
    "tune_diffusion_model": Setting("flag", default=True, effect=_TRAINING, note=_FROZEN),
}  # fmt: skip
_BACKBONE = {
    "select_layer": Setting("integer", -1, advice="features then come from another depth than the head was trained on"),
    "project_to_dim": Setting("count?", 1536),
    "eagle_path": Setting("text?", None, _UNUSED, "the constructor always reads the vendored configuration"),
    "load_bf16": Setting("flag", default=False, effect=_FUNCTION, note="numbers are rounded differently"),
    "use_flash_attention": Setting("flag", default=False, effect=_FUNCTION, note="attention is rounded differently"),
    "tune_llm": Setting("flag", default=False, effect=_TRAINING),
    "tune_visual": Setting("flag", default=False, effect=_TRAINING),
    "reproject_vision": Setting("flag", default=True, only=(False,)),
}
SETTINGS = {
    section + name: setting
    for section, settings in ((HEAD, _HEAD), (VL, _VL), (DIT, _DIT), (BACKBONE, _BACKBONE))
    for name, setting in settings.items()
}
