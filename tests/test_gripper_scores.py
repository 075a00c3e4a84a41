"""Gripper F1 is one measure: every reporter gives the same number for the same events, with its tolerance.

A reporter takes commanded and recorded grippers of episodes, (N,) each at one control rate, and returns the F1 that it
reports and its tolerance in seconds. A new reporter belongs in REPORTERS.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from printed import printed

from diffusion_policy.evaluate.open_loop_report import (
    POLICY,
    EpisodeOpenLoop,
    OpenLoopReport,
    score_episodes,
)
from diffusion_policy.evaluate.open_loop_table import open_loop_table
from diffusion_policy.evaluate.recorded_inference import Sampling
from diffusion_policy.gripper_events import gripper_events, score_gripper_events
from diffusion_policy.serve.candidates import Candidate
from diffusion_policy.serve.engine import Inference
from diffusion_policy.serve.engine.wire import Wire
from diffusion_policy.serve.recorded_requests import RecordedRequests
from diffusion_policy.serve.transport.protocol import Observation
from diffusion_policy.serve.tuning import Budget, Tuning, measure, propose
from diffusion_policy.spec import POSE_GRIPPER, ActionLayout, StepSpec
from diffusion_policy.workspace.validation import EpisodePrediction, gripper_scores

Gripper = NDArray[np.float64]
Episodes = Sequence[tuple[Gripper, Gripper]]
N_ACTIONS, STRIDE = 8, 6


def poses(gripper: Gripper) -> NDArray[np.float64]:
    """(N, 8) commands of an arm that moves on a line, with this gripper."""
    found = np.tile([0.4, 0.0, 0.2, 1.0, 0.0, 0.0, 0.0, 0.0], (len(gripper), 1))
    found[:, 0] += 0.001 * np.arange(len(gripper))
    found[:, 7] = gripper
    return found


def chunks_from(commands: NDArray[np.float64], starts: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(C, Ta, 8) commands from each start on, the last one held, and whether each is inside the episode."""
    steps = np.asarray(starts)[:, None] + np.arange(N_ACTIONS)
    return commands[np.minimum(steps, len(commands) - 1)], steps < len(commands)


def training(episodes: Episodes, step_seconds: float | None, tolerance_s: float) -> tuple[float | None, float]:
    predictions = []
    for number, (predicted, recorded) in enumerate(episodes):
        starts = range(0, len(recorded), N_ACTIONS)
        chunks, inside = chunks_from(poses(predicted), starts)
        targets, _ = chunks_from(poses(recorded), starts)
        predictions.append(
            EpisodePrediction(number, chunks[inside], targets[inside], chunks, targets, inside, step_seconds)
        )
    scores = gripper_scores(predictions, ActionLayout.of(POSE_GRIPPER), tolerance_s)
    return scores.get("val_gripper_f1"), scores["val_gripper_tolerance_s"]


def open_loop(episodes: Episodes, step_seconds: float | None, tolerance_s: float) -> tuple[float | None, float]:
    found = []
    for number, (predicted, recorded) in enumerate(episodes):
        starts = range(len(recorded))
        chunks, inside = chunks_from(poses(predicted), starts)
        targets, _ = chunks_from(poses(recorded), starts)
        found.append(
            EpisodeOpenLoop(number, chunks[None], targets, inside, poses(recorded), {}, step_seconds, tolerance_s)
        )
    report = OpenLoopReport("a.ckpt", tuple(found), Sampling(), score_episodes(found))
    return report.scores[POLICY].to_json()["gripper_f1"], report.scores[POLICY].to_json()["events"]["tolerance_s"]


