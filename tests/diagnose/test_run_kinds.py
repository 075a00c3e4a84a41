"""The doctor's findings on a run of reinforcement learning, which has no losses on recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from diffusion_policy.diagnose.run_kinds import findings_of_run
from diffusion_policy.intervals import wilson_interval
from diffusion_policy.run_folder.reading import RunFolder


def line(update: int, won: int, of: int) -> dict[str, Any]:
    low, high = wilson_interval(won, of)
    figures = {"success_share": won / of, "success_share_low": low, "success_share_high": high}
    return {"global_step": update, "window_episodes": of, **figures}


def run(*lines: dict[str, Any]) -> RunFolder:
    config = OmegaConf.create({"ppo": {"window_episodes": 100}})
    return RunFolder(Path("run"), config, lines, {"latest.ckpt": Path("run/checkpoints/latest.ckpt")})


@pytest.mark.parametrize(
    ("first", "last", "severity", "message"),
    [
        (
            (20, 100),
            (60, 100),
            "ok",
            "20% (95 %: 13% to 29%) of the first 100 episodes, 60% (95 %: 50% to 69%) of",
        ),
        ((60, 100), (20, 100), "warning", "it unlearned"),
        ((20, 100), (25, 100), "note", "no difference is shown"),
    ],
)
def test_successes_are_compared_by_their_intervals(
    first: tuple[int, int], last: tuple[int, int], severity: str, message: str
) -> None:
    """The first full window counts as the beginning, not three lucky episodes before it."""
    found = findings_of_run(run(line(1, 3, 3), line(2, *first), line(3, *last)))
    assert [finding.code for finding in found] == ["reinforcement", "checkpoints"]
    assert found[0].severity == severity
    assert message in found[0].evidence


def test_an_incomplete_window_is_not_a_beginning() -> None:
    """Successes end early, so the first five episodes that end are all of them successes."""
    (first, _) = findings_of_run(run(line(1, 5, 5), line(2, 20, 40), line(3, 50, 100)))
    assert first.severity == "note"
    assert "success in 50% (95 %: 40% to 60%) of its 100 episodes: too few to compare" in first.evidence


def test_lines_of_a_log_without_an_interval_are_passed_over() -> None:
    (first, _) = findings_of_run(run({"global_step": 1, "success_share": 1.0, "window_episodes": 3}))
    assert first.evidence == "no episode ended during training"


def test_a_run_in_which_no_episode_ended_says_so() -> None:
    found = findings_of_run(run({"global_step": 4, "episodes": 0.0, "window_episodes": 0.0}))
    assert (found[0].severity, found[0].evidence) == ("warning", "no episode ended during training")
