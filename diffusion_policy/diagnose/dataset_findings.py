"""Findings about a dataset, before anything is trained on it. Pure: evidence in, finding out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diffusion_policy.commands import command
from diffusion_policy.convert.survey import ACCEPT_MIXED
from diffusion_policy.dataset.replay_buffer import IMAGE_KEY, TIMESTAMP_KEY
from diffusion_policy.diagnose.dataset_evidence import EXPECTED_KEYS, DatasetEvidence
from diffusion_policy.diagnose.findings import FAR_COMMAND_M, Finding, ok, run_checks
from diffusion_policy.diagnose.minecraft_findings import buttons_and_camera, is_minecraft, ticks
from diffusion_policy.diagnose.unit_findings import (
    action_shape,
    not_finite,
    polarity,
    position_unit,
    quaternion_order,
    quaternions,
    reconvert,
)
from diffusion_policy.gripper_events import GRIPPER_BAND
from diffusion_policy.images import mixture
from diffusion_policy.spec import SpecError, action_semantics, check_semantics, find_layout

# The robot executes one action every 0.1 s.
CONTROL_SECONDS = 0.1
# A dataset whose rate differs from the robot's by more than this factor moves the arm too fast or too slowly.
SPACING_SLACK = 0.25
# No released policy was trained on fewer episodes or closings than these; the real set has 153 episodes.
FEW_EPISODES, FEW_CLOSINGS = 20, 20
# Commands that equal the measurement at this share of the steps count as copies of it.
COPIED = 0.999
# Number of differences from what was written that are named.
FAULTS_LISTED = 4
Check = Callable[[DatasetEvidence], Finding | None]


def dataset_findings(evidence: DatasetEvidence) -> list[Finding]:
    """Returns all findings about a dataset by itself, in the order in which to act on them."""
    return run_checks(checks_of(evidence), evidence)


def checks_of(evidence: DatasetEvidence) -> Sequence[Check]:
    """Returns the checks that apply to its actions: a robot's or a game's."""
    return MINECRAFT_CHECKS if is_minecraft(evidence) else CHECKS


def number_findings(evidence: DatasetEvidence) -> list[Finding]:
    """Returns findings about its numbers alone, not its frames or size."""
    return run_checks(
        [check for check in checks_of(evidence) if check not in (size, arrays, images, content, left_out)], evidence
    )


def size(data: DatasetEvidence) -> Finding:
    """Whether there is enough data."""
    text = f"{len(data.lengths)} episodes, {data.n_steps} steps ({min(data.lengths)} to {max(data.lengths)} each)"
    if len(data.lengths) < FEW_EPISODES:
        return Finding("size", "warning", f"{text}: too few", "record more episodes of the task", about=data.path)
    return ok("size", text, data.path)


def arrays(data: DatasetEvidence) -> Finding:
    """Whether the arrays that training reads exist."""
    if data.layout == "named":  # its policy defines how arms are measured and what cameras are called
        return ok("arrays", f"data/{', data/'.join(data.keys)}", data.path)
    missing = [key for key in EXPECTED_KEYS if key not in data.keys]
    cameras = [key for key in data.keys if key not in (*EXPECTED_KEYS, TIMESTAMP_KEY)]
    if missing == [IMAGE_KEY] and cameras:
        evidence = f"the cameras are called {', '.join(cameras)}"
        return Finding("arrays", "note", evidence, "name them in shape_meta.obs instead of image", about=data.path)
    if missing:
        remedy = f"convert again, or remove {', '.join(missing)} from shape_meta"
        return Finding("arrays", "error", f"no data/{', data/'.join(missing)}", remedy, reconvert(), data.path)
    return ok("arrays", f"data/{', data/'.join(data.keys)}", data.path)


def semantics(data: DatasetEvidence) -> Finding:
    """Whether the numbers follow this project's conventions."""
    if data.semantics is None:
        evidence = "its numbers are not labeled; read as meters, quaternion xyzw, gripper 1 = open"
        return Finding("semantics", "note", evidence, "convert again to have it labeled", reconvert(), data.path)
    try:
        check_semantics(data.semantics, action_semantics(data.action_names), data.path)
    except SpecError as error:
        return Finding("semantics", "error", str(error), "convert with the right labels", reconvert(), data.path)
    layout = find_layout(data.action_names, dict(zip(data.action_names, data.semantics["units"], strict=False)))
    if data.layout == "named" and layout is not None:
        joints = f"; joints in {layout.joint_unit}" if layout.has_joints else ""
        pose = "" if layout.has_pose else "; no pose in this layout"
        return ok("semantics", f"labeled: {layout.describe()}{joints}{pose}", data.path)
    return ok("semantics", "labeled: meters, quaternion xyzw, gripper 1 = open", data.path)


