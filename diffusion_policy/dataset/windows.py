"""Which steps a training sample consists of: pure index arithmetic, no data.

A window is `horizon` consecutive steps of one episode. It may begin before the episode and end after it, by up to
`pad_before` and `pad_after` steps; the first or last step is repeated there, so that the policy also learns to begin
and to finish. Windows, their order and the validation split equal the reference's, so that old splits stay valid.

Legend: E episodes, N steps of all episodes together, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IndexArray = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Windows:
    """W windows of `horizon` steps.

    Attributes:
        horizon: steps in each.
        start: (W,) first step, counted over all episodes; outside [low, high) where it is padded.
        low: (W,) first step of the window's episode.
        high: (W,) exclusive end of the window's episode.
    """

    horizon: int
    start: IndexArray
    low: IndexArray
    high: IndexArray

    def __len__(self) -> int:
        return len(self.start)

    def steps(self, index: int | IndexArray, n_steps: int | None = None) -> IndexArray:
        """The steps of one window (horizon,) or of several (B, horizon); only the first `n_steps` of each if given."""
        offsets = np.arange(self.horizon if n_steps is None else n_steps)
        index = np.asarray(index)[..., None]
        return np.clip(self.start[index] + offsets, self.low[index], self.high[index] - 1)


def cut_windows(
    episode_ends: IndexArray, horizon: int, pad_before: int = 0, pad_after: int = 0, episodes: Mask | None = None
) -> Windows:
    """All windows of the given episodes, episode by episode, from the earliest start to the latest.

    Args:
        episode_ends: (E,) exclusive end of each episode, increasing.
        horizon: steps in a window.
        pad_before: how many steps a window may begin before its episode; at most horizon - 1 are used.
        pad_after: how many steps a window may end after its episode; at most horizon - 1 are used.
        episodes: (E,) which episodes take part; all by default.

    Returns:
        the windows; none from an episode shorter than horizon - pad_before - pad_after.
    """
    pad_before, pad_after = (min(max(pad, 0), horizon - 1) for pad in (pad_before, pad_after))
    lows = np.concatenate([[0], episode_ends[:-1]]).astype(np.int64)
    parts = [np.empty((0, 3), dtype=np.int64)]
    for low, high, takes_part in zip(lows, episode_ends, _all_or(episodes, len(episode_ends)), strict=True):
        if takes_part:
            starts = np.arange(low - pad_before, high - horizon + pad_after + 1, dtype=np.int64)
            parts.append(np.stack([starts, np.full_like(starts, low), np.full_like(starts, high)], axis=1))
    start, low_of, high_of = np.concatenate(parts).T
    return Windows(horizon, start, low_of, high_of)


def _all_or(episodes: Mask | None, n_episodes: int) -> Mask:
    return np.ones(n_episodes, dtype=bool) if episodes is None else episodes


def validation_episodes(n_episodes: int, val_ratio: float, seed: int) -> Mask:
    """(E,) which episodes are held out: at least one if `val_ratio` > 0, and never all."""
    held_out = np.zeros(n_episodes, dtype=bool)
    if val_ratio > 0:
        count = min(max(1, round(n_episodes * val_ratio)), n_episodes - 1)
        held_out[np.random.default_rng(seed).choice(n_episodes, size=count, replace=False)] = True
    return held_out


def thin_episodes(episodes: Mask, at_most: int | None, seed: int) -> Mask:
    """(E,) `episodes`, or `at_most` of them drawn at random."""
    chosen = np.flatnonzero(episodes)
    if at_most is None or len(chosen) <= at_most:
        return episodes
    thinned = np.zeros_like(episodes)
    thinned[chosen[np.random.default_rng(seed).choice(len(chosen), size=at_most, replace=False)]] = True
    return thinned
