"""How fast videos of a LeRobot dataset are decoded to frames, compared with PyAV's own loop, per core.

    python benchmarks/lerobot.py [--quick] [--json OUT] [--repeats 5] [FILE.mp4]

One video (640x480 at 30 Hz, H.264 with a key frame every second frame, as LeRobot's recorder writes them; made here, or
FILE) is decoded from its first frame to its last by PyAV alone (each frame to an RGB array, one thread), by this
project's reader, which finds each frame by its time, and by the converter's block, which also resizes to 320x180 and
packs. The ways take turns in one process; rates are frames per second of processor time, so per core. Episodes of 300
steps are read in sequence, each from its own key frame on. --quick uses 300 frames of 320x240.

Goal: the reader at 0.9 of PyAV's own rate or more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import zarr
from rich.console import Console
from rich.table import Table

from diffusion_policy.command_line import positive_number
from diffusion_policy.convert.frames import Block, write_block
from diffusion_policy.dataset.replay_buffer import create_array, image_layout
from diffusion_policy.recording.lerobot.frames import VideoFrames
from diffusion_policy.video_writer import VideoWriter

GOAL, FPS, EPISODE = 0.9, 30, 300
SMALL = (320, 180)


def write_video(file: Path, n_frames: int, size: tuple[int, int]) -> None:
    """Writes a video of a moving square over noise, which keeps the decoder as busy as a camera does."""
    width, height = size
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3), dtype=np.uint8)
    video = VideoWriter(file, size, FPS)
    for step in range(n_frames):
        frame = np.roll(noise, step, axis=1)
        frame[height // 3 : height // 2, (4 * step) % (width - 40) : (4 * step) % (width - 40) + 40] = (220, 60, 40)
        video.write(frame)
    video.close()


def plain(file: Path) -> int:
    """PyAV's own loop."""
    with av.open(str(file)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return sum(frame.to_ndarray(format="rgb24").shape[0] > 0 for frame in container.decode(video=0))


def episodes(n_frames: int, file: Path) -> list[VideoFrames]:
    """Returns the frames of a video as episodes."""
    whole = VideoFrames(file, tuple(np.arange(n_frames) / FPS), tuple(range(n_frames)), 1 / FPS)
    return [whole.at(range(start, min(start + EPISODE, n_frames))) for start in range(0, n_frames, EPISODE)]


def read(parts: Sequence[VideoFrames]) -> int:
    """Reads all frames with our reader, and discards them."""
    return sum(1 for part in parts for _ in part.pictures())


def converted(parts: Sequence[VideoFrames], folder: Path) -> int:
    """Runs the converter's blocks, which also resize and pack."""
    group = zarr.open_group(str(folder / "frames.zarr"), mode="w", zarr_format=2)
    array = create_array(group, "image", image_layout(*SMALL), sum(map(len, parts)))
    start = 0
    for part in parts:
        block = Block(part, folder / "frames.zarr" / "image", start, *SMALL, "exact", lossless=True)
        start += len(write_block(block).digests)
    return int(array.shape[0])


def measure(file: Path, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Returns frames per second of processor time by way; the ways take turns."""
    n_frames = plain(file)
    parts = episodes(n_frames, file)
    ways: dict[str, Callable[[], int]] = {
        "PyAV": lambda: plain(file),
        "reader": lambda: read(parts),
        "resized and packed": lambda: converted(parts, folder),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            busy = time.process_time()
            found = way()
            rates[name].append(found / (time.process_time() - busy))
    return rates


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE.mp4")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=positive_number, default=5)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        file = arguments.file or Path(name) / "video.mp4"
        if arguments.file is None:
            write_video(file, *((300, (320, 240)) if arguments.quick else (900, (640, 480))))
        rates = measure(file, Path(name), arguments.repeats)
    medians = {way: statistics.median(found) for way, found in rates.items()}
    table = Table("way", "frames per CPU second", "of PyAV's own", title=f"goal of the reader: {GOAL}")
    for way, rate in medians.items():
        table.add_row(way, f"{rate:.0f}", f"{rate / medians['PyAV']:.2f}")
    Console().print(table)
    if arguments.json is not None:
        figures = {"frames_per_cpu_second": medians, "goal": GOAL, "cores": os.cpu_count(), "all": rates}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
