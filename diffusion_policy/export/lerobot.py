"""A LeRobot v3.0 dataset: numbers exact, H.264 video, tasks, flags, statistics, and the meaning of the numbers.

After it is written, every video is decoded and compared with its input: the number of frames must agree, and the
lowest PSNR is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusion_policy.commands import install_extra
from diffusion_policy.export.episodes import DatasetEpisodes
from diffusion_policy.export.errors import ExportError
from diffusion_policy.export.lerobot_writer import LeRobotWriter
from diffusion_policy.export.videos import lowest_psnr
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.storage import atomic_folder


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        folder: the dataset.
        episodes, steps: numbers of episodes and steps.
        psnr_db: per camera, the lowest PSNR of a decoded frame compared with its input.
    """

    folder: Path
    episodes: int
    steps: int
    psnr_db: Mapping[str, float]

    def __str__(self) -> str:
        loss = ", ".join(f"{camera} {value:.1f} dB" for camera, value in self.psnr_db.items())
        return (
            f"{self.folder}: {self.episodes} episodes, {self.steps} steps; numbers are exact, frames are H.264 (lowest "
            f"PSNR: {loss})"
        )


def export_lerobot(
    source: DatasetEpisodes,
    folder: Path,
    *,
    task: str | None = None,
    fps: float | None = None,
    robot: str | None = None,
    on_progress: Progress = no_progress,
) -> ExportReport:
    """Writes a LeRobot v3.0 dataset; it appears under its name when it is complete.

    Args:
        source: the episodes to export.
        folder: folder to create.
        task: task description for episodes without one.
        fps: steps per second; by default from the time stamps. Times become frame number / fps.
        robot: LeRobot's robot_type.
        on_progress: called with the number of episodes written, and the total.

    Raises:
        ExportError: the folder exists, an episode has no task, pyarrow is not installed, or a video cannot be encoded.
        DatasetError: a frame or a number cannot be read.
        StorageError: the disk refuses.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ExportError(f"LeRobot datasets need pyarrow: {install_extra('lerobot')}") from error
    if folder.exists():
        raise ExportError(f"{folder} exists; it is not replaced: choose another name")
    with atomic_folder(folder) as unfinished:
        writer = LeRobotWriter(unfinished, source, task, fps or source.rate)
        for episode in source:
            writer.add(episode)
            on_progress(episode.number + 1, source.buffer.n_episodes)
        files = writer.finish(robot)
        psnr_db = {camera: lowest_psnr(videos, source.all_frames(camera)) for camera, videos in files.items()}
    return ExportReport(folder, source.buffer.n_episodes, source.buffer.n_steps, psnr_db)
