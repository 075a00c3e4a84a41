"""Tiny LeRobot datasets for tests, v3.0 and v2.1, written with pyarrow and PyAV."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

POSE_NAMES = ("x", "y", "z", "qx", "qy", "qz", "qw", "gripper")
FPS = 10


def poses(n_steps: int, seed: int = 0) -> NDArray[np.float32]:
    """(n, 8) an arc with continuous rotations; the gripper opens, closes and opens."""
    phase = np.linspace(0.0, 1.0, n_steps) + 0.01 * seed
    angle = 0.3 * phase
    thirds = np.arange(n_steps) * 3 // max(n_steps, 1)
    columns = [0.4 + 0.1 * np.cos(phase), 0.2 * phase, 0.3 + 0 * phase]
    columns += [np.cos(angle), -0.8 * np.sin(angle), 0.6 * np.sin(angle), 0 * phase, np.where(thirds == 1, 0.0, 1.0)]
    return np.stack(columns, axis=1).astype(np.float32)


def drawn(step: int, size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: a square that moves over a gradient."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 180, width), np.linspace(0, 180, height))
    frame = np.stack([x, y, 0 * x + 20 * seed + 40], axis=-1).astype(np.uint8)
    frame[height // 3 : height // 2, 3 * step % width : 3 * step % width + 8] = (230, 60, 40)
    return frame


@dataclass
class LeRobotSet:
    """The content of a tiny dataset; `write` writes it.

    Attributes:
        lengths: steps of the episodes.
        version: "v3.0" or "v2.1".
        state, action: (N, D) of all steps; poses by default.
        names: of their numbers; None writes null.
        cameras: size by feature; one stored as pictures has "picture" in its name.
        extra: further columns by feature: dtype, shape and (N, ...) values.
        tasks: per step.
        wide: whether lists have varying instead of fixed lengths.
        row_group: rows in one.
        gop: frames from key frame to key frame.
        files: number of the file (of rows and of frames) that contains each episode.
    """

    lengths: Sequence[int] = (6, 9)
    version: str = "v3.0"
    state: NDArray[Any] | None = None
    action: NDArray[Any] | None = None
    names: Sequence[str] | None = POSE_NAMES
    cameras: Mapping[str, tuple[int, int]] = field(default_factory=lambda: {"observation.images.front": (64, 48)})
    extra: Mapping[str, tuple[str, list[int], Any]] = field(default_factory=dict)
    tasks: Sequence[int] | None = None
    wide: bool = False
    row_group: int = 1000
    gop: int = 12
    fps: float = FPS
    files: Sequence[int] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_steps(self) -> int:
        return sum(self.lengths)

    def columns(self) -> dict[str, tuple[str, list[int], NDArray[Any]]]:
        """dtype, shape of a step and values of each feature but the cameras."""
        states = [poses(n, seed) for seed, n in enumerate(self.lengths)]
        state = np.concatenate(states) if self.state is None else self.state
        follow = [np.concatenate([one[1:], one[-1:]]) for one in states]
        action = np.concatenate(follow) if self.action is None else self.action
        step = np.concatenate([np.arange(n) for n in self.lengths])
        episode = np.repeat(np.arange(len(self.lengths)), self.lengths)
        tasks = np.zeros(self.n_steps) if self.tasks is None else np.asarray(self.tasks)
        return {
            "observation.state": ("float32", list(state.shape[1:]), state),
            "action": ("float32", list(action.shape[1:]), action),
            **{name: (dtype, shape, np.asarray(values)) for name, (dtype, shape, values) in self.extra.items()},
            "timestamp": ("float32", [1], (step / self.fps).astype(np.float32)),
            "frame_index": ("int64", [1], step),
            "episode_index": ("int64", [1], episode),
            "index": ("int64", [1], np.arange(self.n_steps)),
            "task_index": ("int64", [1], tasks.astype(np.int64)),
        }

    def described(self) -> dict[str, Any]:
        """meta/info.json."""
        features: dict[str, Any] = {
            name: {
                "dtype": dtype,
                "shape": shape,
                "names": list(self.names or ()) or None if len(shape) == 1 and shape[0] > 1 else None,
            }
            for name, (dtype, shape, _) in self.columns().items()
        }
        for camera, (width, height) in self.cameras.items():
            kind = "image" if "picture" in camera else "video"
            features[camera] = {"dtype": kind, "shape": [height, width, 3], "names": ["height", "width", "channels"]}
        v3 = self.version == "v3.0"
        return {
            "codebase_version": self.version,
            "fps": self.fps,
            "features": features,
            "total_episodes": len(self.lengths),
            "total_frames": self.n_steps,
            "chunks_size": 1000,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
            if v3
            else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
            if v3
            else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
            **self.info,
        }

    def frames(self, camera: str) -> list[NDArray[np.uint8]]:
        """Returns the drawn frames, one for each step."""
        seed = sorted(self.cameras).index(camera)
        return [drawn(step, self.cameras[camera], seed) for step in range(self.n_steps)]

    def write(self, root: Path) -> Path:
        """Write the dataset; returns its folder."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        (root / "meta").mkdir(parents=True)
        (root / "meta" / "info.json").write_text(json.dumps(self.described(), indent=1))
        v3 = self.version == "v3.0"
        files = list(self.files or [0] * len(self.lengths)) if v3 else list(range(len(self.lengths)))
        begin = np.concatenate([[0], np.cumsum(self.lengths)])
        for file in sorted(set(files)):
            steps = np.concatenate([np.arange(begin[e], begin[e + 1]) for e in range(len(files)) if files[e] == file])
            name = f"file-{file:03d}.parquet" if v3 else f"episode_{file:06d}.parquet"
            path = root / "data" / "chunk-000" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(self._table(steps), path, row_group_size=self.row_group)
            for camera in self.cameras:
                if "picture" not in camera:
                    folder = root / "videos" / (camera if v3 else "chunk-000") / ("chunk-000" if v3 else camera)
                    folder.mkdir(parents=True, exist_ok=True)
                    frames = self.frames(camera)
                    encode(folder / name.replace(".parquet", ".mp4"), [frames[i] for i in steps], self.fps, self.gop)
        texts = [f"task {i}" for i in range(1 + max(self.tasks or [0]))]
        if v3:
            folder = root / "meta" / "episodes" / "chunk-000"
            folder.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(self._episodes(files)), folder / "file-000.parquet")
            tasks = [{"task_index": i, "task": text} for i, text in enumerate(texts)]
            pq.write_table(pa.Table.from_pylist(tasks), root / "meta" / "tasks.parquet")
        else:
            lines = [{"episode_index": i, "tasks": texts[:1], "length": n} for i, n in enumerate(self.lengths)]
            (root / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
            tasks = [{"task_index": i, "task": text} for i, text in enumerate(texts)]
            (root / "meta" / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)) + "\n")
        return root

    def _table(self, steps: NDArray[np.int64]) -> Any:
        import pyarrow as pa

        arrays = {}
        for name, (dtype, _, values) in self.columns().items():
            rows = values[steps]
            kind = (
                pa.string()
                if dtype == "string"
                else pa.from_numpy_dtype(np.dtype(dtype.replace("language", "str") if dtype != "string" else "int8"))
            )
            if rows.ndim == 2:
                kind = pa.list_(kind) if self.wide else pa.list_(kind, rows.shape[1])
            arrays[name] = pa.array([row.tolist() for row in rows], type=kind)
        for camera in self.cameras:
            if "picture" in camera:
                frames = self.frames(camera)
                encoded = [cv2.imencode(".png", frames[i][..., ::-1])[1].tobytes() for i in steps]
                arrays[camera] = pa.array([{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(encoded)])
        return pa.table(arrays)

    def _episodes(self, files: Sequence[int]) -> list[dict[str, Any]]:
        rows = []
        inside: dict[int, int] = {}
        for index, (length, file) in enumerate(zip(self.lengths, files, strict=True)):
            before = inside.get(file, 0)
            inside[file] = before + length
            row = {"episode_index": index, "tasks": ["task 0"], "length": length}
            row |= {"data/chunk_index": 0, "data/file_index": file}
            for camera in self.cameras:
                if "picture" not in camera:
                    row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": file}
                    row |= {f"videos/{camera}/from_timestamp": before / self.fps}
                    row |= {f"videos/{camera}/to_timestamp": (before + length) / self.fps}
            rows.append(row)
        return rows


def encode(
    file: Path, frames: Sequence[NDArray[np.uint8]], fps: float, gop: int, size: tuple[int, int] | None = None
) -> None:
    """An H.264 mp4 of RGB frames at a constant rate."""
    height, width = frames[0].shape[:2]
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("libx264", rate=int(fps), options={"g": str(gop), "bf": "2", "crf": "18"})
        stream.width, stream.height = size or (width, height)
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def decode(file: Path) -> list[NDArray[np.uint8]]:
    """Returns all frames of a video from PyAV, RGB."""
    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
