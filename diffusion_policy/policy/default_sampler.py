"""The sampler used when none is chosen; light to import, so that command lines can show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampler:
    """A scheduler, by its name in `policy.SCHEDULER_PATHS`, and its number of denoising steps."""

    scheduler: str
    steps: int

    def __str__(self) -> str:
        return f"{self.scheduler}, {self.steps} steps"


# The sampler of measurements in training, evaluation, tuning and serving, unless another is requested.
# config/train_cogact_robot.yaml (sampler) and config/serve.yaml (engine) show users the same values; a test keeps them
# equal.
DEFAULT_SAMPLER = Sampler("ddim", 8)


def sampler_of_training(provenance: Mapping[str, Any] | None, cfg: Mapping[str, Any] | None) -> Sampler | None:
    """The sampler with which a checkpoint was measured in training and best.ckpt chosen; None if not stored.

    Args:
        provenance: of the checkpoint. Older checkpoints of this project store it only in their config.
        cfg: its config.
    """
    measured: Any = provenance or {}
    for name in ("measured", "with"):
        measured = measured.get(name) if isinstance(measured, Mapping) else None
    for stored in (measured, (cfg or {}).get("sampler")):
        if isinstance(stored, Mapping):
            scheduler, steps = stored.get("scheduler"), stored.get("steps")
            if isinstance(scheduler, str) and isinstance(steps, int):
                return Sampler(scheduler, steps)
    return None


def sampler_note(trained: Sampler | None, runs: Sampler) -> str | None:
    """A note if a policy runs with a sampler other than that of its training figures; None if they are the same."""
    if trained is None or trained == runs:
        return None
    return (
        f"this runs {runs}; the checkpoint was measured and chosen with {trained} in training, so its training "
        "figures do not apply to this sampler"
    )
