"""An edit as a table for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from diffusion_policy.edit.plan import EditPlan
from diffusion_policy.tables import Printable, Table

_SHOWN = 20


def table_of(plan: EditPlan, ledger: Mapping[str, Any] | None) -> list[Printable]:
    """Returns what is kept and left out; ``ledger`` is the written dataset's, None if nothing was written."""
    before = sum(buffer.n_steps for buffer in plan.sources)
    episodes = sum(buffer.n_episodes for buffer in plan.sources)
    table = Table("left out", "steps", "why")
    for gone in plan.left_out[:_SHOWN]:
        table.add(f"{gone.episode.number} {gone.episode.name}", f"{gone.steps[0]} to {gone.steps[1] - 1}", gone.why)
    if len(plan.left_out) > _SHOWN:
        reasons = Counter(gone.why for gone in plan.left_out[_SHOWN:])
        table.add("...", "", ", ".join(f"{count} more: {why}" for why, count in reasons.most_common(5)))
    lines = [f"{len(plan.kept)} episodes of {episodes}, {plan.n_steps} of {before} steps are kept"]
    if ledger is None:
        lines.append("nothing was written (--dry-run)")
    else:
        lines += [f"{ledger['output']}: written, with {ledger['output']}.edit.json", f"look at it: {ledger['next']}"]
    return [*([table] if plan.left_out else []), *lines]
