"""Findings about the steps of a dataset or of recordings. Pure: evidence in, finding out.

Totals over a dataset are judged in `dataset_findings`; nothing is reported twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from diffusion_policy.convert.survey import ACCEPT_MIXED
from diffusion_policy.diagnose.camera_evidence import CameraEvidence
from diffusion_policy.diagnose.dataset_findings import reconvert
from diffusion_policy.diagnose.findings import Finding, Severity, ok, run_checks
from diffusion_policy.diagnose.minecraft_findings import are_minecraft, never_pressed
from diffusion_policy.diagnose.step_evidence import GAP, StepEvidence, Times
from diffusion_policy.images import mixture
from diffusion_policy.spec import find_layout
from diffusion_policy.spec.action_layout import is_gripper_name

# If more than this share of the recordings is bad, something is wrong with the recorder.
MANY = 0.1
# A class with a smaller share of the steps than this is hardly learned.
RARE = 0.05
# A share of idle steps above this is reported.
MUCH_IDLE = 0.25
_NAMED = 3


def step_findings(evidence: StepEvidence) -> list[Finding]:
    """All findings on the steps, in the order in which to act on them."""
    if are_minecraft(evidence):
        return run_checks([*(check for check in CHECKS if check not in OF_ROBOTS), never_pressed], evidence)
    return run_checks(CHECKS, evidence)


def recordings(data: StepEvidence) -> Finding | None:
    """Whether the converter refuses recordings, or some are odd."""
    total = len(data.refused) + len(data.episodes)
    if data.refused:
        listed = _some([f"{name} ({why})" for name, why in data.refused.items()])
        evidence = f"{len(data.refused)} of {total} recordings cannot be opened: {listed}"
        severity: Severity = "error" if len(data.refused) > MANY * total else "warning"
        return Finding(
            "recordings",
            severity,
            evidence,
            "repair or leave them out",
            reconvert("--on-error", "skip", names=data.action_names),
            data.where,
        )
    if data.notes:
        listed = _some([f"{name}: {note}" for name, note in data.notes.items()])
        evidence = f"{len(data.notes)} of {total} recordings are odd: {listed}"
        return Finding("recordings", "note", evidence, "the converter accepts them", about=data.where)
    return None


def undecodable(data: StepEvidence) -> Finding | None:
    """Whether all frames decode."""
    bad = [(camera.name, step, why) for camera in data.cameras for step, why in camera.undecodable]
    shown = sum(camera.shown for camera in data.cameras)
    if not shown:
        return None
    if bad:
        evidence = f"{len(bad)} of {shown} frames do not decode: {_some([why for _, _, why in bad])}"
        return Finding(
            "undecodable",
            "error",
            evidence,
            "leave out their episodes",
            reconvert("--on-error", "skip", names=data.action_names),
            data.where,
        )
    return ok("undecodable", f"all {shown} frames decode", data.where)


def frame_sizes(data: StepEvidence) -> Finding | None:
    """Whether each camera's frames share one size and orientation, which the converter requires by the same check."""
    mixed = mixture({camera.name: camera.kinds for camera in data.cameras})
    if mixed is None:
        return None
    convert = reconvert("--mixed-frames", "accept", names=data.action_names)
    return Finding("frame-sizes", "error", mixed, ACCEPT_MIXED, convert, data.where)


def odd_frames(data: StepEvidence) -> Finding | None:
    """Whether frames are accepted although something about them is odd."""
    noted = Counter[str]()
    for camera in data.cameras:
        noted.update(camera.notes)
    if not noted:
        return None
    evidence = "frames accepted with a note: " + ", ".join(f"{n} with {what}" for what, n in noted.items())
    return Finding("odd-frames", "note", evidence, "all of their pixels are there", about=data.where)


