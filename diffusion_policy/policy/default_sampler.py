"""The sampler that is used when none is chosen; light to import, so that command lines can show it."""

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


# What a policy is measured with while it trains, evaluated, tuned and served with, unless another is asked for.
# config/train_cogact_robot.yaml (sampler) and config/serve.yaml (engine) show users the same; a test holds them to it.
DEFAULT_SAMPLER = Sampler("ddim", 8)


def sampler_of_training(provenance: Mapping[str, Any] | None, cfg: Mapping[str, Any] | None) -> Sampler | None:
    """The sampler that a checkpoint was measured with while it was trained, and best.ckpt chosen; None if not stored.

    Args:
        provenance: of the checkpoint. Older ones of this project say it in their config only.
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
    """A sentence where a policy runs with another sampler than its figures in training are of; None if it does not."""
    if trained is None or trained == runs:
        return None
    return (
        f"this runs {runs}; the checkpoint was measured and chosen with {trained} while it was trained, so its figures "
        "there are not those of this sampler"
    )
