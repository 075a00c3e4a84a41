"""Settings of a run: missing ones take their defaults; settings with another meaning here are logged."""

from __future__ import annotations

import copy
import logging

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.checkpoint import JITTER_NOTE
from diffusion_policy.training_config import complete, config_errors
from diffusion_policy.workspace.older_settings import with_present_keys

logger = logging.getLogger(__name__)

# How the class is called that configs of the predecessor for several GPUs name.
_SEVERAL_GPUS = "WorkspaceDDP"


def run_settings(cfg: DictConfig) -> DictConfig:
    """The settings of a run of this config: present keys, none absent.

    Raises:
        TrainingError: a former and a present key say the same thing twice.
        ConfigError: it lacks what no default can stand for.
    """
    return settled(with_present_keys(cfg))


def settled(cfg: DictConfig) -> DictConfig:
    """A config with every setting of this version.

    Raises:
        ConfigError: it lacks what no default can stand for.
    """
    with config_errors(cfg):
        lacked = cfg
        cfg = completed(cfg)
        jitter = OmegaConf.select(cfg, "policy.color_jitter")
        if jitter and (cfg is not lacked or "p" in jitter):
            logger.info("policy.color_jitter: %s; ~policy.color_jitter trains as it did", JITTER_NOTE)
        return debug_settings(cfg) if cfg.training.debug else cfg


def completed(cfg: DictConfig) -> DictConfig:
    """A config with this version's defaults for settings that it lacks, which are logged; itself if it lacks none."""
    whole, filled = complete(cfg)
    if filled:
        names = ", ".join(filled)
        logger.info("the config lacks %d settings, which take this version's defaults: %s", len(filled), names)
    return whole


def batch_size_note(cfg: DictConfig, world_size: int) -> str | None:
    """What the batch size of a config for several GPUs is here, where the predecessor's was per GPU; None of others.

    Args:
        cfg: of a run.
        world_size: processes that train.
    """
    if not str(cfg._target_).endswith(_SEVERAL_GPUS):
        return None
    size = cfg.dataloader.batch_size
    here = f"dataloader.batch_size={size} is that of one update over all processes; in the predecessor it was per GPU: "
    if world_size > 1:
        return f"{here}on {world_size} GPUs dataloader.batch_size={size * world_size} trains as it did"
    return f"{here}what trained with it on N GPUs is dataloader.batch_size=N*{size}"


def debug_settings(cfg: DictConfig) -> DictConfig:
    """Two epochs of three batches, everything switched on."""
    cfg = copy.deepcopy(cfg)
    once = {"checkpoint_every": 1, "val_every": 1, "sample_every": 1, "rollout_every": 1}
    OmegaConf.update(cfg, "training", {"num_epochs": 2, "max_train_steps": 3, "max_val_steps": 3, **once})
    return cfg


def less_memory(cfg: DictConfig) -> str:
    """What to do where a run ran out of memory."""
    cache = "" if cfg.training.cache == "none" else f" Or set training.cache=none (now {cfg.training.cache})"
    return (
        f"out of memory on {cfg.training.device}: lower dataloader.batch_size (now {cfg.dataloader.batch_size}) and "
        "raise training.gradient_accumulate_every by as much; if it was in a validation, lower "
        f"val_dataloader.batch_size (now {cfg.val_dataloader.batch_size}).{cache}"
    )
