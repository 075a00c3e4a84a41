"""The section `sampler` of a config: the sampler and the tolerance with which policies are measured in training."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import DictConfig

from diffusion_policy.gripper_events import ASSUMED_HZ, TOLERANCE_SECONDS
from diffusion_policy.policy.default_sampler import DEFAULT_SAMPLER, Sampler
from diffusion_policy.workspace import TrainingError

logger = logging.getLogger(__name__)

MAX_EPISODES = 8


@dataclass(frozen=True)
class SamplerSettings:
    """How a policy is measured.

    Attributes:
        scheduler, steps: as `policy.sampler.set_sampler` takes them.
        max_episodes: number of held-out episodes to measure, the first ones; None: all.
        tolerance_s: seconds by which a predicted gripper event may differ from a recorded one.
    """

    scheduler: str = DEFAULT_SAMPLER.scheduler
    steps: int = DEFAULT_SAMPLER.steps
    max_episodes: int | None = MAX_EPISODES
    tolerance_s: float = TOLERANCE_SECONDS

    @property
    def sampler(self) -> Sampler:
        """Scheduler and steps."""
        return Sampler(self.scheduler, self.steps)

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)


def read_sampler(section: DictConfig | Mapping[str, Any] | None, step_seconds: float | None) -> SamplerSettings:
    """Read the section; settings that an older config lacks have their defaults.

    Args:
        section: `sampler` of the config. `tolerance_steps`, the former name of the tolerance, is still read.
        step_seconds: between two steps of the held-out episodes, to turn steps into seconds; None without a clock.

    Raises:
        TrainingError: a setting is not a number, or out of range.
    """
    given = {} if section is None else dict(section)
    chosen: dict[str, Any] = {
        name: given[name] for name in ("scheduler", "steps", "max_episodes") if given.get(name) is not None
    }
    if "max_episodes" in given and given["max_episodes"] is None:
        chosen["max_episodes"] = None
    tolerance, in_steps = given.get("tolerance_s"), given.get("tolerance_steps")
    if in_steps is not None:
        _check("tolerance_steps", in_steps)
        tolerance = in_steps * (1 / ASSUMED_HZ if step_seconds is None else step_seconds)
        clock = f"at an assumed {ASSUMED_HZ:g} Hz" if step_seconds is None else f"of {step_seconds:.3g} s"
        logger.warning(
            "sampler.tolerance_steps=%g is read as sampler.tolerance_s=%.3g (steps %s); it takes precedence", in_steps,
            tolerance, clock,
        )  # fmt: skip
    if tolerance is not None:
        _check("tolerance_s", tolerance)
        chosen["tolerance_s"] = float(tolerance)
    return SamplerSettings(**chosen)


def _check(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise TrainingError(f"sampler.{name} is {value!r}; expected a positive number")
