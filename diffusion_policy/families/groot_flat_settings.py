"""GR00T N1.6 and N1.7: the released configurations, and the effect of each setting on a pretrained checkpoint.

The configuration is flat, and its class defaults differ from the released values. The released config.json was not
available: values of N1.7 are those in LeRobot 0.6.1, whose totals equal those reported for the real files; for N1.6,
widths of states and actions and the horizon are those that ports use. A removed key takes NVIDIA's class default; where
LeRobot's port has another default, the advice states it.
"""

from __future__ import annotations

from typing import Any

from diffusion_policy.families.family import Config, Effect, Setting
from diffusion_policy.families.groot_n1_5_settings import transformer_settings

DIT, VL = "diffusion_model_cfg.", "vl_self_attention_cfg."
CLOSED = (DIT.rstrip("."), VL.rstrip("."))  # constructed with **cfg: an unknown key is a TypeError
ACTIVATIONS = ("gelu", "gelu-approximate", "geglu", "geglu-approximate", "swiglu", "linear-silu")
DIFFUSERS = "0.35.1"
N1_6, N1_7 = "Gr00tN1d6", "Gr00tN1d7"

_TRANSFORMER: dict[str, Any] = {
    "positional_embeddings": None, "num_attention_heads": 32, "dropout": 0.2, "final_dropout": True,
}  # fmt: skip
_DIT_32: dict[str, Any] = {
    **_TRANSFORMER, "num_layers": 32, "attention_head_dim": 48, "norm_type": "ada_norm", "output_dim": 1024,
    "interleave_self_attention": True,
}  # fmt: skip
# NVIDIA's class default where the section is absent.
CLASS_DIT: Config = {**_DIT_32, "num_layers": 16}

RELEASED_N1_7: Config = {
    "model_type": N1_7, "select_layer": 16, "max_state_dim": 132, "max_action_dim": 132, "action_horizon": 40,
    "state_history_length": 1, "hidden_size": 1024, "input_embedding_dim": 1536, "backbone_embedding_dim": 2048,
    "max_seq_len": 1024, "max_num_embodiments": 32, "add_pos_embed": True, "use_vlln": True,
    "use_alternate_vl_dit": True, "attend_text_every_n_blocks": 2, "state_dropout_prob": 0.2,
    "num_inference_timesteps": 4, "num_timestep_buckets": 1000, "noise_beta_alpha": 1.5, "noise_beta_beta": 1.0,
    "noise_s": 0.999, "attn_dropout": 0.2, "use_vl_self_attention": True, "diffusion_model_cfg": _DIT_32,
    "vl_self_attention_cfg": {**_TRANSFORMER, "num_layers": 4, "attention_head_dim": 64},
}  # fmt: skip
RELEASED_N1_6: Config = {
    **{key: value for key, value in RELEASED_N1_7.items() if key not in (VL.rstrip("."), "state_history_length")},
    "model_type": N1_6, "max_state_dim": 128, "max_action_dim": 128, "action_horizon": 50, "state_dropout_prob": 0.0,
}  # fmt: skip

