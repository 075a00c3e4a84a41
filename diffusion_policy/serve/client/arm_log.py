"""The log of a control loop: what was sent to the arm, when, and why nothing was.

``arm_YYYYMMDD_HHMMSS.jsonl`` holds one JSON object a line. Times are seconds of the loop's clock; the first line has
one reading of it and the unix time of the same moment.

    {"event": "start", "format": "arm log", "version": 1, "names": [D], "control_hz", "policy_hz", "strategy",
     "settings", "clock_start", "wall_start"}                                      and what the caller adds
    {"event": "request", "request_id", "time", "observed_at", "ages_s": {camera: s}, "committed": n or null}
    {"event": "answer", "request_id", "time", "steps": n, "first": index of the first step executed, "server_step",
     "seam": {"millimetres", "degrees", "gripper"} or null}                        "first" is null: it came too late
    {"event": "error", "request_id", "time", "code", "message"}
    {"event": "move", "time", "action": [D], "request_id", "step", "age_s"}        one a control period
    {"event": "hold", "time", "reason", "message"}                                 when it begins, or its reason changes
    {"event": "end", "time", "moves", "holds": {reason: control periods}, "missed": control periods left out}

``request_id`` is in the lines of the server's log, too. A killed process loses its last line at most; a disk slower
than the robot costs lines, which are counted in "dropped".

Legend of shapes: D numbers of an action.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from diffusion_policy.background_writer import BackgroundWriter
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.storage import StorageError

FORMAT, VERSION = "arm log", 1
_CAPACITY = 4096  # lines that may wait: some seconds of a loop of 1000 Hz


class ArmLogError(WorkspaceError):
    """A log cannot be written or read; the message names the file and what was expected."""


class LineSink(Protocol):
    """Takes the lines of a log."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Takes one line, and returns at once."""

    def close(self) -> None:
        """Finishes the log."""


class ArmLog:
    """Writes a log in a thread of its own, from its first line on. A name that is taken gets a number.

    Args:
        directory: created with the first line, if absent.

    Attributes:
        path: of the file; None before the first line.
    """

    def __init__(self, directory: str | Path) -> None:
        self.path: Path | None = None
        self._directory = Path(directory)
        self._writer: BackgroundWriter[Mapping[str, Any]] | None = None

    def write(self, line: Mapping[str, Any]) -> None:
        """Queues one line.

        Raises:
            ArmLogError: the file cannot be created; with the first line only.
        """
        if self._writer is None:
            self._writer = self._opened()
        dropped = {"dropped": self._writer.dropped} if self._writer.dropped else {}
        self._writer.put({**line, **dropped})

    def close(self) -> None:
        """Writes what is queued, and closes the file."""
        if self._writer is not None:
            self._writer.close()

    def _opened(self) -> BackgroundWriter[Mapping[str, Any]]:
        name = f"arm_{datetime.now():%Y%m%d_%H%M%S}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for number in itertools.count(1):
                self.path = self._directory / (f"{name}.jsonl" if number == 1 else f"{name}_{number}.jsonl")
                with contextlib.suppress(FileExistsError):
                    file = self.path.open("x", encoding="utf-8")
                    break
        except OSError as error:
            raise ArmLogError(f"{self._directory}: the arm's log cannot be written there ({error.strerror})") from error

        def append(line: Mapping[str, Any]) -> None:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()

        return BackgroundWriter(append, file.close, str(self.path), _CAPACITY)


class LinesInMemory:
    """Keeps the lines, for simulations and tests."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, line: Mapping[str, Any]) -> None:
        """Keeps one line."""
        self.lines.append(dict(line))

    def close(self) -> None:
        """Nothing to finish."""


@dataclass(frozen=True)
class ArmLogContent:
    """A log that was read.

    Attributes:
        start: its first line.
        lines: the others, in order.
    """

    start: Mapping[str, Any]
    lines: list[dict[str, Any]]

    def of(self, event: str) -> list[dict[str, Any]]:
        """The lines of one event."""
        return [line for line in self.lines if line.get("event") == event]


def read_arm_log(path: str | Path) -> ArmLogContent:
    """Reads a log; a torn last line is left out.

    Raises:
        ArmLogError: it cannot be read, or is no log of this format.
    """
    path = Path(path)
    try:
        texts = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArmLogError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(line, dict):
            raise ArmLogError(f"{path}: line {number} is a {type(line).__name__}; expected an object")
        lines.append(line)
    if not lines or lines[0].get("format") != FORMAT or lines[0].get("version") != VERSION:
        raise ArmLogError(f"{path}: is no arm log of version {VERSION}; a control loop writes arm_*.jsonl")
    return ArmLogContent(lines[0], lines[1:])
