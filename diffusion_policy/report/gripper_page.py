"""Verdicts on many logs as one self-contained page: the commands of each drawn, and what the verdict rests on."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from diffusion_policy.evaluate.gripper import GripperReport, Unreadable
from diffusion_policy.evaluate.gripper_table import Validation, short_name
from diffusion_policy.evaluate.verdicts import COMMAND, WIDTH, Scale
from diffusion_policy.gripper_events import DeadBand
from diffusion_policy.storage import write_text

WIDE, HIGH = 220, 42
_POINTS = 440
STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1b1f24;--dim:#59626d;--line:#d8dce1;--good:#1c7a53;--bad:#b3261e;
--draw:#2f86d1;--band:#8b929c33;--link:#14639e}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--ink:#e7eaed;--dim:#a2abb6;--line:#363d46;--good:#5cc898;
--bad:#f08a80;--draw:#5aa9ea;--band:#a2abb633;--link:#7dbdf0}}
body{margin:0 auto;max-width:1240px;padding:20px 20px 60px;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:22px;margin:0 0 8px}h2{font-size:17px;margin:26px 0 6px}p{margin:4px 0;max-width:90ch}
.dim,dt{color:var(--dim)}.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}
th{text-align:left;color:var(--dim);font-weight:500}td,th{padding:6px 16px 6px 0;border-bottom:1px solid var(--line);
vertical-align:top}td.number{text-align:right;font-variant-numeric:tabular-nums}td.log{white-space:nowrap}
.verdict{font-weight:600;min-width:9em}.good{color:var(--good)}.bad{color:var(--bad)}
svg{display:block}polyline{fill:none;stroke:var(--draw);stroke-width:1.5}rect{fill:var(--band)}
summary{cursor:pointer;color:var(--link);font-size:13px}dl{display:grid;grid-template-columns:max-content 1fr;
gap:0 12px;margin:4px 0;font-size:13px}dd{margin:0}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
@media(max-width:1000px){thead{position:absolute;left:-9999px}td{border:0;padding:0}td.number{text-align:left}
tr{display:grid;grid-template:"log verdict steps firm" "drawn evidence evidence evidence"/220px 1fr auto auto;
gap:2px 18px;padding:8px 0;border-bottom:1px solid var(--line)}td.log{grid-area:log;overflow:hidden}
td.verdict{grid-area:verdict}td.steps{grid-area:steps}td.firm{grid-area:firm}td.drawn{grid-area:drawn}
td.evidence{grid-area:evidence}td.steps:not(:empty)::after{content:" steps"}td.firm:not(:empty)::before{content:"firm "}
td br{display:none}}
@media(max-width:640px){tr{grid-template:"log verdict" "steps firm" "drawn drawn" "evidence evidence"/1fr 1fr}}
td.evidence,p{overflow-wrap:anywhere}
@media print{:root{--bg:#fff;--ink:#000;--dim:#444;--line:#bbb;--good:#1c7a53;--bad:#b3261e;--draw:#14639e}
tr{break-inside:avoid}thead{display:table-header-group}body{padding:0;max-width:none;font-size:10pt}}
"""


def write_page(path: str | Path, validation: Validation) -> None:
    """Write the verdicts as one page; StorageError if the disk refuses."""
    write_text(path, verdict_page(validation))


def verdict_page(validation: Validation) -> str:
    """The page: the summary, then a table for each group of logs."""
    entries, before = validation.entries, validation.before
    groups = {"after": entries, "before": before} if before else {"": entries}
    said = "".join(f"<p>{escape(sentence[:1].upper() + sentence[1:])}.</p>" for sentence in validation.sentences())
    tables = "".join(
        (f"<h2>{escape(heading)}</h2>" if heading else "") + _table(entries) for heading, entries in groups.items()
    )
    legend = (
        '<p class="dim">Each line is the commanded gripper over the steps of a log, open at the top; the grey band is '
        "the dead band, in which the gripper keeps its state (where the scale is unknown, a line in the middle). "
        "Firm is the share of other dead bands that give the same verdict.</p>"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>Gripper verdicts</title><style>{STYLE}</style></head>'
        f"<body><main><h1>Gripper verdicts</h1>{said}{legend}{tables}</main></body></html>\n"
    )


