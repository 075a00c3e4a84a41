"""Checks the checkpoint that a training run starts from (`pretrained.path`), and plans or loads its weights.

`train.py` loads them and `doctor.py --config` only plans, so both refuse the same checkpoints.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.inherit import inherit, plan_inheritance
from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.adapt.settings_fit import check_settings
from diffusion_policy.adapt.target import NORMALIZER
from diffusion_policy.checkpoint import Checkpoint, build_policy, read_checkpoint
from diffusion_policy.commands import command
from diffusion_policy.installation import CONFIG
from diffusion_policy.shape_meta import find_step_spec, step_spec_of
from diffusion_policy.spec import StepSpec, arms_of, check_semantics, layout_from_range

logger = logging.getLogger(__name__)

WHICH = ("same", "ema_model", "model")


def load_pretrained(
    source: Path | Checkpoint, cfg: DictConfig, model: nn.Module, ema_model: nn.Module | None
) -> tuple[Checkpoint, Ledger]:
    """Load a checkpoint's weights and normalizer into model and EMA, or into neither.

    Args:
        source: the checkpoint, or its path.
        cfg: of the run.
        model: the live policy.
        ema_model: its average; None: there is none.

    Raises:
        AdaptError: its actions differ from the task's, it was trained with other settings, or the weights do not fit
            or cover too little.
    """
    checkpoint, chosen = _checked(source, cfg)
    if cfg.pretrained.which == "same" and ema_model is not None and _average_differs(checkpoint):
        logger.warning(
            "pretrained.which=same: training starts from the live weights of %s; its averaged ones are lost "
            "in the first updates, since the EMA starts with decay 0. pretrained.which=ema_model starts from "
            "the average",
            checkpoint.path,
        )
    ledger = inherit(chosen, model, ema_model, **_inherit_options(cfg))
    logger.info("weights of %s: %s", checkpoint.path, ledger.summary())
    return checkpoint, ledger


def plan_pretrained(path: Path, cfg: DictConfig) -> Ledger:
    """The ledger of `load_pretrained` for a config, without loading anything.

    Raises:
        AdaptError: as `load_pretrained`.
        CheckpointError: the config's policy cannot be built.
    """
    _, chosen = _checked(path, cfg)
    state = build_policy(cfg, values=False).state_dict()
    parts = ("model", "ema_model") if cfg.training.use_ema else ("model",)
    return plan_inheritance(chosen, dict.fromkeys(parts, state), **_inherit_options(cfg)).ledger


def accepted_changes(cfg: DictConfig) -> list[str]:
    """The settings in `pretrained.accept`, whose values may differ from those of the checkpoint's training.

    Raises:
        AdaptError: it is not a list of names.
    """
    accepted = OmegaConf.select(cfg, "pretrained.accept", default=None)
    if accepted is None:
        return []
    if not isinstance(accepted, ListConfig) or not all(isinstance(name, str) for name in accepted):
        raise AdaptError(f"pretrained.accept is {accepted!r}; expected names of settings: [policy.n_head]")
    return list(accepted)


def _inherit_options(cfg: DictConfig) -> dict[str, Any]:
    return {"min_coverage": float(cfg.pretrained.min_coverage), "recompute": bool(accepted_changes(cfg))}


def _checked(source: Path | Checkpoint, cfg: DictConfig) -> tuple[Checkpoint, Checkpoint]:
    """The checked checkpoint, as read and with the weights chosen by `pretrained.which` for both models."""
    settings = cfg.pretrained
    if settings.which not in WHICH:
        raise AdaptError(f"pretrained.which is {settings.which!r}; expected one of {', '.join(WHICH)}")
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    check_actions(checkpoint, step_spec_of(cfg))
    check_settings(checkpoint, cfg, accepted_changes(cfg), sizes=settings.min_coverage >= 1)
    if settings.which == "same":
        return checkpoint, checkpoint
    if settings.which not in checkpoint.state_dicts:
        raise AdaptError(f"{checkpoint.path} has no {settings.which}; it has {', '.join(checkpoint.state_dicts)}")
    weights = checkpoint.state_dicts[settings.which]
    return checkpoint, replace(checkpoint, state_dicts={"model": weights, "ema_model": weights})


def _average_differs(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's averaged weights differ from its live ones."""
    live, averaged = (checkpoint.state_dicts.get(which, {}) for which in ("model", "ema_model"))
    shared = live.keys() & averaged.keys()
    return not all(torch.equal(live[key], averaged[key]) for key in shared)