_FUNCTION, _UNUSED, _TRAINING = Effect.FUNCTION, Effect.UNUSED, Effect.TRAINING
_OF_N1_5 = "a key of N1.5: stored, and read by no code of this release"
_FROZEN = "which tensors train, not what they compute"
_CATEGORY = (
    "loaders leave the new matrices per embodiment (W and b) as uninitialized memory; their error names the submodule "
    "and W only"
)
_VL_SETTINGS = transformer_settings(believed=False) | {
    "num_layers": Setting("count or 0", 0, advice="new blocks start at random unless a plan starts them as identity"),
    "output_dim": Setting("count", 26, _UNUSED, "this transformer has no output projection"),
    "interleave_self_attention": Setting("flag", default=False, effect=_UNUSED, note="this transformer never reads it"),
}
_DIT_SETTINGS = transformer_settings(believed=False) | {
    "norm_type": Setting("text", "ada_norm", only=("ada_norm", "layer_norm")),
    "norm_elementwise_affine": Setting("flag", default=False),
    "norm_eps": Setting("number", 1e-5, _FUNCTION, "another epsilon in every norm"),
}
_TOP = {
    "model_type": Setting("text", only=(N1_6, N1_7)),
    "select_layer": Setting(
        "integer", 12,
        advice="features then come from another depth than the head was trained on. A training run's own config does "
        "not reach the weights: only the checkpoint's does. Removed, it is 12 in NVIDIA's code, 16 in LeRobot's port",
    ),
    "max_action_dim": Setting("count", 132, advice=_CATEGORY),
    "max_state_dim": Setting("count", 132, advice=_CATEGORY),
    "state_history_length": Setting("count", 1, advice="the history is flattened into rows of state_encoder.layer1"),
    "action_horizon": Setting(
        "count", 40, _FUNCTION,
        "another number of actions is predicted at once; the processor refuses more than its own max_action_horizon",
    ),
    "hidden_size": Setting("count", 1024),
    "input_embedding_dim": Setting("count", 1536),
    "backbone_embedding_dim": Setting("count", 2048),
    "max_seq_len": Setting("count", 1024, _UNUSED, "it sizes position_embedding, which add_pos_embed switches off"),
    "max_num_embodiments": Setting("count", 32, advice=f"embodiment ids must stay below it; {_CATEGORY}"),
    "add_pos_embed": Setting("flag", default=True),
    "use_vlln": Setting("flag", default=True, advice="vl_self_attention stays: it has its own section"),
    "use_alternate_vl_dit": Setting(
        "flag", default=True, effect=_FUNCTION, note="the plain DiT attends to all tokens, padding included"
    ),
    "attend_text_every_n_blocks": Setting("count", 2, _FUNCTION, "other blocks attend to text"),
    "state_dropout_prob": Setting("number", 0.8, _TRAINING, "removed: 0.8 in NVIDIA's code, 0.2 in LeRobot's port"),
    "num_inference_timesteps": Setting("count", 4, _FUNCTION, "another number of integration steps"),
    "num_timestep_buckets": Setting("count", 1000, _FUNCTION, "diffusion times map to other embeddings"),
    "noise_beta_alpha": Setting("number", 1.5, _TRAINING),
    "noise_beta_beta": Setting("number", 1.0, _TRAINING),
    "noise_s": Setting("number", 0.999, _TRAINING),
    "attn_dropout": Setting("number", 0.2, _UNUSED, "in the configuration, read by nothing in the head"),
    "use_vl_self_attention": Setting(
        "flag", default=True, effect=_UNUSED,
        note="NVIDIA's and LeRobot's heads never read it; some ports do, and then build no vl_self_attention",
    ),
    "tune_projector": Setting("flag", default=True, effect=_TRAINING, note=_FROZEN),
    "tune_diffusion_model": Setting("flag", default=True, effect=_TRAINING, note=_FROZEN),
    "tune_vlln": Setting("flag", default=True, effect=_TRAINING, note="it covers vlln and vl_self_attention"),
    "tune_llm": Setting("flag", default=False, effect=_TRAINING),
    "tune_visual": Setting("flag", default=False, effect=_TRAINING),
    "tune_top_llm_layers": Setting("count or 0", 0, _TRAINING, "the last layers of those that are kept"),
    "model_dtype": Setting("text", "bfloat16", _FUNCTION, "numbers are rounded differently"),
    "load_bf16": Setting("flag", default=True, effect=_FUNCTION, note="numbers are rounded differently"),
    "action_dim": Setting("count", None, _UNUSED, f"{_OF_N1_5}; the width of actions is max_action_dim"),
    "num_target_vision_tokens": Setting("count", None, _UNUSED, f"{_OF_N1_5}; there are no future_tokens"),
    "diffusion_model_cfg": Setting(
        "section", CLASS_DIT, advice="removed, the DiT has 16 blocks in NVIDIA's code and 32 in LeRobot's port"
    ),
    "vl_self_attention_cfg": Setting(
        "section?", None, advice="removed, there is no such module in NVIDIA's code, and 4 blocks in LeRobot's port"
    ),
}  # fmt: skip
SETTINGS = _TOP | {
    section + name: setting
    for section, settings in ((VL, _VL_SETTINGS), (DIT, _DIT_SETTINGS))
    for name, setting in settings.items()
}
