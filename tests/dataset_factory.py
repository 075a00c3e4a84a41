"""Small datasets in every form: ours in both formats, and one by another writer."""

import zipfile
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from made_once import made_once

from diffusion_policy.dataset.content_hash import EPISODES
from diffusion_policy.dataset.image_codecs import image_codec
from diffusion_policy.dataset.replay_buffer import (
    STORE_EVERY_CHUNK,
    ArrayLayout,
    ReplayBuffer,
    image_layout,
    low_dim_layout,
)
from diffusion_policy.spec import POSE, POSE_GRIPPER

N = 20
SHAPE_META = {
    "obs": {
        "image": {"shape": [3, 18, 32], "type": "rgb"},
        "robot_eef_pose": {"shape": [7]},
        "robot_gripper_state": {"shape": [1]},
    },
    "action": {"shape": [8]},
}
FORMS: dict[str, dict[str, Any]] = {
    "format 2": {"zarr_format": 2},
    "format 3": {"zarr_format": 3},
    "shards": {"zarr_format": 3, "shard": 8},
    "raw, format 2": {"zarr_format": 2, "codec": "none"},
    "raw, format 3": {"zarr_format": 3, "codec": "none"},
    "jpeg": {"zarr_format": 2, "codec": "jpeg"},
    "jpeg shards": {"zarr_format": 3, "codec": "jpeg", "shard": 8},
    "of another writer": {"foreign": True},
}


def rows() -> dict[str, np.ndarray]:
    """Returns its arrays."""
    rng = np.random.default_rng(0)
    quaternion = np.tile([1.0, 0, 0, 0], (N, 1))
    pose = np.concatenate([rng.uniform(0.2, 0.4, (N, 3)), quaternion], axis=1).astype(np.float32)
    gripper = (np.arange(N) % 10 < 5).astype(np.float32)[:, None]
    images = rng.integers(1, 255, (N, 18, 32, 3), dtype=np.uint8)
    return {
        "image": images,
        "wrist": images[::-1],
        "action": np.concatenate([pose, gripper], axis=1),
        "robot_eef_pose": pose,
        "robot_gripper_state": gripper,
        "timestamp": 0.1 * np.arange(N),
    }


@made_once
def write(path: Path, form: str) -> Path:
    """A dataset of two episodes, 20 steps and two cameras."""
    options = dict(FORMS[form])
    if options.pop("foreign", False):
        root = zarr.open_group(str(path), mode="w", zarr_format=2)
        data = root.create_group("data")
        for key, values in rows().items():
            chunks = (1 if values.ndim == 4 else 5, *values.shape[1:])
            options = {"chunks": chunks, "compressors": numcodecs.Zlib(), "config": STORE_EVERY_CHUNK}
            array = data.create_array(key, shape=values.shape, dtype=values.dtype, **options)
            array[:] = values
        root.create_group("meta").create_array("episode_ends", data=np.asarray([8, N]), chunks=(2,))
        return path
    codec = image_codec(options.pop("codec", "blosc"))
    layouts = {
        **{camera: image_layout(32, 18, codec, options.get("shard")) for camera in ("image", "wrist")},
        "action": low_dim_layout(POSE_GRIPPER),
        "robot_eef_pose": low_dim_layout(POSE),
        "robot_gripper_state": low_dim_layout(("gripper",)),
        "timestamp": ArrayLayout((), np.float64),
    }
    buffer = ReplayBuffer.create(path, layouts, zarr_format=options["zarr_format"])
    for part in (slice(0, 8), slice(8, N)):
        buffer.append({key: values[part] for key, values in rows().items()})
    buffer.root.attrs["conversion"] = {"settings": {}}
    return path


def pack(folder: Path, archive: Path, method: int = zipfile.ZIP_STORED, top: str = "") -> Path:
    """The folder as a zip archive."""
    with zipfile.ZipFile(archive, "w", method) as packed:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                packed.write(file, Path(top) / file.relative_to(folder))
    return archive


def tell(path: Path, *records: dict[str, Any]) -> Path:
    """Adds the recordings' metadata to each episode of a dataset: tasks, success, interventions."""
    buffer = ReplayBuffer.open(path, mode="r+")
    found: Any = buffer.root.attrs.get(EPISODES)
    described = found or [{"name": f"episode_{i:04d}", "number": i} for i in range(buffer.n_episodes)]
    buffer.root.attrs[EPISODES] = [{**entry, **more} for entry, more in zip(described, records, strict=True)]
    return path