class ActionsError(AdaptError):
    """A checkpoint's actions differ from the task's.

    Attributes:
        command: the command that grows the checkpoint; "" where it cannot be grown.
        overrides: overrides of the config that choose a task with the checkpoint's actions.
    """

    def __init__(self, message: str, command: str = "", overrides: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.command, self.overrides = command, overrides


def check_actions(checkpoint: Checkpoint, spec: StepSpec) -> None:
    """Refuse a checkpoint whose actions or observed poses differ from the task's in name or meaning.

    Raises:
        ActionsError: other dimensions, or a rotation vector and gripper width where a quaternion is expected.
        SpecError: the same names with other units, order or polarity.
    """
    where = str(checkpoint.path)
    own = find_step_spec(checkpoint.cfg)
    if own is not None and own.action_names != spec.action_names:
        raise _other_actions(where, own.action_names, spec)
    check_relative(checkpoint, spec)
    weights: dict[str, Tensor] = checkpoint.state_dicts.get("model", {})
    for key, names in (("action", spec.action_names), *((field.key, field.names) for field in spec.low_dim)):
        entry = f"{NORMALIZER}{key}.input_stats"
        low, high = weights.get(f"{entry}.min", torch.empty(0)), weights.get(f"{entry}.max", torch.empty(0))
        poses = ([*arm.position, *arm.rotation] for arm in arms_of(names) if arm.representation == "quaternion")
        ranges = [(low[pose].tolist(), high[pose].tolist()) for pose in poses if max(pose) < min(len(low), len(high))]
        if any(layout_from_range(*both) == "xyz_rotvec_width" for both in ranges):
            verb = "predicts" if key == "action" else f"reads {key} as"
            raise ActionsError(
                f"{where} {verb} rotation vector and gripper width (according to its statistics of {key}); "
                f"the task has {list(names)}, so its weights have another meaning"
            )
    semantics = (checkpoint.provenance or {}).get("action_semantics")
    check_semantics(semantics, spec.semantics, where)


def check_relative(checkpoint: Checkpoint, spec: StepSpec) -> None:
    """Refuse absolute actions where the task's are relative to the current pose, and the reverse.

    Raises:
        ActionsError: they are.
    """
    own = find_step_spec(checkpoint.cfg)
    if own is None or own.relative == spec.relative:
        return
    theirs, ours = ("relative to the current pose", "absolute") if own.relative else ("absolute", "relative")
    change = f"task.dataset.relative_actions={own.relative}"
    raise ActionsError(
        f"{checkpoint.path} predicts actions that are {theirs}, the task's are {ours}: its weights and the ranges that "
        f"its normalizer was fitted to mean something else\nadd to the command: {change}",
        overrides=(change,),
    )


def _other_actions(where: str, names: tuple[str, ...], spec: StepSpec) -> ActionsError:
    difference = (
        f"{where} predicts {len(names)} numbers {list(names)}, the task has {spec.action_dim} {list(spec.action_names)}"
    )
    task = _task_of(names)
    if set(names) < set(spec.action_names):
        grow = command("finetune_from_7d_to_8d", "--old_ckpt", where, "--new_ckpt", "GROWN.ckpt")
        return ActionsError(f"{difference}; grow it first: {grow}", grow)
    if task:
        return ActionsError(f"{difference}\nadd to the command: {task}", overrides=(task,))
    return ActionsError(difference)


def _task_of(action_names: tuple[str, ...]) -> str:
    """The override that chooses a task with these actions; "" if config/ has none."""
    for path in sorted((CONFIG / "task").glob("*.yaml")):
        if tuple(OmegaConf.select(OmegaConf.load(path), "shape_meta.action.names", default=())) == action_names:
            return f"task={path.stem}"
    return ""