def _table(entries: Sequence[GripperReport | Unreadable]) -> str:
    heads = ("log", "steps", "command", "verdict", "firm", "evidence")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    rows = "".join(_unreadable(e) if isinstance(e, Unreadable) else _row(e) for e in entries)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _unreadable(entry: Unreadable) -> str:
    cells = (
        f'<td class="log">{escape(short_name(entry.file))}</td><td class="steps"></td><td class="drawn"></td>'
        '<td class="verdict bad">unreadable</td><td class="firm"></td>'
    )
    return f'<tr>{cells}<td class="evidence">{escape(entry.reason)}</td></tr>'


def _row(report: GripperReport) -> str:
    kind = "good" if report.opens_and_closes else "bad"
    firm = "-" if report.firmness is None else f"{report.firmness:.0%}"
    width = (
        "" if report.width_verdict is None else f'<br> <span class="dim">width: {escape(report.width_verdict)}</span>'
    )
    return (
        f'<tr><td class="log">{escape(short_name(report.file))}</td><td class="number steps">{report.steps}</td>'
        f'<td class="drawn">{_drawn(report)}</td><td class="verdict {kind}">{escape(report.verdict)}{width}</td>'
        f'<td class="number firm">{firm}</td><td class="evidence">{escape(report.reason)}{_numbers(report)}</td></tr>'
    )


def _drawn(report: GripperReport) -> str:
    """The commands as a line; nothing where there is no gripper number."""
    if len(report.commands) < 2:
        return ""
    scale = WIDTH if report.width_verdict is not None else COMMAND if report.gripper_scale else _own_range(report)
    stride = -(-len(report.commands) // _POINTS)
    values = report.commands[::stride]
    across = (WIDE - 2) / (len(values) - 1)
    points = " ".join(f"{1 + i * across:.1f},{_level(value, scale):.1f}" for i, value in enumerate(values))
    top, bottom = _level(scale.band.open, scale), _level(scale.band.closed, scale)
    said = escape(f"gripper of {report.file}: {report.verdict}", quote=True)
    return (
        f'<svg role="img" aria-label="{said}" width="{WIDE}" height="{HIGH}" viewBox="0 0 {WIDE} {HIGH}">'
        f'<rect x="0" y="{top:.1f}" width="{WIDE}" height="{bottom - top:.1f}"/><polyline points="{points}"/></svg>'
    )


def _own_range(report: GripperReport) -> Scale:
    """Of commands whose scale is not known: from their lowest to their highest, without a dead band."""
    low, high = min(report.commands), max(report.commands)
    middle = (low + high) / 2
    return Scale(DeadBand(middle, middle), (), max((high - low) / 2, 1e-9))


def _level(value: float, scale: Scale) -> float:
    """Height of a command in the drawing, open at the top; what lies beyond the range is drawn at its end."""
    share = min(max((value - scale.middle) / scale.reach, -1.1), 1.1)
    return HIGH / 2 - share * (HIGH / 2 - 4)


def _numbers(report: GripperReport) -> str:
    if not report.sweep:
        return ""
    facts = {
        "scale": f"{report.gripper_scale} ({report.scale_origin})",
        "naive check": f"{report.naive['verdict']} ({report.naive['distinct_values']} distinct values, "
        f"{report.naive['changes']} changes)",
        "closed": _share(report.duty_closed, "of the time"),
        "dwell": f"{', '.join(map(str, report.dwell_steps[:12])) or '-'} steps",
        "undone at once": f"{report.bounces} of {len(report.events or report.width_events)} changes",
        "flips": "no clock" if report.flips_per_minute is None else f"{report.flips_per_minute:.1f} a minute",
        "undecided": _share(report.undecided, "of the commands lie in the dead band"),
        "margin": _share(report.margin, "of the way to the end of the range (median)"),
        "beside the measured gripper": "not logged"
        if report.leads_measurement is None
        else f"{report.leads_measurement} changes commanded before it was measured; the same state "
        f"{_share(report.agrees_with_measurement, 'of the time')}",
        "other dead bands": "; ".join(
            f"{entry['closed']:g}-{entry['open']:g} {entry['verdict']} ({entry['events']} changes)"
            for entry in report.sweep
        ),
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<details><summary>numbers</summary><dl>{listed}</dl></details>"


def _share(value: float | None, of: str) -> str:
    return "-" if value is None else f"{value:.0%} {of}"
