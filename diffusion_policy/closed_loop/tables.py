"""Closed-loop results as tables for the terminal."""

from __future__ import annotations

from diffusion_policy.env_runner.document import ClosedLoop, conditions, summary_rows
from diffusion_policy.env_runner.results import Comparison
from diffusion_policy.tables import Table, Text, numbers

__all__ = ["comparison_table", "conditions", "result_table"]


def result_table(found: ClosedLoop) -> Table:
    """Returns a table of success and grasps with their intervals, the reasons of failure, and the conditions."""
    table = Table("", "")
    for label, text in summary_rows(found):
        table.add(label, Text(text, style="bold" if label == "success" else ""))
    return table


def comparison_table(comparison: Comparison, first: str, second: str) -> Table:
    """Returns a table that compares two checkpoints on the same scenes."""
    low, high = (100 * edge for edge in comparison.interval)
    caption = (
        f"{second} does {100 * comparison.difference:+.0f} points ({low:+.0f} to {high:+.0f}, paired bootstrap); "
        f"McNemar's exact test: p = {comparison.p_value:.2g}"
    )
    columns = numbers(f"{first}: done", "failed")
    table = Table("", *columns, framed=True, title="the same scenes", caption=caption)
    table.add(f"{second}: done", str(comparison.both), str(comparison.only_second))
    table.add("failed", str(comparison.only_first), str(comparison.neither))
    return table
