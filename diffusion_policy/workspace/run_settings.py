"""Settings of a run: missing ones take their defaults; settings with another meaning here are logged."""

from __future__ import annotations

import copy
import logging

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.checkpoint import JITTER_NOTE
from diffusion_policy.training_config import complete, config_errors
from diffusion_policy.workspace.older_settings import with_present_keys

logger = logging.getLogger(__name__)


def run_settings(cfg: DictConfig) -> DictConfig:
    """The settings of a run of this config: present keys, none absent; for whoever runs it or looks at it.

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
    with config_errors():
        cfg, filled = complete(cfg)
        if filled:
            names = ", ".join(filled)
            logger.info("the config lacks %d settings, which take this version's defaults: %s", len(filled), names)
        jitter = OmegaConf.select(cfg, "policy.color_jitter")
        if jitter and (filled or "p" in jitter):
            logger.info("policy.color_jitter: %s; ~policy.color_jitter trains as it did", JITTER_NOTE)
        return debug_settings(cfg) if cfg.training.debug else cfg


def debug_settings(cfg: DictConfig) -> DictConfig:
    """Two epochs of three batches, everything switched on."""
    cfg = copy.deepcopy(cfg)
    once = {"checkpoint_every": 1, "val_every": 1, "sample_every": 1, "rollout_every": 1}
    OmegaConf.update(cfg, "training", {"num_epochs": 2, "max_train_steps": 3, "max_val_steps": 3, **once})
    return cfg
