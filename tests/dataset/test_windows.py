"""Windows and the validation split against the reference's rules, written out naively."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_policy.dataset.windows import cut_windows, thin_episodes, validation_episodes


def naive_windows(
    lengths: list[int], horizon: int, pad_before: int, pad_after: int, used: list[bool]
) -> list[list[int]]:
    """Every window as a list of steps: starts from -pad_before on; steps outside the episode repeat its edge."""
    pad_before = min(max(pad_before, 0), horizon - 1)
    pad_after = min(max(pad_after, 0), horizon - 1)
    windows, first = [], 0
    for length, takes_part in zip(lengths, used, strict=True):
        for start in range(-pad_before, length - horizon + pad_after + 1):
            steps = [first + min(max(start + i, 0), length - 1) for i in range(horizon)]
            if takes_part:
                windows.append(steps)
        first += length
    return windows


@given(
    episodes=st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=8),
    horizon=st.integers(1, 20),
    pad_before=st.integers(0, 25),
    pad_after=st.integers(0, 25),
)
def test_windows_equal_the_reference(
    episodes: list[tuple[int, bool]], horizon: int, pad_before: int, pad_after: int
) -> None:
    lengths, used = map(list, zip(*episodes, strict=True))
    windows = cut_windows(np.cumsum(lengths), horizon, pad_before, pad_after, np.asarray(used))
    expected = naive_windows(lengths, horizon, pad_before, pad_after, used)
    assert windows.steps(np.arange(len(windows))).tolist() == expected
    assert len(windows) == len(expected)
    for index in (0, len(windows) - 1) if expected else ():
        assert windows.steps(index).tolist() == expected[index]
        assert windows.steps(index, 2).tolist() == expected[index][:2] or horizon < 2


def test_users_settings() -> None:
    windows = cut_windows(np.asarray([100, 230]), horizon=16, pad_before=1, pad_after=7)
    assert len(windows) == (100 - 16 + 1 + 1 + 7) + (130 - 16 + 1 + 1 + 7)
    assert windows.steps(0).tolist() == [0, *range(15)]
    assert windows.steps(len(windows) - 1).tolist() == [*range(221, 230), *[229] * 7]


@pytest.mark.parametrize(
    ("n_episodes", "ratio", "held_out"),
    [(10, 0.0, 0), (10, 0.01, 1), (25, 0.1, 2), (35, 0.1, 4), (2, 0.9, 1), (1, 0.5, 0)],
)
def test_how_many_episodes_are_held_out(n_episodes: int, ratio: float, held_out: int) -> None:
    assert validation_episodes(n_episodes, ratio, seed=42).sum() == held_out


def test_the_split_is_the_reference_draw() -> None:
    drawn = np.random.default_rng(42).choice(153, size=15, replace=False)
    assert np.flatnonzero(validation_episodes(153, 0.1, seed=42)).tolist() == sorted(drawn)
    training = ~validation_episodes(153, 0.1, seed=42)
    chosen = np.flatnonzero(training)[np.random.default_rng(42).choice(138, size=20, replace=False)]
    assert np.flatnonzero(thin_episodes(training, 20, seed=42)).tolist() == sorted(chosen)
    np.testing.assert_array_equal(thin_episodes(training, None, seed=42), training)
    np.testing.assert_array_equal(thin_episodes(training, 500, seed=42), training)
