"""Closed-loop results as tables for the terminal."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from diffusion_policy.env_runner.document import ClosedLoop, conditions, summary_rows
from diffusion_policy.env_runner.results import Comparison

__all__ = ["comparison_table", "conditions", "result_table"]


def result_table(found: ClosedLoop) -> RenderableType:
    """Returns a table of success and grasps with their intervals, the reasons of failure, and the conditions."""
    table = Table.grid(padding=(0, 2))
    for label, text in summary_rows(found):
        table.add_row(label, Text(text, "bold" if label == "success" else ""))
    return table


def comparison_table(comparison: Comparison, first: str, second: str) -> RenderableType:
    """Returns a table that compares two checkpoints on the same scenes."""
    table = Table(title="the same scenes", title_justify="left")
    table.add_column("")
    table.add_column(f"{first}: done", justify="right")
    table.add_column("failed", justify="right")
    table.add_row(f"{second}: done", str(comparison.both), str(comparison.only_second))
    table.add_row("failed", str(comparison.only_first), str(comparison.neither))
    low, high = (100 * edge for edge in comparison.interval)
    table.caption = (
        f"{second} does {100 * comparison.difference:+.0f} points ({low:+.0f} to {high:+.0f}, paired bootstrap); "
        f"McNemar's exact test: p = {comparison.p_value:.2g}"
    )
    return table
