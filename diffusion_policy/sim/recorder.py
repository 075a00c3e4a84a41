"""Writes episodes of the scripted expert in the robot's recording format: data.pkl, meta.json, images/frame_0000.jpg.

As in a robot's recording, step t holds the measured pose, the measured gripper and the frame, then the command given at
that time, which is the target pose of the next step.
"""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.sim.camera import Camera
from diffusion_policy.sim.expert import Command, plan
from diffusion_policy.sim.referees import KINEMATIC, make_tabletop
from diffusion_policy.sim.scene import PICK_AND_PLACE, STEP_SECONDS
from diffusion_policy.sim.tabletop import Tabletop
from diffusion_policy.sim.tasks import Progress, Task, task_of
from diffusion_policy.spec import INTERVENTION, ImageArray
from diffusion_policy.storage import atomic_folder, file_sha256

_JPEG_QUALITY = 95
_FIRST_DAY = 1_767_225_600.0  # 2026-01-01 UTC; recordings of one seed are equal to the last byte


@dataclass(frozen=True)
class Demonstration:
    """Settings of recorded demonstrations; the defaults reproduce recordings made before there were these settings.

    Attributes:
        task: a name in ``tasks.TASKS``.
        variation: 0 to 1, how much the expert's episodes differ.
        referee: a name in ``referees.REFEREES``; it computes how the blocks move.
        image_size: (width, height) of the frames.
    """

    task: str = PICK_AND_PLACE
    variation: float = 0.0
    referee: str = KINEMATIC
    image_size: tuple[int, int] = (640, 360)

    def check(self) -> None:
        """Checks the settings.

        Raises:
            WorkspaceError: no such task or referee, or a variation that is not within 0 and 1.
        """
        rng = np.random.default_rng(0)
        scene = task_of(self.task).draw(rng)
        make_tabletop(scene, self.referee)
        plan(scene, rng, self.variation)

    def provenance(self) -> dict[str, Any]:
        """Returns the settings that differ from the defaults, for meta.json; none for the defaults."""
        chosen = {"task": self.task, "variation": self.variation, "referee": self.referee}
        usual = Demonstration()
        return {name: value for name, value in chosen.items() if value != getattr(usual, name)}


def make_trajectories(
    directory: Path | str,
    episodes: int,
    seed: int,
    image_size: tuple[int, int] = (640, 360),
    *,
    task: str = PICK_AND_PLACE,
    variation: float = 0.0,
    referee: str = KINEMATIC,
    resume: bool = False,
) -> list[Path]:
    """Records ``episodes`` demonstrations as ``directory/episode_0000`` and so on; equal arguments give equal files.

    Args:
        directory: created if absent.
        episodes: at least 1.
        seed: episode i depends on (seed, i) alone.
        image_size: (width, height) of the frames.
        task, variation, referee: see ``Demonstration``.
        resume: record the episodes that are missing after an interrupted recording with the same arguments, or with
            fewer episodes.

    Returns:
        the episodes' folders, in order.

    Raises:
        WorkspaceError: ``episodes`` is not positive; an episode's folder exists already or, with ``resume``, was
            recorded with other arguments; there is no such task or referee; the variation is not within 0 and 1.
    """
    if episodes < 1:
        raise WorkspaceError(f"{episodes} episodes requested; expected at least 1")
    directory = Path(directory)
    folders = episode_folders(directory, episodes)
    existing = [folder for folder in folders if folder.exists()]
    if existing and not resume:
        raise WorkspaceError(
            f"{existing[0]} exists already; name another directory, remove it, or continue an interrupted recording "
            "by --resume"
        )
    beyond = episode_folders(directory, episodes + 1)[-1]
    if resume and beyond.exists():
        raise WorkspaceError(f"{beyond} exists, beyond the {episodes} episodes requested; request as many as before")
    demonstration = Demonstration(task, variation, referee, image_size)
    demonstration.check()
    if existing:
        _check_same(existing[-1], folders.index(existing[-1]), seed, demonstration)
    for index, folder in enumerate(folders):
        if folder not in existing:
            _record(folder, index, seed, demonstration)
    return folders


def episode_folders(directory: Path | str, episodes: int) -> list[Path]:
    """Returns the folders ``directory/episode_0000`` and so on."""
    return [Path(directory) / f"episode_{index:04d}" for index in range(episodes)]


