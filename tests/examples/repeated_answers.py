"""A custom check: whether a served policy answers with the same chunk repeatedly, whatever it observes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffusion_policy.diagnose.findings import Finding, ok
from diffusion_policy.run_log import RunLog

MANY = 5


@dataclass(frozen=True)
class RepeatEvidence:
    """The longest run of equal consecutive answers, the number of answers, and the log's name."""

    longest: int
    answers: int
    name: str


def look_at_repeats(log: RunLog) -> RepeatEvidence:
    """Returns the evidence of a log; the only part that reads."""
    longest = run = min(1, len(log.actions))
    for before, after in zip(log.actions, log.actions[1:], strict=False):
        run = run + 1 if np.array_equal(before, after) else 1
        longest = max(longest, run)
    return RepeatEvidence(longest, len(log.actions), log.path.name)


def repeats(evidence: RepeatEvidence) -> Finding | None:
    """Pure: evidence in, finding out; None if it does not apply."""
    if evidence.answers < 2:
        return None
    found = f"at most {evidence.longest} of {evidence.answers} answers in a row are equal"
    if evidence.longest < MANY:
        return ok("log-repeats", found, evidence.name)
    remedy = "look whether the camera's frames change: the policy answers as if nothing did"
    return Finding("log-repeats", "warning", found, remedy, about=evidence.name)