def frozen_camera(data: StepEvidence) -> Finding | None:
    """Whether a camera stops while the arm moves."""
    if not data.cameras:
        return None
    frozen = [(camera, start, end) for camera in data.cameras for start, end in camera.frozen]
    steps = sum(end - start for _, start, end in frozen)
    if frozen:
        worst, start, end = max(frozen, key=lambda one: one[2] - one[1])
        evidence = (
            f"the picture does not change for {steps} steps in which the arm moves; longest: camera {worst.name}, "
            f"steps {start} to {end - 1}"
        )
        severity: Severity = "error" if steps > MANY * sum(camera.shown for camera in data.cameras) else "warning"
        return Finding("frozen-camera", severity, evidence, "leave out those episodes", about=data.where)
    return ok("frozen-camera", "no camera stops while the arm moves", data.where)


def repeated_frames(data: StepEvidence) -> Finding | None:
    """Whether steps repeat an earlier picture."""
    if not data.cameras:
        return None
    repeated, elsewhere = (sum(getattr(c, name) for c in data.cameras) for name in ("repeated", "elsewhere"))
    text = f"{repeated} frames repeat the previous one, {elsewhere} are copies of frames elsewhere"
    shown = max(1, sum(camera.shown for camera in data.cameras))
    if elsewhere > MANY * shown:
        evidence = f"{text}: does an episode occur twice?"
        return Finding("repeated-frames", "warning", evidence, "leave out one of the two", about=data.where)
    if repeated > MANY * shown:
        evidence = f"{text}: the camera is slower than the recorder, or nothing moves"
        return Finding("repeated-frames", "note", evidence, "record at the camera's rate", about=data.where)
    return ok("repeated-frames", text, data.where)


def black_frames(data: StepEvidence) -> Finding | None:
    """Whether frames are black, by camera."""
    black = [camera for camera in data.cameras if camera.black]
    if not black:
        return None
    worst = max(black, key=_blackness)
    evidence = f"camera {worst.name} is black at {len(worst.black)} of {worst.shown} steps"
    severity: Severity = "error" if _blackness(worst) > MANY else "warning"
    return Finding("black-frames", severity, evidence, "the camera was off: record again", about=data.where)


def _blackness(camera: CameraEvidence) -> float:
    return len(camera.black) / max(1, camera.shown)


def jumps(data: StepEvidence) -> Finding | None:
    """Whether poses are further apart than an arm can move in the time."""
    if data.largest_step is None:
        return None
    meters, degrees = data.largest_step
    text = f"the longest step is {meters * 1000:.0f} mm, the largest turn {degrees:.1f} degrees"
    layout = find_layout(data.action_names)
    if layout is not None and not layout.labels("position"):
        text = f"the largest turn of a joint from step to step is {degrees:.1f} degrees; no pose in this layout"
    if data.jumps:
        listed = _some(
            [
                f"{jump.key} of {jump.episode} after step {jump.step} ({jump.metres * 1000:.0f} mm, "
                f"{jump.degrees:.1f} degrees in {jump.seconds:.2g} s)"
                for jump in sorted(data.jumps, key=lambda jump: -jump.metres / jump.seconds)
            ]
        )
        evidence = f"{len(data.jumps)} jumps of the pose: {listed}"
        return Finding("jumps", "warning", evidence, "check there for a cut or lost tracking", about=data.where)
    return ok("jumps", text, data.where)


def gaps(data: StepEvidence) -> Finding | None:
    """The clock's rate, jitter and gaps."""
    times = data.times
    if times is None or not times.are_seconds:  # `step_spacing` reports other units
        return None
    rate = f"{1 / times.median_s:.3g} Hz" if times.median_s > 0 else "no rate"
    text = f"{rate}, jitter {times.jitter_ms:.3g} ms, longest step {times.longest_s:.3g} s"
    if times.backwards:
        evidence = f"{text}; time stops or runs backwards at {times.backwards} steps"
        return Finding("gaps", "error", evidence, "check the recorder's clock", about=data.where)
    if times.gaps:
        listed = _some([f"{name} after step {step} ({seconds:.3g} s)" for name, step, seconds in times.gaps])
        evidence = f"{text}; {len(times.gaps)} gaps: {listed}"
        limit = split_limit(times)
        remedy = f"split those episodes there when converting: --split-at-gap {limit}"
        convert = reconvert("--split-at-gap", limit, names=data.action_names)
        return Finding("gaps", "warning", evidence, remedy, convert, data.where)
    return ok("gaps", f"{text}, no gaps", data.where)


