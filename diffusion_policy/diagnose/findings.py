"""Findings: what was found, how bad it is, on what evidence, and what to do; and the cause behind the symptoms.

A check is a pure function from evidence to one finding, or None if it does not apply. Doctor, page, comparison and
the checks after a conversion all show findings, in this order: environment, dataset, checkpoint, config, how they fit
together, run, closed loop, log, open loop. An earlier finding is the likelier cause of a later one.

Some findings are symptoms ("the loss does not fall"): `diagnose` looks for the finding that explains them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

Severity = Literal["ok", "note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("ok", "note", "warning", "error")
Evidence = TypeVar("Evidence")

# A position commanded this far from the arm at most of the steps cannot be a target for the next step, since it
# would take 2 m/s at steps of 0.1 s. For recordings and logs.
FAR_COMMAND_M = 0.2

# Possible causes of each symptom, the likeliest first, as codes of findings.
EXPLAINS: dict[str, tuple[str, ...]] = {
    "size-mismatch": (
        "projection",
        "checkpoint-fits-dataset",
        "checkpoint-fits-config",
        "action-shape",
        "config-action",
    ),
    "loss-does-not-fall": (
        "not-finite",
        "stopped",
        "learning-rate",
        "warm-up",
        "start",
        "loss-before-first-update",
        "normaliser-range",
        "command-is-absolute",
        "checkpoint-fits-dataset",
        "few-updates",
    ),
    "gripper-verdict": (
        "stopped",
        "action-shape",
        "projection",
        "log-action",
        "gripper-statistics",
        "gripper-row",
        "polarity",
        "closings",
        "copycat-labels",
        "start",
        "loss-before-first-update",
        "normaliser-range",
        "ema-weights",
        "log-weights",
        "dead-band",
        "step-spacing",
        "learning-rate",
        "warm-up",
        "sight",
        "few-updates",
    ),
    "closed-loop": (
        "stopped",
        "size-mismatch",
        "projection",
        "gripper-statistics",
        "gripper-row",
        "polarity",
        "start",
        "sight",
        "learning-rate",
        "warm-up",
        "normaliser-range",
        "few-updates",
    ),
    "beats-baselines": (
        "stopped",
        "sight",
        "copycat-labels",
        "start",
        "warm-up",
        "learning-rate",
        "normaliser-range",
        "few-updates",
    ),
}

OF_ONE_LOG = "log-"
SYMPTOMS = {
    "size-mismatch": "the sizes do not match",
    "loss-does-not-fall": "the loss does not fall",
    "gripper-verdict": "the gripper is not commanded to close and open",
    "closed-loop": "the task is not done in closed loop",
    "beats-baselines": "baselines are not beaten",
}


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        code: stable name of the check.
        severity: "ok", "note" (worth knowing), "warning" (may be the cause), "error" (something is wrong).
        evidence: what was found, with its numbers.
        remedy: what to do; empty if there is nothing to do.
        command: the next command line, where there is one.
        about: the file that it concerns.
    """

    code: str
    severity: Severity
    evidence: str
    remedy: str = ""
    command: str = ""
    about: str = ""

    @property
    def trouble(self) -> bool:
        """Whether it is more than a note."""
        return self.severity in ("warning", "error")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


Level = Literal["good", "doubt", "bad"]


def level_of(findings: Iterable[Finding]) -> Level:
    """The one answer to whether a subject may be deployed or trained on: bad with an error, doubtful with a warning."""
    severities = {finding.severity for finding in findings}
    return "bad" if "error" in severities else "doubt" if "warning" in severities else "good"


def exit_status(findings: Iterable[Finding]) -> int:
    """The exit status of doctor, inspect, verify and report: 0 no errors (there may be warnings), 1 errors."""
    return 1 if level_of(findings) == "bad" else 0


def ok(code: str, evidence: str, about: str = "") -> Finding:
    """Returns a finding that nothing is wrong."""
    return Finding(code, "ok", evidence, about=about)


def run_checks(checks: Iterable[Callable[[Evidence], Finding | None]], evidence: Evidence) -> list[Finding]:
    """Returns what the checks find, in their order."""
    return [finding for finding in (check(evidence) for check in checks) if finding is not None]


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong, and why.

    Attributes:
        cause: the finding to act on; None if there is no trouble.
        explains: symptoms that the cause may explain.
        others: further trouble.
    """

    cause: Finding | None
    explains: tuple[Finding, ...] = ()
    others: tuple[Finding, ...] = ()

    def sentence(self) -> str:
        """The diagnosis in one sentence."""
        if self.cause is None:
            return "no trouble found"
        *most, last = dict.fromkeys(SYMPTOMS[symptom.code] for symptom in self.explains) or [""]
        seen = f"{', '.join(most)} and {last}" if most else last
        likely = "is" if self.cause.severity == "error" else "is probably"
        return self.cause.evidence + (f"; it {likely} why {seen}" if seen else "")


def diagnose(findings: Sequence[Finding]) -> Diagnosis:
    """Finds the finding to act on first.

    In this order: an error that is not a symptom; a run that was stopped before its end; a finding that may explain a
    symptom, by EXPLAINS; the symptom itself; a warning.
    """
    trouble = [finding for finding in findings if finding.trouble]
    symptoms = [finding for finding in trouble if finding.code in EXPLAINS]
    others = [finding for finding in trouble if finding.code not in EXPLAINS]
    candidates = [
        *(finding for finding in others if finding.severity == "error"),
        *(finding for finding in others if finding.code == "stopped"),
        *(
            finding
            for symptom in symptoms
            for code in EXPLAINS[symptom.code]
            for finding in others
            if finding.code == code and _may_explain(finding, symptom)
        ),
        *sorted(symptoms, key=lambda finding: -SEVERITIES.index(finding.severity)),
        *others,
    ]
    if not candidates:
        return Diagnosis(None)
    cause = candidates[0]
    explained = tuple(symptom for symptom in symptoms if _may_explain(cause, symptom))
    rest = [finding for finding in trouble if _as_printed(finding) != _as_printed(cause) and finding not in explained]
    return Diagnosis(cause, explained, tuple(finding for finding, _ in distinct(rest)))


def distinct(findings: Iterable[Finding]) -> list[tuple[Finding, tuple[str, ...]]]:
    """Returns each distinct finding once, with the files that it was found in, in their order."""
    grouped: dict[tuple[str, str], tuple[Finding, list[str]]] = {}
    for finding in findings:
        _, files = grouped.setdefault(_as_printed(finding), (finding, []))
        files += [finding.about] if finding.about and finding.about not in files else []
    return [(finding, tuple(files)) for finding, files in grouped.values()]


def _as_printed(finding: Finding) -> tuple[str, str]:
    return finding.code, finding.evidence


def _may_explain(finding: Finding, symptom: Finding) -> bool:
    """Whether they may be related: a finding in one log explains nothing in another."""
    same = finding.about == symptom.about or not finding.code.startswith(OF_ONE_LOG)
    return finding.code in EXPLAINS[symptom.code] and same
