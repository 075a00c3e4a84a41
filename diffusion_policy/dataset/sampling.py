"""How often windows are drawn: each dataset or task has its share of an epoch, divided equally among its windows.

Legend: E episodes, W windows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.sources import Source
from diffusion_policy.dataset.windows import IndexArray

# Key of weights by task for all episodes whose task is not named, and for those without one.
OTHERS = "others"
SETTING = "task.dataset.weights"
# The largest weight; the comparison also excludes NaN.
_LARGEST = 1e12
_LISTED = 5


@dataclass(frozen=True)
class Sampling:
    """Groups of episodes, and the share of the draws that each gets.

    Attributes:
        by: what a group is: "dataset" or "task".
        names: of the groups: paths of datasets, or tasks.
        weights: of the groups, relative to one another; None: all windows count equally.
        group_of: (E,) the group that each episode belongs to.
    """

    by: str
    names: tuple[str, ...]
    weights: tuple[float, ...] | None
    group_of: IndexArray

    def of_windows(self, episode_of: IndexArray) -> NDArray[np.float64] | None:
        """(W,) how often to draw each window, summing to 1; None if all count equally.

        Args:
            episode_of: (W,) number of each window's episode.

        Raises:
            DatasetError: no window is left in any group with a weight.
        """
        if self.weights is None:
            return None
        group_of = self.group_of[episode_of]
        counts = np.bincount(group_of, minlength=len(self.names))
        drawn: NDArray[np.float64] = (np.asarray(self.weights) / np.maximum(counts, 1))[group_of]
        if not drawn.sum() > 0:
            raise DatasetError(
                f"{SETTING}: no {self.by} with a weight above 0 has a window to train on; weights are {self._listed()}"
            )
        return drawn / drawn.sum()

    def shares(self, episode_of: IndexArray, draws: int) -> tuple[Share, ...]:
        """The share of each group in an epoch of this many draws."""
        group_of, drawn = self.group_of[episode_of], self.of_windows(episode_of)
        counts = np.bincount(group_of, minlength=len(self.names))
        parts = counts / len(group_of) if drawn is None else np.bincount(group_of, drawn, minlength=len(self.names))
        weights = self.weights or (None,) * len(self.names)
        return tuple(
            Share(self.by, name, weight, count, part, part * draws / count if count else 0.0)
            for name, weight, count, part in zip(self.names, weights, counts.tolist(), parts.tolist(), strict=True)
        )

    def _listed(self) -> str:
        pairs = list(zip(self.names, self.weights or (), strict=True))
        more = f", and {len(pairs) - _LISTED} more" if len(pairs) > _LISTED else ""
        return ", ".join(f"{name}: {weight:g}" for name, weight in pairs[:_LISTED]) + more


@dataclass(frozen=True)
class Share:
    """One group's share of an epoch's draws.

    Attributes:
        by: what the group is: "dataset" or "task".
        name: path of the dataset, or the task.
        weight: as set; None if not set.
        windows: of its training episodes.
        share: of all draws, 0 to 1.
        repeats: how often each of its windows is drawn in an epoch, on average.
    """

    by: str
    name: str
    weight: float | None
    windows: int
    share: float
    repeats: float

    def __str__(self) -> str:
        weight = "" if self.weight is None else f", weight {self.weight:g}"
        times = f"each {self.repeats:.2f} times per epoch"
        return f"{self.by} {self.name}: {self.windows} windows{weight}, {self.share:.1%} of the samples, {times}"


def read_sampling(setting: Any, sources: Sequence[Source]) -> Sampling:
    """Check the setting `task.dataset.weights`.

    Args:
        setting: None; a list with a number for each dataset; or a mapping with a number for each task, where "others"
            stands for every task that is not named.
        sources: the datasets, with the task of each of their E episodes.

    Raises:
        DatasetError: numbers that are negative, not finite or all zero, not one for each dataset, or a task that no
            episode has.
    """
    paths = tuple(source.path for source in sources)
    source_of = np.repeat(np.arange(len(paths)), [len(source.episode_ends) for source in sources])
    if setting is None:
        return Sampling("dataset", paths, None, source_of)
    if isinstance(setting, Mapping):
        tasks = [task for source in sources for task in source.tasks]
        return _by_task({str(name): value for name, value in setting.items()}, tasks)
    expected = f"expected {len(paths)} numbers, one for each dataset, or a mapping of tasks to numbers"
    if isinstance(setting, str | bytes) or not isinstance(setting, Sequence):
        raise DatasetError(f"{SETTING}: weights are {setting!r}; {expected}")
    values = list(setting)
    if len(values) != len(paths):
        raise DatasetError(f"{SETTING}: weights are {values}; {expected}")
    return Sampling("dataset", paths, _numbers(values, values), source_of)


def _by_task(setting: dict[str, Any], tasks: Sequence[str]) -> Sampling:
    weights = _numbers(list(setting.values()), setting)
    counts = Counter(tasks)
    for name in setting:
        if name not in counts and name != OTHERS:
            raise DatasetError(f"{SETTING}: no episode has the task {name!r}; {_recorded(counts)}")
    groups = {name: group for group, name in enumerate(setting)}
    for name, count in counts.items():
        if name not in groups and OTHERS not in groups:
            whose = f"with the task {name!r}" if name else "without a task"
            raise DatasetError(
                f"{SETTING}: {count} episodes {whose} have no weight; name the task, or give all unnamed ones a "
                f"joint weight: {OTHERS}: 1"
            )
    return Sampling("task", tuple(setting), weights, np.array([groups.get(t, groups.get(OTHERS, 0)) for t in tasks]))


def _recorded(counts: Counter[str]) -> str:
    """The existing tasks, most frequent first."""
    named = [(name, count) for name, count in counts.most_common() if name]
    if not named:
        return "the datasets hold no tasks: only LeRobot recordings have them"
    more = f", and {len(named) - _LISTED} more" if len(named) > _LISTED else ""
    return "there are " + ", ".join(f"{name!r} ({count} episodes)" for name, count in named[:_LISTED]) + more


def _numbers(values: Sequence[Any], setting: Any) -> tuple[float, ...]:
    known = all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= _LARGEST for v in values)
    if not known or min(values, default=0) < 0 or sum(values) <= 0:
        raise DatasetError(f"{SETTING}: weights are {setting}; expected finite numbers, none negative, not all zero")
    return tuple(float(value) for value in values)
