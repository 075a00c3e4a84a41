"""A run's folder in the forms that other tools read: the predecessor's log, VLA-Lab's run directory, Rerun.

Exports are written beside, then renamed, and never replace anything. The run itself is not changed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy.commands import install_extra
from diffusion_policy.images import decode_jpeg
from diffusion_policy.run_log import RunLogError, read_log, write_inference_log
from diffusion_policy.run_log.session_log import SessionLogError, read_image, read_lines
from diffusion_policy.storage import whole_file

PROJECT = "diffusion_policy"
_SERVER_CLOCKS = ("server_recv", "infer_start", "infer_end")
# Stages that make up an inference, for tools that know only one number.
_INFERENCE = ("decode_ms", "prepare_ms", "encode_ms", "denoise_ms")


def to_inference_log(run: str | Path, directory: str | Path) -> Path:
    """Write ``inference_log_YYYYMMDD_HHMMSS.json``, third generation, as its readers expect it; returns its path.

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
    """Its keys: the server's times as unix times (they are monotonic here), and seconds of inference.

    Transport and total latency stay out: they were a client's clock taken from the server's.
    """
    moved = {name: value + offset if name in _SERVER_CLOCKS else value for name, value in timing.items()}
    return {**moved, "inference_latency": sum(timing.get(stage, 0.0) for stage in _INFERENCE) / 1000}


def to_vlalab(run: str | Path, directory: str | Path, project: str = PROJECT) -> Path:
    """Write a run directory of VLA-Lab (meta.json, steps.jsonl, artifacts/images/), named like the run; returns it.

    VLA-Lab lists DIRECTORY/PROJECT/RUN. Its timestamps are unix times: the server's monotonic ones are moved by the
    one reading of both clocks in meta.json. The client's clock stays out, since VLA-Lab would subtract it.

    Raises:
        SessionLogError: the run cannot be read, none of its messages was answered, the project's name is no folder's,
            or the export is there already.
    """
    run = Path(run).resolve()
    meta, steps = _answered(run)
    if Path(project).name != project or project.startswith("."):
        raise SessionLogError(f"project {project!r}; expected the name of one folder, without a dot before it")
    target = Path(directory) / project / run.name
    if target.exists():
        raise SessionLogError(f"{target} exists already; name another directory or project")
    aside = Path(directory) / f".{project}.{run.name}.part"  # not in the project: there it would be listed
    shutil.rmtree(aside, ignore_errors=True)
    try:
        (aside / "artifacts" / "images").mkdir(parents=True)
        (aside / "meta.json").write_text(json.dumps(_vlalab_meta(run.name, meta, len(steps)), indent=1) + "\n")
        offset = meta["wall_start"] - meta["monotonic_start"]
        with (aside / "steps.jsonl").open("w", encoding="utf-8") as file:
            for line in steps:
                for name in line["input"]["images"]:
                    (aside / "artifacts" / name).write_bytes(read_image(run, name))
                file.write(json.dumps(_vlalab_step(line, offset)) + "\n")
        target.parent.mkdir(exist_ok=True)
        os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _answered(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """meta.json and the lines of a run that were answered with an action; SessionLogError if there are none."""
    meta, lines = read_lines(run)
    steps = [line for line in lines if "action" in line]
    if not steps:
        raise SessionLogError(f"{run}: nothing to export: {read_log(run).why_empty}")
    return meta, steps


def _vlalab_meta(name: str, meta: Mapping[str, Any], n_steps: int) -> dict[str, Any]:
    return {
        "run_name": name,
        "start_time": meta["start_time"].replace(" ", "T"),
        "model_name": "diffusion_policy",
        "model_type": "diffusion_policy",
        "model_path": meta.get("checkpoint"),
        "cameras": [{"name": "image"}],
        "inference_freq": meta["settings"]["control_hz"] / meta.get("n_action_steps", 1),
        "action_dim": 8,
        "action_horizon": meta.get("n_action_steps"),
        "total_steps": n_steps,
        "framework_version": meta["software"]["torch"],
        "server_config": meta["settings"],
        "extra": {key: meta[key] for key in ("checkpoint_sha256", "scheduler", "steps", "guard") if key in meta},
    }


def _vlalab_step(line: Mapping[str, Any], offset: float) -> dict[str, Any]:
    timing, state, actions = line["timing"], line["input"]["state"], line["action"]["values"]
    clocks = {name: timing[name] + offset for name in _SERVER_CLOCKS if name in timing}
    infer_ms = sum(timing.get(stage, 0.0) for stage in _INFERENCE)
    return {
        "step_idx": line["step"],
        "obs": {
            "state": state,
            "pose": state[:7],
            "gripper": state[7],
            "images": [{"path": f"artifacts/{line['input']['images'][-1]}", "camera_name": "image"}],
        },
        "action": {"values": actions, "action_dim": len(actions[0]), "chunk_size": len(actions)},
        "timing": {**clocks, "inference_latency_ms": infer_ms},
        "tags": {name: line[name] for name in ("episode", "interventions", "warnings", "seam") if line.get(name)},
    }


def to_rerun(run: str | Path, path: str | Path) -> Path:
    """Write a Rerun recording (.rrd): frames, measured pose, commanded chunk, gripper, milliseconds by stage.

    Raises:
        SessionLogError: the run cannot be read, none of its messages was answered, the file is there already, or
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
    _, steps = _answered(Path(run))
    with whole_file(path) as beside:
        recording = rerun.RecordingStream("diffusion_policy")
        recording.save(beside)
        for line in steps:
            _record_step(recording, line, run)
        recording.flush()
        recording.disconnect()
    return path


def _record_step(recording: Any, line: Mapping[str, Any], run: str | Path) -> None:
    import rerun

    recording.set_time("step", sequence=line["step"])
    image = decode_jpeg(read_image(run, line["input"]["images"][-1]), str(run))
    recording.log("camera", rerun.Image(image).compress(90))
    state, actions = np.asarray(line["input"]["state"]), np.asarray(line["action"]["values"])
    pose = rerun.Transform3D(translation=state[:3], quaternion=rerun.Quaternion(xyzw=state[3:7]))
    recording.log("measured/pose", pose)
    recording.log("commanded/path", rerun.LineStrips3D([actions[:, :3]]))
    recording.log("measured/gripper", rerun.Scalars(state[7]))
    recording.log("commanded/gripper", rerun.Scalars(actions[0, 7]))
    for stage, milliseconds in line["timing"].items():
        if stage.endswith("_ms"):
            recording.log(f"timing/{stage}", rerun.Scalars(milliseconds))
