"""The arguments of a conversion, shared by every script that converts, and the conversion that they request."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from diffusion_policy.command_line import CommandResult, Stopped, progress
from diffusion_policy.gripper_scale import add_gripper_scale
from diffusion_policy.timestamps import add_timestamps


def add_conversion_arguments(parser: argparse.ArgumentParser, source: str) -> None:
    """Adds the arguments of a conversion except those for its input.

    Args:
        parser: the script's parser.
        source: what ``--input`` accepts.
    """
    from diffusion_policy.convert.settings import CHOICES
    from diffusion_policy.dataset.image_codecs import LEVELS

    add = parser.add_argument
    add("--input", "--input_dir", required=True, help=source)
    add("--output", "--output_zarr", required=True, help="dataset to create, or s3://BUCKET/...; refused if it exists")
    add(
        "--scratch",
        type=Path,
        metavar="DIR",
        help="/.cache)~folder for unfinished work if the output is a URL (default: in ~/.cache)~/.cache)",
    )
    add("--resolution", "--target_resolution", nargs=2, type=int, default=(320, 180), metavar=("WIDTH", "HEIGHT"),
        help="size of the images in the dataset, pixels (default: 320 180)")  # fmt: skip
    add("--start-episode", type=int, default=0, metavar="N", help="lowest episode number to convert (default: 0)")
    add("--max-episodes", type=int, metavar="N", help="convert this many episodes from there on (default: all)")
    add("--compressor", choices=LEVELS, default="blosc", help="codec of the images (default: blosc, lossless)")
    add("--compression-level", type=int, metavar="L", help="effort of blosc (0-9, default 1), PSNR of jpeg2k in dB "
        "(default 50), quality of jpeg (default 95) and jpegxl (default 90)")  # fmt: skip
    add("--zarr-format", type=int, choices=(2, 3), default=2, help="format of the dataset (default: 2)")
    add("--shard", type=int, metavar="FRAMES", help="frames per file; needs --zarr-format 3 (default: 1)")
    add("--workers", type=int, metavar="N", help="threads (default: one per core)")
    add(
        "--scheduler",
        metavar="tcp://HOST:PORT",
        help="decode on a Dask cluster whose workers can access the same files",
    )
    add("--overwrite", action="store_true", help="replace an existing dataset once the new one is complete")
    add("--resume", action="store_true", help="continue an interrupted conversion")
    add("--append", action="store_true", help="add recordings that are not in it yet to an existing dataset")
    add("--dry-run", action="store_true", help="open and check every episode, report what would become of it, and "
        "write nothing")  # fmt: skip
    for name, (choices, meaning) in CHOICES.items():
        flag = "--" + name.replace("_", "-")
        add(flag, choices=choices, default=choices[0], help=f"{meaning} (default: {choices[0]})")
    add_gripper_scale(parser)
    add_timestamps(parser)
    add("--mapping", metavar="FILE", help="meaning of the recordings' columns: a file, or a name in config/recordings "
        "(default: derived from their names; failing that, a file to fill in is printed)")  # fmt: skip
    add("--split-at-gap", type=float, metavar="SECONDS", help="split an episode where steps are further apart than "
        "this (default: gaps are left in)")  # fmt: skip
    add(
        "--gripper-lead",
        type=int,
        default=0,
        metavar="STEPS",
        help="issue the gripper's commands earlier by STEPS (default: 0)",
    )


def run_conversion(arguments: argparse.Namespace, verdict_on: Callable[[Path], list[str]]) -> CommandResult:
    """Converts, and reports what became of the episodes.

    Args:
        arguments: arguments from `add_conversion_arguments`.
        verdict_on: returns the last lines, on the checks of the finished dataset.
    """
    from diffusion_policy.convert import ConversionSettings, convert
    from diffusion_policy.convert.cluster import cluster
    from diffusion_policy.convert.preview import preview
    from diffusion_policy.convert.staging import finished_episodes
    from diffusion_policy.dataset.image_codecs import image_codec

    options = vars(arguments)
    codec = image_codec(options.pop("compressor"), options.pop("compression_level"))
    renamed = {"source": options.pop("input"), "resolution": tuple(options.pop("resolution")), "codec": codec}
    scheduler, only_look = options.pop("scheduler"), options.pop("dry_run")
    settings = ConversionSettings(**renamed, **options)
    if only_look:
        return CommandResult(preview(settings))
    try:
        with cluster(scheduler) as executor, progress("frames") as bar:
            report = convert(settings, executor=executor, on_progress=bar)
    except KeyboardInterrupt as error:
        finished = finished_episodes(settings)
        if finished is None:
            raise
        raise Stopped(f"{finished} episodes are kept in {settings.partial}", added=["--resume"]) from error
    return CommandResult([*report.table(), *verdict_on(report.output)])
