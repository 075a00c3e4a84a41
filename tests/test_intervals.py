"""Intervals against published and simple cases."""

import numpy as np
import pytest
from scipy import stats

from diffusion_policy.intervals import (
    difference_interval,
    paired_bootstrap,
    probability_improved,
    wilson_interval,
)


def test_wilson() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3: 81/263, 15/148, 0/20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_difference() -> None:
    # Newcombe 1998, Statistics in Medicine 17:873, table II, method 10: 56/70 - 48/80.
    assert difference_interval((48, 80), (56, 70)) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert difference_interval((0, 0), (3, 4)) == (-1.0, 1.0)


def test_probability_improved() -> None:
    assert probability_improved((5, 10), (5, 10)) == pytest.approx(0.5, abs=1e-3)
    assert probability_improved((0, 20), (18, 20)) > 0.999
    assert probability_improved((18, 20), (0, 20)) < 0.001
    rng = np.random.default_rng(0)
    drawn = rng.beta(8.5, 2.5, 200_000) > rng.beta(3.5, 7.5, 200_000)
    assert probability_improved((3, 10), (8, 10)) == pytest.approx(drawn.mean(), abs=0.005)


def test_paired_bootstrap() -> None:
    first = np.arange(30.0)
    mean, (low, high) = paired_bootstrap(first, first + 1)
    assert (mean, low, high) == (1.0, 1.0, 1.0)
    noise = np.random.default_rng(1).normal(0.5, 1.0, 200)
    mean, (low, high) = paired_bootstrap(np.zeros(200), noise)
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * noise.std() / np.sqrt(200), rel=0.1)
    assert paired_bootstrap([1.0], [3.0]) == (2.0, (-np.inf, np.inf))
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        paired_bootstrap([], [])


@pytest.mark.parametrize("trials", [1, 2, 7, 200])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_s_interval_is_scipy_s(trials: int, confidence: float) -> None:
    for successes in {0, 1, trials // 2, trials}:
        expected = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
        assert wilson_interval(successes, trials, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_probability_improved_is_the_area_under_both_posteriors() -> None:
    draws = np.random.default_rng(0)
    before, after = draws.beta(3.5, 7.5, 400_000), draws.beta(6.5, 4.5, 400_000)
    assert probability_improved((3, 10), (6, 10)) == pytest.approx((after > before).mean(), abs=0.005)
