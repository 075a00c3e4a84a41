"""Settings of a run: missing ones take their defaults; settings with another meaning here are logged."""

from __future__ import annotations

import copy
import logging

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.checkpoint import JITTER_NOTE
from diffusion_policy.training_config import complete, config_errors
from diffusion_policy.workspace.older_settings import with_present_keys

logger = logging.getLogger(__name__)

# The class named by the predecessor's configs for several GPUs.
_SEVERAL_GPUS = "WorkspaceDDP"


def run_settings(cfg: DictConfig) -> DictConfig:
    """The settings of a run with this config: present keys only, and all of them.

    Raises:
        TrainingError: a former and a present key say the same thing twice.
        ConfigError: it lacks something that has no default.
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
    """What the batch size in a config for several GPUs means here (the predecessor's was per GPU); None for others.

    Args:
        cfg: of a run.
        world_size: processes that train.
    """
    if not str(cfg._target_).endswith(_SEVERAL_GPUS):
        return None
    size = cfg.dataloader.batch_size
    here = f"dataloader.batch_size={size} applies to one update over all processes; in the predecessor it was per GPU: "
    if world_size > 1:
        return f"{here}on {world_size} GPUs dataloader.batch_size={size * world_size} trains as it did"
    return f"{here}training with it on N GPUs corresponds to dataloader.batch_size=N*{size}"


def debug_settings(cfg: DictConfig) -> DictConfig:
    """Two epochs of three batches, everything switched on."""
    cfg = copy.deepcopy(cfg)
    once = {"checkpoint_every": 1, "val_every": 1, "sample_every": 1, "rollout_every": 1}
    OmegaConf.update(cfg, "training", {"num_epochs": 2, "max_train_steps": 3, "max_val_steps": 3, **once})
    return cfg


def less_memory(cfg: DictConfig) -> str:
    """What to do if a run ran out of memory."""
    cache = "" if cfg.training.cache == "none" else f" Or set training.cache=none (now {cfg.training.cache})"
    return (
        f"out of memory on {cfg.training.device}: lower dataloader.batch_size (now {cfg.dataloader.batch_size}) and "
        "raise training.gradient_accumulate_every by as much; if it happened in validation, lower "
        f"val_dataloader.batch_size (now {cfg.val_dataloader.batch_size}).{cache}"
    )
