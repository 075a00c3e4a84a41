"""Verdicts on many logs as one self-contained page: each log's commands, drawn, and the basis of its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_policy.evaluate.gripper import GripperReport, Unreadable
from diffusion_policy.evaluate.gripper_table import Validation, short_name
from diffusion_policy.evaluate.verdicts import COMMAND, WIDTH, Thresholds
from diffusion_policy.gripper_events import DeadBand
from diffusion_policy.report.page import Section, paragraph, render, template
from diffusion_policy.storage import write_text

WIDE, HIGH = 220, 42
_POINTS = 440


def write_page(path: str | Path, validation: Validation) -> None:
    """Writes the verdicts as one page; raises StorageError if the disk refuses."""
    write_text(path, verdict_page(validation))


def verdict_page(validation: Validation) -> str:
    """Returns the page: the summary, then a table for each group of logs."""
    entries, before = validation.entries, validation.before
    groups = {"after": entries, "before": before} if before else {"logs": entries}
    text = "".join(paragraph(f"{sentence[:1].upper()}{sentence[1:]}.") for sentence in validation.sentences())
    legend = paragraph(
        "Each line is the commanded gripper over the steps of a log, open at the top; the gray band is the dead band, "
        "in which the gripper keeps its state (where the scale is unknown, a line in the middle). Firm is the share of "
        "other dead bands that give the same verdict.",
        "dim",
    )
    sections = [Section(name, name, _table(entries)) for name, entries in groups.items()]
    return render("Gripper verdicts", text + legend, sections)


def _table(entries: Sequence[GripperReport | Unreadable]) -> str:
    rows = [_unreadable(entry) if isinstance(entry, Unreadable) else _row(entry) for entry in entries]
    return template("gripper.html").render(rows=rows)


def _unreadable(entry: Unreadable) -> dict[str, Any]:
    return {
        "log": short_name(entry.file),
        "steps": "",
        "line": None,
        "verdict": "unreadable",
        "kind": "bad",
        "width": None,
        "firm": "",
        "reason": entry.reason,
        "numbers": {},
    }


def _row(report: GripperReport) -> dict[str, Any]:
    return {
        "log": short_name(report.file),
        "steps": report.steps,
        "line": _line(report),
        "verdict": report.verdict,
        "kind": "good" if report.opens_and_closes else "bad",
        "width": report.width_verdict,
        "firm": "-" if report.firmness is None else f"{report.firmness:.0%}",
        "reason": report.reason,
        "numbers": _numbers(report),
    }


def _line(report: GripperReport) -> dict[str, Any] | None:
    """Returns the commands as a line over the dead band, in pixels; None without a gripper."""
    if len(report.commands) < 2:
        return None
    scale = WIDTH if report.width_verdict is not None else COMMAND if report.gripper_scale else _own_range(report)
    stride = -(-len(report.commands) // _POINTS)
    values = report.commands[::stride]
    across = (WIDE - 2) / (len(values) - 1)
    top, bottom = _level(scale.band.open, scale), _level(scale.band.closed, scale)
    return {
        "said": f"gripper of {report.file}: {report.verdict}",
        "width": WIDE,
        "height": HIGH,
        "top": f"{top:.1f}",
        "band": f"{bottom - top:.1f}",
        "points": " ".join(f"{1 + i * across:.1f},{_level(value, scale):.1f}" for i, value in enumerate(values)),
    }


def _own_range(report: GripperReport) -> Thresholds:
    """Returns a range for commands whose scale is unknown: from lowest to highest, without a dead band."""
    low, high = min(report.commands), max(report.commands)
    middle = (low + high) / 2
    return Thresholds(DeadBand(middle, middle), (), max((high - low) / 2, 1e-9))


def _level(value: float, scale: Thresholds) -> float:
    """Returns the height of a command in the drawing, open at the top; commands are clipped to the range."""
    share = min(max((value - scale.middle) / scale.reach, -1.1), 1.1)
    return HIGH / 2 - share * (HIGH / 2 - 4)


def _numbers(report: GripperReport) -> dict[str, str]:
    if not report.sweep:
        return {}
    return {
        "scale": f"{report.gripper_scale} ({report.scale_origin})",
        "naive check": f"{report.naive['verdict']} ({report.naive['distinct_values']} distinct values, "
        f"{report.naive['changes']} changes)",
        "closed": _share(report.duty_closed, "of the time"),
        "dwell": f"{', '.join(map(str, report.dwell_steps[:12])) or '-'} steps",
        "undone at once": f"{report.bounces} of {len(report.events or report.width_events)} changes",
        "flips": "no clock" if report.flips_per_minute is None else f"{report.flips_per_minute:.1f} per minute",
        "undecided": _share(report.undecided, "of the commands are in the dead band"),
        "margin": _share(report.margin, "of the way to the end of the range (median)"),
        "and the measured gripper": "not logged"
        if report.leads_measurement is None
        else f"{report.leads_measurement} changes commanded before they were measured; the same state "
        f"{_share(report.agrees_with_measurement, 'of the time')}",
        "other dead bands": "; ".join(
            f"{entry['closed']:g}-{entry['open']:g} {entry['verdict']} ({entry['events']} changes)"
            for entry in report.sweep
        ),
    }


def _share(value: float | None, of: str) -> str:
    return "-" if value is None else f"{value:.0%} {of}"
