"""Returns and successes of the last episodes, for reports."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from diffusion_policy.intervals import wilson_interval


@dataclass(frozen=True)
class Outcome:
    """How an episode ended.

    Attributes:
        total: sum of its rewards, not discounted.
        frames: its length.
        success: whether the task was completed.
    """

    total: float
    frames: int
    success: bool


class LastEpisodes:
    """The last episodes, oldest first.

    Args:
        most: how many to keep.
    """

    def __init__(self, most: int):
        self._kept: deque[Outcome] = deque(maxlen=most)
        self.ended = 0

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Add episodes that have ended."""
        for outcome in outcomes:
            self._kept.append(outcome)
            self.ended += 1

    def figures(self) -> dict[str, float]:
        """Mean return and length, success rate with its 95 % interval, and the number of episodes behind them.

        Without an episode there are only the counts, since nothing was measured.
        """
        counts = {"episodes": float(self.ended), "window_episodes": float(len(self._kept))}
        if not self._kept:
            return counts
        number, successes = len(self._kept), sum(outcome.success for outcome in self._kept)
        low, high = wilson_interval(successes, number)
        return counts | {
            "episode_return": sum(outcome.total for outcome in self._kept) / number,
            "episode_frames": sum(outcome.frames for outcome in self._kept) / number,
            "success_share": successes / number,
            "success_share_low": low,
            "success_share_high": high,
        }

    def to_plain(self) -> dict[str, Any]:
        """Containers and numbers."""
        kept = [[outcome.total, outcome.frames, outcome.success] for outcome in self._kept]
        return {"ended": self.ended, "kept": kept}

    def restore(self, plain: dict[str, Any]) -> None:
        """Inverse of ``to_plain``."""
        self._kept.clear()
        self._kept.extend(Outcome(float(total), int(frames), bool(won)) for total, frames, won in plain["kept"])
        self.ended = int(plain["ended"])
