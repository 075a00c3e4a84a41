"""Adapts a checkpoint that predicts poses (7-D actions) to one that predicts pose and gripper (8-D actions).

The mode "grow" keeps the seven pose slots of the action projections and of the normalizer. The gripper's input column
is zero and its output row small, and a proof shows that predicted poses are unchanged. The mode "strip" reinitializes
the action projections and keeps everything else.

Both modes are rules files. This module checks that the seven numbers are a pose, makes the target's config, and refuses
other sources: seven numbers of another layout, or an action that already has a gripper.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from omegaconf import DictConfig, OmegaConf, open_dict

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.apply import adapt_checkpoint, ledger_of, refuse_overwriting
from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.adapt.rules import read_rules
from diffusion_policy.adapt.target import NORMALIZER, target_from_config
from diffusion_policy.checkpoint import Checkpoint, read_checkpoint
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.shape_meta import DATASET_KEY, KEYS, step_spec_of
from diffusion_policy.spec import GRIPPER, POSE, POSE_GRIPPER, ActionLayout, layout_from_range

logger = logging.getLogger(__name__)

Mode = Literal["grow", "strip"]

RULES: Mapping[str, str] = {"grow": "pose_to_gripper", "strip": "pose_to_gripper_strip"}


def grow_7d_to_8d(
    old_ckpt: str | Path,
    new_ckpt: str | Path,
    mode: Mode = "grow",
    dataset: str | Path | None = None,
    *,
    ledger_path: str | Path | None = None,
    overwrite: bool = False,
    gripper_scale: str | None = None,
    on_progress: Progress = no_progress,
) -> Ledger:
    """Adapt a 7-D (pose) checkpoint to an 8-D (pose and gripper) one.

    Args:
        old_ckpt: the 7-D checkpoint; model and EMA are adapted alike, the optimizer is dropped.
        new_ckpt: path of the 8-D checkpoint; its config's action has shape 8, with names.
        mode: "grow" keeps the pose slots of the action projections and proves that poses are predicted the same;
            "strip" reinitializes the projections.
        dataset: a zarr whose gripper column determines the gripper's normalizer entry; None: the range 0 to 1.
        ledger_path: path of the ledger; None: `<new_ckpt>.ledger.json`.
        overwrite: replace an existing `new_ckpt`.
        gripper_scale: the scale of the dataset's gripper where it is not 0..1; the checkpoint's is 0..1.
        on_progress: see `adapt_checkpoint`.

    Raises:
        AdaptError: the source is not a 7-D pose policy, or anything that `adapt_checkpoint` refuses.
    """
    if mode not in get_args(Mode):
        raise AdaptError(f"mode is {mode!r}; expected grow or strip")
    refuse_overwriting(Path(new_ckpt), Path(old_ckpt), ledger_of(new_ckpt, ledger_path), overwrite=overwrite)
    checkpoint = read_checkpoint(old_ckpt)
    check_pose_layout(checkpoint)
    if dataset is not None:
        _check_dataset(dataset)
    config = gripper_config(checkpoint.cfg)
    target = target_from_config(config, "8-D (pose and gripper)", dataset, gripper_scale=gripper_scale)
    return adapt_checkpoint(
        checkpoint, target, read_rules(RULES[mode]), new_ckpt,
        ledger_path=ledger_path, must_preserve=mode == "grow", overwrite=overwrite, on_progress=on_progress,
    )  # fmt: skip


def check_pose_layout(checkpoint: Checkpoint) -> None:
    """Refuse a source whose action is not a 7-D pose x y z qx qy qz qw.

    Raises:
        AdaptError: it has 8 numbers, or seven with another meaning, by its config's names or normalizer's statistics.
    """
    where = str(checkpoint.path)
    names = step_spec_of(checkpoint.cfg).action_names
    state = checkpoint.state_dicts.get("model", {})
    bounds = [state.get(f"{NORMALIZER}action.input_stats.{bound}") for bound in ("min", "max")]
    if any(bound is None for bound in bounds):
        raise AdaptError(f"{where}: no normalizer statistics of the action; without them its layout is not known")
    low, high = (np.asarray(bound) for bound in bounds)
    if len(low) == len(POSE_GRIPPER) or len(names) == len(POSE_GRIPPER):
        raise AdaptError(f"{where}: its action already has 8 numbers ({' '.join(names)}); there is nothing to grow")
    layout = layout_from_range(low.tolist(), high.tolist())
    if layout == "xyz_rotvec_width":
        raise AdaptError(
            f"{where}: its seven action numbers are x y z, a rotation vector and the gripper's width in meters (the "
            f"seventh is {low[-1]:.3f} to {high[-1]:.3f}, and numbers 4 to 7 cannot be a unit quaternion), not a "
            "pose with quaternion; an eighth number would not make them one. Train on the quaternion layout instead"
        )
    if names != POSE:
        raise AdaptError(f"{where}: its action is named {' '.join(names)}; expected {' '.join(POSE)}")
    if layout != "xyz_quat":
        rotation = ActionLayout.of(POSE).arms[0].rotation
        logger.warning(
            "%s: the normalizer's statistics do not show that action numbers 4 to 7 are a unit quaternion (%s to %s); "
            "treated as one because the config names them so",
            where, *(bound[..., list(rotation)].round(3).tolist() for bound in (low, high)),
        )  # fmt: skip


def gripper_config(cfg: DictConfig) -> DictConfig:
    """A copy of the config with an 8-D action, with names, in every shape_meta."""
    grown = copy.deepcopy(cfg)
    action = {"shape": [len(POSE_GRIPPER)], "names": list(POSE_GRIPPER)}
    with open_dict(grown):
        for path in (*KEYS, DATASET_KEY):
            section, _, entry = path.rpartition(".")
            holder = OmegaConf.select(grown, section) if section else grown
            # An interpolation such as ${task.shape_meta} resolves to the changed value.
            if isinstance(holder, DictConfig) and entry in holder and not OmegaConf.is_interpolation(holder, entry):
                known = OmegaConf.to_container(holder[entry].action, resolve=False)
                assert isinstance(known, dict)
                holder[entry].action = {**known, **action}
    return grown


def _check_dataset(path: str | Path) -> None:
    buffer = ReplayBuffer.open(path)
    names = buffer.names("action")
    column = buffer.stored_column("action", GRIPPER)
    if column is None:
        raise AdaptError(f"{path}: its action is {' '.join(names)}; expected a gripper column to take statistics from")
    if column.size == 0 or float(np.ptp(column)) == 0:
        raise AdaptError(
            f"{path}: the gripper never moves in {column.size} steps, so its statistics are useless; omit --dataset "
            "to use the range 0 to 1, and add episodes in which it opens and closes before training"
        )
