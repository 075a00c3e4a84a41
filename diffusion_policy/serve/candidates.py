"""Candidates of a tuning: samplers, and how an answer continues the chunk that the arm is executing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.policy.contract import Policy
from diffusion_policy.serve.engine.served import answer_steps, continuations
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.transport.continuation import MODES, Mode

FORM = "SCHEDULER:STEPS[:WARM|:rtc|:warm_start]"
DEFAULT_CANDIDATES = (
    *("ddim:4", "ddim:6", "ddim:8", "ddim:10", "ddim:16", "ddim:50", "dpm-solver++:8"),
    *("ddim:8:0.5", "ddim:8:rtc", "ddim:8:warm_start"),
)


@dataclass(frozen=True)
class Candidate:
    """Settings of server and client.

    Attributes:
        scheduler, steps, warm_start: of the server's engine.
        continues: what the client's requests carry of the chunk before, a chunk strategy of the control loop; None:
            nothing.
    """

    scheduler: str
    steps: int
    warm_start: float = 0.0
    continues: Mode | None = None

    @property
    def name(self) -> str:
        """The name in tables."""
        warm = f", warm {self.warm_start:g}" if self.warm_start else ""
        return f"{self.scheduler}-{self.steps}{warm}" + (f", {self.continues}" if self.continues else "")

    @property
    def engine(self) -> dict[str, Any]:
        """The engine's settings by name."""
        return {"scheduler": self.scheduler, "steps": self.steps, "warm_start": self.warm_start}

    def serve_words(self, settings: EngineSettings) -> tuple[str, ...]:
        """Returns the settings of a server, ``engine.key=value``, that answers as the candidate was measured."""
        values = {**self.engine, "device": settings.device, "precision": settings.precision}
        return tuple(f"engine.{key}={value}" for key, value in values.items())

    def why_not(self, policy: Policy, settings: EngineSettings, stride: int) -> str | None:
        """Returns why a policy cannot be measured with it; None: it can.

        Args:
            policy: that is served.
            settings: of the engine; those that the candidate names are its own.
            stride: steps that a client executes before it asks again.
        """
        lacks = policy.lacks("fast_engine")
        if self.warm_start and lacks is not None:
            return f"a warm start needs the fast path, but of this policy {lacks}"
        if self.continues is None:
            return None
        offered = continuations(policy, fast=settings.fast and lacks is None)
        if self.continues not in offered:
            known = " and ".join(offered) or "none"
            return f"this policy cannot continue a chunk by {self.continues}; it offers {known}"
        steps = answer_steps(policy, settings)
        if steps <= stride:
            return f"of an answer's {steps} steps none remains to be continued after {stride}; give a smaller --stride"
        return None


def parse_candidate(word: str) -> Candidate:
    """Parses "ddim:8", "ddim:8:0.5" or "ddim:8:rtc"; WorkspaceError for anything else."""
    scheduler, *rest = word.split(":")
    mode = next((known for known in MODES if rest[1:] == [known]), None)
    try:
        steps, warm = int(rest[0]), float(rest[1]) if len(rest) > 1 and mode is None else 0.0
    except (IndexError, ValueError) as error:
        raise WorkspaceError(f"candidate {word!r}; expected {FORM}") from error
    if len(rest) > 2:
        raise WorkspaceError(f"candidate {word!r}; expected {FORM}")
    return Candidate(scheduler, steps, warm, mode)
