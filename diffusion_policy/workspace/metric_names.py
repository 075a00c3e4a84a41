"""Names of the metrics that a run computes; checks before a run that checkpoints are ranked by metrics among them."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.env_runner.real_pusht_image_runner import RealPushTImageRunner
from diffusion_policy.run_folder.reading import POSITION_ERROR
from diffusion_policy.spec import arms_of
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.checkpointing import Ranking
from diffusion_policy.workspace.metrics import TOLERANCE
from diffusion_policy.workspace.validation import MOTION_ERRORS

logger = logging.getLogger(__name__)

ALWAYS = ("global_step", "epoch", "train_loss", "lr", "gradient_norm", "samples_per_second")
ACTIVE_FEATURES = "val_image_features"
GRIPPER_SCORES = tuple(
    f"val_gripper_{name}"
    for name in (
        "f1", "recall", "precision", "events_recorded", "events_found", "false_flips", "frame_accuracy", "recall_low",
        "recall_high", "precision_low", "precision_high", "lag_steps", "lag_ms",
    )
)  # fmt: skip
# Of policies with memory; the log also has those per button and per head.
SEQUENCE_SCORES = ("val_accuracy_buttons", "val_accuracy_camera", "val_f1", "val_loss_buttons", "val_loss_camera")
ROLLOUTS = tuple(
    f"test_{name}" for name in ("success", "success_low", "success_high", "grasped", "scenes", "n_action_steps")
)


def known_names(n_action_steps: int) -> list[str]:
    """Names of all metrics that a run may compute, except those of custom rollout runners."""
    by_step = [f"{name}_step_{i}" for name in MOTION_ERRORS.values() for i in range(1, n_action_steps + 1)]
    validated = ["val_loss", *SEQUENCE_SCORES, *MOTION_ERRORS.values(), *GRIPPER_SCORES, ACTIVE_FEATURES]
    return [*ALWAYS, *validated, *(f"{name}_model" for name in validated), *by_step, TOLERANCE, *ROLLOUTS]


def unmeasured(name: str, cfg: DictConfig, action_names: Sequence[str], *, held_out: bool) -> str | None:
    """The reason why this run does not compute a known metric; None if it does."""
    if name in ALWAYS:
        return None
    if name in ROLLOUTS:
        if not cfg.training.rollout_every:
            return f"training.rollout_every is {cfg.training.rollout_every}"
        return "the task has no simulator" if is_real_robot(cfg) else None
    if not held_out:
        return "no episode is held out"
    every = "val_every" if name.startswith(("val_loss", *SEQUENCE_SCORES)) else "sample_every"
    if not cfg.training[every]:
        return f"training.{every} is {cfg.training[every]}"
    if every == "sample_every" and OmegaConf.select(cfg, "sampler.max_episodes") == 0:
        return "sampler.max_episodes is 0"
    lacking = _lacking(name, action_names)
    if lacking is not None:
        return f"the task has no {lacking}"
    return "training.use_ema is false" if name.endswith("_model") and not cfg.training.use_ema else None


def _lacking(name: str, action_names: Sequence[str]) -> str | None:
    """The part of an action (such as "gripper") that a metric needs and this action lacks; None if it has all."""
    arms = arms_of(action_names)
    if name == POSITION_ERROR and any(arm.joints for arm in arms):
        return None  # without positions, the joints' error ranks
    parts = {
        "gripper": any(arm.gripper for arm in arms),
        "position": any(arm.position for arm in arms),
        "rotation": any(arm.rotation for arm in arms),
        "joint": any(arm.joints for arm in arms),
    }
    return next((part for part, present in parts.items() if name.startswith(f"val_{part}") and not present), None)


def is_real_robot(cfg: DictConfig) -> bool:
    """Whether the task is on a real robot: it has no simulator for rollouts."""
    return str(cfg.task.env_runner._target_).endswith(f".{RealPushTImageRunner.__name__}")


def check_metric_names(cfg: DictConfig, action_names: Sequence[str], *, held_out: bool) -> None:
    """Raise for unknown metrics; warn if this run computes none of those that checkpoints are ranked by.

    Args:
        cfg: config of the run.
        action_names: names of the action dimensions of the task.
        held_out: whether there are validation episodes.

    Raises:
        TrainingError: an unknown metric in `checkpoint.topk` or `checkpoint.best`.
    """
    topk, best = cfg.checkpoint.topk, cfg.checkpoint.best
    ranked = {
        "checkpoint.topk.monitor_key": Ranking.read(topk.monitor_key, topk.mode).keys if topk.k else (),
        "checkpoint.best": tuple(entry.monitor_key for entry in best),
    }
    if is_real_robot(cfg) or not cfg.training.rollout_every:  # custom runners have their own metrics
        _refuse_unknown(ranked, known_names(int(cfg.n_action_steps)))
    for setting, names in ranked.items():
        reasons = [unmeasured(name, cfg, action_names, held_out=held_out) for name in names]
        if names and all(reasons):
            shown = [reason for name, reason in zip(names, reasons, strict=True) if name not in ROLLOUTS] or reasons
            logger.warning(
                "%s ranks checkpoints by %s, which this run does not measure (%s), so none is chosen by it; deploy "
                "latest.ckpt, or rank by train_loss",
                setting, ", ".join(names), shown[0],
            )  # fmt: skip


def _refuse_unknown(ranked: Mapping[str, Sequence[str]], known: Sequence[str]) -> None:
    for setting, names in ranked.items():
        for name in (name for name in names if name not in known):
            closest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {closest[0]}?" if closest else f"there are {', '.join(known)}"
            raise TrainingError(f"{setting}: no metric is called {name}; {hint}")
