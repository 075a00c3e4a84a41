"""Recordings like the robot's for the benchmarks: 1920x1080 JPEGs of quality 95, about 300 kB each."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = (1920, 1080)


def scene(step: int, seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Returns a BGR frame: a lit table with texture, objects, an arm that moves, and the sensor's noise."""
    width, height = size
    rng = np.random.default_rng(seed)
    coarse = rng.integers(90, 170, (9, 16, 3), dtype=np.uint8)
    frame = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    fine = rng.integers(0, 10, (height // 6, width // 6), dtype=np.uint8)
    frame = cv2.add(frame, cv2.cvtColor(cv2.resize(fine, (width, height)), cv2.COLOR_GRAY2BGR))
    for _ in range(12):
        center = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        color = tuple(map(int, rng.integers(20, 235, 3)))
        cv2.circle(frame, center, int(rng.integers(height // 40, height // 9)), color, -1, cv2.LINE_AA)
    hand = (int(width * (0.5 + 0.4 * np.sin(step / 20))), int(height * (0.5 + 0.3 * np.cos(step / 15))))
    cv2.line(frame, (width // 2, 0), hand, (60, 60, 65), height // 12, cv2.LINE_AA)
    noise = np.random.default_rng(step).normal(0, 0.8, (height // 2, width // 2, 3)).astype(np.float32)
    noisy = frame.astype(np.float32) + cv2.resize(noise, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def write_recordings(directory: Path, n_episodes: int, n_steps: int, n_distinct: int = 12) -> int:
    """Writes episodes with `n_distinct` different frames; returns the bytes of all JPEGs."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
    drawn = [cv2.imencode(".jpg", scene(10 * i, seed=0), quality)[1].tobytes() for i in range(n_distinct)]
    total = 0
    for episode in range(n_episodes):
        folder = directory / f"episode_{episode:04d}"
        (folder / "images").mkdir(parents=True)
        for step in range(n_steps):
            data = drawn[(step + episode) % n_distinct]
            (folder / "images" / f"frame_{step:04d}.jpg").write_bytes(data)
            total += len(data)
        phase = np.linspace(0, 1, n_steps)
        pose = np.zeros((n_steps, 7), dtype=np.float32)
        pose[:, 0], pose[:, 2], pose[:, 3] = 0.4 + 0.2 * phase, 0.3, 1.0
        gripper = (np.abs(phase - 0.5) > 0.2).astype(np.int64)
        arrays = {"robot_eef_pose": pose, "action": pose, "robot_gripper": gripper, "action_gripper": gripper,
                  "timestamp": 0.1 * np.arange(n_steps), "image_index": np.arange(n_steps)}  # fmt: skip
        (folder / "data.pkl").write_bytes(pickle.dumps(arrays))
        (folder / "meta.json").write_text(json.dumps({"episode_id": episode, "n_steps": n_steps}))
    return total
