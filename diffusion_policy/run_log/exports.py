"""Exports of a run folder for other tools: the predecessor's log, VLA-Lab's run directory, Rerun.

Exports are written under a temporary name, then renamed, and never replace anything. The run itself is not changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.commands import install_extra
from diffusion_policy.images import decode_jpeg
from diffusion_policy.run_log import RunLogError, read_log, write_inference_log
from diffusion_policy.run_log.log import SINGLE_CAMERA
from diffusion_policy.run_log.session_log import SessionLogError, newest_images, read_image, read_lines
from diffusion_policy.spec import POSE_GRIPPER, ActionLayout, SpecError
from diffusion_policy.storage import atomic_file, atomic_folder

FloatArray = NDArray[np.float64]
PROJECT = "diffusion_policy"
_SERVER_CLOCKS = ("server_recv", "infer_start", "infer_end")
# Stages that add up to one inference, for tools that store a single number for it.
_EXTRA = ("checkpoint_sha256", "scheduler", "steps", "guard", "state_names")
_INFERENCE = ("decode_ms", "prepare_ms", "encode_ms", "denoise_ms")


def to_inference_log(run: str | Path, directory: str | Path) -> Path:
    """Writes ``inference_log_YYYYMMDD_HHMMSS.json`` in the format of the third generation; returns its path.

    Raises:
        RunLogError: the run cannot be read, none of its messages was answered, or the log cannot be written.
    """
    log = read_log(run)
    if log.generation != 4:
        raise RunLogError(f"{run}: a log of generation {log.generation} already; expected a run's folder")
    if not log.steps:
        raise RunLogError(f"{run}: nothing to export: {log.why_empty}")
    start = datetime.strptime(log.meta["start_time"], "%Y-%m-%d %H:%M:%S")
    offset = log.meta["wall_start"] - log.meta["monotonic_start"]
    steps = [replace(step, timing=_predecessor_timing(step.timing, offset)) for step in log.steps]
    return write_inference_log(directory, steps, dict(log.meta), start)


def _predecessor_timing(timing: Mapping[str, float], offset: float) -> dict[str, float]:
    """Returns the predecessor's timing entries: Unix times (this log's are monotonic), and inference seconds.

    Transport and total latency are left out: they were differences between the client's and the server's clocks.
    """
    moved = {name: value + offset if name in _SERVER_CLOCKS else value for name, value in timing.items()}
    return {**moved, "inference_latency": sum(timing.get(stage, 0.0) for stage in _INFERENCE) / 1000}


def to_vlalab(run: str | Path, directory: str | Path, project: str = PROJECT) -> Path:
    """Writes a run directory of VLA-Lab (meta.json, steps.jsonl, artifacts/images/), named like the run; returns it.

    VLA-Lab lists DIRECTORY/PROJECT/RUN. Its timestamps are Unix times, so the server's monotonic times are shifted by
    the difference between the two clocks in meta.json. The client's times are left out, since VLA-Lab would subtract
    them.

    Raises:
        SessionLogError: the run cannot be read, none of its messages was answered, the project's name cannot be that of
            a folder, or the export exists already.
    """
    run = Path(run).resolve()
    meta, steps = _answered(run)
    if Path(project).name != project or project.startswith("."):
        raise SessionLogError(f"project {project!r}; expected the name of one folder that does not start with a dot")
    target = Path(directory) / project / run.name
    if target.exists():
        raise SessionLogError(f"{target} exists already; name another directory or project")
    with atomic_folder(target, within=directory) as aside:  # not in the project, where it would be listed
        (aside / "artifacts" / "images").mkdir(parents=True)
        content = _vlalab_meta(run.name, meta, len(steps), _Numbers.of(run, meta))
        (aside / "meta.json").write_text(json.dumps(content, indent=1) + "\n")
        offset, numbers = meta["wall_start"] - meta["monotonic_start"], _Numbers.of(run, meta)
        with (aside / "steps.jsonl").open("w", encoding="utf-8") as file:
            for line in steps:
                for name in line["input"]["images"]:
                    (aside / "artifacts" / name).write_bytes(read_image(run, name))
                file.write(json.dumps(_vlalab_step(line, offset, numbers)) + "\n")
    return target


def _answered(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads meta.json and the lines of a run that were answered with an action; raises SessionLogError without any."""
    meta, lines = read_lines(run)
    steps = [line for line in lines if "action" in line]
    if not steps:
        raise SessionLogError(f"{run}: nothing to export: {read_log(run).why_empty}")
    return meta, steps


@dataclass(frozen=True)
class _Numbers:
    """The layout and the cameras of a run.

    Attributes:
        run: the run's folder.
        meta: the run's meta.json.
        layout: layout of its states and actions.
        cameras: names of the cameras in exports; a single one is called "image".
    """

    run: str | Path
    meta: Mapping[str, Any]
    layout: ActionLayout
    cameras: tuple[str, ...]

    @classmethod
    def of(cls, run: str | Path, meta: Mapping[str, Any]) -> _Numbers:
        """Reads them from meta.json.

        Raises:
            SessionLogError: meta.json names no layout or cameras.
        """
        cameras = meta.get("cameras", [SINGLE_CAMERA])
        try:
            layout = ActionLayout.of(meta.get("state_names", POSE_GRIPPER))
            return cls(run, meta, layout, (SINGLE_CAMERA,) if len(cameras) == 1 else tuple(map(str, cameras)))
        except (SpecError, TypeError, AttributeError) as error:
            raise SessionLogError(f"{run}/meta.json: state_names or cameras are invalid ({error})") from error

    def newest(self, line: Mapping[str, Any]) -> dict[str, str]:
        """Returns the newest image of each camera, by its name."""
        return newest_images(self.run, self.meta, line["input"]["images"])