def command_is_absolute(data: DatasetEvidence) -> Finding | None:
    """Whether actions are absolute poses near the measured ones, and not differences or in another frame."""
    if data.command_distance_m is None:
        return None
    text = f"commanded positions are {data.command_distance_m * 1000:.0f} mm from the measured ones (median)"
    if data.command_distance_m > FAR_COMMAND_M:
        evidence = f"{text}: relative actions, or another frame"
        remedy = "actions must be absolute poses in the frame of the measured pose"
        return Finding("command-is-absolute", "error", evidence, remedy, reconvert(), data.path)
    return ok("command-is-absolute", text, data.path)


def step_spacing(data: DatasetEvidence) -> Finding | None:
    """Time between steps, compared with the robot's."""
    if data.step_seconds is None:
        return None
    if data.clock is not None:
        again = reconvert(*data.clock.flags)
        return Finding("step-spacing", "error", data.clock.message, data.clock.remedy, again, data.path)
    text = f"steps are {data.step_seconds:.3g} s apart"
    if data.step_seconds <= 0:
        return Finding("step-spacing", "error", f"{text}: time does not advance", "check the recorder", about=data.path)
    if abs(data.step_seconds / CONTROL_SECONDS - 1) > SPACING_SLACK:
        speed = data.step_seconds / CONTROL_SECONDS
        faster = f"{speed:.1f} times as fast as" if speed > 1 else f"at {speed:.0%} of the speed"
        evidence = f"{text}, the robot executes one every {CONTROL_SECONDS} s: it will move {faster} the demonstration"
        remedy = f"record at the robot's rate, or serve at the recorded one (control_hz={1 / data.step_seconds:.3g})"
        return Finding("step-spacing", "warning", evidence, remedy, about=data.path)
    if data.uneven > 0.05:
        evidence = f"{text}, but {data.uneven:.0%} of them are off by more than half"
        return Finding("step-spacing", "warning", evidence, "look for lost frames in the recorder", about=data.path)
    return ok("step-spacing", f"{text}, evenly", data.path)


def closings(data: DatasetEvidence) -> Finding | None:
    """Whether there are enough closings to learn from."""
    gripper = data.gripper
    if gripper is None:
        return None
    text = f"the gripper closes {gripper.closings} times and opens {gripper.openings} times"
    never = len(gripper.without_closing)
    without = f"; {never} of {len(data.lengths)} episodes never close" if never else ""
    if gripper.closings == 0:
        return Finding("closings", "error", text, "record episodes that grasp", about=data.path)
    if gripper.closings < FEW_CLOSINGS:
        evidence = f"{text} in the whole set{without}: few to learn from"
        remedy = (
            "record more; loss=gripper_events, which experiment=finetune_8d sets, weights the steps around them higher"
        )
        return Finding("closings", "warning", evidence, remedy, about=data.path)
    if never > len(data.lengths) / 4:
        evidence = f"{text}{without}"
        return Finding("closings", "note", evidence, "leave out episodes that were aborted", about=data.path)
    return ok("closings", text + without, data.path)


def copycat_labels(data: DatasetEvidence) -> Finding | None:
    """Whether the policy can copy the command from the measured gripper instead of deciding it."""
    gripper = data.gripper
    if gripper is None or gripper.equals_measured is None:
        return None
    events = gripper.closings + gripper.openings
    text = f"command and measured gripper are equal at {gripper.equals_measured:.1%} of the steps"
    lead = f"{gripper.leading} of {events} events command a state that is not measured yet"
    if not events:
        return ok("copycat-labels", f"{text}; without an event this shows nothing", data.path)
    if gripper.equals_measured >= COPIED and not gripper.leading:
        evidence = f"{text}, also at transitions: a policy can copy its input and never decide to close"
        remedy = (
            "take the command from the next measurement, or some steps early (--gripper-lead), or hide the input "
            "at times during training (observation_dropout=gripper)"
        )
        return Finding(
            "copycat-labels",
            "warning",
            evidence,
            remedy,
            reconvert("--gripper-command", "next-measured"),
            data.path,
        )
    return ok("copycat-labels", f"{text}; {lead}", data.path)


def dead_band(data: DatasetEvidence) -> Finding | None:
    """Whether commands are clearly open or closed, or in between."""
    if data.gripper is None:
        return None
    band = f"open (>= {GRIPPER_BAND.open:g}) nor closed (<= {GRIPPER_BAND.closed:g})"
    text = f"{data.gripper.undecided:.1%} of the commands are neither {band}"
    if data.gripper.undecided > 0.02:
        remedy = "a policy also learns the values in between; record commands of 0 or 1"
        return Finding("dead-band", "warning", text, remedy, about=data.path)
    return ok("dead-band", text, data.path)


