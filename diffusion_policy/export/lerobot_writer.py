"""The files of a LeRobot v3.0 dataset, written episode by episode.

Rows: one row group per episode. Videos: episode e begins at (frames before it in its file) / fps. Names, units and the
gripper's end values are in meta/info.json, where this project's reader finds them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.export.episodes import DatasetEpisodes, Episode
from diffusion_policy.export.errors import ExportError
from diffusion_policy.export.statistics import PixelCounts, number_statistics
from diffusion_policy.spec import GRIPPER_CLOSED, GRIPPER_OPEN, INTERVENTION, ActionLayout
from diffusion_policy.storage import write_json
from diffusion_policy.video_writer import CODEC, SEEKABLE, VideoWriter, pixel_format

IMAGES = "observation.images."
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
# Number of files in a folder, and megabytes after which a new file is begun.
_CHUNK, _DATA_MB, _VIDEO_MB = 1000, 100, 200
# Number of an episode's frames used for its statistics.
_LOOKED_AT = 100
_TASKS_ARE_AN_INDEX = {
    "index_columns": ["task"],
    "column_indexes": [
        {
            "name": None,
            "field_name": None,
            "pandas_type": "unicode",
            "numpy_type": "object",
            "metadata": {"encoding": "UTF-8"},
        }
    ],
    "columns": [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
        for name, kind, stored in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ],
    "attributes": {},
    "creator": {"library": "pyarrow", "version": "17.0.0"},
    "pandas_version": "2.2.0",
}


@dataclass
class LeRobotWriter:
    """Writes episode by episode; numbers are kept for the statistics of the whole.

    Attributes:
        folder: folder to create.
        source: the episodes to export.
        task: task for episodes without one.
        fps: steps per second.
    """

    folder: Path
    source: DatasetEpisodes
    task: str | None
    fps: float
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _tasks: dict[str, int] = field(default_factory=dict)
    _numbers: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    _n_steps: int = 0

    def __post_init__(self) -> None:
        self._sizes = self.source.sizes()
        self._videos: dict[str, list[VideoWriter]] = {camera: [] for camera in self._sizes}
        self._pixels: dict[str, list[PixelCounts]] = {camera: [] for camera in self._sizes}
        self._tables: list[tuple[Path, Any]] = []
        metadata = [episode.metadata for episode in self.source]
        self._has_success = all(one.success is not None for one in metadata)
        self._has_interventions = any(one.interventions is not None for one in metadata)

    def add(self, episode: Episode) -> None:
        """Adds one episode.

        Raises:
            ExportError: it has no task.
        """
        text = self._text(episode)
        numbers = self._columns(episode, self._tasks.setdefault(text, len(self._tasks)))
        chunk, file = divmod(self._write_rows(numbers), _CHUNK)
        row: dict[str, Any] = {"episode_index": episode.number, "tasks": [text], "length": episode.n_steps}
        row |= {"data/chunk_index": chunk, "data/file_index": file}
        row |= {"dataset_from_index": self._n_steps, "dataset_to_index": self._n_steps + episode.n_steps}
        statistics = {name: number_statistics(_as_rows(values)) for name, values in numbers.items()}
        for camera in self._videos:
            row |= self._encode(camera, episode)
            statistics[IMAGES + camera] = self._pixels[camera][-1].statistics()
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        row |= {
            f"stats/{name}/{what}": value
            for name, of_feature in statistics.items()
            for what, value in of_feature.items()
        }
        self._numbers.append(numbers)
        self._rows.append(row)
        self._n_steps += episode.n_steps

    def finish(self, robot: str | None) -> dict[str, list[Path]]:
        """Writes the tables of meta/; returns the videos of each camera, in order."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._close_table()
        for videos in self._videos.values():
            videos[-1].close()
        meta = self.folder / "meta"
        (meta / "episodes" / "chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._rows), meta / "episodes" / "chunk-000" / "file-000.parquet")
        tasks = pa.table({"task_index": pa.array(range(len(self._tasks)), pa.int64()), "task": list(self._tasks)})
        labeled = tasks.replace_schema_metadata({"pandas": json.dumps(_TASKS_ARE_AN_INDEX)})
        pq.write_table(labeled, meta / "tasks.parquet")
        joined = {name: np.concatenate([numbers[name] for numbers in self._numbers]) for name in self._numbers[0]}
        statistics = {name: number_statistics(_as_rows(values)) for name, values in joined.items()}
        statistics |= {IMAGES + camera: PixelCounts.sum(one).statistics() for camera, one in self._pixels.items()}
        write_json(meta / "stats.json", statistics)
        write_json(meta / "info.json", self._info(robot))
        return {camera: [video.file for video in videos] for camera, videos in self._videos.items()}

    def _text(self, episode: Episode) -> str:
        text = episode.metadata.task or self.task
        if not text:
            raise ExportError(
                f"{self.source.path}: episode {episode.number} has no task, which LeRobot requires: describe it with "
                '--task "..."'
            )
        return text

    def _columns(self, episode: Episode, task: int) -> dict[str, NDArray[Any]]:
        """Returns the rows of the data table, by feature."""
        steps = np.arange(episode.n_steps)
        columns: dict[str, NDArray[Any]] = {}
        if episode.state.shape[1]:
            columns["observation.state"] = episode.state
        columns["action"] = episode.action
        if self._has_success:
            last = steps == episode.n_steps - 1
            columns |= {"next.done": last, "next.success": last & bool(episode.metadata.success)}
        if self._has_interventions:
            driven = np.zeros(episode.n_steps, dtype=bool)
            for start, end in episode.metadata.interventions or ():
                driven[start:end] = True
            columns[INTERVENTION] = driven
        columns |= {"timestamp": (steps / self.fps).astype(np.float32), "frame_index": steps}
        columns |= {"episode_index": np.full(episode.n_steps, episode.number), "index": self._n_steps + steps}
        return columns | {"task_index": np.full(episode.n_steps, task)}

    def _write_rows(self, numbers: Mapping[str, NDArray[Any]]) -> int:
        """Appends a row group, in a new file if the last one is full; returns the file's number."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({name: _arrow(values) for name, values in numbers.items()})
        if not self._tables or self._tables[-1][0].stat().st_size >= _DATA_MB << 20:
            self._close_table()
            chunk, file = divmod(len(self._tables), _CHUNK)
            path = self.folder / _DATA.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._tables.append((path, pq.ParquetWriter(path, table.schema, compression="snappy")))
        self._tables[-1][1].write_table(table)
        return len(self._tables) - 1

    def _close_table(self) -> None:
        if self._tables:
            self._tables[-1][1].close()

    def _encode(self, camera: str, episode: Episode) -> dict[str, Any]:
        """Appends an episode's frames to a camera's video; returns where they are."""
        videos = self._videos[camera]
        if not videos or videos[-1].file.stat().st_size >= _VIDEO_MB << 20:
            if videos:
                videos[-1].close()
            chunk, file = divmod(len(videos), _CHUNK)
            path = self.folder / _VIDEO.format(video_key=IMAGES + camera, chunk_index=chunk, file_index=file)
            videos.append(VideoWriter(path, self._sizes[camera], self.fps))
        video, first = videos[-1], videos[-1].n_frames
        every = max(1, episode.n_steps // _LOOKED_AT)
        looked_at = []
        for step, frame in enumerate(self.source.frames(camera, episode)):
            video.write(frame)
            if step % every == 0:
                looked_at.append(PixelCounts.of(frame))
        self._pixels[camera].append(PixelCounts.sum(looked_at))
        chunk, file = divmod(len(videos) - 1, _CHUNK)
        where = f"videos/{IMAGES}{camera}"
        return {
            f"{where}/chunk_index": chunk,
            f"{where}/file_index": file,
            f"{where}/from_timestamp": first / self.fps,
            f"{where}/to_timestamp": video.n_frames / self.fps,
        }

    def _info(self, robot: str | None) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for name, values in self._numbers[0].items():
            dtype = "bool" if values.dtype == bool else "float32" if values.dtype.kind == "f" else "int64"
            features[name] = {"dtype": dtype, "shape": [values.shape[1] if values.ndim > 1 else 1], "names": None}
        for name, names in (("observation.state", self.source.state_names), ("action", self.source.action_names)):
            if name in features:
                features[name] |= {"names": list(names), "info": self._meaning(names)}
        for camera, (width, height) in self._sizes.items():
            features[IMAGES + camera] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": self._video_info(width, height),
            }
        return {
            "codebase_version": "v3.0",
            "robot_type": robot,
            "total_episodes": len(self._rows),
            "total_frames": self._n_steps,
            "total_tasks": len(self._tasks),
            "chunks_size": _CHUNK,
            "data_files_size_in_mb": _DATA_MB,
            "video_files_size_in_mb": _VIDEO_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": _DATA,
            "video_path": _VIDEO,
            "features": features,
        }

    def _meaning(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Returns the units of a feature's numbers, and the end values of grippers."""
        result: dict[str, Any] = {"units": self.source.units(names)}
        if ActionLayout.of(names).has_gripper:
            result["gripper"] = {"open": GRIPPER_OPEN, "closed": GRIPPER_CLOSED}
        return result

    def _video_info(self, width: int, height: int) -> dict[str, Any]:
        return {
            "video.height": height,
            "video.width": width,
            "video.codec": CODEC,
            "video.pix_fmt": pixel_format(width, height),
            "video.fps": self.fps,
            "video.channels": 3,
            "video.g": int(SEEKABLE["g"]),
            "video.crf": int(SEEKABLE["crf"]),
            "has_audio": False,
            "is_depth_map": False,
        }


def _as_rows(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.ndim == 2 else values[:, None]


def _arrow(values: NDArray[Any]) -> Any:
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
