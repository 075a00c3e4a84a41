"""Checkpoints of a run: latest, best and the top k, written beside and renamed, while training goes on.

What is to be saved is copied once, then a thread writes it; the next copy waits until that is done, so there is never
more than one. The file is written once; its other names are hard links (copies where the file system has none).
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from diffusion_policy.checkpoint import CheckpointError, write_checkpoint
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.start import LATEST

logger = logging.getLogger(__name__)

BEST = "best.ckpt"
Score = tuple[tuple[bool, float], ...]


@dataclass(frozen=True)
class Ranking:
    """Orders checkpoints by metrics: the first key decides, the next ones break ties.

    A checkpoint for which a key was measured ranks above one for which it was not (validation with the sampler runs
    every few epochs only).
    """

    keys: tuple[str, ...]
    modes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.modes) or not self.keys or set(self.modes) - {"min", "max"}:
            raise TrainingError(
                f"checkpoints are ranked by {list(self.keys)} with modes {list(self.modes)}; expected as many modes as "
                "metrics, each min or max"
            )

    @classmethod
    def read(cls, keys: str | Sequence[str], modes: str | Sequence[str]) -> Ranking:
        """From `monitor_key` and `mode`, each one word or a list."""
        return cls(_words(keys), _words(modes))

    def score(self, metrics: Mapping[str, Any]) -> Score:
        """Comparable: greater is better."""
        return tuple(_key_score(metrics.get(key), mode) for key, mode in zip(self.keys, self.modes, strict=True))

    def measured(self, score: Score) -> bool:
        """Whether any of its keys was measured."""
        return any(found for found, _ in score)


def _words(entry: str | Sequence[str]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(str(word) for word in entry)


def _key_score(value: Any, mode: str) -> tuple[bool, float]:
    if value is None or not math.isfinite(value):
        return False, 0.0
    return True, float(value) if mode == "max" else -float(value)


@dataclass(frozen=True)
class Payload:
    """What one checkpoint holds; see `checkpoint.write_checkpoint`."""

    cfg: DictConfig
    state_dicts: dict[str, dict[str, Any]]
    pickles: dict[str, Any]
    run_state: dict[str, Any]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Names:
    """Under which names the next checkpoint is kept, and which file it displaces."""

    keep: tuple[str, ...]
    displaced: str | None = None


class CheckpointFolder:
    """The checkpoints of a run.

    Args:
        folder: `checkpoints/` of the run.
        settings: `checkpoint` of the config.
        state: what `state` gave when the run was saved.
    """

    def __init__(self, folder: Path, settings: DictConfig, state: Mapping[str, Any] | None = None):
        if settings.save_last_snapshot:
            raise TrainingError(
                "checkpoint.save_last_snapshot would pickle the whole program, which only this version could read; "
                "latest.ckpt holds all of the run: set it to false"
            )
        self.folder = folder
        self._topk, self._format = int(settings.topk.k), str(settings.topk.format_str)
        self._ranking = Ranking.read(settings.topk.monitor_key, settings.topk.mode)
        best: ListConfig = settings.best
        self._best_ranking = Ranking(tuple(e.monitor_key for e in best), tuple(e.mode for e in best))
        self._save_last = bool(settings.save_last_ckpt)
        self._kept: dict[str, Score] = {}
        self._best: Score | None = None
        self._before: dict[str, Any] | None = None  # the last decision on names, until its file is written
        self.best_metrics: dict[str, float] = {}
        if state:
            self._restore(state)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def state(self) -> dict[str, Any]:
        """Which checkpoints are kept and what is best, as plain data."""
        return {
            "kept": {name: [list(entry) for entry in score] for name, score in self._kept.items()},
            "best": None if self._best is None else [list(entry) for entry in self._best],
            "best_metrics": dict(self.best_metrics),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        def score(entries: Any) -> Score:
            return tuple((bool(found), float(value)) for found, value in entries)

        self._kept = {name: score(entries) for name, entries in state["kept"].items() if (self.folder / name).is_file()}
        self._best = None if state["best"] is None else score(state["best"])
        self.best_metrics = dict(state["best_metrics"])

    def name(self, metrics: Mapping[str, Any]) -> Names:
        """Decide what a checkpoint with these metrics is called; remembered until its write fails.

        Raises:
            TrainingError: the name's pattern asks for a metric that was not measured.
        """
        self.wait()
        self._before = self.state()
        names = [LATEST] if self._save_last else []
        displaced = None
        score = self._ranking.score(metrics)
        if self._topk and (len(self._kept) < self._topk or score > min(self._kept.values())):
            name = self._formatted(metrics)
            if name not in self._kept and len(self._kept) >= self._topk:
                displaced = min(self._kept, key=lambda kept: self._kept[kept])
                del self._kept[displaced]
            self._kept[name] = score
            names.append(name)
        score = self._best_ranking.score(metrics)
        if self._best_ranking.measured(score) and (self._best is None or score > self._best):
            self._best = score
            wanted = {*self._best_ranking.keys, "epoch", "train_loss"}
            self.best_metrics = {key: metrics[key] for key in sorted(wanted) if metrics.get(key) is not None}
            names.append(BEST)
        return Names(tuple(names), displaced)

    def _formatted(self, metrics: Mapping[str, Any]) -> str:
        try:
            return self._format.format(**metrics)
        except KeyError as error:
            raise TrainingError(
                f"checkpoint.topk.format_str asks for {error}, which was not measured; there are {sorted(metrics)}"
            ) from error

    def write(self, names: Names, payload: Payload) -> None:
        """Write in the background; what `payload` holds must be a copy (see `snapshot`)."""
        self.wait()
        if names.keep:
            self._pending = self._writer.submit(self._write, names, payload)

    def wait(self, *, last: bool = False) -> None:
        """Until the checkpoint under way is written; says so if it could not be.

        Raises:
            TrainingError: with `last`, it could not.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        before, self._before = self._before, None
        try:
            pending.result()
        except (OSError, CheckpointError) as error:
            if before is not None:
                self._restore(before)
            message = f"the checkpoint could not be saved, the previous one is kept: {error}"
            if last:
                raise TrainingError(f"{message}; make room and resume from it") from error
            logger.error(message)

    def close(self) -> None:
        """Wait for the last checkpoint and stop the thread."""
        try:
            self.wait(last=True)
        finally:
            self._writer.shutdown()

    def _write(self, names: Names, payload: Payload) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        first, *others = names.keep
        write_checkpoint(
            self.folder / first,
            cfg=payload.cfg,
            state_dicts=payload.state_dicts,
            pickles=payload.pickles,
            run_state=payload.run_state,
            provenance=payload.provenance,
        )
        for other in others:
            _link(self.folder / first, self.folder / other)
        if names.displaced is not None:
            (self.folder / names.displaced).unlink(missing_ok=True)


def _link(path: Path, other: Path) -> None:
    """Give a file a second name, replacing what had it."""
    beside = other.with_name(f".{other.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    try:
        os.link(path, beside)
    except OSError:
        shutil.copyfile(path, beside)
    os.replace(beside, other)


def snapshot(state: Any) -> Any:
    """A copy of nested containers whose tensors lie in memory of their own on the CPU; shared tensors stay shared."""
    copies: dict[tuple[Any, ...], Tensor] = {}
    devices: set[torch.device] = set()

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            value = value.detach()
            identity = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
            if identity not in copies or not value.numel():
                devices.add(value.device)
                copies[identity] = value.clone() if value.device.type == "cpu" else value.to("cpu", non_blocking=True)
            return copies[identity]
        if isinstance(value, Mapping):
            return {key: copy(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(copy(entry) for entry in value)
        return value

    copied = copy(state)
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return copied
