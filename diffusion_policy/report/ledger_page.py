"""The ledger as a page, or as part of one: a map of the network, and what each rule changed.

A page is a single file that fetches nothing, to attach to a run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from markupsafe import Markup

from diffusion_policy.adapt.folding import fold
from diffusion_policy.adapt.ledger import ACTIONS, Entry, Ledger
from diffusion_policy.report.ledger_map import HEIGHT, network_map, ref_of
from diffusion_policy.report.page import Section, plot_placeholder, render, template
from diffusion_policy.storage import write_text

MAP = "ledger-map"
MEANING = {
    "copied": "unchanged",
    "grown": "old slots kept, new ones added",
    "recomputed": "follows from the config",
    "fresh": "starts anew",
    "dropped": "left out of the new file",
}


def write_page(path: str | Path, ledger: Ledger, title: str) -> None:
    """Writes the page; raises StorageError if the disk refuses."""
    write_text(path, page(ledger, title))


def page(ledger: Ledger, title: str) -> str:
    """Returns the page as HTML. The map shows the live weights; the averaged ones follow the same rules."""
    shown: Any = template("ledger.html").make_module(_about(ledger, title))
    sections = [
        Section("network", "What became of the network", shown.summary(), _figures(ledger)),
        Section("changes", "What changed", shown.changes()),
    ]
    if ledger.notes:
        sections.append(Section("notes", "Notes", shown.notes_of()))
    return render(title, "", sections)


def ledger_section(ledger: Ledger, title: str) -> Section:
    """Returns the same as a section of another page."""
    shown: Any = template("ledger.html").make_module(_about(ledger, title))
    return Section("ledger", "Where the weights came from", shown.part_of_page(), _figures(ledger))


def _figures(ledger: Ledger) -> dict[str, Any]:
    return {MAP: network_map(ledger.parts[0], _distinct(ledger.of(part=ledger.parts[0])))}


def _about(ledger: Ledger, title: str) -> dict[str, Any]:
    """Returns the values that fill the template."""
    part = ledger.parts[0]
    sums, counts = ledger.parameters(part), ledger.counts(part)
    total = sum(sums.values())
    return {
        "title": title,
        "part": part,
        "others": [name for name in ledger.parts if name != part],
        # Rounded down: one new number among millions is not 100 %.
        "share": f"{math.floor(sums['inherited'] / total * 1e4) / 100:.2f}%" if total else "none",
        "total": total,
        "grown": sums["grown"],
        "fresh": sums["fresh"],
        "tiles": [
            {"action": action, "count": counts[action], "meaning": MEANING[action]}
            for action in ACTIONS
            if counts[action].keys
        ],
        "map": Markup(
            plot_placeholder(MAP, "map of the network: boxes are tensors, colors what became of them", HEIGHT)
        ),
        "rows": _rows(ledger),
        "notes": ledger.notes,
    }


def _rows(ledger: Ledger) -> list[dict[str, Any]]:
    """Returns a row for each rule and like result: tensors of equal shapes and slots together, their names folded."""
    rows: dict[tuple[str, ...], dict[str, None]] = {}
    parts: dict[tuple[str, ...], dict[str, None]] = {}
    for entry in ledger.of("grown", "recomputed", "fresh", "dropped"):
        shapes = " \u2192 ".join(str(list(ref.shape)) for ref in (entry.source, entry.target) if ref and ref.tensor)
        details = "; ".join(
            [*(slot.describe() for slot in entry.slots), *([f"new: {entry.init}"] if entry.init else [])]
        )
        row = (entry.action, entry.rule, details, shapes if entry.slots else "")
        rows.setdefault(row, {})[entry.key] = None
        parts.setdefault(row, {})[entry.part] = None
    everything = {entry.key for entry in ledger}
    return [
        {
            "action": action,
            "names": fold(keys, everything),
            "parts": list(parts[action, rule, slots, shapes]),
            "shapes": shapes,
            "slots": slots,
            "rule": rule,
        }
        for (action, rule, slots, shapes), keys in rows.items()
    ]


def _distinct(entries: tuple[Entry, ...]) -> list[Entry]:
    """Returns one entry per tensor; a tensor with two names is drawn once."""
    return list({(entry.action == "dropped", ref_of(entry).tensor): entry for entry in reversed(entries)}.values())[
        ::-1
    ]
