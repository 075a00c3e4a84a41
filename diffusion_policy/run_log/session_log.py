"""The log of a running session: one JSON line per step, written by a separate thread.

    run_20260108_171739/
      meta.json            checkpoint and normalizer hash, scheduler, steps, guard, settings, versions
      steps.jsonl          one line per step or event; SIGKILL loses at most the last line
      images/<hash>.jpg    images as received, each once; raw frames as PNG

Writing never delays an answer: lines are queued after the answer was sent, and if the disk is slower than the robot,
steps are left out and counted. When a write fails, the log stops and reports it; the robot is served as before. Beyond
``max_bytes`` the run continues in a new folder. Nothing is deleted.

Times are in seconds on the server's monotonic clock; those starting with ``client_`` are on the client's. The two
are never subtracted. ``wall_start`` in meta.json is a reading of the wall clock at the same moment as
``monotonic_start``. ``run_log.read_log`` reads a folder; this module writes it, and reads what only a replay needs.
"""

from __future__ import annotations

import itertools
import json
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from diffusion_policy.background_writer import BackgroundWriter
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.images import mime_suffix
from diffusion_policy.run_log.log import SINGLE_CAMERA
from diffusion_policy.spec import ImageArray
from diffusion_policy.storage import content_key, write_bytes, write_json

LOG_VERSION = 4
SOFTWARE = ("diffusion-policy", "torch", "numpy", "diffusers", "opencv-python")
Images = Sequence[bytes | ImageArray]


class SessionLogError(WorkspaceError):
    """A run folder cannot be read; the message names the file and what was expected."""


def software_versions() -> dict[str, str]:
    """Returns the versions of the software that computed the actions."""
    return {"python": platform.python_version(), **{name: version(name) for name in SOFTWARE}}


class SessionLog:
    """The log of one session; folders and files are created with its first line.

    Args:
        directory: folder in which run folders are created.
        meta: plain JSON; start time, clocks and versions are added.
        max_bytes: size limit of one run folder.
        capacity: number of lines that may wait.
    """

    def __init__(self, directory: str | Path, meta: Mapping[str, Any], max_bytes: int = 2**31, capacity: int = 64):
        self.directory = Path(directory)
        self.folders: list[Path] = []
        self._meta = meta
        self._max_bytes = max_bytes
        self._lines: IO[str] | None = None
        self._bytes = 0
        self._images: set[str] = set()
        self._writer = BackgroundWriter[tuple[dict[str, Any], Images]](
            lambda item: self._write(*item), self._finish, str(self.directory), capacity
        )

    @property
    def dropped(self) -> int:
        """Number of lines that were left out because the disk was too slow."""
        return self._writer.dropped

    @property
    def stopped(self) -> str | None:
        """Why the log stopped; None while it is being written."""
        return self._writer.stopped

    def write(self, line: Mapping[str, Any], images: Images = ()) -> None:
        """Queues one line and its images; returns at once."""
        self._writer.put((dict(line), images))

    def close(self, timeout: float = 5.0) -> None:
        """Writes the queued lines and ends the thread; waits no longer than ``timeout`` for a disk that hangs."""
        self._writer.close(timeout)

    def _finish(self) -> None:
        if self._lines is not None:
            self._lines.close()

    def _write(self, line: dict[str, Any], images: Images) -> None:
        if self._lines is None or self._bytes >= self._max_bytes:
            self._open_folder()
        assert self._lines is not None
        if images:
            line["input"] = {**line.get("input", {}), "images": [self._save(image) for image in images]}
        text = json.dumps({**line, "dropped": self.dropped}, allow_nan=False) + "\n"
        self._lines.write(text)
        self._lines.flush()
        self._bytes += len(text)

    def _open_folder(self) -> None:
        if self._lines is not None:
            self._lines.close()
        start = datetime.now()
        self.directory.mkdir(parents=True, exist_ok=True)
        folder = _new_folder(self.directory, f"run_{start:%Y%m%d_%H%M%S}")
        (folder / "images").mkdir()
        meta = {
            "format": "run log",
            "version": LOG_VERSION,
            "start_time": f"{start:%Y-%m-%d %H:%M:%S}",
            "wall_start": time.time(),
            "monotonic_start": time.monotonic(),
            "continues": self.folders[-1].name if self.folders else None,
            "software": software_versions(),
            **self._meta,
        }
        write_json(folder / "meta.json", meta, flushed=False)  # a busy disk would delay the first lines
        self._lines = (folder / "steps.jsonl").open("a", encoding="utf-8")
        self._bytes, self._images = 0, set()
        self.folders.append(folder)

    def _save(self, image: bytes | ImageArray) -> str:
        data = image if isinstance(image, bytes) else _png(image)
        name = f"images/{content_key(data).hex()}{mime_suffix(data)}"
        if name not in self._images:
            path = self.folders[-1] / name
            write_bytes(path, data, flushed=False)
            self._images.add(name)
            self._bytes += len(data)
        return name