class Recording:
    """Like `RecordedEpisodes`, with only grippers."""

    def __init__(self, grippers: Sequence[Gripper], step_seconds: float | None):
        self._commands, self._seconds = [poses(gripper) for gripper in grippers], step_seconds
        self._firsts = np.cumsum([0, *map(len, self._commands)])

    def steps(self, episode: int, stride: int = 1) -> NDArray[np.int64]:
        return np.arange(self._firsts[episode], self._firsts[episode + 1], stride)

    def step_seconds(self, episode: int) -> float | None:
        return self._seconds

    def recorded_chunks(self, steps: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        episode = int(np.searchsorted(self._firsts, steps[0], side="right")) - 1
        return chunks_from(self._commands[episode], (steps - self._firsts[episode]).tolist())


class Requests(RecordedRequests):
    """Requests whose observation is the step that it was made at."""

    def __init__(self, recording: Recording, n_episodes: int):
        self._recorded, self.stride = recording, STRIDE  # type: ignore[assignment]
        self.wire = Wire(StepSpec((), POSE_GRIPPER))
        self.numbers = tuple(range(n_episodes))
        self.episodes = [recording.steps(episode, STRIDE) for episode in self.numbers]

    def observations(self, steps: NDArray[np.int64]) -> list[Observation]:
        low = steps[0]
        return [Observation((), np.zeros((1, 7)), np.zeros((1, 1)), np.array([(s - low) / 10])) for s in steps]


class Engine:
    """Answers with the predicted gripper, episode after episode."""

    def __init__(self, predicted: Recording, requests: Requests):
        self._answers = [predicted.recorded_chunks(np.array([step]))[0][0] for e in requests.episodes for step in e]

    def infer(self, *_: object) -> Inference:
        chunk = self._answers.pop(0)
        return Inference(chunk, chunk, 0, 1)


def tuning(episodes: Episodes, step_seconds: float | None, tolerance_s: float) -> tuple[float | None, float]:
    requests = Requests(Recording([recorded for _, recorded in episodes], step_seconds), len(episodes))
    engine = Engine(Recording([predicted for predicted, _ in episodes], step_seconds), requests)
    row = measure(engine, requests, Candidate("ddim", 8), 10.0, tolerance_s=tolerance_s)  # type: ignore[arg-type]
    report = Tuning((row,), Budget(), propose([row], Budget()), tolerance_s).to_json()
    return report["measured"][0]["event_f1"], report["tolerance_s"]


REPORTERS: dict[str, Callable[[Episodes, float | None, float], tuple[float | None, float]]] = {
    "training": training,
    "open loop": open_loop,
    "tuning": tuning,
}


def gripper(n_steps: int, *changes: int) -> Gripper:
    """Open at first, then changing state at each of these steps."""
    states = np.ones(n_steps)
    for change in changes:
        states[change:] = 1 - states[change]
    return states


CASES: dict[str, Episodes] = {
    "on time": [(gripper(61, 20, 44), gripper(61, 20, 44))],
    "late within a second": [(gripper(61, 27, 50), gripper(61, 20, 44))],
    "late by more": [(gripper(61, 33, 58), gripper(61, 20, 44))],
    "missed and made up": [(gripper(61, 10), gripper(61, 40)), (gripper(50), gripper(50, 9))],
    "never closes": [(gripper(61), gripper(61, 20, 44))],
    "nothing recorded": [(gripper(61, 20), gripper(61)), (gripper(50), gripper(50))],
    "nothing at all": [(gripper(61), gripper(61)), (gripper(50), gripper(50))],
    "hesitates": [(gripper(61, 19, 20, 21, 44), gripper(61, 20, 44))],
}


@pytest.mark.parametrize("step_seconds", [0.1, 0.05, 0.8, None], ids=lambda s: f"{s} s")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reporter", REPORTERS)
def test_the_same_events_give_the_same_f1(reporter: str, case: str, step_seconds: float | None) -> None:
    expected = None
    for tolerance_s in (1.0, 0.5):
        parts = [
            score_gripper_events(*pair, step_seconds=step_seconds, tolerance_s=tolerance_s) for pair in CASES[case]
        ]
        expected = sum(parts[1:], parts[0]).to_json()["f1"]
        assert REPORTERS[reporter](CASES[case], step_seconds, tolerance_s) == (expected, tolerance_s)
    assert (expected is None) == (not any(gripper_events(recorded) for _, recorded in CASES[case]))


def test_cases_tell_measures_apart() -> None:
    """The three former measures, 5 steps, 1 s and 10 // stride requests, differ in these."""
    late = CASES["late within a second"][0]
    assert [score_gripper_events(*late, steps).f1 for steps in (5, 10)] == [0.0, 1.0]
    assert score_gripper_events(*late, step_seconds=0.8).f1 == 0.0


def test_tables_say_within_what_and_show_what_is_not_defined() -> None:
    chunks, inside = chunks_from(poses(gripper(30)), range(30))
    still = [EpisodeOpenLoop(0, chunks[None], chunks, inside, poses(gripper(30)), {"hold pose": chunks}, 0.1)]
    report = OpenLoopReport("a.ckpt", tuple(still), Sampling(), score_episodes(still))
    shown = printed(open_loop_table(report))
    assert "events F1 (1 s)" in shown
    assert "the gripper was not measured: no event is recorded in these 1 episodes" in shown
    assert report.to_json()["unmeasured"]
    row = next(line for line in shown.splitlines() if line.startswith(POLICY))
    assert row.split()[-2:] == ["-", "-"]
    requests = Requests(Recording([gripper(61)], 0.1), 1)
    engine = Engine(Recording([gripper(61)], 0.1), requests)
    nothing = measure(engine, requests, Candidate("ddim", 8), 10.0)  # type: ignore[arg-type]
    shown = " ".join(printed(Tuning((nothing,), Budget(), propose([nothing], Budget())).table()).split())
    assert "F1 (1 s)" in shown
    assert "no gripper event is recorded in these episodes, so events did not affect the choice" in shown


def test_a_candidate_is_never_ranked_by_what_is_not_defined() -> None:
    row = dataclasses.replace(
        measure(
            Engine(Recording([gripper(61)], 0.1), requests := Requests(Recording([gripper(61)], 0.1), 1)),  # type: ignore[arg-type]
            requests,
            Candidate("ddim", 8),
            10.0,
        ),
        p50_ms=50.0,
        p95_ms=60.0,
    )
    broken = dataclasses.replace(
        row, candidate=Candidate("ddim", 2), position_mm=None, rotation_deg=None, event_f1=None, p50_ms=5.0
    )
    assert propose([row, broken], Budget()) == row.candidate
    assert propose([broken], Budget()) is None
    flips = dataclasses.replace(row, candidate=Candidate("ddim", 1), false_events=3, p50_ms=5.0)
    assert propose([row, flips], Budget()) == row.candidate
