"""meta/info.json: the features of a LeRobot dataset, its rate, and where its files are."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_policy.paths import reaching, read_bytes
from diffusion_policy.recording.errors import RecordingError

INFO = Path("meta") / "info.json"
DEFAULTS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features that every dataset has."""
_VERSIONS = ("v2.0", "v2.1", "v3.0")
# Largest size of a description in bytes, and numbers that no count in a dataset reaches.
_LARGEST_JSON, _MOST, _HIGHEST_FPS = 64 << 20, 10**9, 1000.0
# Largest number of values in a vector: 100 joints are 100.
_WIDEST = 100_000
_DATA = {
    "v3": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "v2": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
}
_VIDEO = {
    "v3": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    "v2": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
_FIELDS = {
    "v3": {"chunk_index", "file_index", "video_key"},
    "v2": {"episode_chunk", "episode_index", "video_key"},
}
_TOTALS = ("total_episodes", "total_frames")
_COPY_AGAIN = "copy the dataset again from an intact source"


@dataclass(frozen=True)
class Feature:
    """One feature.

    Attributes:
        name: the feature's name.
        dtype: as written: a NumPy type, "string", "video", "image" or "language".
        shape: shape of one step; (H, W, C) or (C, H, W) for a camera.
        names: names of a vector's numbers; empty if not given.
        is_depth: whether it is a depth camera.
        units: units of numbers by name, if the dataset gives them (info.units, which this project writes).
        gripper: the numbers that mean open and closed, if the dataset gives them (info.gripper).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    is_depth: bool = False
    units: Mapping[str, str] = field(default_factory=dict)
    gripper: Mapping[str, Any] | None = None

    @property
    def is_camera(self) -> bool:
        """Whether it is a camera, for color or depth."""
        return self.dtype in ("video", "image")

    @property
    def width(self) -> int:
        """Number of values in one step."""
        return math.prod(self.shape)

    @property
    def is_vector(self) -> bool:
        """Whether a step is a number or a row of numbers."""
        return self.dtype.startswith(("float", "int", "uint", "bool")) and len(self.shape) <= 1


@dataclass(frozen=True)
class Info:
    """The content of meta/info.json.

    Attributes:
        root: the dataset's folder, or its URL.
        version: "v2.0", "v2.1" or "v3.0".
        fps: steps per second.
        features: by name.
        chunks_size: episodes per folder, in v2.
        totals: counts of episodes and frames, as far as stated.
    """

    root: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    chunks_size: int
    data_path: str
    video_path: str
    totals: Mapping[str, int]

    @property
    def file(self) -> Path:
        """meta/info.json."""
        return self.root / INFO

    @property
    def is_v3(self) -> bool:
        """Whether a file holds many episodes."""
        return self.version.startswith("v3")

    def data_file(self, **indices: int) -> Path:
        """Returns a file of rows by its indices (chunk_index and file_index; in v2 episode_chunk and episode_index)."""
        return self.root / self.data_path.format(video_key="", **indices)

    def video_file(self, camera: str, **indices: int) -> Path:
        """Returns a file with a camera's frames."""
        return self.root / self.video_path.format(video_key=camera, **indices)


def read_json(file: Path) -> Any:
    """Reads a JSON file of a dataset.

    Raises:
        RecordingError: it is missing, too large, or not JSON.
    """
    try:
        with reaching(file):
            size = file.stat().st_size
            if size > _LARGEST_JSON:
                raise RecordingError(f"{file}: {size} bytes; at most {_LARGEST_JSON} are read: {_COPY_AGAIN}")
            content = read_bytes(file)
        return json.loads(content.decode("utf-8"))
    except OSError as error:
        raise RecordingError(f"{file}: cannot be read ({error.strerror or error}): {_COPY_AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{file}: not JSON ({error}): {_COPY_AGAIN}") from error


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a LeRobot dataset."""
    with reaching(folder):
        return (folder / INFO).is_file()


def read_info(root: Path) -> Info:
    """Reads the description of a dataset.

    Raises:
        RecordingError: it is missing, or an entry is invalid.
        PathError: its store cannot be reached.
    """
    file = root / INFO
    content = read_json(file)
    if not isinstance(content, dict):
        raise RecordingError(f"{file}: holds a {type(content).__name__}; expected an object: {_COPY_AGAIN}")
    version = content.get("codebase_version")
    if version not in _VERSIONS:
        raise RecordingError(
            f"{file}: codebase_version is {version!r}; expected one of {', '.join(_VERSIONS)}: convert it with the "
            "LeRobot release that wrote it"
        )
    features = content.get("features")
    if not isinstance(features, dict) or not features:
        raise RecordingError(f"{file}: features is {type(features).__name__}; expected an object with one entry each")
    major = version[:2]
    return Info(
        root=root,
        version=version,
        fps=_rate(content.get("fps"), file),
        features={name: _feature(name, entry, file) for name, entry in features.items()},
        chunks_size=_count(content.get("chunks_size", 1000), "chunks_size", file, least=1),
        data_path=_template(content.get("data_path") or _DATA[major], "data_path", major, file),
        video_path=_template(content.get("video_path") or _VIDEO[major], "video_path", major, file),
        totals={key: _count(content[key], key, file) for key in _TOTALS if content.get(key) is not None},
    )


def _rate(fps: Any, file: Path) -> float:
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps <= _HIGHEST_FPS:
        raise RecordingError(f"{file}: fps is {fps!r}; expected steps per second, above 0 and at most {_HIGHEST_FPS:g}")
    return float(fps)


def _count(value: Any, key: str, file: Path, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST:
        raise RecordingError(f"{file}: {key} is {value!r}; expected a whole number from {least} to {_MOST}")
    return value


def _feature(name: str, entry: Any, file: Path) -> Feature:
    if not name or "/" in name or "\\" in name or name in (".", "..") or "\0" in name or len(name) > 255:
        raise RecordingError(f"{file}: a feature is called {name[:80]!r}; expected a name without slashes: rename it")
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise RecordingError(f"{file}: feature {name!r} has no dtype; expected dtype, shape and names")
    shape = entry.get("shape") or [1]
    if not isinstance(shape, list) or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        raise RecordingError(f"{file}: feature {name!r} has shape {shape!r}; expected a list of positive whole numbers")
    names = _names(entry.get("names"))
    info = entry["info"] if isinstance(entry.get("info"), dict) else {}
    feature = Feature(
        name,
        entry["dtype"],
        tuple(shape),
        names,
        _is_depth(entry),
        units=_units(names, info.get("units")),
        gripper=info["gripper"] if isinstance(info.get("gripper"), dict) else None,
    )
    if not feature.is_camera and feature.width > _WIDEST:
        raise RecordingError(
            f"{file}: feature {name!r} has {feature.width} numbers per step; at most {_WIDEST} are read"
        )
    return feature


def _names(found: Any) -> tuple[str, ...]:
    """Returns the names of a vector: from a list, or an object with one ({"motors": [...]}); empty if not given."""
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
        found = lists[0] if len(lists) == 1 else list(found)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        return ()
    return tuple(found)


def _units(names: tuple[str, ...], found: Any) -> dict[str, str]:
    """Returns units by name, as far as stated."""
    if not isinstance(found, list) or len(found) != len(names):
        return {}
    return {name: unit for name, unit in zip(names, found, strict=True) if isinstance(unit, str) and unit != "unknown"}


def _is_depth(entry: Mapping[str, Any]) -> bool:
    info = entry.get("info") or entry.get("video_info") or {}
    is_declared = isinstance(info, dict) and any(
        info.get(key) is True for key in ("is_depth_map", "video.is_depth_map")
    )
    channels = entry.get("shape")
    return is_declared or (isinstance(channels, list) and len(channels) == 3 and 1 in (channels[0], channels[-1]))


def _template(text: Any, key: str, major: str, file: Path) -> str:
    """Returns a template of file names that stays below the dataset's folder whatever is filled in."""
    remedy = f"expected one such as {_DATA[major] if key == 'data_path' else _VIDEO[major]}"
    if not isinstance(text, str) or len(text) > 1000:
        raise RecordingError(f"{file}: {key} is not text; {remedy}")
    try:
        fields = [(name, form, how) for _, name, form, how in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise RecordingError(f"{file}: {key} is {text!r}, not a template ({error}); {remedy}") from error
    odd = [
        name
        for name, form, how in fields
        if name not in _FIELDS[major] or how or form not in ("", "d", *(f"0{digits}d" for digits in range(1, 10)))
    ]
    outside = Path(text).is_absolute() or ".." in Path(text).parts or "\\" in text or "\0" in text or ":/" in text
    if odd or outside:
        what = f"its field {odd[0]!r} is unknown" if odd else "it leaves the dataset's folder"
        raise RecordingError(f"{file}: {key} is {text!r}: {what}; {remedy}")
    return text
