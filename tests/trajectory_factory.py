"""Small, valid CogACT recordings for tests: a colored square follows the arm across a smooth background."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

PERIOD_S = 0.1


def recorded_arrays(n_steps: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """data.pkl of an episode: the arm moves on an arc, the gripper opens, closes and opens again.

    The measured gripper follows the commanded one two steps later, the measured pose one step later.
    """
    phase = np.linspace(0.0, 1.0, n_steps + 1) + 0.01 * (seed % 7)
    angle = 0.3 * phase
    zeros = np.zeros_like(phase)
    pose = np.stack(
        [
            0.4 + 0.15 * np.cos(np.pi * phase),
            0.2 * np.sin(np.pi * phase),
            0.3 + 0.1 * np.cos(2 * np.pi * phase),
            np.cos(angle),
            -np.sin(angle) * 0.8,
            np.sin(angle) * 0.6,
            zeros,
        ],
        axis=1,
    ).astype(np.float32)
    thirds = np.arange(n_steps) * 3 // max(n_steps, 1)
    command = np.where(thirds == 1, 0, 1).astype(np.int64)
    measured = np.concatenate([np.ones(min(2, n_steps), dtype=np.int64), command])[:n_steps]
    return {
        "robot_eef_pose": pose[:-1].copy(),
        "robot_gripper": measured,
        "action": pose[1:].copy(),
        "action_gripper": command,
        "timestamp": 1_700_000_000.0 + 1000.0 * seed + PERIOD_S * np.arange(n_steps),
        "image_index": np.arange(n_steps, dtype=np.int64),
    }


def draw_frame(step: int, n_steps: int, size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """A BGR frame of ``size`` (width, height): no two steps look the same."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 180, width), np.linspace(0, 180, height))
    frame = np.stack([x, y, (x + y) / 2 + 10 * (seed % 5)], axis=-1).astype(np.uint8)
    side = max(height // 5, 1)
    left = int((width - side) * step / max(n_steps - 1, 1))
    top = int((height - side) * (0.5 + 0.4 * np.sin(step + seed)))
    frame[top : top + side, left : left + side] = (40, 60, 230)
    return frame


def write_trajectory(
    directory: Path | str,
    episode_id: int = 0,
    n_steps: int = 20,
    size: tuple[int, int] = (320, 180),
    *,
    arrays: Mapping[str, Any] | None = None,
    n_images: int | None = None,
    images_folder: str = "images",
    cameras: Sequence[str] = (),
    meta: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Path:
    """Write ``directory/episode_NNNN`` and return it.

    Args:
        directory: folder, created if missing.
        episode_id: number of the episode, and the seed of its content unless ``seed`` is given.
        n_steps: number of steps, and of images unless ``n_images`` is given.
        size: (width, height) of the JPEGs.
        arrays: replaces entries of data.pkl; None leaves the entry out.
        n_images: number of JPEGs.
        images_folder: "images" or "Images".
        cameras: names of camera folders below the images folder; none means one camera without a folder.
        meta: replaces entries of meta.json.
        seed: seed of the content.
    """
    seed = episode_id if seed is None else seed
    folder = Path(directory) / f"episode_{episode_id:04d}"
    data = {**recorded_arrays(n_steps, seed), **(arrays or {})}
    data = {key: value for key, value in data.items() if value is not None}
    n_images = n_steps if n_images is None else n_images
    for camera in cameras or ("",):
        images = folder / images_folder / camera
        images.mkdir(parents=True)
        for i in range(n_images):
            frame = draw_frame(i, n_images, size, seed + len(camera))
            cv2.imwrite(str(images / f"frame_{i:04d}.jpg"), frame, [cv2.IMWRITE_JPEG_QUALITY, 95])
    (folder / "data.pkl").write_bytes(pickle.dumps(data))
    described = {
        "episode_id": episode_id,
        "start_time": "2026-01-08 17:17:39",
        "duration": PERIOD_S * n_steps,
        "n_steps": n_steps,
        "n_images": n_images,
        "data_shapes": {key: list(np.shape(value)) for key, value in data.items()},
    }
    (folder / "meta.json").write_text(json.dumps({**described, **(meta or {})}))
    return folder
