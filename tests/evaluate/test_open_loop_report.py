"""Open-loop evaluation as a whole: a random policy loses to baselines, a perfect one beats them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_factory import write_dataset, write_tiny_checkpoint
from printed import printed

from diffusion_policy.evaluate.open_loop_report import (
    COPYCAT,
    POLICY,
    OpenLoopReport,
    compare_open_loop,
    evaluate_open_loop,
    score_episodes,
)
from diffusion_policy.evaluate.open_loop_table import comparison_table, open_loop_table
from diffusion_policy.evaluate.recorded_inference import Sampling
from diffusion_policy.evaluate.writing import EvaluateError
from diffusion_policy.intervals import wilson_interval


@pytest.fixture(scope="module")
def report(tiny_checkpoint: Path, recorded_zarr: Path) -> OpenLoopReport:
    return evaluate_open_loop(tiny_checkpoint, recorded_zarr, "all", Sampling(steps=2), samples=2)


def predicting(report: OpenLoopReport, offset: float) -> OpenLoopReport:
    """The report of a policy that predicts the recording, ``offset`` meters off and more so in later episodes."""
    episodes = tuple(
        dataclasses.replace(
            episode, samples=np.stack([episode.recorded + offset * (1 + i / 10) * (np.arange(8) == 0)] * 2)
        )
        for i, episode in enumerate(report.episodes)
    )
    return dataclasses.replace(report, episodes=episodes, scores=score_episodes(episodes))


def test_a_random_policy_is_called_out(report: OpenLoopReport) -> None:
    assert list(report.scores) == [POLICY, "hold pose", "previous action", "mean action", COPYCAT]
    found = report.to_json()
    assert json.loads(json.dumps(found, allow_nan=False))["samples"] == 2
    assert len(found["scores"][POLICY]["per_horizon_step"]["position_mm"]) == 4
    assert set(found["scores"][POLICY]["per_phase"]) == {"approach", "grasp", "move", "release"}
    assert len(found["spread"]["position_mm"]) == 4
    assert found["episodes"] == [0, 1, 2, 3]
    assert any(line.startswith("does not beat 'hold pose' in position mm: ") for line in found["shortcomings"])
    assert "does not beat 'hold pose' in position mm" in printed(open_loop_table(report))


def test_baselines_are_scored_where_they_say_something(report: OpenLoopReport) -> None:
    hold, copycat = report.scores["hold pose"].means(), report.scores[COPYCAT].means()
    assert hold["position_mm"] is not None
    assert (hold["gripper_at_transitions"], hold["gripper_f1"]) == (None, None)
    assert (copycat["position_mm"], copycat["gripper_f1"]) == (None, 1.0)
    assert copycat["gripper_at_transitions"] > 0.5, "the measured gripper lags two steps behind"
    events = report.scores[COPYCAT].to_json()["events"]
    assert (events["late"], events["median_offset_steps"]) == (8, 2.0)
    assert events["offsets_ms"] == pytest.approx([200.0] * 8, abs=1.0)


def test_a_perfect_policy_beats_every_baseline(report: OpenLoopReport) -> None:
    perfect = predicting(report, 0.0)
    assert perfect.shortcomings() == []
    assert perfect.scores[POLICY].means() == pytest.approx(
        {"position_mm": 0.0, "rotation_deg": 0.0, "gripper_at_transitions": 0.0, "gripper_f1": 1.0}, abs=1e-4
    )
    assert "beats every baseline" in printed(open_loop_table(perfect))


def test_the_table_says_where_and_how_sure(report: OpenLoopReport) -> None:
    output = " ".join(printed(open_loop_table(predicting(report, 0.010))).split())
    assert "episodes 0, 1, 2, 3; ddim, 2 steps, 2 noise samples at each step" in output
    assert all(phase in output for phase in ("approach", "grasp", "move", "release"))
    assert "position by step of the chunk: 11.5, 11.5, 11.5, 11.5 mm" in output
    assert "spread of the samples: 0 mm at the first action, 0 at the last; gripper 0 and 0" in output
    assert "gripper: 16 of 16 recorded events found in 2 samples (95 % interval 68%-100%): 0 early, 0 late" in output
    assert "of a copy of the measured gripper: better (-0.583 to -0.583)" in output


def test_samples_of_one_event_are_not_several_events(report: OpenLoopReport) -> None:
    """Sixteen predictions of eight events carry as much information as eight."""
    events = predicting(report, 0.0).scores[POLICY].to_json()["events"]
    assert (len(events["matched"]), events["samples"]) == (16, 2)
    assert events["recall_interval"] == wilson_interval(8, 8)


def test_a_copycat_is_called_out_first(report: OpenLoopReport) -> None:
    episodes = []
    for episode in report.episodes:
        copied = np.repeat(episode.recorded[None], 2, axis=0) + 1.0 * (np.arange(8) == 0)
        copied[..., -1] = episode.measured[:, None, -1]
        episodes.append(dataclasses.replace(episode, samples=copied))
    found = dataclasses.replace(report, episodes=tuple(episodes), scores=score_episodes(episodes)).shortcomings()
    assert found[0] == f"does not beat '{COPYCAT}' in wrong at transitions: 0.583 against 0.583"
    assert "does not beat 'hold pose' in position mm" in found[1]


def test_checkpoints_are_compared_by_episode(report: OpenLoopReport) -> None:
    worse, better = predicting(report, 0.010), predicting(report, 0.004)
    found = compare_open_loop(worse, better)["position_mm"]
    assert found["difference"] == pytest.approx(-6.9, abs=1e-6)
    assert found["differs"]
    assert found["interval"][0] <= -6.9 <= found["interval"][1] < 0
    assert "better" in printed(comparison_table(compare_open_loop(worse, better)))
    assert "worse" in printed(comparison_table(compare_open_loop(better, worse)))


def test_one_episode_claims_nothing(report: OpenLoopReport) -> None:
    first, second = (
        dataclasses.replace(found, episodes=found.episodes[:1], scores=score_episodes(found.episodes[:1]))
        for found in (predicting(report, 0.010), predicting(report, 0.004))
    )
    found = compare_open_loop(first, second)
    assert (found["position_mm"]["interval"], found["position_mm"]["differs"]) == (None, False)
    assert "one episode: no interval" in printed(comparison_table(found))
    with pytest.raises(EvaluateError, match=r"the episodes differ, \[0\] and \[0, 1, 2, 3\]"):
        compare_open_loop(first, report)


def test_a_pose_policy_is_scored_without_a_gripper(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "pose.ckpt", width=7)
    found = evaluate_open_loop(checkpoint, write_dataset(tmp_path / "set.zarr"), [0], Sampling(steps=1), samples=1)
    means = found.scores[POLICY].means()
    assert means["position_mm"] is not None
    assert (means["gripper_at_transitions"], means["gripper_f1"]) == (None, None)
    assert found.to_json()["spread"] == {"position_mm": None, "gripper": None}
    assert COPYCAT not in found.scores


def test_refuses_no_samples(tiny_checkpoint: Path, recorded_zarr: Path) -> None:
    with pytest.raises(EvaluateError, match="samples is 0"):
        evaluate_open_loop(tiny_checkpoint, recorded_zarr, samples=0)
