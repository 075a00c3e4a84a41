"""The sampler of a policy that nobody chose one for; light to import, so that command lines can show it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampler:
    """A scheduler, by its name in `sampler.SCHEDULERS`, and its number of denoising steps."""

    scheduler: str
    steps: int

    def __str__(self) -> str:
        return f"{self.scheduler}, {self.steps} steps"


# What a policy is measured with while it trains, evaluated, tuned and served with, unless another is asked for.
# config/train_cogact_robot.yaml (sampler) and config/serve.yaml (engine) show users the same; a test holds them to it.
DEFAULT_SAMPLER = Sampler("ddim", 8)
