"""Writes metrics: JSON lines for programs, TensorBoard for people, Weights & Biases on request.

`logs.json.txt` holds one JSON object per line. Its first line has the loss before the first update; then comes one line
per update with `train_loss`, `global_step`, `epoch` and `lr`; the last line of an epoch has the epoch's mean
`train_loss` and the validation results. `global_step` counts updates made, so a line describes the weights after that
many.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from diffusion_policy.commands import install_extra
from diffusion_policy.run_folder import LOG_NAME
from diffusion_policy.storage import write_text
from diffusion_policy.workspace import TrainingError

logger = logging.getLogger(__name__)

F1 = "val_gripper_f1"
TOLERANCE = "val_gripper_tolerance_s"  # seconds, the tolerance of F1
Metrics = dict[str, Any]


class MetricsLog:
    """Writes metrics of one run; used as a context manager.

    Args:
        folder: of the run.
        global_step: updates made so far; lines of an interrupted run beyond them are removed from the log, since these
            updates are about to be made again.
        settings: `logging` of the config; None: neither TensorBoard nor Weights & Biases.
        config: of the run, for Weights & Biases.
    """

    def __init__(self, folder: Path, global_step: int, settings: DictConfig | None, config: DictConfig | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOG_NAME
        truncate_log(self.path, global_step)
        self._file = self.path.open("a", encoding="ascii")
        self._board: Any = None
        self._wandb: Any = None
        if settings is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not needed to read a log

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=global_step + 1)
            self._wandb = _start_wandb(folder, settings, config)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Append one line; `global_step` is among the metrics. Numbers that are not finite are written as null."""
        line = {key: _plain(value) for key, value in metrics.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        step = line["global_step"]
        scalars = {
            key: value for key, value in line.items() if isinstance(value, (int, float)) and key != "global_step"
        }
        if self._board is not None:
            for key, value in scalars.items():
                self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)

    def image(self, name: str, rgb: NDArray[np.uint8], global_step: int) -> None:
        """Show one (H, W, 3) image after that update in TensorBoard and Weights & Biases."""
        if self._board is not None:
            self._board.add_image(name, rgb, global_step, dataformats="HWC")
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(rgb)}, step=global_step)

    def close(self) -> None:
        """Flush and close everything."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_defined(value: Any) -> bool:
    """Whether a figure was measured and is a number."""
    return value is not None and math.isfinite(value)


def figure(name: str, metrics: Mapping[str, Any], form: str = ".4g") -> str:
    """A figure for people, "-" if it is undefined; a gripper F1 with its tolerance."""
    value = metrics.get(name)
    if not is_defined(value):
        return "-"
    within = f" (within {metrics[TOLERANCE]:.3g} s)" if name.startswith(F1) and TOLERANCE in metrics else ""
    return f"{value:{form}}{within}"


def read_metrics(path: Path) -> list[Metrics]:
    """The lines of a log; a last line that a killed run did not finish is left out."""
    lines = path.read_text(encoding="ascii").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def truncate_log(path: Path, global_step: int) -> None:
    """Keep the lines up to that update; the file is replaced atomically."""
    if not path.is_file():
        return
    kept = [line for line in read_metrics(path) if line["global_step"] <= global_step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _start_wandb(folder: Path, settings: DictConfig, config: DictConfig | None) -> Any:
    if settings.mode == "disabled":
        return None
    if settings.mode not in ("online", "offline"):
        raise TrainingError(f"logging.mode is {settings.mode!r}; expected disabled, offline or online")
    if find_spec("wandb") is None:
        raise TrainingError(
            f"logging.mode={settings.mode} needs the package wandb, which is not installed; install it "
            f"({install_extra('wandb')}) or set logging.mode=disabled"
        )
    import wandb

    plain: Any = OmegaConf.to_container(config, resolve=True) if config is not None else None
    options = OmegaConf.to_container(settings, resolve=True)
    assert isinstance(options, dict)
    return wandb.init(dir=str(folder), config=plain, **{str(key): value for key, value in options.items()})


def epoch_line(epoch: int, num_epochs: int, metrics: dict[str, Any]) -> str:
    """An epoch for the log: number, main figures, rate."""
    shown = ("train_loss", "val_loss", "val_position_error_mm", "val_rotation_error_deg", "val_gripper_f1")
    figures = "  ".join(f"{key} {figure(key, metrics)}" for key in shown if key in metrics)
    return f"epoch {epoch + 1}/{num_epochs}  {figures}  {metrics['samples_per_second']:.1f} samples/s"