def split_limit(times: Times) -> str:
    """Returns a value in seconds for ``--split-at-gap`` that every gap exceeds, rounded down."""
    limit = GAP * times.median_s
    digits = 2 - math.floor(math.log10(limit))
    return f"{math.floor(limit * 10**digits) / 10**digits:.{max(digits, 0)}f}"


def idle(data: StepEvidence) -> Finding:
    """How many steps are in stretches in which nothing happens."""
    stretches = [end - start for episode in data.episodes for start, end in episode.idle]
    total = sum(episode.steps for episode in data.episodes)
    text = f"{len(stretches)} idle stretches, {sum(stretches)} of {total} steps"
    if sum(stretches) > MUCH_IDLE * total:
        evidence = f"{text}, the longest {max(stretches)} steps"
        return Finding("idle", "note", evidence, "cut pauses: from them a policy learns to wait", about=data.where)
    return ok("idle", text, data.where)


def constant_dimensions(data: StepEvidence) -> Finding:
    """Whether dimensions lack range, and how the normalizer treats them."""
    constant = [
        f"{d.key}.{d.name} = {d.mean:.4g}" for d in data.dimensions if d.is_constant and not is_gripper_name(d.name)
    ]
    nearly = [
        f"{d.key}.{d.name} ({d.high - d.low:.2g} wide, multiplied by {d.scale:.0f})"
        for d in data.dimensions
        if d.is_nearly_constant
    ]
    text = []
    if constant:
        text.append(f"constant: {', '.join(constant)}; the normalizer moves them to 0 and does not stretch them")
    if nearly:
        text.append(f"nearly constant: {', '.join(nearly)}; their noise is learned as if it were motion")
    if text:
        remedy = "make sure that the task needs no more range there than was recorded"
        return Finding("constant-dimensions", "note", "; ".join(text), remedy, about=data.where)
    return ok("constant-dimensions", "every dimension has a range", data.where)


def class_balance(data: StepEvidence) -> Finding | None:
    """Shares of open and closed gripper over all steps."""
    shares = [(episode.open_share, episode.steps) for episode in data.episodes if episode.open_share is not None]
    if not shares:
        return None
    share = sum(part * steps for part, steps in shares) / sum(steps for _, steps in shares)
    without = [episode.name for episode in data.episodes if not episode.events]
    quiet = f"{len(without)} of {len(data.episodes)} episodes have no event"
    text = f"the gripper is open at {share:.0%} of the steps; {quiet}"
    if without:
        text += f" ({_some(without)})"
    if min(share, 1 - share) < RARE:
        remedy = "record more of the rare state, or weight its events: loss=gripper_events"
        return Finding("class-balance", "warning", text, remedy, about=data.where)
    return ok("class-balance", text, data.where)


def copycat_delays(data: StepEvidence) -> Finding | None:
    """How often a command is measured at the step that gives it, so that the policy's input reveals its answer."""
    copying = data.copying
    if copying is None or not copying.transitions:
        return None
    total = sum(episode.steps for episode in data.episodes)
    text = (
        f"the commanded gripper equals the measured one at {copying.equal_steps} of {total} steps and at "
        f"{copying.equal_transitions} of {copying.transitions} transitions"
    )
    if copying.first_measured:
        text += f"; a command is measured {np.median(copying.first_measured):.0f} steps later (median)"
    if copying.equal_transitions > copying.transitions / 2:
        remedy = (
            "bring the command forward (--gripper-command next-measured, or --gripper-lead STEPS), or hide the "
            "measured gripper during training: observation_dropout=gripper"
        )
        command = reconvert("--gripper-command", "next-measured")
        return Finding("copycat-delays", "warning", text, remedy, command, data.where)
    return ok("copycat-delays", text, data.where)


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


CHECKS = (
    recordings,
    undecodable,
    frame_sizes,
    odd_frames,
    black_frames,
    frozen_camera,
    repeated_frames,
    jumps,
    gaps,
    constant_dimensions,
    copycat_delays,
    class_balance,
    idle,
)
# A player looks at one place while it works, turns at once, and waits for what it breaks.
OF_ROBOTS = (frozen_camera, repeated_frames, jumps, constant_dimensions, idle)
