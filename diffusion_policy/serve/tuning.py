"""How many denoising steps a robot needs: error on recorded data against time on this machine.

Every setting answers the same recorded observations in order, as a client would ask them: at every ``stride``-th step
of an episode, the frame before it beside it. So seams between chunks are what the arm would have felt, and there is a
remainder to start from. Proposed is the cheapest setting whose error stays within a budget of the best, and whose slow
answers (p95) still fit the time between two requests.

Legend of shapes: N requests, Ta executed actions, 8 action dimensions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from diffusion_policy.checkpoint import load_policy
from diffusion_policy.evaluate.open_loop import score_chunks
from diffusion_policy.evaluate.recorded_inference import RecordedEpisodes
from diffusion_policy.gripper_events import TOLERANCE_STEPS, score_gripper_events
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.protocol import Observation
from diffusion_policy.serve.seams import Seam, ServedChunk
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.stages import Stages
from diffusion_policy.spec import WorkspaceError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A way to sample."""

    scheduler: str
    steps: int
    warm_start: float = 0.0

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"{self.scheduler}-{self.steps}" + (f", warm {self.warm_start:g}" if self.warm_start else "")


def parse_candidate(word: str) -> Candidate:
    """ "ddim:8" or "ddim:8:0.5"; WorkspaceError for anything else."""
    scheduler, *numbers = word.split(":")
    try:
        steps, warm = int(numbers[0]), float(numbers[1]) if len(numbers) > 1 else 0.0
    except (IndexError, ValueError) as error:
        raise WorkspaceError(f"candidate {word!r}; expected SCHEDULER:STEPS or SCHEDULER:STEPS:WARM") from error
    return Candidate(scheduler, steps, warm)


@dataclass(frozen=True)
class Budget:
    """What is good enough.

    Attributes:
        position_mm: how much more mean position error than the best candidate's.
        rotation_deg: how much more mean rotation error.
        period_s: time between two requests: executed steps over the control rate.
    """

    position_mm: float = 1.0
    rotation_deg: float = 0.5
    period_s: float = 0.6


@dataclass(frozen=True)
class Measured:
    """What a candidate costs and gives.

    Attributes:
        position_mm, rotation_deg: mean error of executed actions.
        event_f1: of gripper events in the first commands, against the recorded ones.
        p50_ms, p95_ms: of an inference, decoding included.
        seam_mm, seam_deg: median jump between chunks; None where requests are further apart than chunks are long.
    """

    candidate: Candidate
    position_mm: float
    rotation_deg: float
    event_f1: float
    p50_ms: float
    p95_ms: float
    seam_mm: float | None
    seam_deg: float | None


@dataclass(frozen=True)
class Tuning:
    """All candidates, and the one that is proposed (None: none fits)."""

    measured: tuple[Measured, ...]
    budget: Budget
    proposed: Candidate | None

    @property
    def passed(self) -> bool:
        """Whether one fits the budget."""
        return self.proposed is not None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def table(self) -> Table:
        """For the terminal."""
        caption = "nothing fits the budget" if self.proposed is None else f"proposed: {self.proposed.name}"
        table = Table("", "mm", "deg", "event F1", "p50 ms", "p95 ms", "seam mm", "seam deg", caption=caption)
        table.columns[0].no_wrap = True
        for row in self.measured:
            seams = ["-" if value is None else f"{value:.2f}" for value in (row.seam_mm, row.seam_deg)]
            errors = [f"{row.position_mm:.2f}", f"{row.rotation_deg:.2f}", f"{row.event_f1:.2f}"]
            table.add_row(row.candidate.name, *errors, f"{row.p50_ms:.0f}", f"{row.p95_ms:.0f}", *seams)
        return table


