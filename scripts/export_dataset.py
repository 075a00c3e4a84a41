"""Export a dataset, or logged runs, for other tools; the source is not changed.

python scripts/export_dataset.py data/zarr/cogact.zarr --lerobot out/my_set --task "put the block into the tray"
python scripts/export_dataset.py RUN --lerobot out/my_set --task "..."     # a logged run, with interventions
python scripts/export_dataset.py data/zarr/cogact.zarr --zarr-zip out/cogact.zarr.zip
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, progress, run_command
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_scale import add_gripper_scale, parse_scales


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add = parser.add_argument
    add("source", type=Path, metavar="DATASET", help="a dataset (.zarr, .zarr.zip, URL), a run folder or a log")
    add("--lerobot", type=Path, metavar="DIR", help="write a LeRobot v3.0 dataset (extra: lerobot)")
    add("--zarr-zip", type=Path, metavar="FILE", help="pack the dataset into one archive, which is read in place")
    add("--task", metavar="TEXT", help="for --lerobot: task description, if the dataset has none")
    add("--fps", type=float, metavar="HZ", help="for --lerobot: steps per second (default: from the time stamps)")
    add("--robot", metavar="NAME", help="for --lerobot: the robot's type")
    add_gripper_scale(parser)


def work(arguments: argparse.Namespace) -> CommandResult:
    """Exports, and reports what was written."""
    if arguments.lerobot is None and arguments.zarr_zip is None:
        raise WorkspaceError("nothing to export; give --lerobot DIR, --zarr-zip FILE, or both")
    if arguments.fps is not None and not 0 < arguments.fps <= 1000:
        raise WorkspaceError(f"--fps is {arguments.fps}; expected steps per second, above 0 and at most 1000")
    lines: list[str] = []
    if arguments.zarr_zip is not None:
        from diffusion_policy.export.zarr_zip import export_zarr_zip

        lines.append(f"{export_zarr_zip(arguments.source, arguments.zarr_zip)}: packed, to be read in place")
    if arguments.lerobot is not None:
        lines.append(_to_lerobot(arguments))
    return CommandResult("\n".join(lines))


def _to_lerobot(arguments: argparse.Namespace) -> str:
    from diffusion_policy.dataset.opening import is_dataset
    from diffusion_policy.export.episodes import DatasetEpisodes
    from diffusion_policy.export.lerobot import export_lerobot
    from diffusion_policy.export.run_logs import log_episodes
    from diffusion_policy.paths import as_path

    scale = parse_scales(arguments.gripper_scale)
    with tempfile.TemporaryDirectory() as scratch, progress("episodes") as bar:
        if is_dataset(as_path(arguments.source)):
            source = DatasetEpisodes(as_path(arguments.source), scale)
        else:
            source = log_episodes([arguments.source], Path(scratch), scale)
        report = export_lerobot(
            source,
            arguments.lerobot,
            task=arguments.task,
            fps=arguments.fps,
            robot=arguments.robot,
            on_progress=bar,
        )
    return str(report)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
