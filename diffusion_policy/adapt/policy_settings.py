"""Settings under which weights mean what they were trained to mean, and how those of a checkpoint and a config differ.

A setting that changes the number or the width of tensors is seen in their names and shapes. Many others leave every
tensor as it is and change what is computed with it: heads, the noise schedule, the part of the image that is seen.
Each setting of the policy, its scheduler and its observations has one entry here that says which kind it is; the last
kind may differ between a checkpoint and the run that starts from it, and says why.
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
from diffusion_policy.adapt.layout import policy_config
from diffusion_policy.checkpoint import LARGEST, SCHEDULER_TARGETS
from diffusion_policy.commands import setting
from diffusion_policy.installation import CONFIG
from diffusion_policy.policy.registry import class_of_options
from diffusion_policy.shape_meta import step_spec_of
from diffusion_policy.spec import StepSpec

Shapes = Mapping[str, tuple[int, ...]]
TARGET = "policy._target_"


class Act(Enum):
    """What a change does to weights that are loaded all the same."""

    SIZE = "other tensors, by name or shape"
    FUNCTION = "the same tensors are used for another computation"
    SAMPLING = "acts where actions are sampled, which every command chooses anew"
    TRAINING = "acts in training only"

    @property
    def free(self) -> bool:
        """Whether a run may differ in it from the checkpoint that it starts from."""
        return self in (Act.SAMPLING, Act.TRAINING)


@dataclass(frozen=True)
class Meaning:
    """What a change of one setting does, and in words."""

    act: Act
    note: str


_SCHEDULE = Meaning(Act.FUNCTION, "another noise schedule than the one the weights were trained on")
_CLIPPING = Meaning(Act.FUNCTION, "what is sampled is cut off elsewhere at every denoising step")
_STEPS = Meaning(Act.SAMPLING, "how denoising steps are placed")
_SOLVER = Meaning(Act.SAMPLING, "how the solver steps")

# Arguments of the policies' constructors; the scheduler and its observations have entries of their own below.
POLICY: Mapping[str, Meaning] = {
    "horizon": Meaning(Act.SIZE, "one position embedding a step"),
    "n_obs_steps": Meaning(Act.SIZE, "one condition token an observed step"),
    "n_layer": Meaning(Act.SIZE, "layers of the denoiser"),
    "n_cond_layers": Meaning(Act.SIZE, "layers over the condition"),
    "n_emb": Meaning(Act.SIZE, "width of every layer"),
    "encoder_width": Meaning(Act.SIZE, "channels of the image encoder"),
    "down_dims": Meaning(Act.SIZE, "channels of the denoiser's levels"),
    "kernel_size": Meaning(Act.SIZE, "width of the denoiser's convolutions"),
    "diffusion_step_embed_dim": Meaning(Act.SIZE, "width of the embedded diffusion time"),
    "cond_predict_scale": Meaning(Act.SIZE, "numbers that the condition gives a channel"),
    "n_groups": Meaning(Act.FUNCTION, "the denoiser normalizes other groups of channels"),
    "obs_as_global_cond": Meaning(Act.FUNCTION, "observations enter elsewhere"),
    "n_head": Meaning(Act.FUNCTION, "the same attention matrices are cut into other heads"),
    "crop_shape": Meaning(Act.FUNCTION, "the network sees another part of the image"),
    "eval_fixed_crop": Meaning(Act.FUNCTION, "the network sees another crop of the image"),
    "encoder_stride": Meaning(Act.FUNCTION, "the encoder's last feature map has another resolution"),
    "encoder_activation": Meaning(Act.FUNCTION, "image features end in another function"),
    "obs_encoder_group_norm": Meaning(Act.FUNCTION, "the encoder normalizes otherwise"),
    "causal_attn": Meaning(Act.FUNCTION, "attention sees other steps"),
    "time_as_cond": Meaning(Act.FUNCTION, "the diffusion time enters elsewhere"),
    "obs_as_cond": Meaning(Act.FUNCTION, "observations enter elsewhere"),
    "pred_action_steps_only": Meaning(Act.FUNCTION, "another part of the horizon is denoised"),
    "n_action_steps": Meaning(Act.SAMPLING, "another slice of the predicted actions is executed"),
    "num_inference_steps": Meaning(Act.SAMPLING, "another number of denoising steps"),
    "eta": Meaning(Act.SAMPLING, "how random DDIM is"),
    "p_drop_emb": Meaning(Act.TRAINING, "dropout"),
    "p_drop_attn": Meaning(Act.TRAINING, "dropout"),
    "color_jitter": Meaning(Act.TRAINING, "images are varied while training"),
}

# Options of the schedulers that a config may name. Those of the schedule are compared by the noise levels they make.
LEVELS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
SCHEDULER: Mapping[str, Meaning] = {
    **dict.fromkeys(LEVELS, _SCHEDULE),
    "prediction_type": Meaning(Act.FUNCTION, "the network's output is taken for another quantity"),
    "variance_type": Meaning(Act.FUNCTION, "DDPM adds other noise between its steps"),
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
# Options that another one switches off.
_ONLY_WITH = {
    "clip_sample_range": "clip_sample",
    "dynamic_thresholding_ratio": "thresholding",
    "sample_max_value": "thresholding",
}

_ONLY_ACTED = "policy.pred_action_steps_only"
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")
_MOST_REFERENCES = 16  # more refer to each other in a ring

_CLASS = Meaning(Act.SIZE, "another policy")
_LENGTH = Meaning(Act.FUNCTION, "convolutions see sequences of another length")
_OBSERVATIONS = Meaning(Act.FUNCTION, "the same widths carry other quantities")
_PICTURES = Meaning(Act.FUNCTION, "the network sees the scene at another scale")
_LATENCY = Meaning(Act.FUNCTION, "the predicted steps begin at another time")
# Settings that are free, yet have to follow when another one is set back: by what they must fit.
COMPANIONS: Mapping[str, tuple[str, ...]] = {
    "policy.n_action_steps": ("policy.horizon", "policy.n_obs_steps"),
    "policy.num_inference_steps": ("policy.noise_scheduler.num_train_timesteps",),
}
# Outside of `policy`, yet part of what the weights mean.
DATA: Mapping[str, Meaning] = {"n_latency_steps": _LATENCY}


@dataclass(frozen=True)
class Difference:
    """One setting that a checkpoint was trained with otherwise than a config says.

    Attributes:
        path: of the setting in the policy's section, such as policy.horizon.
        name: as a user sets it, such as policy.n_head or horizon.
        theirs: the checkpoint's value.
        ours: the config's value.
        meaning: what the change does.
        override: that gives the config the checkpoint's value; "" where a list of observations has to be written.
    """

    path: str
    name: str
    theirs: Any
    ours: Any
    meaning: Meaning
    override: str

    def __str__(self) -> str:
        note = "" if self.meaning.act is Act.SIZE else f": {self.meaning.note}"
        return f"{self.name} {_shown(self.theirs)} (here {_shown(self.ours)}{note})"


def differences(theirs: DictConfig, tensors: Shapes, cfg: DictConfig) -> list[Difference]:
    """In which settings a checkpoint's weights were trained otherwise than a config says.

    Args:
        theirs: the checkpoint's config; what it does not tell is not compared.
        tensors: names and shapes of its weights, which count where they contradict its config.
        cfg: that is to be trained, its interpolations unresolved.

    Raises:
        AdaptError, SpecError: a config without a policy, or with observations that are none.
    """
    old, new = settings_of(theirs) if "policy" in theirs else {}, settings_of(cfg)
    if old.get(TARGET, new[TARGET]) != new[TARGET]:  # nothing else can be compared
        return [_other_class(old[TARGET], new[TARGET])]
    known = class_of_options(policy_config(cfg)).tensors
    if known.marker in tensors:
        old |= {f"policy.{key}": value for key, value in known.settings(tensors).items() if key in POLICY}
    differing = [path for path in new if path in old and old[path] != new[path]]
    alike = _without_effect(old, new) if differing else set()
    plain = _plain(cfg)
    return [_difference(path, old, new, plain) for path in differing if path not in alike]


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """Every setting that this module knows, by its path in the config, absent ones at their defaults.

    Raises:
        AdaptError, SpecError: no policy, or observations that are none.
    """
    policy = policy_config(cfg)
    found = {"n_latency_steps": OmegaConf.select(cfg, "n_latency_steps", default=0)}
    kind = class_of_options(policy)
    found[TARGET] = f"{kind.__module__}.{kind.__qualname__}"
    for name, default in _defaults(kind).items():
        if name in POLICY and (name in policy or default is not inspect.Parameter.empty):
            found[f"policy.{name}"] = policy.get(name, default)
    scheduler = policy.get("noise_scheduler")
    if isinstance(scheduler, Mapping):
        found["policy.noise_scheduler._target_"] = scheduler.get("_target_")
        for name, default in _defaults(_scheduler_class(scheduler)).items():
            found[f"policy.noise_scheduler.{name}"] = scheduler.get(name, default)
    if found.get("policy.num_inference_steps", 0) is None:
        found["policy.num_inference_steps"] = found.get("policy.noise_scheduler.num_train_timesteps")
    found |= dict(_observations(step_spec_of(cfg)))
    return {path: list(value) if isinstance(value, tuple) else value for path, value in found.items()}


def meaning_of(path: str) -> Meaning | None:
    """The entry of a setting by its path; None where this module knows none."""
    *section, name = path.split(".")
    if path in DATA:
        return DATA[path]
    if path == TARGET:
        return _CLASS
    if section == ["policy", "noise_scheduler"]:
        return Meaning(Act.SAMPLING, "which sampler") if name == "_target_" else SCHEDULER.get(name)
    if section == ["policy"]:
        return POLICY.get(name)
    if path.startswith("policy.shape_meta.obs"):
        return _OBSERVATIONS
    return None


def unknown_settings(cfg: DictConfig) -> list[str]:
    """Settings of a config's policy and scheduler that nothing here knows, such as those of a fork."""
    policy = policy_config(cfg)
    scheduler = policy.get("noise_scheduler")
    names = [f"policy.{name}" for name in policy if name not in (*POLICY, "_target_", "shape_meta", "noise_scheduler")]
    if isinstance(scheduler, Mapping):
        names += [f"policy.noise_scheduler.{name}" for name in scheduler if name not in (*SCHEDULER, "_target_")]
    return names