def images(data: DatasetEvidence) -> Finding | None:
    """Whether frames are lost or black."""
    if data.missing_frames:
        named = f": {', '.join(data.lost_files)}" if data.lost_files else ""
        evidence = f"{data.missing_frames} frame files are missing or truncated{named}"
        remedy = "copy the dataset again from an intact source, or convert again: training refuses it"
        return Finding("images", "error", evidence, remedy, reconvert(names=data.action_names), data.path)
    if data.image_size is None:
        return None
    text = "{} x {} pixels".format(*data.image_size)
    if data.black_frames:
        evidence = f"{text}; {data.black_frames} of the {data.looked_at} inspected frames are black"
        return Finding("images", "warning", evidence, "check the recording: the camera was off", about=data.path)
    return ok("images", f"{text}; none of {data.looked_at} inspected frames is black", data.path)


def content(data: DatasetEvidence) -> Finding | None:
    """Whether the dataset is still what its conversion wrote."""
    if not data.identities:
        return None
    again = "copy the dataset again from an intact source, or convert again"
    convert = reconvert(names=data.action_names)
    if data.content is None:
        evidence = (
            f"{data.looked_at} of its frames were inspected, and nothing was compared with the hashes that a "
            "conversion records"
        )
        verify = command("verify_converted_data", "--zarr-path", data.path)
        return Finding("content", "note", evidence, "before a long training run, compare all of it", verify, data.path)
    verified = data.content
    if verified.faults:
        listed_faults = "; ".join(map(str, verified.faults[:FAULTS_LISTED]))
        others = f"; and {len(verified.faults) - FAULTS_LISTED} more" if len(verified.faults) > FAULTS_LISTED else ""
        evidence = f"it is not what its conversion wrote: {listed_faults}{others}"
        if verified.may_be_the_decoder:
            evidence = (
                f"{evidence}. Its frames were lossily packed, and were unpacked by {verified.other_decoder} at the time"
            )
            remedy = (
                f"look at the frames, or verify with {verified.other_decoder}: this decoder may differ in the last bits"
            )
            return Finding("content", "warning", evidence, remedy, about=data.path)
        return Finding("content", "error", evidence, f"{again}: it is damaged, or was changed since", about=data.path)
    if not verified.compared:
        evidence = f"not verified: {verified.not_compared}; all that is known is that its files exist and unpack"
        return Finding("content", "note", evidence, "convert again to have them recorded", convert, data.path)
    text = f"all frames and numbers of {verified.compared} episodes are what the conversion wrote (SHA-256)"
    if not verified.is_complete:
        evidence = (
            f"{text}; {verified.n_episodes - verified.compared} episodes are not verified: {verified.not_compared}"
        )
        return Finding("content", "note", evidence, "convert again to have them recorded", convert, data.path)
    return ok("content", text, data.path)


def recorded_frames(data: DatasetEvidence) -> Finding | None:
    """Whether its source frames had one size and orientation, by the converter's check."""
    mixed = mixture(data.recorded)
    if mixed is None:
        return None
    evidence = f"before the conversion, {mixed}"
    if data.accepts_mixed:
        remedy = "each was turned upright and stretched to one size, as requested"
        return Finding("frame-sizes", "warning", evidence, remedy, about=data.path)
    remedy = f"they were stretched to one size; {ACCEPT_MIXED}"
    convert = reconvert("--mixed-frames", "accept", names=data.action_names)
    return Finding("frame-sizes", "error", evidence, remedy, convert, data.path)


def standing_still(data: DatasetEvidence) -> Finding | None:
    """How much of the data teaches the policy to stay where it is."""
    if data.still is None:
        return None
    text = f"the arm stands still in {data.still:.0%} of the steps"
    if data.still > 0.5:
        return Finding("standing-still", "note", text, "cut pauses: from them a policy learns to wait", about=data.path)
    return ok("standing-still", text, data.path)


def left_out(data: DatasetEvidence) -> Finding | None:
    """What the conversion left out."""
    if data.dropped is None:
        return None
    episodes, steps = data.dropped
    if episodes or steps:
        evidence = f"the conversion left out {episodes} episodes, {steps} steps in all"
        where = "its ledger (.conversion.json next to the dataset, or the attribute conversion in it)"
        return Finding("left-out", "note", evidence, f"{where} has the reasons", about=data.path)
    return ok("left-out", "the conversion left nothing out", data.path)


CHECKS = (
    size,
    arrays,
    action_shape,
    semantics,
    not_finite,
    position_unit,
    quaternions,
    quaternion_order,
    command_is_absolute,
    polarity,
    closings,
    copycat_labels,
    dead_band,
    step_spacing,
    images,
    content,
    recorded_frames,
    standing_still,
    left_out,
)
MINECRAFT_CHECKS = (size, buttons_and_camera, not_finite, ticks, images, content, recorded_frames, left_out)
