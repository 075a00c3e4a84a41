"""Settings of reinforcement learning, checked when they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from diffusion_policy.ppo import PPOError


@dataclass(frozen=True)
class PPOSettings:
    """What an iteration collects and learns; ``config/ppo/from_vpt.yaml`` explains each.

    Attributes:
        environments: B, played in parallel.
        frames: T, of each environment in an iteration.
        chunk_frames: of the sequences that gradients flow through; divides ``frames``.
        sequences_per_update: chunks of one update.
        passes: over the frames of an iteration.
        discount: of rewards, per frame.
        gae_lambda: 0 to 1, between one-step and Monte Carlo estimates of the
            advantage.
        clip: largest deviation of the probability ratio from 1 that counts.
        value_coefficient: weight of the value loss.
        kl_coefficient: weight of KL(pretrained || policy) in the first iteration that changes the policy.
        kl_decay: its factor per iteration.
        entropy_coefficient: weight of the entropy, which the KL divergence replaces.
        max_gradient_norm: gradients are scaled down to it.
        value_warmup_iterations: iterations at the start in which only the value head learns.
        normalize_advantages: to mean 0 and deviation 1 in each iteration.
        shaping: weights of entries of the environment's info; see ``games.Shaping``.
        window_episodes: number of episodes over which returns and successes are reported.
    """

    environments: int = 8
    frames: int = 256
    chunk_frames: int = 64
    sequences_per_update: int = 8
    passes: int = 2
    discount: float = 0.999
    gae_lambda: float = 0.95
    clip: float = 0.2
    value_coefficient: float = 0.5
    kl_coefficient: float = 0.2
    kl_decay: float = 0.9995
    entropy_coefficient: float = 0.0
    max_gradient_norm: float = 5.0
    value_warmup_iterations: int = 0
    normalize_advantages: bool = True
    shaping: Mapping[str, float] = field(default_factory=dict)
    window_episodes: int = 100

    @classmethod
    def read(cls, settings: Mapping[Any, Any]) -> PPOSettings:
        """Read the section ``ppo`` of a config.

        Raises:
            PPOError: a setting is unknown, or a value is out of range.
        """
        known = {field.name for field in fields(cls)}
        given = {str(name): value for name, value in settings.items()}
        unknown = sorted(given.keys() - known)
        if unknown:
            raise PPOError(f"ppo has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        found = cls(**given)
        found._check()
        return found

    def _check(self) -> None:
        counts = ("environments", "frames", "chunk_frames", "sequences_per_update", "passes", "window_episodes")
        for name in (*counts, "value_warmup_iterations"):
            if type(getattr(self, name)) is not int:
                raise PPOError(f"ppo.{name} is {getattr(self, name)}; expected a whole number")
        shares = ("discount", "gae_lambda", "kl_decay")
        positive = ("clip", "max_gradient_norm")
        others = ("value_coefficient", "kl_coefficient", "entropy_coefficient", "value_warmup_iterations")
        ranges: dict[str, tuple[tuple[str, ...], Callable[[float], bool]]] = {
            "1 or more": (counts, lambda value: value >= 1),
            "0 to 1": (shares, lambda value: 0 <= value <= 1),
            "more than 0": (positive, lambda value: value > 0),
            "0 or more": (others, lambda value: value >= 0),
        }
        for expected, (names, holds) in ranges.items():
            for name in names:
                if not holds(getattr(self, name)):
                    raise PPOError(f"ppo.{name} is {getattr(self, name)}; expected {expected}")
        if self.frames % self.chunk_frames:
            raise PPOError(
                f"ppo.frames is {self.frames} and ppo.chunk_frames {self.chunk_frames}; expected a multiple, so "
                "that every chunk is complete"
            )

    @property
    def chunks(self) -> int:
        """Chunks of an environment in an iteration."""
        return self.frames // self.chunk_frames

    @property
    def updates_per_iteration(self) -> int:
        """Updates of all passes together."""
        return self.passes * -(-self.environments * self.chunks // self.sequences_per_update)

    def learns_policy(self, iteration: int) -> bool:
        """Whether an iteration, counted from 0, changes the policy."""
        return iteration >= self.value_warmup_iterations

    def kl_coefficient_at(self, iteration: int) -> float:
        """Weight of the KL divergence in an iteration: it decays from the first one that changes the policy."""
        return self.kl_coefficient * self.kl_decay ** max(0, iteration - self.value_warmup_iterations)