def check_accepted(accepted: Collection[str], cfg: DictConfig) -> None:
    """Refuse names that no setting has.

    Raises:
        AdaptError: names the closest one.
    """
    plain = _plain(cfg)
    known = [root_of(plain, path) for path in settings_of(cfg)]
    for name in accepted:
        if name not in known:
            closest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise AdaptError(
                f"pretrained.accept names {name}, which is no setting of the policy; the closest is {closest[0]}"
            )


def root_of(plain: Mapping[str, Any], path: str) -> str:
    """Where the value at a path comes from: `horizon` for `policy.horizon`, which refers to it.

    Args:
        plain: a config as plain data, its interpolations unresolved.
        path: in it.
    """
    parts, depth = path.split("."), 1
    for _ in range(_MOST_REFERENCES):
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
    meaning = meaning_of(path)
    assert meaning is not None, path
    if path == "policy.n_action_steps" and (old.get(_ONLY_ACTED) or new.get(_ONLY_ACTED)):
        meaning = POLICY["pred_action_steps_only"]
    if path.endswith(".shape") and len(new[path]) == 3:
        meaning = _PICTURES
    if path == "policy.horizon" and "policy.down_dims" in new:
        meaning = _LENGTH
    root = root_of(plain, path)
    override = ""
    if path != "policy.shape_meta.obs" and not path.endswith(".type"):
        override = setting(root if _holds(plain, root) else f"+{root}", old[path])
    if path == "policy.n_action_steps" and _holds(plain, "n_action_steps"):  # a sum there
        override = setting("n_action_steps", old[path] - old.get("n_latency_steps", 0))
    return Difference(path, root, old[path], new[path], meaning, override)


