"""The section of the page about closed loop: success with its interval, failures and their positions, and videos."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from itertools import combinations
from pathlib import Path

from plotly.graph_objects import Figure

from diffusion_policy.diagnose.closed_loop_evidence import ClosedLoopEvidence, compared, comparison_sentence
from diffusion_policy.env_runner.document import differing, summary_rows
from diffusion_policy.env_runner.outcomes import outcomes, with_position
from diffusion_policy.env_runner.results import success_of
from diffusion_policy.report import figures as plot
from diffusion_policy.report.page import Section, grid, paragraph, plot_placeholder, table
from diffusion_policy.storage import sha256

MOST_VIDEOS = 4
# Limit on the total size of a page's videos; further ones are only named.
MOST_VIDEO_BYTES = 4 * 2**20


def closed_loop_section(looked: Sequence[ClosedLoopEvidence]) -> Section:
    """Returns each result, and comparisons of those with common scenes."""
    drawn: dict[str, Figure] = {}
    parts: list[str] = []
    n_bytes_left = MOST_VIDEO_BYTES
    for number, evidence in enumerate(looked):
        heading = f"{evidence.of} ({evidence.path.name})" if len(looked) > 1 else evidence.of
        parts.append(f"<h3>{escape(heading)}</h3>")
        if not evidence.counts and evidence.among:
            parts.append(paragraph("Of a checkpoint that was not given; it is not counted.", "dim"))
        parts.append(table(("closed loop", "measured"), [list(row) for row in summary_rows(evidence.found)]))
        if with_position(evidence.found.results):
            parts.append(grid(_picture(evidence, f"outcomes-{number}", drawn)))
        shown, n_bytes_left = _videos(evidence, n_bytes_left)
        parts.append(shown)
    parts += [_side_by_side(*pair) for pair in combinations(looked, 2)]
    return Section("closed-loop", "Closed loop", "".join(parts), drawn)


def _picture(evidence: ClosedLoopEvidence, name: str, drawn: dict[str, Figure]) -> str:
    results = with_position(evidence.found.results)
    drawn[name] = plot.outcomes(f"How scenes end: {success_of(results)}", results)
    counts = ", ".join(f"{outcome.kind} {len(outcome.scenes)}" for outcome in outcomes(results))
    return plot_placeholder(
        name, f"every scene at its block's position: {counts}; cells show how many of their scenes succeed", 460
    )


def _videos(evidence: ClosedLoopEvidence, n_bytes_left: int) -> tuple[str, int]:
    """Returns the videos next to the document that are unchanged since it was written, as far as they fit."""
    results = {result.scene: result for result in evidence.found.results}
    shown: list[str] = []
    named: list[str] = []
    for video in evidence.found.videos:
        content = _content(evidence.path.parent / video.file, video.sha256, n_bytes_left)
        outcome = results[video.scene].reason or "success" if video.scene in results else "unknown"
        if content is None or len(shown) == MOST_VIDEOS:
            named.append(video.file)
            continue
        n_bytes_left -= len(content)
        data = base64.b64encode(content).decode("ascii")
        text = f"scene {video.scene}: {outcome}"
        shown.append(
            f'<figure><video controls muted preload="auto" aria-label="{escape(text, quote=True)}" '
            f'src="data:video/mp4;base64,{data}"></video><figcaption>{escape(text)}</figcaption></figure>'
        )
    frames = f'<div class="frames">{"".join(shown)}</div>' if shown else ""
    left = paragraph(f"Not shown here: {', '.join(named)} in {evidence.path.parent}.", "dim") if named else ""
    return frames + left, n_bytes_left


def _content(path: Path, digest: str, most: int) -> bytes | None:
    """Returns a file's bytes; None if it is missing, too large, or has another SHA-256."""
    if not path.is_file() or path.stat().st_size > most:
        return None
    content = path.read_bytes()
    return content if sha256(content).hex() == digest else None


def _side_by_side(first: ClosedLoopEvidence, second: ClosedLoopEvidence) -> str:
    found = compared(first, second)
    if found is None:
        return ""
    names = [evidence.path.name if first.of == second.of else evidence.of for evidence in (first, second)]
    return paragraph(f"The same scenes: {comparison_sentence(found, *names)}{_otherwise(first, second)}.")


def _otherwise(first: ClosedLoopEvidence, second: ClosedLoopEvidence) -> str:
    other = differing(first.found.about, second.found.about)
    return f"; made with another {', '.join(other)}" if other else ""
