"""Keys of older configs, read as what takes their place now."""

from __future__ import annotations

import copy
import logging

from omegaconf import DictConfig, OmegaConf, open_dict

from diffusion_policy.workspace import TrainingError

logger = logging.getLogger(__name__)

OBS_DROPOUT = "task.dataset.obs_dropout"
LOW_DIM = "observation_dropout.low_dim"


def with_present_keys(cfg: DictConfig) -> DictConfig:
    """The config with present keys only; the one that is given stays as it is.

    `task.dataset.obs_dropout`, by key the share of windows in which an observation is hidden, becomes
    `observation_dropout.low_dim`: the same share of windows, hidden behind the same middle of the range. Drawn with the
    update instead of with the sample, it neither depends on loader workers nor on how often a run was resumed.

    Raises:
        TrainingError: both name the same observation.
    """
    if OmegaConf.select(cfg, OBS_DROPOUT) is None:
        return cfg
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        shares = OmegaConf.to_container(cfg.task.dataset.pop("obs_dropout"), resolve=True)
        assert isinstance(shares, dict)
        present = OmegaConf.select(cfg, LOW_DIM, default=None) or {}
        twice = sorted(shares.keys() & present.keys())
        if twice:
            raise TrainingError(f"{OBS_DROPOUT} and {LOW_DIM} both name {', '.join(map(str, twice))}; leave the former")
        OmegaConf.update(cfg, LOW_DIM, {**present, **shares}, force_add=True)
    written = " ".join(f"+{LOW_DIM}.{key!s}={share}" for key, share in shares.items())
    logger.warning("%s is read as %s: write %s instead", OBS_DROPOUT, LOW_DIM, written)
    return cfg
