"""Compares the settings of a checkpoint and a config that determine what the policy computes with given weights.

A setting that changes the number or the width of tensors changes their names or shapes. Many others change no tensor,
but the computation: heads, the noise schedule, the crop of the image. Each setting of the policy, its scheduler and its
observations has an entry here with the effect of a change. Settings that only affect sampling or training may differ
between a checkpoint and the run that starts from it.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.named_axes import policy_config
from diffusion_policy.checkpoint import LARGEST, SCHEDULER_TARGETS
from diffusion_policy.commands import setting
from diffusion_policy.installation import CONFIG
from diffusion_policy.policy.registry import class_of_options
from diffusion_policy.shape_meta import step_spec_of
from diffusion_policy.spec import StepSpec

Shapes = Mapping[str, tuple[int, ...]]
TARGET = "policy._target_"


class Scope(Enum):
    """What the change of a setting affects."""

    SIZE = "other tensors, by name or shape"
    FUNCTION = "the same tensors are used for another computation"
    SAMPLING = "affects the sampling of actions, which each command configures itself"
    TRAINING = "affects training only"

    @property
    def free(self) -> bool:
        """Whether a run may use another value than the checkpoint that it starts from."""
        return self in (Scope.SAMPLING, Scope.TRAINING)


@dataclass(frozen=True)
class ChangeEffect:
    """The effect of changing a setting: what it affects, and a phrase that describes it."""

    scope: Scope
    note: str


_SCHEDULE = ChangeEffect(Scope.FUNCTION, "another noise schedule than the one the weights were trained on")
_CLIPPING = ChangeEffect(Scope.FUNCTION, "samples are clipped to another range at every denoising step")
_STEPS = ChangeEffect(Scope.SAMPLING, "spacing of the denoising steps")
_SOLVER = ChangeEffect(Scope.SAMPLING, "steps of the solver")

# Arguments of the policies' constructors; the scheduler and the observations have their own entries below.
POLICY: Mapping[str, ChangeEffect] = {
    "horizon": ChangeEffect(Scope.SIZE, "number of position embeddings, one per step"),
    "n_obs_steps": ChangeEffect(Scope.SIZE, "number of condition tokens, one per observed step"),
    "n_layer": ChangeEffect(Scope.SIZE, "layers of the denoiser"),
    "n_cond_layers": ChangeEffect(Scope.SIZE, "layers of the condition encoder"),
    "n_emb": ChangeEffect(Scope.SIZE, "width of every layer"),
    "encoder_width": ChangeEffect(Scope.SIZE, "channels of the image encoder"),
    "down_dims": ChangeEffect(Scope.SIZE, "channels of the denoiser's levels"),
    "kernel_size": ChangeEffect(Scope.SIZE, "width of the denoiser's convolutions"),
    "diffusion_step_embed_dim": ChangeEffect(Scope.SIZE, "width of the embedded diffusion time"),
    "cond_predict_scale": ChangeEffect(Scope.SIZE, "FiLM parameters per channel"),
    "hidsize": ChangeEffect(Scope.SIZE, "features of VPT's trunk"),
    "impala_width": ChangeEffect(Scope.SIZE, "channels of VPT's convolutions"),
    "impala_chans": ChangeEffect(Scope.SIZE, "channels of VPT's stacks"),
    "n_recurrence_layers": ChangeEffect(Scope.SIZE, "blocks of attention"),
    "attention_heads": ChangeEffect(Scope.SIZE, "rows of the relative bias, one set per head"),
    "pointwise_ratio": ChangeEffect(Scope.SIZE, "width of a block's dense layers"),
    "window": ChangeEffect(Scope.SIZE, "frames that attention reaches back"),
    "head": ChangeEffect(Scope.SIZE, "which head answers; each has its own tensors"),
    "camera_interval": ChangeEffect(Scope.SIZE, "choices of the camera's slots"),
    "temperature": ChangeEffect(Scope.FUNCTION, "log-probabilities are divided by another number"),
    "n_groups": ChangeEffect(Scope.FUNCTION, "the denoiser's norms use other groups of channels"),
    "obs_as_global_cond": ChangeEffect(Scope.FUNCTION, "observations enter the network elsewhere"),
    "n_head": ChangeEffect(Scope.FUNCTION, "the same attention matrices are split into other heads"),
    "crop_shape": ChangeEffect(Scope.FUNCTION, "the network receives another crop of the image"),
    "eval_fixed_crop": ChangeEffect(
        Scope.FUNCTION, "the network receives random crops instead of the center crop, or vice versa"
    ),
    "encoder_stride": ChangeEffect(Scope.FUNCTION, "the encoder's last feature map has another resolution"),
    "encoder_activation": ChangeEffect(Scope.FUNCTION, "image features have another activation function"),
    "obs_encoder_group_norm": ChangeEffect(Scope.FUNCTION, "the encoder has another kind of norm"),
    "causal_attn": ChangeEffect(Scope.FUNCTION, "attention has another mask"),
    "time_as_cond": ChangeEffect(Scope.FUNCTION, "the diffusion time enters the network elsewhere"),
    "obs_as_cond": ChangeEffect(Scope.FUNCTION, "observations enter the network elsewhere"),
    "pred_action_steps_only": ChangeEffect(Scope.FUNCTION, "another part of the horizon is denoised"),
    "n_action_steps": ChangeEffect(Scope.SAMPLING, "another slice of the predicted actions is executed"),
    "num_inference_steps": ChangeEffect(Scope.SAMPLING, "another number of denoising steps"),
    "eta": ChangeEffect(Scope.SAMPLING, "randomness of DDIM"),
    "learns": ChangeEffect(Scope.TRAINING, "which part of the policy learns"),
    "p_drop_emb": ChangeEffect(Scope.TRAINING, "dropout"),
    "p_drop_attn": ChangeEffect(Scope.TRAINING, "dropout"),
    "color_jitter": ChangeEffect(Scope.TRAINING, "image augmentation in training"),
}

# Options of the schedulers. Those of the noise schedule are compared by the noise levels that result from them.
LEVELS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
SCHEDULER: Mapping[str, ChangeEffect] = {
    **dict.fromkeys(LEVELS, _SCHEDULE),
    "prediction_type": ChangeEffect(Scope.FUNCTION, "the network's output is interpreted as another quantity"),
    "variance_type": ChangeEffect(Scope.FUNCTION, "DDPM adds other noise between its steps"),
    **dict.fromkeys(
        ("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
        _CLIPPING,
    ),
    **dict.fromkeys(("timestep_spacing", "steps_offset", "set_alpha_to_one"), _STEPS),
    **dict.fromkeys(
        (
            "solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final", "use_karras_sigmas",
            "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "flow_shift",
            "final_sigmas_type", "lambda_min_clipped", "use_dynamic_shifting", "time_shift_type",
        ),
        _SOLVER,
    ),
}  # fmt: skip
# Options that have no effect unless the other option is set.
_ONLY_WITH = {
    "clip_sample_range": "clip_sample",
    "dynamic_thresholding_ratio": "thresholding",
    "sample_max_value": "thresholding",
}

_ONLY_ACTED = "policy.pred_action_steps_only"
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")
_MAX_REFERENCES = 16  # a longer chain of references is circular

_CLASS = ChangeEffect(Scope.SIZE, "another policy")
_LENGTH = ChangeEffect(Scope.FUNCTION, "convolutions run over sequences of another length")
_OBSERVATIONS = ChangeEffect(Scope.FUNCTION, "the same inputs have another meaning")
_IMAGE_SIZE = ChangeEffect(Scope.FUNCTION, "the network receives the scene at another scale")
_LATENCY = ChangeEffect(Scope.FUNCTION, "the predicted steps start at another time")
# Free settings that must be restored together with the settings listed for them, which they have to match.
COMPANIONS: Mapping[str, tuple[str, ...]] = {
    "policy.n_action_steps": ("policy.horizon", "policy.n_obs_steps"),
    "policy.num_inference_steps": ("policy.noise_scheduler.num_train_timesteps",),
}
# Settings outside of `policy` that determine the meaning of the weights.
DATA: Mapping[str, ChangeEffect] = {"n_latency_steps": _LATENCY}


@dataclass(frozen=True)
class Difference:
    """A setting whose value in a config differs from that of a checkpoint's training.

    Attributes:
        path: path of the setting in the policy's section, such as policy.horizon.
        name: the key by which a user sets it, such as policy.n_head or horizon.
        trained: the checkpoint's value.
        configured: the config's value.
        effect: the effect of the change.
        override: override that sets the checkpoint's value; "" where a list of observations has to be written instead.
    """

    path: str
    name: str
    trained: Any
    configured: Any
    effect: ChangeEffect
    override: str

    def __str__(self) -> str:
        note = "" if self.effect.scope is Scope.SIZE else f": {self.effect.note}"
        return f"{self.name} {_formatted(self.trained)} (here {_formatted(self.configured)}{note})"


def differences(trained: DictConfig, tensors: Shapes, cfg: DictConfig) -> list[Difference]:
    """The settings that differ between a checkpoint and a config.

    Args:
        trained: the checkpoint's config; settings that it lacks are not compared.
        tensors: names and shapes of its weights, which take precedence over its config.
        cfg: config of the run, with unresolved interpolations.

    Raises:
        AdaptError, SpecError: a config has no policy, or no valid observations.
    """
    old, new = settings_of(trained) if "policy" in trained else {}, settings_of(cfg)
    if old.get(TARGET, new[TARGET]) != new[TARGET]:  # nothing else can be compared
        return [_other_class(old[TARGET], new[TARGET])]
    known = class_of_options(policy_config(cfg)).tensors
    if known.marker in tensors:
        old |= {f"policy.{key}": value for key, value in known.settings(tensors).items() if key in POLICY}
    free = {f"policy.{name}" for name in known.free}
    differing = [path for path in new if path in old and old[path] != new[path] and path not in free]
    alike = _without_effect(old, new) if differing else set()
    plain = _plain(cfg)
    return [_difference(path, old, new, plain) for path in differing if path not in alike]


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """Values of all settings that have an entry, by path in the config; absent ones have their defaults.

    Raises:
        AdaptError, SpecError: the config has no policy, or no valid observations.
    """
    policy = policy_config(cfg)
    settings = {"n_latency_steps": OmegaConf.select(cfg, "n_latency_steps", default=0)}
    kind = class_of_options(policy)
    settings[TARGET] = f"{kind.__module__}.{kind.__qualname__}"
    for name, default in _defaults(kind).items():
        if name in POLICY and (name in policy or default is not inspect.Parameter.empty):
            settings[f"policy.{name}"] = policy.get(name, default)
    scheduler = policy.get("noise_scheduler")
    if isinstance(scheduler, Mapping):
        settings["policy.noise_scheduler._target_"] = scheduler.get("_target_")
        for name, default in _defaults(_scheduler_class(scheduler)).items():
            settings[f"policy.noise_scheduler.{name}"] = scheduler.get(name, default)
    if settings.get("policy.num_inference_steps", 0) is None:
        settings["policy.num_inference_steps"] = settings.get("policy.noise_scheduler.num_train_timesteps")
    settings |= dict(_observations(step_spec_of(cfg)))
    return {path: list(value) if isinstance(value, tuple) else value for path, value in settings.items()}


def effect_of(path: str) -> ChangeEffect | None:
    """The entry of a setting by its path; None for a setting without an entry."""
    *section, name = path.split(".")
    if path in DATA:
        return DATA[path]
    if path == TARGET:
        return _CLASS
    if section == ["policy", "noise_scheduler"]:
        return ChangeEffect(Scope.SAMPLING, "which sampler") if name == "_target_" else SCHEDULER.get(name)
    if section == ["policy"]:
        return POLICY.get(name)
    if path.startswith("policy.shape_meta.obs"):
        return _OBSERVATIONS
    return None


def unknown_settings(cfg: DictConfig) -> list[str]:
    """Settings of a config's policy and scheduler that have no entry, such as those of a fork."""
    policy = policy_config(cfg)
    scheduler = policy.get("noise_scheduler")
    names = [f"policy.{name}" for name in policy if name not in (*POLICY, "_target_", "shape_meta", "noise_scheduler")]
    if isinstance(scheduler, Mapping):
        names += [f"policy.noise_scheduler.{name}" for name in scheduler if name not in (*SCHEDULER, "_target_")]
    return names