def _check_same(folder: Path, index: int, seed: int, demonstration: Demonstration) -> None:
    """Records an episode again in a temporary folder and compares its files, which depend on every setting.

    Raises:
        WorkspaceError: the existing episode differs.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        again = Path(elsewhere) / folder.name
        _record(again, index, seed, demonstration)
        if _content(again) != _content(folder):
            raise WorkspaceError(
                f"{folder} is not what these settings record: it was made with others, or was changed later; resume "
                "with the same seed, resolution, task, variation and referee, or name another directory"
            )


def _content(folder: Path) -> dict[Path, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): file_sha256(path) for path in files}


def _record(folder: Path, index: int, seed: int, demonstration: Demonstration) -> None:
    rng = np.random.default_rng([seed, index])
    task: Task = task_of(demonstration.task)
    scene = task.draw(rng)
    commands = plan(scene, rng, demonstration.variation)
    tabletop = make_tabletop(scene, demonstration.referee)
    camera = Camera(scene, demonstration.image_size)
    if not record(folder, index, tabletop, Progress(), commands, camera, provenance=demonstration.provenance()):
        raise AssertionError(f"the scripted expert failed at {task.name} in episode {index}")


def record(
    folder: Path,
    index: int,
    tabletop: Tabletop,
    progress: Progress,
    commands: Sequence[Command],
    camera: Camera,
    *,
    provenance: Mapping[str, Any],
    intervention: bool = False,
) -> bool:
    """Executes commands on a tabletop in any state, and writes what a robot's recorder would.

    Args:
        folder: folder of the episode, created only if the task is completed; it must not exist.
        index: number of the episode; it determines the timestamps.
        tabletop, progress: updated from their current state.
        commands: at least one.
        camera: a camera of the tabletop's scene.
        provenance: plain JSON, added to meta.json.
        intervention: whether data.pkl marks every step as a correction of a policy, in ``INTERVENTION``.

    Returns:
        whether the task is completed after the last command; if not, nothing is written.
    """
    rows: dict[str, list[Any]] = {
        key: [] for key in ("robot_eef_pose", "robot_gripper", "action", "action_gripper", "timestamp", "image_index")
    }
    start = _FIRST_DAY + 60.0 * index
    with atomic_folder(folder) as partial:
        (partial / "images").mkdir()
        for step, command in enumerate(commands):
            _write_frame(partial / "images" / f"frame_{step:04d}.jpg", camera.render(tabletop))
            observed = (
                tabletop.pose,
                tabletop.gripper,
                command.pose,
                command.gripper,
                start + step * STEP_SECONDS,
                step,
            )
            for column, value in zip(rows.values(), observed, strict=True):
                column.append(value)
            tabletop.step(command.pose, command.gripper)
            progress.update(tabletop)
        if progress.succeeded:
            data = _as_arrays(rows)
            if intervention:
                data[INTERVENTION] = np.ones(len(commands), dtype=np.bool_)
            _write_tables(partial, index, data, provenance)
        else:
            shutil.rmtree(partial)
    return progress.succeeded


def _as_arrays(rows: dict[str, list[Any]]) -> dict[str, NDArray[Any]]:
    """Converts columns to the dtypes of real recordings: poses float32, seconds float64, the rest int64."""
    dtypes = {"robot_eef_pose": np.float32, "action": np.float32, "timestamp": np.float64}
    return {key: np.asarray(column, dtype=dtypes.get(key, np.int64)) for key, column in rows.items()}


def _write_tables(folder: Path, index: int, data: dict[str, NDArray[Any]], provenance: Mapping[str, Any]) -> None:
    (folder / "data.pkl").write_bytes(pickle.dumps(data))
    n_steps = len(data["timestamp"])
    meta = {
        "episode_id": index,
        "start_time": str(np.datetime64(int(data["timestamp"][0]), "s")).replace("T", " "),
        "duration": n_steps * STEP_SECONDS,
        "n_steps": n_steps,
        "n_images": n_steps,
        "data_shapes": {key: list(column.shape) for key, column in data.items()},
        **provenance,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def encode_jpeg(frame: ImageArray) -> bytes:
    """Encodes an RGB frame (H, W, 3) as the robot's recorder does: JPEG, quality 95."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done, "OpenCV encodes every uint8 image"
    return data.tobytes()


def _write_frame(path: Path, frame: ImageArray) -> None:
    path.write_bytes(encode_jpeg(frame))