def _new_folder(directory: Path, name: str) -> Path:
    """Creates ``name``, or the first free one of ``name_2``, ...; sessions of the same second never share a folder."""
    for number in itertools.count(1):
        folder = directory / (name if number == 1 else f"{name}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("there is always another number")


def _png(frame: ImageArray) -> bytes:
    done, data = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done, "OpenCV encodes every uint8 image"
    return bytes(np.asarray(data).tobytes())


def read_lines(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads meta.json and every complete line of a run folder; an incomplete last line is left out.

    Raises:
        SessionLogError: not a run folder, or a line before the last is not JSON.
    """
    folder = Path(folder)
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        lines = (folder / "steps.jsonl").read_bytes().split(b"\n")
    except (OSError, ValueError) as error:
        raise SessionLogError(f"{folder} is not a run folder: {error}; expected meta.json and steps.jsonl") from error
    parsed = []
    for number, line in enumerate(lines[:-1], start=1):  # text after the last newline is incomplete or empty
        try:
            parsed.append(json.loads(line))
        except ValueError as error:
            raise SessionLogError(f"{folder}/steps.jsonl: line {number} is not JSON ({error})") from error
    if not isinstance(meta, dict) or not all(isinstance(line, dict) for line in parsed):
        raise SessionLogError(f"{folder}: meta.json or a line of steps.jsonl is not an object")
    return meta, parsed


def newest_images(folder: str | Path, meta: Mapping[str, Any], names: Sequence[Any]) -> dict[str, Any]:
    """Returns the newest of the images that a line names for each camera, by camera; a single one is SINGLE_CAMERA.

    Args:
        folder: folder of the run, for messages.
        meta: meta.json of the run; its `cameras` are in the order of the names.
        names: equally many for each camera, the oldest first: all of the first camera, then all of the second, and so
            on.

    Raises:
        SessionLogError: meta.json names no cameras, or their numbers of images differ.
    """
    cameras = meta.get("cameras", [SINGLE_CAMERA])
    if not isinstance(cameras, list) or not cameras or not all(isinstance(camera, str) for camera in cameras):
        raise SessionLogError(f"{folder}/meta.json: cameras is {cameras!r}; expected a list of names")
    of_each, more = divmod(len(names), len(cameras))
    if more or not of_each:
        raise SessionLogError(f"{folder}: a step names {len(names)} images of {len(cameras)} cameras: {cameras}")
    named = cameras if len(cameras) > 1 else [SINGLE_CAMERA]
    return {camera: names[(number + 1) * of_each - 1] for number, camera in enumerate(named)}


def read_image(folder: str | Path, name: Any) -> bytes:
    """Reads an image that a line names; SessionLogError if it does not exist or is outside the run folder."""
    if not isinstance(name, str) or Path(name).parent != Path("images"):
        raise SessionLogError(f"{folder}: {name!r} is not an image of this run; expected images/<hash>.jpg")
    try:
        return (Path(folder) / name).read_bytes()
    except OSError as error:
        raise SessionLogError(f"{folder}/{name}: cannot be read ({error.strerror})") from error