def _vlalab_meta(name: str, meta: Mapping[str, Any], n_steps: int, numbers: _Numbers) -> dict[str, Any]:
    return {
        "run_name": name,
        "start_time": meta["start_time"].replace(" ", "T"),
        "model_name": "diffusion_policy",
        "model_type": "diffusion_policy",
        "model_path": meta.get("checkpoint"),
        "cameras": [{"name": camera} for camera in numbers.cameras],
        "inference_freq": meta["settings"]["control_hz"] / meta.get("n_action_steps", 1),
        "action_dim": len(numbers.layout.names),
        "action_horizon": meta.get("n_action_steps"),
        "total_steps": n_steps,
        "framework_version": meta["software"]["torch"],
        "server_config": meta["settings"],
        "extra": {key: meta[key] for key in _EXTRA if key in meta},
    }


def _vlalab_step(line: Mapping[str, Any], offset: float, numbers: _Numbers) -> dict[str, Any]:
    timing, state, actions = line["timing"], line["input"]["state"], line["action"]["values"]
    clocks = {name: timing[name] + offset for name in _SERVER_CLOCKS if name in timing}
    infer_ms = sum(timing.get(stage, 0.0) for stage in _INFERENCE)
    return {
        "step_idx": line["step"],
        "obs": {
            "state": state,
            **_pose_and_gripper(numbers.layout, state),
            "images": [
                {"path": f"artifacts/{image}", "camera_name": camera} for camera, image in numbers.newest(line).items()
            ],
        },
        "action": {"values": actions, "action_dim": len(actions[0]), "chunk_size": len(actions)},
        "timing": {**clocks, "inference_latency_ms": infer_ms},
        "tags": {name: line[name] for name in ("episode", "interventions", "warnings", "seam") if line.get(name)},
    }


def _pose_and_gripper(layout: ActionLayout, state: Sequence[float]) -> dict[str, Any]:
    """Returns the two entries that VLA-Lab knows; numbers of other layouts are only in the state."""
    if layout.names != POSE_GRIPPER:
        return {}
    *pose, gripper = state
    return {"pose": pose, "gripper": gripper}


def to_rerun(run: str | Path, path: str | Path) -> Path:
    """Writes a Rerun recording (.rrd): frames, measured pose, commanded chunk, gripper, milliseconds by stage.

    Raises:
        SessionLogError: the run cannot be read, none of its messages was answered, the file exists already, or
            ``rerun-sdk`` is not installed.
    """
    path = Path(path)
    try:
        import rerun
    except ImportError as error:
        raise SessionLogError(
            f"the Rerun export needs a package that is not installed: {install_extra('rerun')}"
        ) from error
    if path.exists():
        raise SessionLogError(f"{path} exists already; name another file")
    meta, steps = _answered(Path(run))
    numbers = _Numbers.of(run, meta)
    with atomic_file(path) as temporary:
        recording = rerun.RecordingStream("diffusion_policy")
        recording.save(temporary)
        for line in steps:
            _record_step(recording, line, run, numbers)
        recording.flush()
        recording.disconnect()
    return path


def _record_step(recording: Any, line: Mapping[str, Any], run: str | Path, numbers: _Numbers) -> None:
    import rerun

    recording.set_time("step", sequence=line["step"])
    for camera, name in numbers.newest(line).items():
        image = decode_jpeg(read_image(run, name), str(run))
        entity = "camera" if len(numbers.cameras) == 1 else f"camera/{camera}"
        recording.log(entity, rerun.Image(image).compress(90))
    state, actions = np.asarray(line["input"]["state"]), np.asarray(line["action"]["values"])
    for name, value in _entities(numbers.layout, state, actions):
        recording.log(name, value)
    for stage, milliseconds in line["timing"].items():
        if stage.endswith("_ms"):
            recording.log(f"timing/{stage}", rerun.Scalars(milliseconds))


def _entities(layout: ActionLayout, state: FloatArray, actions: FloatArray) -> Iterator[tuple[str, Any]]:
    """Yields measured (D,) and commanded (T, D) values by name of the entity; several arms have one entity each."""
    import rerun

    rotations = dict(zip(layout.labels("rotation"), layout.rotations(state), strict=True))
    paths = np.moveaxis(layout.positions(actions), 1, 0)
    for arm, position, path in zip(layout.labels("position"), layout.positions(state), paths, strict=True):
        below = f"/{arm}" if arm else ""
        rotation = rerun.Quaternion(xyzw=rotations[arm]) if arm in rotations else None
        yield f"measured/pose{below}", rerun.Transform3D(translation=position, quaternion=rotation)
        yield f"commanded/path{below}", rerun.LineStrips3D([path])
    measured, commanded = layout.grippers(state), layout.grippers(actions[0])
    for arm, observed, wanted in zip(layout.labels("gripper"), measured, commanded, strict=True):
        below = f"/{arm}" if arm else ""
        yield f"measured/gripper{below}", rerun.Scalars(observed)
        yield f"commanded/gripper{below}", rerun.Scalars(wanted)
    for column in layout.joint_columns:
        yield f"measured/{layout.names[column]}", rerun.Scalars(state[column])
        yield f"commanded/{layout.names[column]}", rerun.Scalars(actions[0, column])
