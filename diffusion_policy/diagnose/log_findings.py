"""Findings about inference logs and open-loop errors. Pure: evidence in, finding out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_policy.commands import command
from diffusion_policy.dataset.split import WORDS, read_status, words_of
from diffusion_policy.diagnose.findings import FAR_COMMAND_M, Finding, Severity, ok, run_checks
from diffusion_policy.diagnose.latency import INFERENCE
from diffusion_policy.diagnose.log_evidence import LogEvidence
from diffusion_policy.diagnose.recordings_gate import position_finding
from diffusion_policy.evaluate.verdicts import ALL_REFUSED
from diffusion_policy.geometry import SERVED_NORM_SLACK
from diffusion_policy.run_log.log import SUPERSEDED

# Seconds that the client's six actions last at 10 Hz; inference must be done by then.
CHUNK_SECONDS = 0.6
FIRM = 0.7
MANY_REFUSED = 0.1
ERROR_UNITS = {"position_mm": "mm", "rotation_deg": "degrees", "joint_rad": "rad", "joint_deg": "degrees of joints"}


def log_findings(evidence: LogEvidence) -> list[Finding]:
    """Returns all findings about a log."""
    return run_checks(CHECKS, evidence)


def action(evidence: LogEvidence) -> Finding | None:
    """Whether actions are a pose and a gripper."""
    log = evidence.log
    if not log.steps:
        return None
    if log.layout == "xyz_quat_gripper":
        return ok(
            "log-action",
            f"{len(log.steps)} chunks of {log.actions.shape[1]} actions, eight numbers each",
            evidence.name,
        )
    width, layout = log.commands.shape[1], log.action_layout
    if log.layout == "named" and layout is not None:
        text = f"{len(log.steps)} chunks of {log.actions.shape[1]} actions, {width} numbers each: {layout.describe()}"
        text += "" if layout.has_pose else "; no pose in this layout"
        if layout.has_gripper:
            return ok("log-action", text, evidence.name)
        return Finding(
            "log-action", "warning", text, "the served policy does not command a gripper", about=evidence.name
        )
    text = f"actions have {width} numbers ({log.layout.replace('_', ' ')}), expected 8"
    remedy = "the served policy does not command a 0..1 gripper: grow its checkpoint, or serve another"
    grow = command("finetune_from_7d_to_8d", "--old_ckpt", "SERVED.ckpt", "--new_ckpt", "GROWN.ckpt")
    return Finding("log-action", "warning", text, remedy, grow, evidence.name)


def recorded_episode(evidence: LogEvidence) -> Finding | None:
    """Whether the policy was trained on the recorded episode that it ran on; None for logs of a robot."""
    if not evidence.offline:
        return None
    status = read_status(evidence.log.meta.get("split"))
    text = f"recorded episode {evidence.log.meta.get('episode', '')}: {WORDS[status]}"
    if status in ("held out", "unseen"):
        return ok("log-split", text, evidence.name)
    remedy = "what it does there may be memorized: run it on held-out episodes"
    return Finding("log-split", "note", text, remedy, about=evidence.name)


def answered(evidence: LogEvidence) -> Finding | None:
    """Whether the server's answers were actions."""
    log = evidence.log
    refused = {code: count for code, count in log.errors.items() if code != SUPERSEDED}
    if not refused:
        return None
    code = max(refused, key=lambda name: refused[name])
    remedy = f"most were {code}; the messages are in steps.jsonl, the codes in docs/serving.md"
    if log.is_refused:
        return Finding("log-answered", "error", log.why_empty, remedy, about=evidence.name)
    share = sum(refused.values()) / (sum(refused.values()) + len(log.steps))
    severity: Severity = "warning" if share > MANY_REFUSED else "note"
    text = next(oddity for oddity in log.oddities if "got an error" in oddity)
    return Finding("log-answered", severity, text, remedy, about=evidence.name)


def weights(evidence: LogEvidence) -> Finding | None:
    """Whether the averaged weights were served."""
    served = evidence.log.meta.get("weights")
    if served is None:
        return None
    if served != "ema_model":
        text = f"the weights {served} were used, not the averaged ones"
        return Finding("log-weights", "note", text, "use ema_model, which is what is deployed", about=evidence.name)
    return ok("log-weights", "the averaged weights were used", evidence.name)


def near(evidence: LogEvidence) -> Finding | None:
    """Whether commands are near the arm."""
    if evidence.command_distance_m is None:
        return None
    text = f"the next command is {evidence.command_distance_m * 1000:.0f} mm from the measured position (median)"
    if evidence.command_distance_m > FAR_COMMAND_M:
        remedy = "the robot, frame or normalizer differs from training, or the policy is hardly trained"
        return Finding("log-near", "warning", text, remedy, about=evidence.name)
    return ok("log-near", text, evidence.name)


