"""Keys of older configs, translated to their present equivalents."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from diffusion_policy.dataset.opening import dataset_exists
from diffusion_policy.workspace import TrainingError

logger = logging.getLogger(__name__)

OBS_DROPOUT = "task.dataset.obs_dropout"
LOW_DIM = "observation_dropout.low_dim"
# The predecessor's dataset of videos, and the names of its seven numbers.
_OF_VIDEOS = "RealPushTImageDataset"
_READ_AS = "diffusion_policy.dataset.cogact_image_dataset.CogActImageDataset"
OLDER_POSE = ("x", "y", "z", "rx", "ry", "rz", "width")
OLDER_DIFFERENCES = tuple(f"d{name}" for name in OLDER_POSE)


def with_present_keys(cfg: DictConfig) -> DictConfig:
    """The config with present keys only; the given one is not changed.

    Raises:
        TrainingError: a former and a present key say the same thing twice.
    """
    return _with_dataset(_with_dropout(cfg))


def _with_dataset(cfg: DictConfig) -> DictConfig:
    """The predecessor's dataset of videos, read from the cache that `use_cache` left in its folder.

    Its arrays carry no names, and hold position, rotation vector and width; `delta_action` asks for the differences of
    successive commands. Without differences these are poses, and without a cache there are no frames: in both cases its
    class says how to convert it.
    """
    dataset = OmegaConf.select(cfg, "task.dataset", default=None) or OmegaConf.create()
    if not str(dataset.get("_target_")).endswith(f".{_OF_VIDEOS}"):
        return cfg
    path = _cache_of(str(dataset.dataset_path)) if dataset.get("delta_action") else None
    if path is None:
        return cfg
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        dataset = cfg.task.dataset
        del dataset.dataset_path
        dataset.pop("use_cache", None)
        del dataset.delta_action
        meta = cfg.task.shape_meta
        meta.action.setdefault("names", list(OLDER_DIFFERENCES))
        meta.obs.robot_eef_pose.setdefault("names", list(OLDER_POSE))
        dataset.update({
            "_target_": _READ_AS, "zarr_path": path, "shape_meta": "${task.shape_meta}",
            "action_differences": True, "names_from_shape_meta": True,
        })  # fmt: skip
    logger.warning(
        "%s is read from %s: actions are %s; its policy can be trained, but not served: nothing here executes "
        "differences",
        _OF_VIDEOS, path, " ".join(meta.action.names),
    )  # fmt: skip
    return cfg


def _cache_of(path: str) -> str | None:
    """The zarr with frames at a dataset's path, or in its folder as the predecessor wrote it."""
    if path.rstrip("/").endswith((".zarr", ".zip")) and dataset_exists(path):
        return path
    found = sorted(Path(path).glob("*.zarr.zip"))
    return str(found[0]) if len(found) == 1 else None


def _with_dropout(cfg: DictConfig) -> DictConfig:
    """`task.dataset.obs_dropout`, by key the share of windows in which an observation is hidden, becomes
    `observation_dropout.low_dim`: the same share of windows, hidden behind the same middle of the range. Since it is
    drawn per update instead of per sample, it depends neither on loader workers nor on how often a run was resumed.

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
