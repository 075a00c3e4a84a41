"""Candidates of a tuning in closed loop, on the same scenes: which of them are good enough at the task itself.

Each is run by the runner of ``evaluate``, through the real server, with an injected latency: by default the median
inference time measured on this machine, so that a slow sampler acts as late as it would on the arm.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diffusion_policy.closed_loop.evaluation import ClosedLoop, Evaluation, evaluate
from diffusion_policy.env_runner.results import Comparison, compare, success_of, totals_of
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.progress import Progress, no_progress, part_of
from diffusion_policy.serve.candidates import Candidate
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.tuning import Measured, Tuning, fastest, within
from diffusion_policy.tables import Column, Table, numbers

ALLOWED_LOSS = 0.05  # of success


@dataclass(frozen=True)
class ClosedLoopTuning:
    """The candidates in closed loop.

    Attributes:
        tuning: what was measured on recorded data.
        runs: of each candidate of ``tuning.measured``, in the same order and in the same scenes.
        allowed_loss: by how much a success rate may be below the best one.
    """

    tuning: Tuning
    runs: tuple[ClosedLoop, ...]
    allowed_loss: float = ALLOWED_LOSS

    @property
    def best(self) -> tuple[Measured, ClosedLoop]:
        """The candidate that succeeds most often; among equals the fastest."""
        pairs = zip(self.tuning.measured, self.runs, strict=True)
        return max(pairs, key=lambda pair: (success_of(pair[1].results).count, -pair[0].p50_ms))

    @property
    def comparisons(self) -> list[Comparison]:
        """Each candidate compared with the best one, scene by scene."""
        best = self.best[1].results
        return [compare(best, run.results) for run in self.runs]

    @property
    def proposed(self) -> Candidate | None:
        """The fastest candidate within the budget on recorded data that succeeds often enough, or None."""
        fitting = within(self.tuning.measured, self.tuning.budget)
        rows = zip(self.tuning.measured, self.comparisons, strict=True)
        good = [row for row, found in rows if row in fitting and found.difference >= -self.allowed_loss - 1e-9]
        return fastest(good)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON: the tuning's, with this proposal and the scenes of each candidate."""
        rows = zip(self.tuning.measured, self.runs, self.comparisons, strict=True)
        runs = [
            {"candidate": asdict(row.candidate), "against_best": found.to_json(), **run.to_json()}
            for row, run, found in rows
        ]
        proposed = None if self.proposed is None else asdict(self.proposed)
        best = asdict(self.best[0].candidate)
        closed_loop = {"allowed_loss": self.allowed_loss, "best": best, "candidates": runs}
        return {**self.tuning.to_json(), "proposed": proposed, "closed_loop": closed_loop}

    def table(self) -> Table:
        """Returns a table for the terminal."""
        scenes = self.runs[0].scenes
        head = numbers("success (95 %)", "against the best", "p", "latency ms", "no action")
        title = f"closed loop, the same {scenes} scenes"
        table = Table(Column(no_wrap=True), *head, framed=True, title=title, caption="\n".join(self._notes()))
        for row, run, found in zip(self.tuning.measured, self.runs, self.comparisons, strict=True):
            against = "best" if run is self.best[1] else _points(found)
            refused = sum(totals_of(result.refusals for result in run.results).values())
            latency = f"{run.about['latency_injected_ms']:.0f}"
            cells = (str(success_of(run.results)), against, f"{found.p_value:.2g}", latency, str(refused))
            table.add(row.candidate.name, *cells)
        return table

    def _notes(self) -> list[str]:
        """What the table's numbers mean for the proposal."""
        proposed, loss = self.proposed, 100 * self.allowed_loss
        notes = ["nothing fits both budgets" if proposed is None else f"proposed: {proposed.name}"]
        if not success_of(self.best[1].results).count:
            notes.append("no candidate did the task in any scene, so success chose nothing")
        for row, found in zip(self.tuning.measured, self.comparisons, strict=True):
            if row.candidate == proposed and row is not self.best[0] and found.interval[0] < -self.allowed_loss:
                lost = (
                    "any loss" if math.isinf(found.interval[0]) else f"a loss of {-100 * found.interval[0]:.0f} points"
                )
                notes.append(f"so few scenes do not rule out {lost}, more than the {loss:g} allowed: add --scenes")
        return notes


def _points(found: Comparison) -> str:
    """A difference of success in points, with its interval where there is one."""
    low, high = (100 * edge for edge in found.interval)
    spread = f" ({low:+.0f} to {high:+.0f})" if math.isfinite(low) else ""
    return f"{100 * found.difference:+.0f}{spread}"


def tune_in_closed_loop(
    checkpoint: Path,
    tuning: Tuning,
    evaluation: Evaluation,
    settings: EngineSettings,
    *,
    latency_ms: float | None = None,
    allowed_loss: float = ALLOWED_LOSS,
    show: Progress = no_progress,
) -> ClosedLoopTuning:
    """Runs every candidate in the same scenes.

    Args:
        checkpoint: that was tuned.
        tuning: its candidates, measured on recorded data.
        evaluation: scenes, server and execution; its sampler, device and latency are the candidates'.
        settings: with which the candidates were measured.
        latency_ms: injected; None: each candidate's measured median time.
        allowed_loss: see ``ClosedLoopTuning``.
        show: called with the scenes that have ended, and the total over all candidates.

    Raises:
        WorkspaceError: the checkpoint, the simulator and the settings do not match.
    """
    if not 0 <= allowed_loss <= 1:
        raise WorkspaceError(f"the allowed loss of success is {allowed_loss}; expected a share, 0 to 1")
    runs: list[ClosedLoop] = []
    for number, row in enumerate(tuning.measured):
        chosen = replace(
            evaluation_of_candidate(evaluation, row.candidate, settings),
            latency_ms=row.p50_ms if latency_ms is None else latency_ms,
        )
        runs.append(evaluate(checkpoint, chosen, show=part_of(show, number, len(tuning.measured))))
    return ClosedLoopTuning(tuning, tuple(runs), allowed_loss)


def evaluation_of_candidate(evaluation: Evaluation, candidate: Candidate, settings: EngineSettings) -> Evaluation:
    """Returns the evaluation of one candidate, through the server; one that continues chunks needs the control loop."""
    words = (*evaluation.serve_words, *candidate.serve_words(settings))
    strategy = candidate.continues or evaluation.strategy
    return replace(evaluation, through_server=True, serve_words=words, device=settings.device, strategy=strategy)


def check_candidate(checkpoint: Path, evaluation: Evaluation, candidate: Candidate, settings: EngineSettings) -> None:
    """Refuses candidates that could not be run, before time is spent on recorded data; runs no scene.

    Raises:
        WorkspaceError: the checkpoint, the simulator and the settings do not match.
    """
    evaluation.simulator.make().close()
    evaluate(checkpoint, replace(evaluation_of_candidate(evaluation, candidate, settings), n_scenes=0))