def _other_class(theirs: str, ours: str) -> Difference:
    """A checkpoint of another class; the override names the config of config/ that trains it."""
    configs = {path: OmegaConf.load(path) for path in sorted(CONFIG.glob("train_*.yaml"))}
    names = [path.stem for path, config in configs.items() if OmegaConf.select(config, TARGET) == theirs]
    return Difference(TARGET, TARGET, theirs, ours, _CLASS, f"--config-name={names[0]}" if names else "")


def _holds(plain: Mapping[str, Any], path: str) -> bool:
    node: Any = plain
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _without_effect(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    """Paths whose values may differ, since nothing comes of them: equal noise levels, options that are switched off."""
    section = "policy.noise_scheduler."
    none = {f"{section}{option}" for option, switch in _ONLY_WITH.items()
            if not (old.get(section + switch) or new.get(section + switch))}  # fmt: skip
    if old.get(f"{section}_target_") != new.get(f"{section}_target_"):
        none.add(f"{section}variance_type")  # of two samplers, each has its own
    levels = [_levels(side, section) for side in (old, new)]
    if levels[0] is not None and levels[1] is not None and torch.equal(levels[0], levels[1]):
        none.update(section + option for option in LEVELS)
    return none


def _levels(settings: Mapping[str, Any], section: str) -> torch.Tensor | None:
    """Noise levels by diffusion time; None where the options make none."""
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
    from diffusion_policy.model.diffusion.noise_schedulers import scheduler_class  # settings are compared without it

    target = scheduler.get("_target_")
    return scheduler_class(target if target in SCHEDULER_TARGETS else SCHEDULER_TARGETS[0])


def _defaults(kind: Any) -> dict[str, Any]:
    """Arguments of a constructor, with their defaults."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return {each.name: each.default for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD}


def _observations(spec: StepSpec) -> Iterator[tuple[str, Any]]:
    """What is observed, in order, and of each its shape and what its numbers are."""
    yield "policy.shape_meta.obs", [field.key for field in spec.obs]
    for field in spec.obs:
        path = f"policy.shape_meta.obs.{field.key}"
        yield f"{path}.type", field.kind
        yield f"{path}.shape", list(field.shape)
        if field.kind == "low_dim":
            yield f"{path}.names", list(field.names)


def _shown(value: Any) -> str:
    """A value as a config has it."""
    return setting("", value)[1:]
