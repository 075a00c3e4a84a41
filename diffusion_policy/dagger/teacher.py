"""What corrects a policy in a simulator: an expert that takes over, or says what it would have done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from diffusion_policy.env_runner.results import SceneResult
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.errors import WorkspaceError


class CorrectionError(WorkspaceError):
    """Corrections cannot be collected, or an interrupted collection cannot be resumed."""


class Teacher(Protocol):
    """Corrects the episodes of one collection.

    Attributes:
        settings: kept in the document; a collection is resumed with the same ones.
        simulator: its environments, in which the policy is rolled out, record what the policy does.
    """

    settings: Mapping[str, Any]
    simulator: Simulator

    def correct(self, result: SceneResult, number: int) -> list[dict[str, Any]]:
        """Records what an episode that has ended should have been.

        Args:
            result: of the scene.
            number: of the first recorded episode.

        Returns:
            one entry for each correction: scene, seed, step, why, episode (None: there is none) and number of frames.
        """

    def close(self) -> None:
        """Drops the records of episodes that were not corrected."""
