"""How fast recordings become a dataset, against the loop that everybody writes first.

    python benchmarks/convert.py [--quick] [--episodes N] [--steps N] [--json OUT]

Both convert the same 1920x1080 JPEGs to 320x180 in one call: the loop decodes, resizes and appends episode by episode
in one process; the converter runs exact and fast. Rates are frames per second, by the wall clock and by seconds of CPU
(what one core would do alone, whatever else the machine is busy with). Decoding alone is the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numcodecs
import numpy as np
import zarr
from recordings import write_recordings  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from diffusion_policy.convert import ConversionReport, ConversionSettings, convert
from diffusion_policy.dataset.image_codecs import image_codec, zarr_arguments
from diffusion_policy.trajectory import find_trajectories, open_trajectory

WIDTH, HEIGHT = 320, 180


def decode_only(source: Path) -> None:
    for path in find_trajectories(source):
        trajectory = open_trajectory(path)
        for step in range(trajectory.n_steps):
            cv2.imdecode(np.fromfile(trajectory.frame_path(step), dtype=np.uint8), cv2.IMREAD_COLOR)


def plain_loop(source: Path, output: Path) -> None:
    """Decode, resize, append: one process, one episode after another."""
    group = zarr.open_group(str(output), mode="w", zarr_format=2)
    options = zarr_arguments(image_codec(), 2)
    array = group.create_array(
        "image", shape=(0, HEIGHT, WIDTH, 3), chunks=(1, HEIGHT, WIDTH, 3), dtype=np.uint8, **options
    )
    for path in find_trajectories(source):
        trajectory = open_trajectory(path)
        frames = []
        for step in range(trajectory.n_steps):
            image = cv2.imdecode(np.fromfile(trajectory.frame_path(step), dtype=np.uint8), cv2.IMREAD_COLOR)
            assert image is not None
            frames.append(
                cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
            )
        array.append(np.stack(frames))


def measure(run: Callable[[], Any], n_frames: int) -> tuple[float, float, Any]:
    """Frames per second by the wall clock and by CPU seconds, and what the run returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return n_frames / (time.perf_counter() - wall), n_frames / (time.process_time() - cpu), result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 episodes of 40 steps")
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--steps", type=int, default=115)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    n_episodes, n_steps = (2, 40) if arguments.quick else (arguments.episodes, arguments.steps)
    n_frames = n_episodes * n_steps
    cv2.setNumThreads(1)
    numcodecs.blosc.set_nthreads(1)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in", Path(folder) / "out"
        out.mkdir()
        kilobytes = write_recordings(source, n_episodes, n_steps) / n_frames / 1e3

        def converted(**options: Any) -> ConversionReport:
            settings = ConversionSettings(source, out / f"{len(list(out.iterdir()))}.zarr", (WIDTH, HEIGHT), **options)
            return convert(settings)

        runs: dict[str, Callable[[], Any]] = {
            "decoding alone": lambda: decode_only(source),
            "plain loop": lambda: plain_loop(source, out / "loop.zarr"),
            "convert, exact, 1 worker": lambda: converted(workers=1),
            "convert, exact": converted,
            "convert, fast": lambda: converted(decode="fast"),
        }
        measured = {name: measure(run, n_frames) for name, run in runs.items()}
    rows = {name: {"frames_per_s": wall, "frames_per_cpu_s": cpu} for name, (wall, cpu, _) in measured.items()}
    loop = rows["plain loop"]["frames_per_cpu_s"]
    psnr = min(entry.psnr_db["image"] for entry in measured["convert, fast"][2].kept)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console = Console()
    table = Table("", "frames/s", "frames/CPU s", "per core against the loop")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['frames_per_s']:.1f}",
            f"{row['frames_per_cpu_s']:.1f}",
            f"{row['frames_per_cpu_s'] / loop:.2f}",
        )
    console.print(table)
    console.print(f"{n_frames} frames of {kilobytes:.0f} kB; {len(os.sched_getaffinity(0))} cores; "
                  f"fast decoding: {psnr:.1f} dB; peak memory of all runs: {peak_mb:.0f} MB")  # fmt: skip
    if arguments.json:
        found = {"rows": rows, "psnr_db": psnr, "peak_mb": peak_mb, "frame_kb": kilobytes, "frames": n_frames}
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
