"""A dry run: what a conversion would do, without writing anything."""

from __future__ import annotations

from diffusion_policy.convert.ledger import ConversionReport
from diffusion_policy.convert.settings import ConversionSettings
from diffusion_policy.convert.survey import survey
from diffusion_policy.tables import Printable


def preview(settings: ConversionSettings) -> list[Printable]:
    """Returns the ledger as it would be, and the arrays of the dataset.

    Every episode is opened and checked, and the first frame of each camera is decoded, but no others.

    Raises:
        ConversionError, TrajectoryError, PathError: as raised by `convert` before it writes anything.
    """
    surveyed = survey(settings)
    plan = surveyed.plans[0]
    entries = sorted([*(one.entry for one in surveyed.plans), *surveyed.left_out], key=lambda entry: entry.number)
    account = settings.recordings.account
    would_be = ConversionReport(settings.output, tuple(entries), settings.content(), {}, "", account)
    arrays = [f"data/{key}: {', '.join(names)}" for key, names in plan.names.states.items()]
    size = f"{settings.resolution[0]}x{settings.resolution[1]}"
    frames = [f"data/{name}: {size}, from {kind.width}x{kind.height}" for name, kind in plan.first_frames.items()]
    totals = [f"{key.replace('_', ' ')}: {value}" for key, value in account.items() if key != "left_out" and value]
    return [
        *would_be.table(),
        f"data/action: {', '.join(plan.names.action)}",
        *arrays,
        *frames,
        *totals,
        "nothing was written (--dry-run)",
    ]
