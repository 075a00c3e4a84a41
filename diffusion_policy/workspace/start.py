"""Where training starts: decided once, in this order.

1. the run's own `checkpoints/latest.ckpt`, if `training.resume` is true and there is one; or the checkpoint that
   `training.resume` names, which must exist;
2. `pretrained.path`, if it is set and `pretrained.load_weights` is true: it must exist, fit, and account for at least
   `pretrained.min_coverage` of the model, or nothing starts;
3. scratch.

A run folder is new unless `hydra.run.dir` names an old one, so `training.resume=True` costs a new run nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from diffusion_policy.adapt.inherit import inherit
from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.checkpoint import Checkpoint, read_checkpoint
from diffusion_policy.commands import command
from diffusion_policy.resolvers import flat_config
from diffusion_policy.spec import POSE, StepSpec, action_semantics, check_semantics, layout_from_range, read_shape_meta
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.resuming import LATEST

logger = logging.getLogger(__name__)

Origin = Literal["own checkpoint", "pretrained", "scratch"]
WHICH = ("same", "ema_model", "model")


@dataclass(frozen=True)
class Start:
    """The decision.

    Attributes:
        origin: which of the three.
        path: of the checkpoint, None for scratch.
        reason: why, in words for the log.
    """

    origin: Origin
    path: Path | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """For the checkpoint's provenance; without folders of this machine."""
        return {"origin": self.origin, "checkpoint": self.path.name if self.path else None, "reason": self.reason}


def decide_start(cfg: DictConfig, folder: Path) -> Start:
    """Decide from the config and what lies in the run folder; nothing is loaded.

    Raises:
        TrainingError: a checkpoint that was asked for is not there.
    """
    resume, pretrained = cfg.training.resume, cfg.pretrained
    if isinstance(resume, str):
        path = _checkpoint_in(Path(resume))
        if not path.is_file():
            raise TrainingError(f"training.resume={resume}: no checkpoint there; expected a .ckpt file or a run folder")
        return Start("own checkpoint", path, "training.resume names it")
    own = folder / "checkpoints" / LATEST
    if resume and own.is_file():
        return Start("own checkpoint", own, "training.resume is true and the run folder has it")
    why_not_own = "the run folder has no checkpoint" if resume else "training.resume is false"
    if pretrained.path is None:
        return Start("scratch", None, f"{why_not_own}, pretrained.path is not set")
    if not pretrained.load_weights:
        return Start("scratch", None, f"{why_not_own}, pretrained.load_weights is false: {pretrained.path} is ignored")
    path = Path(pretrained.path)
    if not path.is_file():
        raise TrainingError(
            f"pretrained.path={pretrained.path}: no such file; correct the path, or set pretrained.path=null to train "
            "from scratch"
        )
    return Start("pretrained", path, why_not_own)


def _checkpoint_in(path: Path) -> Path:
    return path / "checkpoints" / LATEST if path.is_dir() else path


def load_pretrained(
    path: Path, settings: DictConfig, spec: StepSpec, model: nn.Module, ema_model: nn.Module | None
) -> tuple[Checkpoint, Ledger]:
    """Give model and EMA the weights of a checkpoint, normaliser included; both or neither.

    Raises:
        TrainingError: its actions are not those of the task.
        AdaptError: the weights do not fit or cover too little.
    """
    if settings.which not in WHICH:
        raise TrainingError(f"pretrained.which is {settings.which!r}; expected one of {', '.join(WHICH)}")
    checkpoint = read_checkpoint(path)
    check_actions(checkpoint, spec)
    chosen = checkpoint
    if settings.which == "same":
        if ema_model is not None and _average_differs(checkpoint):
            logger.warning(
                "pretrained.which=same: training goes on from the live weights of %s; its averaged ones are forgotten "
                "in the first updates, since the EMA starts with decay 0. pretrained.which=ema_model trains on from "
                "the average",
                path,
            )
    else:
        if settings.which not in checkpoint.state_dicts:
            raise TrainingError(f"{path} has no {settings.which}; it has {', '.join(checkpoint.state_dicts)}")
        weights = checkpoint.state_dicts[settings.which]
        chosen = replace(checkpoint, state_dicts={"model": weights, "ema_model": weights})
    ledger = inherit(chosen, model, ema_model, min_coverage=float(settings.min_coverage))
    logger.info("weights of %s: %s", path, ledger.summary())
    return checkpoint, ledger


