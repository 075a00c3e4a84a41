"""Which episodes a run trains on and which it holds out, so that episodes once held out stay held out.

Without a history the dataset draws them (`task.dataset.val_ratio`, `seed`). A run that is resumed, or starts from
another checkpoint, knows the episodes of that training (`dataset.split`): held-out ones stay held out, ones that were
trained on are not measured as if they were new, and only new episodes are divided at random.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.dataset.split import EpisodeIdentity, Split, identities_of, split_of
from diffusion_policy.dataset.windows import Mask, validation_episodes
from diffusion_policy.workspace.start import OpenedStart, Origin

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class History:
    """Episodes recorded in the checkpoint that a run starts from.

    Attributes:
        origin: how the run starts.
        path: of the checkpoint; None from scratch.
        split: its episodes; None if it does not record them.
    """

    origin: Origin
    path: Path | None = None
    split: Split | None = None


def history_of(opened: OpenedStart) -> History:
    """The split of the checkpoint that the run starts from.

    Raises:
        DatasetError: it is damaged.
    """
    start, checkpoint = opened.start, opened.checkpoint
    split = None if checkpoint is None else split_of(checkpoint.provenance, str(start.path))
    return History(start.origin, start.path, split)


def divide_episodes(
    dataset: CogActImageDataset, cfg: DictConfig, history: History
) -> tuple[Split, tuple[EpisodeIdentity, ...]]:
    """Hold out the episodes that the history calls for.

    Returns:
        The split that checkpoints of this run store, and the identities (E,) of all episodes.

    Raises:
        DatasetError: a dataset's numbers cannot be read, or no window is left to train on.
    """
    datasets = identities_of(cfg.task.dataset.zarr_path)
    identities = tuple(identity for found in datasets for identity in found)
    if history.split is not None:
        _keep_roles(dataset, cfg, history, history.split, datasets)
    elif history.path is not None:
        logger.info(
            "%s does not say which episodes it was trained on: those held out here may have been among them",
            history.path,
        )
    _warn_of_copies(dataset, identities)
    return _split(dataset, identities, history), identities


def _warn_of_copies(dataset: CogActImageDataset, identities: Sequence[EpisodeIdentity]) -> None:
    """Warn of recordings that are in the datasets twice: held out and trained on."""
    trained = Split(tuple(e for e, taken in zip(identities, dataset.train_episodes, strict=True) if taken), ())
    held_out = [e for e, taken in zip(identities, dataset.validation_episodes, strict=True) if taken]
    copies = [e.name for e in held_out if trained.statuses([[e]]) == ["trained"]]
    if copies:
        logger.warning(
            "%d of %d held-out episodes are trained on, too: the dataset holds their recordings twice (%s); "
            "errors on them are not held-out errors", len(copies), len(held_out), ", ".join(copies[:5]),
        )  # fmt: skip


def _keep_roles(
    dataset: CogActImageDataset,
    cfg: DictConfig,
    history: History,
    split: Split,
    datasets: tuple[tuple[EpisodeIdentity, ...], ...],
) -> None:
    """Episodes that the history knows keep their roles; some of the others are drawn."""
    statuses = np.array(split.statuses(datasets))
    known = np.array([split.knows(identity) for found in datasets for identity in found])
    kept, ratio = statuses == "held out", float(cfg.task.dataset.val_ratio)
    if not known.any():
        return
    if ratio <= 0:
        if kept.any():
            logger.warning(
                "task.dataset.val_ratio=0: %d episodes that %s held out are trained on from now on, and nothing "
                "is measured on held-out ones", int(kept.sum()), history.path,
            )  # fmt: skip
        return
    held_out = kept.copy()
    for rows in dataset.of_each_dataset(np.arange(len(known))):
        new = rows[~known[rows]]
        if len(new):
            held_out[new[validation_episodes(len(new), ratio, int(cfg.task.dataset.seed))]] = True
    if not held_out.any() or held_out.all():
        logger.warning(
            "%s had been trained on all of these episodes, or on none of them: the %d held out now are newly "
            "drawn, and errors on those that it was trained on are not held-out errors",
            history.path, int(dataset.validation_episodes.sum()),
        )  # fmt: skip
        return
    if (held_out != dataset.validation_episodes).any():
        logger.warning(
            "held out as in %s: %d episodes, and %d of the %d that are new to it; task.dataset.val_ratio=%g draws only "
            "among new ones", history.path, int(kept.sum()), int((held_out & ~kept).sum()), int((~known).sum()), ratio,
        )  # fmt: skip
        dataset.hold_out(held_out)


def _split(dataset: CogActImageDataset, identities: Sequence[EpisodeIdentity], history: History) -> Split:
    def chosen(mask: Mask) -> list[EpisodeIdentity]:
        return [identity for identity, taken in zip(identities, mask, strict=True) if taken]

    train, held_out = dataset.train_episodes, dataset.validation_episodes
    groups = {"trained": chosen(train), "held_out": chosen(held_out), "unused": chosen(~(train | held_out))}
    earlier: tuple[EpisodeIdentity, ...] = ()
    split = history.split
    if history.origin == "pretrained" and split is not None:
        earlier = split.ever_trained
    elif split is not None:  # the same run, resumed
        earlier = split.earlier
        groups["trained"] += split.trained
        gone = set(groups["trained"]) | set(groups["held_out"])
        groups["held_out"] += [identity for identity in split.held_out if identity not in gone]
    known = history.path is None or (split is not None and split.earlier_known)
    made = {name: tuple(dict.fromkeys(group)) for name, group in groups.items()}
    return Split(made["trained"], made["held_out"], made["unused"], tuple(dict.fromkeys(earlier)), earlier_known=known)
