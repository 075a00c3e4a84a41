"""Shares with intervals, and two policies on the same scenes."""

import json

import numpy as np
import pytest
from scipy import stats

from diffusion_policy.env_runner.results import (
    ResultError,
    SceneResult,
    Share,
    compare,
    grasped_of,
    latency_of,
    reasons_of,
    success_of,
    summary,
)
from diffusion_policy.intervals import mcnemar_exact


def result(scene: int, *, success: bool, **more: object) -> SceneResult:
    return SceneResult(scene, 100 + scene, success, 50, None if success else "dropped", **more)  # type: ignore[arg-type]


def results(outcomes: str) -> list[SceneResult]:
    return [result(scene, success=outcome == "1") for scene, outcome in enumerate(outcomes)]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 0), (0, 5), (3, 9), (10, 10), (1, 2), (40, 22)])
def test_mcnemar_is_the_binomial_test(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar_exact(first, second) == pytest.approx(expected)


def test_a_comparison_pairs_by_scene() -> None:
    found = compare(results("1100110000"), list(reversed(results("1111110000"))))
    assert (found.both, found.only_first, found.only_second, found.neither) == (4, 0, 2, 4)
    assert found.difference == pytest.approx(0.2)
    assert found.interval[0] >= 0
    assert found.p_value == 0.5
    assert json.dumps(found.to_json(), allow_nan=False)


def test_only_shared_scenes_are_compared() -> None:
    found = compare(results("11"), results("0011"))
    assert found.both + found.only_first + found.only_second + found.neither == 2
    with pytest.raises(ResultError, match="share no scene"):
        compare(results("1"), [result(7, success=True)])


def test_one_scene_has_no_interval() -> None:
    assert compare(results("1"), results("0")).to_json()["interval"] is None


def test_what_was_not_measured_is_null() -> None:
    assert grasped_of(results("10")) is None
    assert latency_of(results("10")) is None
    assert Share(0, 0).to_json() == {"count": 0, "of": 0, "share": None, "interval": [0.0, 1.0]}
    assert str(success_of([])) == "none of 0"
    assert json.dumps(summary([]), allow_nan=False)


def test_reasons_latency_and_limits_add_up() -> None:
    found = summary(
        [
            result(1, success=False, refusals={"stale": 2}, limited={"step distance": 3}, latencies_ms=(1.0, 3.0)),
            result(0, success=True, grasped=True, limited={"step distance": 1, "workspace": 1}, latencies_ms=(2.0,)),
        ]
    )
    assert found["reasons"] == {"dropped": 1}
    assert found["refusals"] == {"stale": 2}
    assert found["limited"] == {"step distance": 4, "workspace": 1}
    assert found["latency_ms"] == {"p50": 2.0, "p95": pytest.approx(2.9), "max": 3.0, "answers": 3}
    assert found["grasped"]["of"] == 1
    assert [scene["scene"] for scene in found["scenes"]] == [0, 1]
    assert reasons_of(results("000")) == {"dropped": 3}


def test_scenes_survive_json() -> None:
    kept = result(3, success=False, position=(0.4, 0.1), refusals={"late": 1}, latencies_ms=(1.5,), grasped=False)
    document = json.loads(json.dumps(summary([kept])))
    assert SceneResult.read(document["scenes"][0], "here") == kept
    for broken in (None, {}, {**document["scenes"][0], "more": 1}):
        with pytest.raises(ResultError, match="here: a scene is"):
            SceneResult.read(broken, "here")


def test_wilson_is_asymmetric_at_the_ends() -> None:
    low, high = Share(40, 40).interval
    assert high == 1.0
    assert low == pytest.approx(0.912, abs=1e-3)
    assert np.isfinite(low)