def check_accepted(accepted: Collection[str], cfg: DictConfig) -> None:
    """Refuse names that are not settings.

    Raises:
        AdaptError: a name is not a setting; the message gives the closest one.
    """
    plain = _plain(cfg)
    known = [root_of(plain, path) for path in settings_of(cfg)]
    for name in accepted:
        if name not in known:
            closest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise AdaptError(
                f"pretrained.accept names {name}, which is not a setting of the policy; the closest is {closest[0]}"
            )


def root_of(plain: Mapping[str, Any], path: str) -> str:
    """The path that holds the value of a setting: `horizon` for `policy.horizon`, which refers to it.

    Args:
        plain: a config as plain data, with unresolved interpolations.
        path: path of the setting.
    """
    parts, depth = path.split("."), 1
    for _ in range(_MAX_REFERENCES):
        node: Any = plain
        for depth, part in enumerate(parts, 1):
            node = node.get(part) if isinstance(node, Mapping) else None
            reference = _REFERENCE.fullmatch(node) if isinstance(node, str) else None
            if reference:
                parts = [*reference[1].split("."), *parts[depth:]]
                break
        else:
            break
    return ".".join(parts)


def _plain(cfg: DictConfig) -> Mapping[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _difference(path: str, old: Mapping[str, Any], new: Mapping[str, Any], plain: Mapping[str, Any]) -> Difference:
    effect = effect_of(path)
    assert effect is not None, path
    if path == "policy.n_action_steps" and (old.get(_ONLY_ACTED) or new.get(_ONLY_ACTED)):
        effect = POLICY["pred_action_steps_only"]
    if path.endswith(".shape") and len(new[path]) == 3:
        effect = _IMAGE_SIZE
    if path == "policy.horizon" and "policy.down_dims" in new:
        effect = _LENGTH
    root = root_of(plain, path)
    override = ""
    if path != "policy.shape_meta.obs" and not path.endswith(".type"):
        override = setting(root if _holds(plain, root) else f"+{root}", old[path])
    if path == "policy.n_action_steps" and _holds(plain, "n_action_steps"):  # policy.n_action_steps is a sum
        override = setting("n_action_steps", old[path] - old.get("n_latency_steps", 0))
    return Difference(path, root, old[path], new[path], effect, override)


def _other_class(trained: str, configured: str) -> Difference:
    """The difference of two policy classes; the override names the config in config/ that trains the checkpoint's."""
    configs = {path: OmegaConf.load(path) for path in sorted(CONFIG.glob("train_*.yaml"))}
    names = [path.stem for path, config in configs.items() if OmegaConf.select(config, TARGET) == trained]
    return Difference(TARGET, TARGET, trained, configured, _CLASS, f"--config-name={names[0]}" if names else "")


def _holds(plain: Mapping[str, Any], path: str) -> bool:
    node: Any = plain
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _without_effect(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    """Paths whose differences have no effect: options that result in equal noise levels, or that are switched off."""
    section = "policy.noise_scheduler."
    none = {f"{section}{option}" for option, switch in _ONLY_WITH.items()
            if not (old.get(section + switch) or new.get(section + switch))}  # fmt: skip
    if old.get(f"{section}_target_") != new.get(f"{section}_target_"):
        none.add(f"{section}variance_type")  # different samplers have different defaults
    levels = [_levels(side, section) for side in (old, new)]
    if levels[0] is not None and levels[1] is not None and torch.equal(levels[0], levels[1]):
        none.update(section + option for option in LEVELS)
    return none


def _levels(settings: Mapping[str, Any], section: str) -> torch.Tensor | None:
    """Noise levels (alphas_cumprod) by diffusion time; None if the options are not valid."""
    kind = _scheduler_class({"_target_": settings.get(f"{section}_target_")})
    options = {name: settings[section + name] for name in LEVELS
               if section + name in settings and name in _defaults(kind)}  # fmt: skip
    steps = options.get("num_train_timesteps")
    if not isinstance(steps, int) or not 1 <= steps <= LARGEST["num_train_timesteps"]:
        return None
    try:
        levels: torch.Tensor = kind(**options).alphas_cumprod
    except (TypeError, ValueError, NotImplementedError, RuntimeError):
        return None
    return levels


def _scheduler_class(scheduler: Mapping[str, Any]) -> Any:
    from diffusion_policy.model.diffusion.noise_schedulers import scheduler_class  # heavy, and often not needed

    target = scheduler.get("_target_")
    return scheduler_class(target if target in SCHEDULER_TARGETS else SCHEDULER_TARGETS[0])


def _defaults(kind: Any) -> dict[str, Any]:
    """Default values of a constructor's arguments."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return {each.name: each.default for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD}


def _observations(spec: StepSpec) -> Iterator[tuple[str, Any]]:
    """Paths and values of the observations: their keys in order, then type, shape and names of each."""
    yield "policy.shape_meta.obs", [field.key for field in spec.obs]
    for field in spec.obs:
        path = f"policy.shape_meta.obs.{field.key}"
        yield f"{path}.type", field.kind
        yield f"{path}.shape", list(field.shape)
        if field.kind == "low_dim":
            yield f"{path}.names", list(field.names)


def _formatted(value: Any) -> str:
    """A value as it is written in a config."""
    return setting("", value)[1:]