class RecordedRequests:
    """Recorded episodes as the requests of a client, with what was recorded there."""

    def __init__(
        self, engine: PolicyEngine, zarr_path: str | Path, episodes: Sequence[int] | None, stride: int, hz: float
    ):
        self._recorded = RecordedEpisodes(engine.policy, zarr_path)
        self.tolerance = max(1, TOLERANCE_STEPS // stride)  # of gripper events, in requests
        self._hz = hz
        self._n_obs = engine.n_obs_steps
        chosen = range(self._recorded.n_episodes) if episodes is None else episodes
        self.episodes = [self._recorded.steps(episode, stride) for episode in chosen]

    def observations(self, steps: NDArray[np.int64]) -> list[Observation]:
        """Requests at these steps of one episode, with times of the control rate."""
        low = int(steps[0])
        camera = self._recorded.policy.spec.rgb[0].key
        images = self._recorded.observations(steps)[camera].numpy()  # (N, To, 3, H, W)
        found = []
        for row, step in enumerate(steps.tolist()):
            window = np.maximum(np.arange(step - self._n_obs + 1, step + 1), low)
            states = self._recorded.logged_states(window)
            frames = tuple(np.ascontiguousarray(np.moveaxis(image, 0, -1)) for image in images[row])
            times = (step - low + np.arange(1 - self._n_obs, 1)) / self._hz
            found.append(Observation(frames, states[:, :7], states[:, 7:], times))
        return found

    def recorded(self, steps: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(N, Ta, 8) recorded actions and which lie inside the episode."""
        return self._recorded.recorded_chunks(steps)


def measure(
    engine: PolicyEngine, requests: RecordedRequests, candidate: Candidate, hz: float, seed: int = 0
) -> Measured:
    """Answer every request with an engine that is set to the candidate."""
    ours, theirs, inside, score, times = [], [], [], None, []
    seams: list[Seam] = []
    for steps in requests.episodes:
        chunks: list[NDArray[np.float64]] = []
        served: ServedChunk | None = None
        for step, observation in zip(steps.tolist(), requests.observations(steps), strict=True):
            now = float(observation.timestamps[-1])
            start = time.perf_counter()
            remainder = None if served is None else served.remainder(now, hz)
            answer = engine.infer(observation, seed * 1_000_003 + step, remainder, Stages())
            times.append((time.perf_counter() - start) * 1000)
            seam = None if served is None else served.seam(answer.sequence, now, hz)
            seams += [] if seam is None else [seam]
            served = ServedChunk(answer.sequence, answer.first, now)
            chunks.append(answer.actions)
        recorded, within = requests.recorded(steps)
        ours.append(np.stack(chunks))
        theirs.append(recorded)
        inside.append(within)
        episode = score_gripper_events(ours[-1][:, 0, 7], recorded[:, 0, 7], requests.tolerance)
        score = episode if score is None else score + episode
    assert score is not None
    errors = score_chunks(np.concatenate(ours), np.concatenate(theirs), np.concatenate(inside)).means()
    p50, p95 = np.percentile(times, (50, 95))
    return Measured(
        candidate,
        errors["position_mm"] or 0.0,
        errors["rotation_deg"] or 0.0,
        score.f1,
        float(p50),
        float(p95),
        float(np.median([seam.millimetres for seam in seams])) if seams else None,
        float(np.median([seam.degrees for seam in seams])) if seams else None,
    )


def tune(
    checkpoint: str | Path,
    zarr_path: str | Path,
    candidates: Sequence[Candidate],
    budget: Budget,
    settings: EngineSettings,
    episodes: Sequence[int] | None = None,
    stride: int = 6,
    hz: float = 10.0,
) -> Tuning:
    """Measure all candidates and propose one.

    Args:
        checkpoint: to be served.
        zarr_path: recorded data, best of episodes that training held out.
        candidates: at least one.
        budget: what is good enough.
        settings: device, precision and threads; sampler and warm start are the candidates'.
        episodes: numbers; all by default.
        stride: steps that a client executes before it asks again.
        hz: control rate.

    Raises:
        WorkspaceError: the checkpoint, the dataset or a candidate does not fit.
    """
    if not candidates or stride < 1:
        raise WorkspaceError(f"{len(candidates)} candidates and a stride of {stride}; expected at least one of both")
    measured = []
    policy = load_policy(checkpoint, which=settings.weights, device=settings.device)
    for candidate in candidates:
        options = replace(
            settings, scheduler=candidate.scheduler, steps=candidate.steps, warm_start=candidate.warm_start
        )
        engine = PolicyEngine(policy, options)
        engine.warm_up()
        requests = RecordedRequests(engine, zarr_path, episodes, stride, hz)
        measured.append(measure(engine, requests, candidate, hz))
        logger.info("%s: %.2f mm, %.0f ms", candidate.name, measured[-1].position_mm, measured[-1].p50_ms)
    return Tuning(tuple(measured), budget, propose(measured, budget))


def propose(measured: Sequence[Measured], budget: Budget) -> Candidate | None:
    """The fastest (p50) of those within the budget; None if none is.

    Gripper events count first: a candidate that loses events which the best one finds is never proposed.
    """
    position = min(row.position_mm for row in measured) + budget.position_mm
    rotation = min(row.rotation_deg for row in measured) + budget.rotation_deg
    events = max(row.event_f1 for row in measured)
    fitting = [
        row
        for row in measured
        if row.position_mm <= position
        and row.rotation_deg <= rotation
        and row.event_f1 >= events - 1e-9
        and row.p95_ms <= budget.period_s * 1000
    ]
    return min(fitting, key=lambda row: row.p50_ms).candidate if fitting else None