def unit_quaternions(evidence: LogEvidence) -> Finding | None:
    """Whether predicted quaternions have unit norm."""
    if evidence.quaternion_error is None:
        return None
    error = evidence.quaternion_error
    if error > SERVED_NORM_SLACK:
        text = f"a predicted quaternion's norm is {error:.3f} away from 1"
        remedy = "hardly trained, or smoothed component by component; the motion guard refuses such chunks"
        return Finding("log-quaternions", "warning", text, remedy, about=evidence.name)
    return ok("log-quaternions", f"predicted quaternions have norms within {error:.3f} of 1", evidence.name)


def in_time(evidence: LogEvidence) -> Finding | None:
    """Whether inference is done before the actions run out."""
    stage = next((stage for stage in evidence.stages if stage.name == INFERENCE), None)
    if stage is None:
        return None
    median, late, _ = stage.quantiles()
    text = f"inference takes {median:.0f} ms (median), {late:.0f} ms at 95 %"
    if late > CHUNK_SECONDS * 1000:
        remedy = "fewer denoising steps (DDIM, 8), or a faster device"
        return Finding(
            "latency", "warning", f"{text}: longer than the six actions that are executed", remedy, about=evidence.name
        )
    return ok("latency", text, evidence.name)


def gripper(evidence: LogEvidence) -> Finding | None:
    """The gripper verdict; None if there is no answer to judge."""
    report = evidence.gripper
    text = f"{report.verdict}: {report.reason}"
    if report.opens_and_closes:
        if report.firmness is not None and report.firmness < FIRM:
            evidence_text = f"{text}, but only {report.firmness:.0%} of the dead bands agree"
            return Finding("gripper-verdict", "note", evidence_text, "look at its timeline", about=evidence.name)
        ahead = report.leads_measurement
        if ahead is not None and 2 * ahead < len(report.events):
            evidence_text = f"{text}; most of its changes only repeat the measured gripper"
            remedy = "hide the measured gripper at times during training (observation_dropout=gripper)"
            return Finding("gripper-verdict", "note", evidence_text, remedy, about=evidence.name)
        return ok("gripper-verdict", text, evidence.name)
    if report.verdict == ALL_REFUSED:
        return None
    if report.verdict == "too short":
        return Finding("gripper-verdict", "note", text, "log a whole run", about=evidence.name)
    severity: Severity = "warning" if report.verdict in ("chatters", "no gripper command") else "error"
    return Finding("gripper-verdict", severity, text, REMEDIES.get(report.verdict, ""), about=evidence.name)


REMEDIES = {
    "pass-through of the measured gripper": "the server copies the measured gripper: serve a policy with eight numbers",
    "follows the measured gripper": (
        "it repeats the measured gripper: hide it at times during training (observation_dropout=gripper), and look "
        "for labels that can be copied (doctor --dataset)"
    ),
    "never closes": "doctor the dataset and the checkpoint that it was served from: --dataset, --checkpoint",
    "never opens": "doctor the dataset and the checkpoint that it was served from: --dataset, --checkpoint",
    "chatters": "set a minimum dwell of the gripper in the motion guard (gripper_min_dwell), or train longer",
    "no gripper command": "grow the checkpoint to eight numbers",
}


def _episodes_of(document: Mapping[str, Any]) -> str:
    """Returns how many episodes the errors cover, and whether the policy was trained on them."""
    episodes = ((document.get("split") or {}).get("episodes") or {}).values()
    statuses = [read_status(status) for status in episodes] or [read_status(None)] * len(document["episodes"])
    return f"{len(statuses)} episode{'s' if len(statuses) > 1 else ''} ({words_of(statuses)})"


def open_loop_findings(document: Mapping[str, Any], about: str = "") -> list[Finding]:
    """Whether a policy beats baselines without learning, and comes near enough to grasp.

    `document` is a report of scripts/evaluate_open_loop.py.
    """
    ours = document["scores"]["policy"]
    known = [f"{ours[key]:.3g} {unit}" for key, unit in ERROR_UNITS.items() if ours.get(key) is not None]
    text = f"open loop: {', '.join(known)} over {_episodes_of(document)}"
    shortcomings = document["shortcomings"]
    if shortcomings:
        more = f", and {len(shortcomings) - 1} more" if len(shortcomings) > 1 else ""
        evidence = f"{text}; it {shortcomings[0]}{more}"
        return [Finding("beats-baselines", "error", evidence, "do not deploy it; see the findings above", about=about)]
    unmeasured = "".join(f"; {sentence}" for sentence in document.get("unmeasured", ()))
    result = [ok("beats-baselines", f"{text}; it beats every baseline{unmeasured}", about)]
    if ours.get("position_mm") is not None and ours.get("gripper_at_transitions") is not None:
        result.append(
            position_finding(ours["position_mm"], about, command("evaluate_closed_loop", about) if about else "")
        )
    return result


CHECKS = (recorded_episode, answered, action, weights, near, unit_quaternions, in_time, gripper)
