"""Where training starts: decided once, in this order.

1. the run's own `checkpoints/latest.ckpt`, if `training.resume` is true and there is one; or the checkpoint that
   `training.resume` names, which must exist;
2. `pretrained.path`, if it is set and `pretrained.load_weights` is true: it must exist, fit, and provide at least
   `pretrained.min_coverage` of the model's parameters, else an error is raised;
3. scratch.

A run folder is new unless `hydra.run.dir` names an existing one, so `training.resume=True` has no effect on a new run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.adapt.starting_point import accepted_changes, check_actions, load_pretrained
from diffusion_policy.checkpoint import Checkpoint, read_checkpoint
from diffusion_policy.hub import address_entry, local_copy
from diffusion_policy.resolvers import flat_config
from diffusion_policy.run_folder import LATEST
from diffusion_policy.workspace import TrainingError

__all__ = [
    "OpenedStart",
    "Origin",
    "Start",
    "accepted_changes",
    "check_actions",
    "config_changes",
    "decide_start",
    "describe_ledger",
    "load_pretrained",
    "open_start",
]

Origin = Literal["own checkpoint", "pretrained", "scratch"]


@dataclass(frozen=True)
class Start:
    """Where training starts.

    Attributes:
        origin: own checkpoint, pretrained or scratch.
        path: path of the checkpoint; None for scratch.
        reason: reason for the log.
    """

    origin: Origin
    path: Path | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Entries of a checkpoint's provenance; only the file name of the path, and the address of one from a hub."""
        name = self.path.name if self.path else None
        return {"origin": self.origin, "checkpoint": name, "reason": self.reason, **address_entry(self.path or "")}


@dataclass(frozen=True)
class OpenedStart:
    """Where training starts, with what is there: it is read once in a run.

    Attributes:
        start: the decision.
        checkpoint: to start from; None for scratch.
    """

    start: Start
    checkpoint: Checkpoint | None


def open_start(cfg: DictConfig, folder: Path | None) -> OpenedStart:
    """Decide where to start (`decide_start`) and read the checkpoint there.

    Raises:
        TrainingError: a requested checkpoint does not exist.
        CheckpointError, UnsafePickleError, InterpolationError: it cannot be read.
    """
    start = decide_start(cfg, folder)
    return OpenedStart(start, None if start.path is None else read_checkpoint(start.path))


def decide_start(cfg: DictConfig, folder: Path | None) -> Start:
    """Decide where to start, from the config and the files of the run folder (None: a new one); nothing is loaded.

    Raises:
        TrainingError: a requested checkpoint does not exist.
    """
    resume, pretrained = cfg.training.resume, cfg.pretrained
    own = own_start(resume, folder)
    if own is not None:
        return own
    why_not_own = "the run folder has no checkpoint" if resume else "training.resume is false"
    if pretrained.path is None:
        return Start("scratch", None, f"{why_not_own}, pretrained.path is not set")
    if not pretrained.load_weights:
        return Start("scratch", None, f"{why_not_own}, pretrained.load_weights is false: {pretrained.path} is ignored")
    path = local_copy(pretrained.path)
    if not path.is_file():
        raise TrainingError(
            f"pretrained.path={pretrained.path}: no such file; correct the path, or set pretrained.path=null to train "
            "from scratch"
        )
    return Start("pretrained", path, why_not_own)


def own_start(resume: bool | str, folder: Path | None) -> Start | None:
    """Where a run continues: `training.resume`, or the run folder's own checkpoint; None for a new run.

    Raises:
        TrainingError: a named checkpoint does not exist.
    """
    if isinstance(resume, str):
        path = _checkpoint_in(Path(resume))
        if not path.is_file():
            raise TrainingError(f"training.resume={resume}: no checkpoint there; expected a .ckpt file or a run folder")
        return Start("own checkpoint", path, "training.resume names it")
    own = None if folder is None else folder / "checkpoints" / LATEST
    if resume and own is not None and own.is_file():
        return Start("own checkpoint", own, "training.resume is true and the run folder has it")
    return None


def _checkpoint_in(path: Path) -> Path:
    return path / "checkpoints" / LATEST if path.is_dir() else path


def describe_ledger(ledger: Ledger) -> dict[str, int]:
    """Tensors and parameters of the live model that were inherited, grown and fresh, for log and metrics.

    A grown tensor counts as one grown tensor; its old slots count as inherited parameters, its new ones as grown.
    """
    counts, parameters = ledger.counts("model"), ledger.parameters("model")
    return {
        "inherited_tensors": counts["copied"].tensors + counts["recomputed"].tensors,
        "inherited_parameters": parameters["inherited"] + parameters["recomputed"],
        "grown_tensors": counts["grown"].tensors,
        "grown_parameters": parameters["grown"],
        "fresh_tensors": counts["fresh"].tensors,
        "fresh_parameters": parameters["fresh"],
    }


def config_changes(old: DictConfig, new: DictConfig) -> list[str]:
    """Settings whose values differ between the config of a run and the one it is resumed with, as text."""
    before, after = flat_config(old), flat_config(new)
    ignored = ("training.resume", "pretrained.", "training.device", "logging.")
    names = sorted(before.keys() | after.keys())
    return [
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in names
        if before.get(name) != after.get(name) and not name.startswith(ignored)
    ]
