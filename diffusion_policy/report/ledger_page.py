"""The ledger as one self-contained page: a map of the network, tensors sized by parameters and coloured by fate.

Nothing is fetched; the page is a file to attach to a run. What changed is usually a millionth of the network, so parts
that changed as a whole are drawn at least large enough to be seen; the caption says so.
"""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from diffusion_policy.adapt.folding import fold
from diffusion_policy.adapt.ledger import ACTIONS, Entry, Ledger, Ref
from diffusion_policy.report.treemap import Box, Node, Placed, place
from diffusion_policy.storage import write_text

WIDTH, HEIGHT = 1240.0, 640.0
# A part that changed as a whole takes at least this share of the map.
VISIBLE = 0.012
MEANING = {
    "copied": "as it was",
    "grown": "old slots kept, new ones added",
    "recomputed": "follows from the config",
    "fresh": "starts anew",
    "dropped": "left out of the new file",
}
STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--ink:#1d2126;--dim:#69727d;--line:#d9dcdf;--copied:#c9d6cf;--grown:#1f8fd6;
--recomputed:#8a7fd1;--fresh:#f0a020;--dropped:#d8493f;--on:#fff;--oncopied:#2c3a33}
@media(prefers-color-scheme:dark){:root{--bg:#15181c;--ink:#e6e8ea;--dim:#98a1ab;--line:#343a41;--copied:#33443c;
--oncopied:#c4d3cb;--grown:#3aa5ea;--recomputed:#9a90e6;--fresh:#f2b04a;--dropped:#e4695f}}
body{margin:0 auto;max-width:1240px;padding:24px 20px 60px;background:var(--bg);color:var(--ink);
font:15px/1.45 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:20px;margin:0 0 2px}h2{font-size:16px;margin:30px 0 8px}p{margin:4px 0}.dim{color:var(--dim)}
.tiles{display:flex;flex-wrap:wrap;gap:10px;margin:16px 0}.tile{border:1px solid var(--line);border-radius:8px;
padding:8px 14px 9px;min-width:150px;border-top:5px solid var(--c)}.tile b{display:block;font-size:22px}
svg{width:100%;height:auto;display:block;border-radius:6px}
rect.leaf{stroke:var(--bg);stroke-width:.8}rect.group{fill:none;stroke:var(--line)}
text{font:11px system-ui,sans-serif;fill:var(--dim);pointer-events:none}text.on{fill:var(--on);font-weight:600}
text.oncopied{fill:var(--oncopied)}rect.leaf:hover{stroke:var(--ink);stroke-width:2}
table{border-collapse:collapse;width:100%;font-size:13.5px}td{min-width:6em}
td,th{text-align:left;padding:4px 10px 4px 0;vertical-align:top;
border-bottom:1px solid var(--line)}th{color:var(--dim);font-weight:500}code{font:12.5px ui-monospace,Menlo,monospace}
.tag{display:inline-block;border-radius:4px;padding:0 7px;color:var(--on);background:var(--c)}
.tag.copied{color:var(--oncopied)}
@media(max-width:1000px){code{overflow-wrap:anywhere}thead{position:absolute;left:-9999px}tr,td{display:block}
tr{border-bottom:1px solid var(--line);padding:8px 0}td{border:0;padding:2px 0}
td[data-label]:not(:empty)::before{content:attr(data-label) " ";color:var(--dim)}}
@media print{:root{--bg:#fff;--ink:#000;--dim:#444;--line:#bbb;--copied:#c9d6cf;--grown:#1f8fd6;--recomputed:#8a7fd1;
--fresh:#f0a020;--dropped:#d8493f;--oncopied:#2c3a33}body{max-width:none;padding:0}tr{break-inside:avoid}}
"""


def write_page(path: str | Path, ledger: Ledger, title: str) -> None:
    """Write the page; StorageError if the disk refuses."""
    write_text(path, page(ledger, title))


def page(ledger: Ledger, title: str) -> str:
    """The page as HTML. The map shows the live weights; the averaged ones follow the same rules."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>{_body(ledger)}</html>\n"
    )


def part_of_page(ledger: Ledger, title: str) -> str:
    """The same as a part of another page, in a shadow tree: neither page's style reaches the other."""
    style = STYLE.replace(":root", ":host").replace("body{", ".page{")
    inside = f'<style>{style}</style><div class="page"><h3>{escape(title)}</h3>{_body(ledger)}</div>'
    return f'<div class="ledger"><template shadowrootmode="open">{inside}</template></div>'


def _body(ledger: Ledger) -> str:
    part = ledger.parts[0]
    sums = ledger.parameters(part)
    total = sum(sums.values())
    # Rounded down: one new number among millions is not 100 %.
    share = f"{math.floor(sums['inherited'] / total * 1e4) / 100:.2f}%" if total else "none"
    others = ", ".join(name for name in ledger.parts if name != part)
    return (
        f"<p>{share} of the {total:,} numbers of <b>{escape(part)}</b> come from the source; "
        f"{sums['grown']:,} are new slots of grown tensors, {sums['fresh']:,} start anew."
        f"{f' Also accounted for: {escape(others)}.' if others else ''}</p>"
        f"{_tiles(ledger, part)}{_map(ledger, part)}"
        '<p class="dim">Area is the number of parameters; what changed is drawn large enough to be seen. '
        "Point at a box for its name, shape and rule.</p>"
        f"{_changes(ledger)}{_notes(ledger)}"
    )


def _tiles(ledger: Ledger, part: str) -> str:
    counts = ledger.counts(part)
    tiles = (
        f'<div class="tile" style="--c:var(--{action})"><span class="dim">{action}</span>'
        f"<b>{counts[action].parameters:,}</b>"
        f'<span class="dim">parameters in {counts[action].tensors} tensors<br>{MEANING[action]}</span></div>'
        for action in ACTIONS
        if counts[action].keys
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _map(ledger: Ledger, part: str) -> str:
    entries = _distinct(ledger.of(part=part))
    root = Node("")
    for index, entry in enumerate(entries):
        if _ref(entry).numel:
            root.add(entry.key.split("."), _ref(entry).numel, index)
    seen = _visible(root.collapsed(), entries, VISIBLE * root.size)
    boxes = place(seen, Box(0, 0, WIDTH, HEIGHT))
    drawn = "".join(_drawn(placed, entries) for placed in boxes)
    return f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="map of the network">{drawn}</svg>'


def _visible(node: Node, entries: list[Entry], smallest: float) -> Node:
    """The tree with every part that changed as a whole, the largest such parts, at least `smallest`."""
    actions = {entries[leaf].action for leaf in node.leaves()}
    if actions == {"copied"} or not node.size:
        return node
    if len(actions) == 1:
        return node.scaled(max(1.0, smallest / node.size))
    children = {name: _visible(child, entries, smallest) for name, child in node.children.items()}
    return Node(node.name, sum(child.size for child in children.values()), node.leaf, children)


def _drawn(placed: Placed, entries: list[Entry]) -> str:
    node, box = placed.node, placed.box
    where = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
    if node.leaf is None:
        return f'<rect class="group" {where}/>{_text(placed.label, box, 11, "")}' if placed.headed else ""
    entry = entries[node.leaf]
    label = _text(placed.label, box, 12, "oncopied" if entry.action == "copied" else "on") if box.height > 16 else ""
    return (
        f'<rect class="leaf" {where} fill="var(--{entry.action})"><title>{escape(_told(entry))}</title></rect>{label}'
    )


def _text(name: str, box: Box, below: float, kind: str) -> str:
    room = int((box.width - 6) / 6.2)
    if room < min(6, len(name)):
        return ""
    shown = name if len(name) <= room else f"{name[: room - 2]}.."
    return f'<text class="{kind}" x="{box.x + 4:.1f}" y="{box.y + below:.1f}">{escape(shown)}</text>'


def _told(entry: Entry) -> str:
    shapes = " -> ".join(str(list(ref.shape)) for ref in (entry.source, entry.target) if ref)
    lines = [entry.key, f"{entry.action} {shapes}, {_ref(entry).numel:,} parameters", entry.rule]
    lines.extend(slot.describe() for slot in entry.slots)
    return "\n".join([*lines, f"new numbers: {entry.init}"] if entry.init else lines)


def _changes(ledger: Ledger) -> str:
    """One row for what one rule did alike: tensors of the same shapes and slots together, their names folded."""
    rows: dict[tuple[str, ...], dict[str, None]] = {}
    parts: dict[tuple[str, ...], dict[str, None]] = {}
    for entry in ledger.of("grown", "recomputed", "fresh", "dropped"):
        shapes = " \u2192 ".join(str(list(ref.shape)) for ref in (entry.source, entry.target) if ref and ref.tensor)
        told = "; ".join([*(slot.describe() for slot in entry.slots), *([f"new: {entry.init}"] if entry.init else [])])
        row = (entry.action, entry.rule, told, shapes if entry.slots else "")
        rows.setdefault(row, {})[entry.key] = None
        parts.setdefault(row, {})[entry.part] = None
    if not rows:
        return "<h2>What changed</h2><p>Nothing: every tensor is as it was.</p>"
    everything = {entry.key for entry in ledger}
    body = "".join(
        f'<tr><td><span class="tag" style="--c:var(--{row[0]})">{row[0]}</span></td>'
        f"<td><code>{'<br>'.join(map(escape, fold(keys, everything)))}</code><br>"
        f'<span class="dim">{escape(", ".join(parts[row]))}</span></td>'
        f'<td data-label="shape">{f"<code>{escape(row[3])}</code>" if row[3] else ""}</td>'
        f'<td data-label="slots">{escape(row[2])}</td>'
        f'<td data-label="rule">{escape(row[1])}</td></tr>'
        for row, keys in rows.items()
    )
    head = "<thead><tr><th></th><th>name</th><th>shape</th><th>slots</th><th>rule</th></tr></thead>"
    return f"<h2>What changed</h2><table>{head}<tbody>{body}</tbody></table>"


def _notes(ledger: Ledger) -> str:
    notes = "".join(f"<p>{escape(note)}</p>" for note in ledger.notes)
    return f"<h2>Notes</h2>{notes}" if notes else ""


def _distinct(entries: tuple[Entry, ...]) -> list[Entry]:
    """One entry per tensor: a tensor of two names is drawn once."""
    return list({(entry.action == "dropped", _ref(entry).tensor): entry for entry in reversed(entries)}.values())[::-1]


def _ref(entry: Entry) -> Ref:
    ref = entry.target or entry.source
    assert ref is not None
    return ref
