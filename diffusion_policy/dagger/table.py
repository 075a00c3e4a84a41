"""The table of a DAgger loop, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_policy.env_runner.results import Share
from diffusion_policy.tables import Column, Table


def rounds_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table with a row for each arm of each round; ``rows`` are those of ``rounds.rows_of``."""
    counted = ("demonstrations", "corrections", "updates")
    compared_with = ("against the round before", "against the other arm")
    table = Table("round", Column("arm", no_wrap=True), *counted, "success (95 %)", *compared_with, framed=True)
    for row in rows:
        success = "-" if row["success"] is None else str(Share(row["success"]["count"], row["success"]["of"]))
        comparisons = [compared(row[key]) for key in ("before", "against_demonstrations")]
        counts = [str(row[key]) for key in counted]
        table.add(str(row["round"]), row["arm"], *counts, success, *comparisons)
    return table


def compared(comparison: Mapping[str, Any] | None) -> str:
    """Returns the scenes won and lost in a paired comparison, and the p-value of McNemar's test."""
    if comparison is None:
        return "-"
    won, lost = comparison["only_second"], comparison["only_first"]
    return f"{won} won, {lost} lost, p = {comparison['p_value']:.2g}"
