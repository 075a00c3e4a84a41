"""Figures of one run of the control loop, from its log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from diffusion_policy.serve.client.arm_log import ArmLogContent


@dataclass(frozen=True)
class LoopFigures:
    """What a run was like; times in seconds, None where nothing was measured.

    Attributes:
        seconds: from its first to its last control period.
        moves: control periods in which the arm was commanded to move.
        holds: control periods in which it was held, by reason.
        missed: control periods that were left out because another took too long.
        requests: number of requests.
        errors: number of requests that failed, by code.
        last_errors: the message of the last error of each code.
        delay_s: from a request to its answer: median and longest.
        age_s: of what was executed, since the capture of what it answers: median and largest.
        seam_mm, seam_deg: jumps between two chunks: median and largest.
    """

    seconds: float
    moves: int
    holds: Mapping[str, int]
    missed: int
    requests: int
    errors: Mapping[str, int]
    last_errors: Mapping[str, str]
    delay_s: tuple[float, float] | None
    age_s: tuple[float, float] | None
    seam_mm: tuple[float, float] | None
    seam_deg: tuple[float, float] | None

    @classmethod
    def of(cls, log: ArmLogContent) -> LoopFigures:
        """Counts a log's lines; one of a killed run has no last line, and its holds are not counted."""
        sent = {line["request_id"]: line["time"] for line in log.of("request")}
        answers, ends = log.of("answer"), log.of("end")
        times = [line["time"] for line in log.lines]
        seams = [line["seam"] for line in answers if line["seam"] is not None]
        return cls(
            seconds=max(times) - log.start["clock_start"] if times else 0.0,
            moves=len(log.of("move")),
            holds=ends[-1]["holds"] if ends else {},
            missed=ends[-1]["missed"] if ends else 0,
            requests=len(sent),
            errors=dict(Counter(line["code"] for line in log.of("error"))),
            last_errors={line["code"]: line["message"] for line in log.of("error")},
            delay_s=_middle_and_largest([line["time"] - sent[line["request_id"]] for line in answers]),
            age_s=_middle_and_largest([line["age_s"] for line in log.of("move")]),
            seam_mm=_middle_and_largest([seam["millimetres"] for seam in seams]),
            seam_deg=_middle_and_largest([seam["degrees"] for seam in seams]),
        )

    @property
    def idle_share(self) -> float | None:
        """Share of the control periods in which the arm was held; None of a run without any."""
        held = sum(self.holds.values())
        return held / (held + self.moves) if held + self.moves else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "idle_share": self.idle_share}

    def rows(self) -> list[tuple[str, str]]:
        """What is shown: names and values."""
        idle = "" if self.idle_share is None else f"{self.idle_share:.1%} of the time"
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.holds.items()))
        failed = ", ".join(f"{count} x {code}" for code, count in sorted(self.errors.items()))
        return [
            ("duration", f"{self.seconds:.1f} s, {self.moves} commands, {self.missed} control periods left out"),
            ("arm held", f"{idle} ({reasons})" if reasons else idle),
            ("requests", f"{self.requests}" + (f"; failed: {failed}" if failed else "")),
            *(("  the last one reported", message) for _, message in sorted(self.last_errors.items())),
            ("request to answer", _shown(self.delay_s, 1000, "ms")),
            ("age of what was executed", _shown(self.age_s, 1000, "ms")),
            ("seam, position", _shown(self.seam_mm, 1, "mm")),
            ("seam, rotation", _shown(self.seam_deg, 1, "degrees")),
        ]


def _middle_and_largest(values: list[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    return (float(np.median(known)), max(known)) if known else None


def _shown(pair: tuple[float, float] | None, factor: float, unit: str) -> str:
    if pair is None:
        return "not measured"
    return f"median {pair[0] * factor:.1f} {unit}, largest {pair[1] * factor:.1f} {unit}"
