"""A closed-loop result as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import RenderableType
from rich.table import Table

from diffusion_policy.closed_loop.evaluation import ClosedLoop
from diffusion_policy.env_runner.results import (
    Comparison,
    grasped_of,
    latency_of,
    reasons_of,
    success_of,
    totals_of,
)


def result_table(found: ClosedLoop) -> RenderableType:
    """Success and grasps with their intervals, why the others failed, and under which conditions."""
    about, results = found.about, found.results
    table = Table.grid(padding=(0, 2))
    table.add_row("success", f"[bold]{success_of(results)}[/bold]")
    grasped = grasped_of(results)
    if grasped is not None:
        table.add_row("grasped", str(grasped))
    reasons = reasons_of(results)
    if reasons:
        table.add_row("failed", _counted(reasons))
    table.add_row("conditions", conditions(found))
    for label, counts in (
        ("no action", totals_of(result.refusals for result in results)),
        ("guard limited", totals_of(result.limited for result in results)),
    ):
        if counts:
            table.add_row(label, _counted(counts))
    latency = latency_of(results)
    if latency is not None:
        table.add_row(
            "latency",
            f"{latency['p50']:.0f} ms by median, 95 % within {latency['p95']:.0f}, at most {latency['max']:.0f}",
        )
    for note in about["notes"]:
        table.add_row("note", note)
    if not found.is_complete:
        table.add_row("interrupted", f"{len(results)} of {found.scenes} scenes have ended")
    return table


def conditions(found: ClosedLoop) -> str:
    """One line: simulator, referee, steps executed, sampler, seeds."""
    about = found.about
    where = str(about["simulator"]["env"]["_target_"]).rpartition(".")[2]
    parts = [
        f"{where}, {about['task']}" if about["task"] else where,
        f"referee {about['referee']}" if about["referee"] else "",
        f"{about['n_action_steps']} steps of a chunk executed",
        f"{about['scheduler']} in {about['steps']} steps, {about['weights']}",
        "through the server and its guard" if about["through_server"] else "policy in process, no guard",
        f"latency of {about['latency_injected_ms']:g} ms injected" if about["latency_injected_ms"] else "",
        f"seeds {about['seed']} to {about['seed'] + found.scenes - 1}",
    ]
    return "; ".join(part for part in parts if part)


def comparison_table(comparison: Comparison, first: str, second: str) -> RenderableType:
    """Two checkpoints on the same scenes."""
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


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
