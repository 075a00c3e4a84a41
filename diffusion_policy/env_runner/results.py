"""Results of episodes: by scene, in total with an interval, and compared with another policy on the same scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.intervals import Interval, mcnemar_exact, paired_bootstrap, wilson_interval

REFUSED_BY_GUARD = "refused by guard"
TIMEOUT = "timeout"


class ResultError(WorkspaceError, ValueError):
    """Results cannot be read or compared."""


@dataclass(frozen=True)
class SceneResult:
    """The result of one episode.

    Attributes:
        scene: number of the scene, from 0.
        seed: seed of the environment.
        success: whether the task was completed.
        steps: number of steps taken.
        reason: why it failed; None after success.
        grasped: whether the object was ever held; None where the simulator does not report it.
        position: (2,) where the scene is drawn in plots; None where the simulator does not report it.
        requests: number of action requests.
        refusals: number of requests without an action, by error code.
        limited: how many actions each limit of the guard changed.
        latencies_ms: milliseconds from request to reply; empty where episodes were answered together.
    """

    scene: int
    seed: int
    success: bool
    steps: int
    reason: str | None = None
    grasped: bool | None = None
    position: tuple[float, float] | None = None
    requests: int = 0
    refusals: Mapping[str, int] = field(default_factory=dict)
    limited: Mapping[str, int] = field(default_factory=dict)
    latencies_ms: tuple[float, ...] = ()

    @classmethod
    def read(cls, entry: Any, where: str) -> SceneResult:
        """Reads a result from JSON.

        Raises:
            ResultError: the entry is not a result.
        """
        if not isinstance(entry, Mapping) or set(entry) != set(cls.__dataclass_fields__):
            raise ResultError(f"{where}: a scene is {str(entry)[:80]}; expected an object as --json writes it")
        position = entry["position"]
        try:
            found = cls(
                **{
                    **entry,
                    "position": None if position is None else (float(position[0]), float(position[1])),
                    "latencies_ms": tuple(map(float, entry["latencies_ms"])),
                }
            )
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise ResultError(f"{where}: a scene's position or latencies are not numbers ({error})") from error
        for key, kinds in _KINDS.items():
            if type(entry[key]) not in kinds:
                raise ResultError(f"{where}: a scene's {key} is {entry[key]!r}; expected an object as --json writes it")
        return found


# JSON types of a scene's entries.
_KINDS: dict[str, tuple[type, ...]] = {
    "scene": (int,),
    "seed": (int,),
    "success": (bool,),
    "steps": (int,),
    "reason": (str, type(None)),
    "grasped": (bool, type(None)),
    "requests": (int,),
    "refusals": (dict,),
    "limited": (dict,),
}


@dataclass(frozen=True)
class Share:
    """A proportion, such as 3 of 40 scenes, with its 95 % Wilson interval."""

    count: int
    of: int

    @property
    def interval(self) -> Interval:
        """The 95 % Wilson interval."""
        return wilson_interval(self.count, self.of)

    def to_json(self) -> dict[str, Any]:
        """Returns plain data; the share is null without a scene."""
        return {
            "count": self.count,
            "of": self.of,
            "share": self.count / self.of if self.of else None,
            "interval": list(self.interval),
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.count} of {self.of} ({100 * low:.0f}-{100 * high:.0f} %)" if self.of else "none of 0"


def success_of(results: Sequence[SceneResult]) -> Share:
    """Returns in how many scenes the task was completed."""
    return Share(sum(result.success for result in results), len(results))


def grasped_of(results: Sequence[SceneResult]) -> Share | None:
    """Returns in how many scenes the object was held; None where the simulator does not report it."""
    reported = [result.grasped for result in results if result.grasped is not None]
    return Share(sum(reported), len(reported)) if reported else None


def reasons_of(results: Iterable[SceneResult]) -> dict[str, int]:
    """Counts the reasons of failure, the most frequent first."""
    return dict(Counter(result.reason for result in results if result.reason is not None).most_common())


def totals_of(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Adds up counts by name."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total.most_common())


def latency_of(results: Iterable[SceneResult]) -> dict[str, float] | None:
    """Returns latency in milliseconds: median, 95th percentile, maximum; None where none was measured."""
    measured = [ms for result in results for ms in result.latencies_ms]
    if not measured:
        return None
    median, high = np.percentile(measured, (50, 95))
    return {
        "p50": round(float(median), 3),
        "p95": round(float(high), 3),
        "max": max(measured),
        "answers": len(measured),
    }


def summary(results: Sequence[SceneResult]) -> dict[str, Any]:
    """Returns success, grasps, failures, refusals, latency and all scenes as plain data."""
    grasped = grasped_of(results)
    return {
        "success": success_of(results).to_json(),
        "grasped": None if grasped is None else grasped.to_json(),
        "reasons": reasons_of(results),
        "refusals": totals_of(result.refusals for result in results),
        "limited": totals_of(result.limited for result in results),
        "latency_ms": latency_of(results),
        "scenes": [asdict(result) for result in sorted(results, key=lambda result: result.scene)],
    }


@dataclass(frozen=True)
class Comparison:
    """Two policies on the same scenes.

    Attributes:
        both, only_first, only_second, neither: number of scenes by which policies succeeded.
        p_value: two-sided exact test of McNemar (1947) on the scenes in which they differ.
        difference: share of the second minus share of the first.
        interval: 95 %, paired bootstrap over scenes.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float
    difference: float
    interval: Interval

    def to_json(self) -> dict[str, Any]:
        """Returns plain finite data: an interval without bounds (one scene) is null."""
        bounded = bool(np.isfinite(self.interval).all())
        return {**asdict(self), "interval": list(self.interval) if bounded else None}


def compare(first: Sequence[SceneResult], second: Sequence[SceneResult]) -> Comparison:
    """Compares two policies scene by scene; scenes that only one of them has are left out.

    Raises:
        ResultError: they share no scene.
    """
    by_seed = {result.seed: result.success for result in first}
    pairs = [(by_seed[result.seed], result.success) for result in second if result.seed in by_seed]
    if not pairs:
        raise ResultError("the two results share no scene; run both with the same --seed")
    count = Counter(pairs)
    difference, interval = paired_bootstrap(*np.array(pairs, dtype=np.float64).T)
    only_first, only_second = count[True, False], count[False, True]
    return Comparison(
        both=count[True, True],
        only_first=only_first,
        only_second=only_second,
        neither=count[False, False],
        p_value=mcnemar_exact(only_first, only_second),
        difference=difference,
        interval=interval,
    )
