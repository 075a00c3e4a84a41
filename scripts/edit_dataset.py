"""Make a dataset from others: leave episodes out, split at gaps, trim idle steps, concatenate several.

    python scripts/edit_dataset.py data/zarr/a.zarr --delete 3 5-8 damaged --output data/zarr/b.zarr
    python scripts/edit_dataset.py data/zarr/a.zarr --delete-marked a.zarr.marks.json --output data/zarr/b.zarr
    python scripts/edit_dataset.py data/zarr/a.zarr data/zarr/b.zarr --split-at-gap 1 --output data/zarr/c.zarr

Episodes are named by number (over all inputs, from 0), range, hash (8 digits or more), "damaged" (with files that
are missing or truncated, or content that differs from what was recorded), or @MARKS.json ({"delete": ["3", "5-8"]}).
Marks saved by the page of view_dataset.py are refused for any other dataset. Inputs stay as they are. OUTPUT.edit.json
accounts for every step. Exit status: 0 written, 2 refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, progress, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add = parser.add_argument
    add("inputs", nargs="+", metavar="ZARR", help="datasets: folders, zips or URLs")
    add("--output", required=True, type=Path, metavar="ZARR", help="the new dataset; nothing is overwritten")
    add("--delete", nargs="+", default=[], metavar="EPISODE", help="leave these episodes out")
    add("--delete-marked", type=Path, metavar="FILE", help="leave out what was marked on the page of view_dataset.py")
    add(
        "--split-at-gap",
        type=float,
        metavar="SECONDS",
        help="split an episode where the clock pauses for longer",
    )
    add(
        "--trim-idle", type=float, metavar="SECONDS", help="keep at most this much idle time at both ends of an episode"
    )
    add("--shortest", type=int, metavar="STEPS", help="leave out episodes with fewer steps after all that")
    add("--dry-run", action="store_true", help="show what would be kept, and write nothing")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Plans the edit, prints the plan, and writes the dataset."""
    from diffusion_policy.dataset.replay_buffer import ReplayBuffer
    from diffusion_policy.diagnose.step_evidence import idle_ranges
    from diffusion_policy.edit import plan as planning
    from diffusion_policy.edit.edit_table import table_of
    from diffusion_policy.edit.write import check_one_dataset, write_edited

    sources = [ReplayBuffer.open(path, check_files="damaged" not in arguments.delete) for path in arguments.inputs]
    check_one_dataset(sources)
    plan = planning.plan_of(sources)
    if arguments.delete:
        plan = planning.delete(plan, arguments.delete)
    if arguments.delete_marked is not None:
        plan = planning.delete_marked(plan, arguments.delete_marked)
    if arguments.split_at_gap is not None:
        plan = planning.split_at_gaps(plan, arguments.split_at_gap)
    if arguments.trim_idle is not None:
        plan = planning.trim_idle(plan, arguments.trim_idle, idle_ranges)
    if arguments.shortest is not None:
        plan = planning.drop_short(plan, arguments.shortest)
    if arguments.dry_run:
        return CommandResult(table_of(plan, None))
    with progress("steps") as bar:
        ledger = write_edited(plan, arguments.output, bar)
    return CommandResult(table_of(plan, ledger))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
