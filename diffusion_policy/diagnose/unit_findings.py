"""Findings about the meaning of a dataset's numbers: layout, units, rotations, the gripper's scale. Pure.

Errors here are what training refuses, by the same checks (`pose_check`, `gripper_scale`).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace

from diffusion_policy.commands import command
from diffusion_policy.diagnose.dataset_evidence import DatasetEvidence
from diffusion_policy.diagnose.findings import Finding, ok
from diffusion_policy.gripper_scale import CONFIG_KEY
from diffusion_policy.pose_check import FaultCode, PoseFault
from diffusion_policy.spec import POSE_GRIPPER, ActionLayout, find_layout, is_game

# If the tool points down when quaternions are read scalar-first, and far from it otherwise, they probably are.
# Placeholder in commands for the unknown path of the recordings.
PLACEHOLDER = "TRAJECTORIES"
VPT_PIXELS = 128  # width and height of a frame
DOWN_DEGREES, ASIDE_DEGREES = 25.0, 40.0


def reconvert(*flags: object, names: Sequence[str] = ()) -> str:
    """The command that converts the recordings, to a new dataset.

    Args:
        flags: of the converter.
        names: of the action; a game's frames are as large as VPT sees them.
    """
    if is_game(names):
        size = (VPT_PIXELS, VPT_PIXELS)
        return command("convert_dataset", "--input", PLACEHOLDER, "--output", "NEW.zarr", "--resolution", *size, *flags)
    return command("convert_cogact_to_zarr", "--input", PLACEHOLDER, "--output", "NEW.zarr", *flags)


def for_recordings(findings: Iterable[Finding], directory: str) -> list[Finding]:
    """Returns the same findings, with commands that convert the recordings in that folder."""
    known = shlex.join(["--input", directory])
    return [replace(one, command=one.command.replace(f"--input {PLACEHOLDER}", known)) for one in findings]


def _fault(data: DatasetEvidence, *codes: FaultCode) -> PoseFault | None:
    return next((fault for fault in data.faults if fault.code in codes), None)


def action_shape(data: DatasetEvidence) -> Finding:
    """Whether actions are (N, 8): a pose and a gripper."""
    text = f"actions are (N, {len(data.action_names)}): {' '.join(data.action_names)}"
    rotation = _fault(data, "rotation")
    if rotation is not None and data.layout != "xyz_rotvec_width":
        return Finding("action-shape", "error", rotation.message, rotation.remedy, reconvert(), data.path)
    layout = find_layout(data.action_names)
    if data.layout == "named" and layout is not None:
        return _named_shape(data, layout, text)
    if data.action_names == POSE_GRIPPER and data.layout != "xyz_quat_gripper":
        evidence = f"{text}, but their ranges are not those of meters, a unit quaternion and a gripper"
        return Finding(
            "action-shape", "error", evidence, "check the order of the recorded numbers", reconvert(), data.path
        )
    if data.layout == "xyz_quat_gripper":
        return ok("action-shape", text, data.path)
    if data.layout == "xyz_quat":
        evidence = f"{text}: a pose without a gripper; a policy trained on it commands none"
        return Finding("action-shape", "warning", evidence, "convert to eight numbers per step", reconvert(), data.path)
    if data.layout == "xyz_rotvec_width":
        evidence = f"{text}: they look like a rotation vector and gripper width, not a quaternion"
        return Finding("action-shape", "error", evidence, "record with the current recorder", about=data.path)
    return Finding("action-shape", "error", f"{text}; expected (N, 8)", "convert again", reconvert(), data.path)


def _named_shape(data: DatasetEvidence, layout: ActionLayout, text: str) -> Finding:
    """The shape of actions with a layout other than pose and gripper, by their names."""
    if layout.has_gripper:
        return ok("action-shape", f"{text}: {layout.describe()}", data.path)
    evidence = f"{text}: {layout.describe()}, without a gripper; a policy trained on it commands none"
    return Finding("action-shape", "warning", evidence, "add the gripper command", about=data.path)


def not_finite(data: DatasetEvidence) -> Finding:
    """Whether every number is finite."""
    if data.not_finite:
        fault = _fault(data, "not-finite")
        evidence = f"{data.not_finite} numbers are NaN or infinite" + (
            f": {fault.message}" if fault is not None else ""
        )
        return Finding(
            "not-finite",
            "error",
            evidence,
            "convert again; it leaves such steps out",
            reconvert(names=data.action_names),
            data.path,
        )
    return ok("not-finite", "every number is finite", data.path)


def position_unit(data: DatasetEvidence) -> Finding | None:
    """Whether positions are plausible for an arm, in meters."""
    fault = _fault(data, "position-unit")
    if fault is not None:
        return Finding("position-unit", "error", fault.message, fault.remedy, reconvert(), data.path)
    layout = find_layout(data.action_names)
    columns = [column for arm in layout.arms for column in arm.position] if layout is not None else []
    if not columns:
        return None
    reach = max(abs(end[column]) for end in (data.low, data.high) for column in columns)
    return ok("position-unit", f"commanded positions are within {reach:.2f} m of the base", data.path)


def quaternions(data: DatasetEvidence) -> Finding | None:
    """Norms and signs of quaternions."""
    if _fault(data, "rotation") is not None or data.quaternion_error is None:
        return None  # known from the layout, or there are none
    faults = [fault.message for fault in data.faults if fault.code in ("zero-quaternion", "quaternion-norm")]
    if faults:
        remedy = "the rotation at these steps is invalid: convert again without them"
        return Finding("quaternions", "error", "; ".join(faults), remedy, reconvert(), data.path)
    if data.sign_flips:
        evidence = f"quaternions jump from q to -q at {data.sign_flips} steps: the same rotation, far apart in numbers"
        again = reconvert("--quaternion-sign", "continuous")
        return Finding("quaternions", "warning", evidence, "convert with continuous signs", again, data.path)
    return ok("quaternions", f"norms within {data.quaternion_error:.1g} of 1, no sign flips", data.path)


def quaternion_order(data: DatasetEvidence) -> Finding | None:
    """Whether quaternions are scalar-last; if undecided, where the tool points if they are."""
    fault = _fault(data, "quaternion-order")
    if fault is not None:
        return Finding("quaternion-order", "error", fault.message, fault.remedy, reconvert(), data.path)
    if data.tool_tilt is None or _fault(data, "rotation") is not None:
        return None
    as_read, scalar_first = data.tool_tilt
    text = f"read as x y z w, the tool's z axis is {as_read:.0f} degrees from straight down (mean)"
    if scalar_first < DOWN_DEGREES and as_read > ASIDE_DEGREES:
        evidence = f"{text}, read as w x y z {scalar_first:.0f}: are the quaternions scalar-first?"
        remedy = "compare with a frame; if they are, write them as x y z w"
        return Finding("quaternion-order", "warning", evidence, remedy, reconvert(), data.path)
    return ok("quaternion-order", f"{text}; norms cannot show the order, so check that this is right", data.path)


def polarity(data: DatasetEvidence) -> Finding | None:
    """The gripper's scale, and whether 1 is open: an arm that holds nothing yet starts open."""
    gripper, scales = data.gripper, data.scales
    if scales is not None and scales.unknown:
        name, scale = scales.unknown[0]
        evidence = f"the {name} is {scale.span}: {scale.reason}; expected 0 (closed) to 1 (open)"
        flag = scales.flag("").strip()
        remedy = f"declare it: {scales.advice()}, in training {scales.flag(f'{CONFIG_KEY}=')}"
        look = command("verify_converted_data", "--zarr-path", data.path, "--gripper-scale", flag)
        return Finding("polarity", "error", evidence, remedy, look, data.path)
    if gripper is None:
        return None
    stored = scales.command.scale if scales is not None else None
    converted = "" if stored is None or stored.is_internal else f"; stored as {stored}, read as 0..1"
    text = f"{gripper.starting_open} episodes start open, {gripper.starting_closed} closed"
    if gripper.starting_closed > gripper.starting_open:
        evidence = f"{text}{converted}: is the gripper recorded as 1 = closed?"
        remedy = (
            "look at frames with 0; 1 must be open. If it is the other way round, convert with --gripper-scale closed1"
        )
        return Finding("polarity", "warning", evidence, remedy, reconvert("--gripper-scale", "closed1"), data.path)
    return ok("polarity", f"{text} (1 = open){converted}", data.path)
