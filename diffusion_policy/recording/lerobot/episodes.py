"""The rows of a file, and the stretches of videos, that make up an episode."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_policy.paths import reaching, read_bytes
from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.recording.lerobot.info import Info
from diffusion_policy.recording.lerobot.tables import COPY_AGAIN, read_rows

_MOST_LINES_BYTES = 64 << 20
_HIGHEST = 10**6


@dataclass(frozen=True)
class Stretch:
    """The position of an episode in a video.

    Attributes:
        file: the video.
        start: seconds at which its first step is shown.
    """

    file: Path
    start: float


@dataclass(frozen=True)
class Episode:
    """One episode, as listed in the tables in meta/.

    Attributes:
        index: the episode's number.
        length: number of steps.
        tasks: task descriptions.
        data_file: parquet file with its rows.
        videos: position of its frames, by camera stored as video.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    data_file: Path
    videos: Mapping[str, Stretch]

    @property
    def name(self) -> str:
        """The name of its file in v2: episode_000007."""
        return f"episode_{self.index:06d}"


def read_episodes(info: Info) -> list[Episode]:
    """Returns the episodes of a dataset, in order.

    Raises:
        RecordingError: a table is absent or damaged, or contradicts meta/info.json.
        PathError: its store cannot be reached.
    """
    videos = [name for name, feature in info.features.items() if feature.dtype == "video"]
    rows = _rows_v3(info, videos) if info.is_v3 else _lines(info.root / "meta" / "episodes.jsonl")
    episodes = [_episode(row, number, info, videos, where) for number, (row, where) in enumerate(rows)]
    if not episodes:
        raise RecordingError(f"{info.root / 'meta'}: lists no episode: {COPY_AGAIN}")
    there = {"total_episodes": len(episodes), "total_frames": sum(episode.length for episode in episodes)}
    for key, stated in info.totals.items():
        if stated != there[key]:
            raise RecordingError(
                f"{info.file}: {key} is {stated}, but the tables of episodes have {there[key]}: copy it again or, "
                f"if its recorder was killed, write {there[key]} there"
            )
    return episodes


def read_tasks(info: Info) -> dict[int, str]:
    """Returns the task descriptions by task_index.

    Raises:
        RecordingError: the table is absent or damaged.
    """
    file = info.root / "meta" / ("tasks.parquet" if info.is_v3 else "tasks.jsonl")
    columns = ("task_index", "task", "__index_level_0__")
    rows = read_rows(file, columns) if info.is_v3 else [row for row, _ in _lines(file)]
    tasks: dict[int, str] = {}
    for row in rows:
        index, text = row.get("task_index"), row.get("task", row.get("__index_level_0__"))
        if not isinstance(index, int) or not isinstance(text, str):
            raise RecordingError(f"{file}: a row is {str(row)[:200]}; expected task_index (a number) and task (a text)")
        tasks[index] = text
    return tasks


def _rows_v3(info: Info, videos: list[str]) -> Iterator[tuple[dict[str, Any], Path]]:
    folder = info.root / "meta" / "episodes"
    with reaching(folder):
        files = sorted(folder.glob("*/*.parquet")) if folder.is_dir() else []
    if not files:
        raise RecordingError(f"{folder}: holds no table of episodes (chunk-000/file-000.parquet): {COPY_AGAIN}")
    columns_of_videos = [
        f"videos/{key}/{what}" for key in videos for what in ("chunk_index", "file_index", "from_timestamp")
    ]
    columns = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index", *columns_of_videos]
    for file in files:
        yield from ((row, file) for row in read_rows(file, columns))


def _lines(file: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    try:
        with reaching(file):
            if file.stat().st_size > _MOST_LINES_BYTES:
                raise RecordingError(f"{file}: larger than {_MOST_LINES_BYTES} bytes: {COPY_AGAIN}")
            lines = read_bytes(file).splitlines()
    except OSError as error:
        raise RecordingError(f"{file}: cannot be read ({error.strerror or error}): {COPY_AGAIN}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecordingError(f"{file}: line {number} is not JSON ({error}): {COPY_AGAIN}") from error
        if not isinstance(row, dict):
            raise RecordingError(f"{file}: line {number} holds a {type(row).__name__}; expected an object")
        yield row, file


def _episode(row: Mapping[str, Any], number: int, info: Info, videos: list[str], where: Path) -> Episode:
    index = _index(row, "episode_index", where)
    if index != number:
        raise RecordingError(
            f"{where}: row {number} is episode_index {index}; expected {number}: LeRobot reads rows in order and would "
            "show frames of other episodes"
        )
    length = _index(row, "length", where, least=1, most=10**8)
    tasks = row.get("tasks") or ()
    texts = tuple(str(task) for task in tasks) if isinstance(tasks, list | tuple) else ()
    if not info.is_v3:
        indices = {"episode_chunk": index // info.chunks_size, "episode_index": index}
        stretches = {key: Stretch(info.video_file(key, **indices), 0.0) for key in videos}
        return Episode(index, length, texts, info.data_file(**indices), stretches)
    data = {key: _index(row, f"data/{key}", where) for key in ("chunk_index", "file_index")}
    stretches = {}
    for key in videos:
        at = {part: _index(row, f"videos/{key}/{part}", where) for part in ("chunk_index", "file_index")}
        start = row.get(f"videos/{key}/from_timestamp")
        if not isinstance(start, int | float) or not 0 <= start < 1e8:
            raise RecordingError(
                f"{where}: videos/{key}/from_timestamp of episode {index} is {start!r}; expected seconds from 0 on: "
                f"{COPY_AGAIN}"
            )
        stretches[key] = Stretch(info.video_file(key, **at), float(start))
    return Episode(index, length, texts, info.data_file(**data), stretches)


def _index(row: Mapping[str, Any], key: str, where: Path, least: int = 0, most: int = _HIGHEST) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise RecordingError(
            f"{where}: {key} is {value!r}; expected a whole number from {least} to {most}: {COPY_AGAIN}"
        )
    return value
