"""How fast recordings are converted to a dataset, compared with the loop that everybody writes first.

    python benchmarks/convert.py [--quick] [--episodes N] [--steps N] [--rounds N] [--json OUT]

Both convert the same 1920x1080 JPEGs to 320x180 in one call, in turn, several rounds: the loop decodes, resizes and
appends episode by episode in one process; the converter runs in exact and fast mode. Rates are medians of frames per
second, by wall clock and by CPU seconds (the rate of one core, whatever else the machine is busy with); ratios are
medians of the ratios within a round. Decoding alone is the limit. Memory is the peak of a process that only converts,
for these episodes and for episodes ten times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
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

from diffusion_policy.command_line import positive_number
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
    """Decodes, resizes and appends in one process, one episode after another."""
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
    """Returns frames per second by wall clock and by CPU seconds, and what the run returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return n_frames / (time.perf_counter() - wall), n_frames / (time.process_time() - cpu), result


PROGRAM = """
import resource, sys
from diffusion_policy.convert import ConversionSettings, convert
convert(ConversionSettings(sys.argv[1], sys.argv[2], (320, 180), decode=sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak_mb(source: Path, output: Path, decode: str) -> float:
    command = [sys.executable, "-c", PROGRAM, str(source), str(output), decode]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(source: Path, out: Path, n_frames: int, n_rounds: int) -> tuple[dict[str, dict[str, float]], float]:
    """Returns each way's median rates and ratio to the loop, and the lowest PSNR of fast decoding."""

    def converted(**options: Any) -> ConversionReport:
        return convert(ConversionSettings(source, out / "made.zarr", (WIDTH, HEIGHT), overwrite=True, **options))

    runs: dict[str, Callable[[], Any]] = {
        "decoding alone": lambda: decode_only(source),
        "plain loop": lambda: plain_loop(source, out / "loop.zarr"),
        "convert, exact, 1 worker": lambda: converted(workers=1),
        "convert, exact": converted,
        "convert, fast, 1 worker": lambda: converted(workers=1, decode="fast"),
        "convert, fast": lambda: converted(decode="fast"),
    }
    rounds = [{name: measure(run, n_frames) for name, run in runs.items()} for _ in range(n_rounds)]
    rows = {
        name: {
            "frames_per_s": float(np.median([found[name][0] for found in rounds])),
            "frames_per_cpu_s": float(np.median([found[name][1] for found in rounds])),
            "per_core_against_loop": float(np.median([found[name][1] / found["plain loop"][1] for found in rounds])),
        }
        for name in runs
    }
    return rows, min(entry.psnr_db["image"] for entry in rounds[0]["convert, fast"][2].kept)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 episodes of 40 steps, 1 round, longer ones left out")
    parser.add_argument("--episodes", type=positive_number, default=6)
    parser.add_argument("--steps", type=positive_number, default=115)
    parser.add_argument("--rounds", type=positive_number, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    n_episodes, n_steps, n_rounds = (
        (2, 40, 1) if arguments.quick else (arguments.episodes, arguments.steps, arguments.rounds)
    )
    n_frames = n_episodes * n_steps
    cv2.setNumThreads(1)
    numcodecs.blosc.set_nthreads(1)
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in", Path(folder) / "out"
        out.mkdir()
        kilobytes = write_recordings(source, n_episodes, n_steps) / n_frames / 1e3
        rows, psnr = compare(source, out, n_frames, n_rounds)
        for decode in ("exact", "fast"):
            peaks[f"{n_episodes} episodes of {n_steps}, {decode}"] = peak_mb(source, out / f"{decode}.zarr", decode)
        if not arguments.quick:
            write_recordings(Path(folder) / "long", 2, 10 * n_steps)
            peaks[f"2 episodes of {10 * n_steps}, exact"] = peak_mb(Path(folder) / "long", out / "long.zarr", "exact")
    console = Console()
    table = Table("", "frames/s", "frames/CPU s", "per core against the loop")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[key]:{form}}" for key, form in zip(row, (".1f", ".1f", ".2f"), strict=True)))
    console.print(table)
    share = rows["convert, exact, 1 worker"]["frames_per_cpu_s"] / rows["decoding alone"]["frames_per_cpu_s"]
    n_cores = len(os.sched_getaffinity(0))
    console.print(f"{n_frames} frames of {kilobytes:.0f} kB; {n_cores} cores; {n_rounds} rounds; fast: {psnr:.1f} dB")
    console.print(f"decoding alone is {share:.0%} of what exact takes")
    for name, peak in peaks.items():
        console.print(f"peak memory, {name}: {peak:.0f} MB")
    if arguments.json:
        found = {"rows": rows, "psnr_db": psnr, "peak_mb": peaks, "frame_kb": kilobytes, "frames": n_frames}
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
