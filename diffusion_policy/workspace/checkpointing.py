"""Checkpoints of a run: latest, best and top k, written atomically in the background.

The state is copied once, then a thread writes it; the next copy waits for that, so there is never more than one. The
file is written once; its other names are hard links (copies where the file system has none).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from diffusion_policy.checkpoint import Checkpoint, CheckpointError, read_checkpoint, write_checkpoint
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.run_folder import BEST, LATEST
from diffusion_policy.run_folder.reading import JOINT_ERRORS, ranked_by
from diffusion_policy.storage import link, rename
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.metrics import TOLERANCE, is_defined

logger = logging.getLogger(__name__)

Score = tuple[tuple[bool, float], ...]


@dataclass(frozen=True)
class Ranking:
    """Orders checkpoints by metrics: the first key decides, the next ones break ties.

    A checkpoint for which a key was measured ranks above one for which it was not (validation with the sampler runs
    every few epochs only). For a layout without a pose, the joint error stands for the position error.
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
        return tuple(_key_score(ranked_by(metrics, key), mode) for key, mode in zip(self.keys, self.modes, strict=True))

    def measured(self, score: Score) -> bool:
        """Whether any of its keys was measured."""
        return any(found for found, _ in score)


def _words(entry: str | Sequence[str]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(str(word) for word in entry)


def _key_score(value: Any, mode: str) -> tuple[bool, float]:
    if not is_defined(value):
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
class CheckpointNames:
    """Names of the next checkpoint, and the file that it replaces among the top k."""

    keep: tuple[str, ...]
    displaced: str | None = None


def _score(entries: Any) -> Score:
    return tuple((bool(found), float(value)) for found, value in entries)


@dataclass(frozen=True)
class Best:
    """The best measurement so far.

    Attributes:
        score: used for comparisons; None before the first measurement.
        metrics: its figures, and the epoch.
        global_step: updates that its weights had made.
        measured_with: sampler, tolerance and episodes; empty if an older program chose it.
    """

    score: Score | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    global_step: int | None = None
    measured_with: Mapping[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """As entries of a run's state."""
        return {
            "best": None if self.score is None else [list(entry) for entry in self.score],
            "best_metrics": dict(self.metrics),
            "best_global_step": self.global_step,
            "best_measured_with": dict(self.measured_with),
        }

    @classmethod
    def from_plain(cls, state: Mapping[str, Any]) -> Best:
        """Inverse of `to_plain`; states of older programs hold less."""
        return cls(
            _score(state["best"]) if state.get("best") else None,
            dict(state.get("best_metrics") or {}),
            state.get("best_global_step"),
            dict(state.get("best_measured_with") or {}),
        )


class CheckpointFolder:
    """The checkpoints of a run.

    Args:
        folder: `checkpoints/` of the run.
        settings: `checkpoint` of the config.
        state: what `state` returned when the run was saved.
        resumed_at: updates that the run had made then.
        measured_with: sampler, tolerance and episodes behind this run's figures; figures measured differently are not
            compared with these.
    """

    def __init__(
        self,
        folder: Path,
        settings: DictConfig,
        state: Mapping[str, Any] | None = None,
        resumed_at: int | None = None,
        measured_with: Mapping[str, Any] | None = None,
    ):
        if settings.save_last_snapshot:
            raise TrainingError(
                "checkpoint.save_last_snapshot would pickle the whole program, which only this version could "
                "read; latest.ckpt holds the complete run: set it to false"
            )
        self.folder = folder
        self._topk, self._format = int(settings.topk.k), str(settings.topk.format_str)
        self._ranking = Ranking.read(settings.topk.monitor_key, settings.topk.mode)
        best: ListConfig = settings.best
        self._best_ranking = Ranking(tuple(e.monitor_key for e in best), tuple(e.mode for e in best))
        self._save_last = bool(settings.save_last_ckpt)
        self._measured_with = dict(measured_with or {})
        self._kept: dict[str, Score] = {}
        self._best = Best()
        self._before: dict[str, Any] | None = None  # the last decision on names, until its file is written
        if state:
            self._restore(state)
            self._reconcile(resumed_at)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    @property
    def best_metrics(self) -> dict[str, float]:
        """Figures of best.ckpt; empty before there is one."""
        return self._best.metrics

    def state(self) -> dict[str, Any]:
        """Which checkpoints are kept and what is best, as plain data."""
        return {
            "kept": {name: [list(entry) for entry in score] for name, score in self._kept.items()},
            **self._best.to_plain(),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        kept = {name: _score(entries) for name, entries in state["kept"].items()}
        self._kept = {name: score for name, score in kept.items() if (self.folder / name).is_file()}
        self._best = Best.from_plain(state)

    def name(self, metrics: Mapping[str, Any], *, due: bool = True) -> CheckpointNames:
        """Decide the names of a checkpoint with these metrics; undone if its write fails.

        Args:
            metrics: of the epoch that ended.
            due: whether latest and the best k are to be saved; best.ckpt is saved whenever these metrics are the best
                so far.

        Returns:
            The names; empty if there is nothing to save.

        Raises:
            TrainingError: the name's pattern uses a metric that was not measured.
        """
        if due or (self._pending is not None and self._pending.done()):
            self.wait()
        if not (due or self._improves(metrics)):
            return CheckpointNames(())
        self.wait()
        self._before = self.state()
        # If best.ckpt is written anyway, making latest.ckpt another name of it costs nothing.
        names = [LATEST] if self._save_last else []
        displaced = None
        score = self._ranking.score(metrics)
        fits = len(self._kept) < self._topk or (self._topk and score > min(self._kept.values()))
        if due and fits and self._ranking.measured(score):
            name = self._formatted(metrics)
            if name not in self._kept and len(self._kept) >= self._topk:
                displaced = min(self._kept, key=lambda kept: self._kept[kept])
                del self._kept[displaced]
            self._kept[name] = score
            names.append(name)
        if self._improves(metrics):
            wanted = {*self._best_ranking.keys, *JOINT_ERRORS, "epoch", "train_loss", TOLERANCE}
            figures = {key: metrics[key] for key in sorted(wanted) if is_defined(metrics.get(key))}
            best = self._best_ranking.score(metrics)
            self._best = Best(best, figures, metrics.get("global_step"), self._measured_with)
            names.append(BEST)
        return CheckpointNames(tuple(names), displaced)

    def _improves(self, metrics: Mapping[str, Any]) -> bool:
        score = self._best_ranking.score(metrics)
        return self._best_ranking.measured(score) and (self._best.score is None or score > self._best.score)

    def _reconcile(self, resumed_at: int | None) -> None:
        """Make best.ckpt and the run's record of it agree: a kill, a rewind or a person may have separated them."""
        if self._best.score is None:
            return
        path, own = self.folder / BEST, self.folder / LATEST
        found = _checkpoint_at(path)
        if found is None or self._best.global_step not in (None, found.pickles.get("global_step")):
            latest = _checkpoint_at(own) if self._best.global_step == resumed_at else None
            if latest is not None and latest.pickles.get("global_step") == resumed_at:
                link(own, path)  # killed after the file had its first name
                return
            remembered = ((found.run_state or {}) if found is not None else {}).get("ranking")
            self._best = Best() if not remembered else Best.from_plain(remembered)
            if self._best.score is None:
                logger.warning("%s is no longer this run's: the next measurement is the best one", path)
        if self._best.score is not None and len(self._best.score) != len(self._best_ranking.keys):
            logger.warning(
                "best.ckpt was chosen by %d metrics, checkpoint.best has %d now: the next measurement is the best one",
                len(self._best.score), len(self._best_ranking.keys),
            )  # fmt: skip
            self._best = Best()
        if self._best.score is not None and dict(self._best.measured_with) != self._measured_with:
            kept = path.with_name(f"best_until_update_{resumed_at}.ckpt")
            if path.is_file():
                rename(path, kept)
            logger.warning(
                "best.ckpt was chosen by figures that were measured differently (%s), which are not compared "
                "with new ones: it is kept as %s, and the next measurement is the best one",
                _changes(self._best.measured_with, self._measured_with), kept.name,
            )  # fmt: skip
            self._best = Best()

    def _formatted(self, metrics: Mapping[str, Any]) -> str:
        try:
            return self._format.format(**metrics)
        except KeyError as error:
            raise TrainingError(
                f"checkpoint.topk.format_str uses {error}, which was not measured; there are {sorted(metrics)}"
            ) from error

    def write(self, names: CheckpointNames, payload: Payload) -> None:
        """Write in the background; what `payload` holds must be a copy (see `snapshot`)."""
        self.wait()
        if names.keep:
            self._pending = self._writer.submit(self._write, names, payload)

    def wait(self, *, last: bool = False) -> None:
        """Wait until the pending checkpoint is written; logs an error if that failed.

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
                raise TrainingError(f"{message}; free disk space and resume from it") from error
            logger.error(message)

    def close(self) -> None:
        """Wait for the last checkpoint and stop the thread."""
        try:
            self.wait(last=True)
        finally:
            self._writer.shutdown()

    def _write(self, names: CheckpointNames, payload: Payload) -> None:
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
            link(self.folder / first, self.folder / other)
        if names.displaced is not None:
            (self.folder / names.displaced).unlink(missing_ok=True)


def _checkpoint_at(path: Path) -> Checkpoint | None:
    """A checkpoint of the run; None if there is none, or it cannot be read."""
    try:
        return read_checkpoint(path) if path.is_file() else None
    except WorkspaceError as error:
        logger.warning("%s", error)
        return None


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Differences between the evaluation settings of two runs, as text."""
    if not before:
        return "by a program that does not record how"
    names = dict.fromkeys((*before, *after))
    changed = [name for name in names if before.get(name) != after.get(name)]
    return "; ".join(f"{n}: {before.get(n, 'not stated')} -> {after.get(n, 'not stated')}" for n in changed)


def snapshot(state: Any) -> Any:
    """A copy of nested containers whose tensors are copied to the CPU; shared tensors stay shared."""
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
