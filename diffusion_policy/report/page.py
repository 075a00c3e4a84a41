"""The skeleton of every page: sections of text, tables, figures and frames, in one file that opens from disk.

Report, comparison, ledger, gripper verdicts and the episodes of datasets are pages of this skeleton. HTML is in
templates/; style and behavior are in page.css and page.js next to this file. Figures are Plotly's, whose script is
included once in a page with figures. Nothing is ever fetched: images are data URIs, and a policy in the page's head
forbids network access.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from numpy.typing import NDArray
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from diffusion_policy.images import resize_frame

WIDEST_FRAME = 320
JPEG_QUALITY = 72
POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "font-src data:"
)


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: its id.
        title: its heading.
        body: HTML, with its text already escaped.
        figures: Plotly figures by id, for the placeholders in `body`.
    """

    anchor: str
    title: str
    body: str
    figures: dict[str, Figure] = field(default_factory=dict)


def render(title: str, lead: str, sections: Sequence[Section], kind: str = "") -> str:
    """Returns the complete page; `lead` is HTML above all sections, `kind` names the page's own style and script."""
    figures = {_plot(name): figure for section in sections for name, figure in section.figures.items()}
    drawn = {name: json.loads(figure.to_json()) for name, figure in figures.items()}
    return template("page.html").render(
        title=title,
        lead=Markup(lead),
        sections=[{"anchor": s.anchor, "title": s.title, "body": Markup(s.body)} for s in sections],
        policy=POLICY,
        style=asset("page.css") + (asset(f"{kind}.css") if kind else ""),
        plotly=Markup(get_plotlyjs()) if figures else None,
        data=Markup(embedded("figures", drawn)),
        program=asset("page.js") + (asset(f"{kind}.js") if kind else ""),
    )


@cache
def _environment() -> Environment:
    # Text from files is escaped; what is already HTML is passed as Markup.
    loader = PackageLoader("diffusion_policy.report")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip


def template(name: str) -> Template:
    """Returns a template from the folder `templates` next to this file; inserted text is escaped."""
    return _environment().get_template(name)


def _plot(name: str) -> str:
    """Returns the id of a figure's placeholder; sections have ids of their own."""
    return f"plot-{name}"


def asset(name: str) -> Markup:
    """Returns the style or script in the file of that name in this folder."""
    return Markup(files("diffusion_policy.report").joinpath(name).read_text(encoding="utf-8"))


def embedded(name: str, data: Any) -> str:
    """Returns data for the page's script; no text in it can end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="data-{name}">{text}</script>'


def plot_placeholder(name: str, alt: str, height: int = 320) -> str:
    """Returns the placeholder of a figure, with its text alternative."""
    return (
        f'<figure class="plot"><div id="{_plot(name)}" role="img" aria-label="{escape(alt, quote=True)}" '
        f'style="height:{height}px"></div><figcaption>{escape(alt)}</figcaption></figure>'
    )


def grid(*parts: str) -> str:
    """Returns parts side by side where they fit."""
    return f'<div class="grid">{"".join(parts)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", marks: Sequence[str] = ()) -> str:
    """Returns a table; cells are text and are escaped here. `marks` are classes of the rows."""
    classes = list(marks) + [""] * (len(rows) - len(marks))
    heading = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f"<tr{f' class={chr(34)}{mark}{chr(34)}' if mark else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row, mark in zip(rows, classes, strict=True)
    )
    shown = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{shown}<thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>'


def paragraph(text: str, kind: str = "") -> str:
    """Returns text as a paragraph."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def image_data(frame: NDArray[np.uint8], widest: int = WIDEST_FRAME) -> str:
    """Returns an RGB frame (H, W, 3) as a JPEG data URI, at most `widest` pixels wide."""
    height, width = frame.shape[:2]
    if width > widest:
        frame = resize_frame(frame, widest, max(1, round(height * widest / width)))
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def picture(frame: NDArray[np.uint8], alt: str, caption: str = "") -> str:
    """Returns a frame with its caption."""
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="frame"><img src="{image_data(frame)}" alt="{escape(alt, quote=True)}">{text}</figure>'
