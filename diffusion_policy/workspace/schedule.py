"""The learning rate over a run's updates, also if a resumed run has fewer or more of them than before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from diffusers.optimization import SchedulerType, get_scheduler
from omegaconf import DictConfig
from torch.optim.lr_scheduler import LambdaLR

from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.run_state import TrainingProgress

logger = logging.getLogger(__name__)

# piecewise_constant needs step rules, which the config has no key for.
SCHEDULES = tuple(kind.value for kind in SchedulerType if kind is not SchedulerType.PIECEWISE_CONSTANT)
# Rates that differ by less count as equal: the schedule is one update longer or shorter.
JUMP = 1.01


def total_updates(progress: TrainingProgress, n_batches: int, settings: DictConfig) -> int:
    """Updates made plus those still to come; the number is constant while a run continues unchanged.

    Args:
        progress: how far the run has come.
        n_batches: in an epoch.
        settings: `training` of the config.
    """
    accumulated = settings.gradient_accumulate_every
    epochs_left = max(0, settings.num_epochs - progress.epoch)
    made_of_epoch = -(-progress.batch // accumulated) if epochs_left else 0
    return progress.global_step + epochs_left * -(-n_batches // accumulated) - made_of_epoch


def make_schedule(optimizer: torch.optim.Optimizer, settings: DictConfig, n_updates: int) -> LambdaLR:
    """The schedule that `training.lr_scheduler` and `lr_warmup_steps` name, over all updates of the run.

    After the last update the rate stays constant: a cosine would rise again.

    Raises:
        TrainingError: there is no such schedule, or the settings do not fit it.
    """
    if settings.lr_scheduler not in SCHEDULES:
        raise TrainingError(
            f"training.lr_scheduler is {settings.lr_scheduler!r}; expected one of {', '.join(SCHEDULES)}"
        )
    try:
        schedule = get_scheduler(
            settings.lr_scheduler,
            optimizer=optimizer,
            num_warmup_steps=settings.lr_warmup_steps,
            num_training_steps=n_updates,
        )
    except ValueError as error:
        raise TrainingError(f"training.lr_scheduler: {error}") from error
    schedule.lr_lambdas = [_held_after(n_updates, factor) for factor in schedule.lr_lambdas]
    return schedule


def _held_after(last: int, factor: Callable[[int], float]) -> Callable[[int], float]:
    return lambda step: factor(min(step, last))


def plain_schedule(state: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state without the functions, which follow from the config."""
    return {key: value for key, value in state.items() if key != "lr_lambdas"} | {
        "lr_lambdas": [None] * len(state["lr_lambdas"])
    }


def resume_rates(
    optimizer: torch.optim.Optimizer, schedule: LambdaLR, moments: dict[str, Any], position: dict[str, Any]
) -> None:
    """Continue a run at the rates that the present config gives at that point; a jump is logged with its numbers.

    Moments and position are the run's; rates, weight decay and betas are the config's, so that its changes take effect.
    Without changes they are bit-identical.

    Args:
        optimizer, schedule: built from the config.
        moments: state of the run's optimizer.
        position: state of the run's schedule.

    Raises:
        TrainingError: the optimizer's parameter groups are not those of the run.
    """
    configured = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
    base, functions = schedule.base_lrs, schedule.lr_lambdas
    try:
        optimizer.load_state_dict(moments)
    except ValueError as error:
        raise TrainingError(
            f"the optimizer's parameter groups are not those of the run ({error}); resume with its learning_rates"
        ) from error
    before = [float(group["lr"]) for group in optimizer.param_groups]
    schedule.load_state_dict(position)
    schedule.base_lrs, schedule.lr_lambdas = base, functions
    rates = [float(rate) * function(schedule.last_epoch) for rate, function in zip(base, functions, strict=True)]
    for group, options, rate in zip(optimizer.param_groups, configured, rates, strict=True):
        group.update(options)
        group["lr"] = rate
    schedule._last_lr = list(rates)
    _warn_of_jump(before, rates, schedule.last_epoch)


def _warn_of_jump(before: list[float], after: list[float], update: int) -> None:
    """Log the group whose rate changes most, if one does."""

    def change(pair: tuple[float, float]) -> float:
        low, high = sorted(pair)
        return high / low if low > 0 else (float("inf") if high > 0 else 1.0)

    old, new = max(zip(before, after, strict=True), key=change)
    if change((old, new)) > JUMP:
        logger.warning(
            "the learning rate jumps at update %d: from %.3g, where the run was, to %.3g by the present config "
            "(its schedule, number of updates or rates differ)",
            update, old, new,
        )  # fmt: skip