def _average_differs(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's averaged weights are not simply its live ones."""
    live, averaged = (checkpoint.state_dicts.get(which, {}) for which in ("model", "ema_model"))
    shared = live.keys() & averaged.keys()
    return not all(torch.equal(live[key], averaged[key]) for key in shared)


def check_actions(checkpoint: Checkpoint, spec: StepSpec) -> None:
    """Refuse a checkpoint whose actions are not the task's, by name and by meaning.

    Raises:
        TrainingError: other dimensions, or a rotation vector and gripper width where a quaternion is expected.
        SpecError: the same names with other units, order or polarity.
    """
    where = str(checkpoint.path)
    shape_meta = OmegaConf.select(checkpoint.cfg, "policy.shape_meta") or OmegaConf.select(checkpoint.cfg, "shape_meta")
    if shape_meta is not None:
        names = read_shape_meta(OmegaConf.to_container(shape_meta, resolve=True)).action_names  # type: ignore[arg-type]
        if names != spec.action_names:
            advice = ""
            if set(names) < set(spec.action_names):
                grow = command("finetune_from_7d_to_8d", "--old_ckpt", where, "--new_ckpt", "GROWN.ckpt")
                advice = f"; grow it first: {grow}"
            raise TrainingError(
                f"{where} predicts {len(names)} numbers {list(names)}, the task has {spec.action_dim} "
                f"{list(spec.action_names)}{advice}"
            )
    weights: dict[str, Tensor] = checkpoint.state_dicts.get("model", {})
    entry = "normalizer.params_dict.action.input_stats"
    low, high = weights.get(f"{entry}.min", torch.empty(0)), weights.get(f"{entry}.max", torch.empty(0))
    if (
        spec.action_names[: len(POSE)] == POSE
        and layout_from_range(low[: len(POSE)].tolist(), high[: len(POSE)].tolist()) == "xyz_rotvec_width"
    ):
        raise TrainingError(
            f"{where} predicts rotation vector and gripper width (its action statistics tell); "
            f"the task has {list(spec.action_names)}, so its weights mean something else"
        )
    semantics = (checkpoint.provenance or {}).get("action_semantics")
    check_semantics(semantics, action_semantics(spec.action_names), where)


def describe_ledger(ledger: Ledger) -> dict[str, int]:
    """Tensors and parameters of the live model that were inherited, grown and fresh, for log and metrics.

    A grown tensor counts as one grown tensor; of its parameters the old slots are inherited, the new ones grown.
    """
    counts, parameters = ledger.counts("model"), ledger.parameters("model")
    return {
        "inherited_tensors": counts["copied"].tensors + counts["recomputed"].tensors,
        "inherited_parameters": parameters["inherited"] + parameters["recomputed"],
        "grown_tensors": counts["grown"].tensors,
        "grown_parameters": parameters["grown"],
        "fresh_tensors": counts["fresh"].tensors,
        "fresh_parameters": parameters["fresh"],
    }


def config_changes(old: DictConfig, new: DictConfig) -> list[str]:
    """What a resumed run does differently, one line an entry."""
    before, after = flat_config(old), flat_config(new)
    ignored = ("training.resume", "pretrained.", "training.device", "logging.")
    names = sorted(before.keys() | after.keys())
    return [
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in names
        if before.get(name) != after.get(name) and not name.startswith(ignored)
    ]
