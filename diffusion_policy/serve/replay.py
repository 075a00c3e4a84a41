"""Replays logs: answers the same observations with the same seeds again, by the same policy or another.

With the log's own checkpoint and settings every sequence must be reproduced: bit for bit on the same kind of CPU, and
within a tolerance elsewhere. With another checkpoint, scheduler or number of steps a replay shows how its actions would
have differed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_policy.cpu import usable_cores
from diffusion_policy.evaluate.open_loop import joint_error, score_chunks
from diffusion_policy.gripper_events import Event, gripper_events
from diffusion_policy.run_log import missing_sentences, read_log
from diffusion_policy.run_log.session_log import SessionLogError, read_image, read_lines, software_versions
from diffusion_policy.serve.engine import Engine, Inference, PolicyEngine
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport.continuation import read_continuation
from diffusion_policy.serve.transport.errors import ProtocolError
from diffusion_policy.serve.transport.observations import STATE_NAMES, MessageForm, Observation
from diffusion_policy.spec import POSE_GRIPPER, ActionLayout, SpecError
from diffusion_policy.tables import Printable, Table, as_texts

FloatArray = NDArray[np.float64]

# For equal settings on another kind of processor, which sums in another order.
TOLERANCE = 1e-4
SAME = ("checkpoint_sha256", "weights", "scheduler", "steps", "precision", "warm_start")
SAME_MACHINE = ("processor", "device", "fast", "software")


@dataclass(frozen=True)
class LoggedStep:
    """One answered observation, with all that is needed to answer it again."""

    number: int
    seed: int
    observation: Observation
    remainder: FloatArray | None
    sequence: FloatArray
    first: int
    threads: int | None = None


@dataclass(frozen=True)
class ReplayReport:
    """The result of a replay.

    Attributes:
        steps: number of recomputed steps.
        same_settings: whether checkpoint, sampler and precision are those of the log.
        same_machine: whether processor, threads and software are those of the log and the device is a CPU; if so, every
            bit must be equal, otherwise a tolerance applies.
        bit_equal: number of steps whose sequence is bit-equal.
        largest: largest absolute difference of any number.
        position_mm, rotation_deg: mean difference of the executed actions; None if no rotation is valid, or without
            a pose.
        furthest_step, furthest_mm: the step at which the positions of the next commands differ most, and by how much;
            for joints without a pose, the step and None.
        differences: sentences about steps missing from the log, and about gripper events that moved, appeared or
            vanished.
        joints, furthest_joint, joint_unit: the same for joints, in their unit; None without joints.
    """

    steps: int
    same_settings: bool
    same_machine: bool
    bit_equal: int
    largest: float
    position_mm: float | None
    rotation_deg: float | None
    furthest_step: int
    furthest_mm: float | None
    differences: tuple[str, ...]
    joints: float | None = None
    furthest_joint: float | None = None
    joint_unit: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the log is reproduced; always true with another policy or other settings."""
        if not self.same_settings:
            return True
        return self.bit_equal == self.steps if self.same_machine else self.largest <= TOLERANCE

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON."""
        content = asdict(self)
        if self.joint_unit is None:
            content = {name: value for name, value in content.items() if "joint" not in name}
        return {**content, "passed": self.passed}

    def _apart(self) -> tuple[str, str]:
        """Returns how far the executed actions differ on average, and where most."""
        mean, furthest = [], []
        if self.furthest_mm is not None:
            mean.append(f"{_formatted(self.position_mm)} mm, {_formatted(self.rotation_deg)} degrees")
            furthest.append(f"{self.furthest_mm:.2f} mm")
        if self.furthest_joint is not None:
            mean.append(f"{_formatted(self.joints)} {self.joint_unit} of a joint")
            furthest.append(f"{self.furthest_joint:.2f} {self.joint_unit} of a joint")
        return f"{', '.join(mean)} on average", f"{', '.join(furthest)} at step {self.furthest_step}"

    def table(self) -> list[Printable]:
        """Returns a table for the terminal."""
        table = Table("", "", framed=True)
        mean, furthest = self._apart()
        kind = "the log's own settings" if self.same_settings else "another policy, or other settings"
        for name, value in (
            ("replayed with", kind),
            ("steps", str(self.steps)),
            ("equal to the last bit", f"{self.bit_equal} of {self.steps}"),
            ("largest difference", f"{self.largest:.2e}"),
            ("executed actions differ by", mean),
            ("furthest apart", furthest),
        ):
            table.add(name, value)
        demanded = "not bit-equal on the same machine" if self.same_machine else f"beyond {TOLERANCE:.0e}"
        verdict = "the log is reproduced" if self.passed else f"NOT reproduced: {demanded}"
        return [table, *as_texts([*self.differences, verdict if self.same_settings else "compared"])]


def read_steps(folder: str | Path) -> tuple[dict[str, Any], list[LoggedStep]]:
    """Reads the answered observations of a run.

    Raises:
        SessionLogError: not a run folder, or an older log, which holds neither seeds nor all frames and cannot be
            replayed.
    """
    if Path(folder).is_file():
        raise SessionLogError(f"{folder}: a log of an earlier server; it holds no seeds, so nothing can be recomputed")
    meta, lines = read_lines(folder)
    form = logged_form(folder, meta)
    steps = [_step(folder, line, form) for line in lines if "action" in line]
    if not steps:
        raise SessionLogError(
            f"{folder}: no observation of this run was answered with an action: {read_log(folder).why_empty}"
        )
    return meta, steps


def logged_form(folder: str | Path, meta: Mapping[str, Any]) -> MessageForm:
    """Reads the form of a run's observations; SessionLogError where meta.json names no layout."""
    names, cameras = meta.get(STATE_NAMES, list(POSE_GRIPPER)), meta.get("cameras", ["image"])
    for value in (names, cameras):
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise SessionLogError(
                f"{folder}/meta.json: {STATE_NAMES} or cameras is {value!r}; expected a list of names"
            )
    try:
        return MessageForm(int(meta.get("n_obs_steps", 1)), ActionLayout.of(names), tuple(cameras))
    except (SpecError, TypeError, ValueError) as error:
        raise SessionLogError(f"{folder}/meta.json: {error}") from error


def _step(folder: str | Path, line: Mapping[str, Any], form: MessageForm) -> LoggedStep:
    try:
        observed, remainder = line["input"], line.get("remainder")
        states = np.asarray(observed["states"], dtype=np.float64)
        images = tuple(read_image(folder, name) for name in observed["images"])
        observation = form.observation(images, states[:, : len(form.layout.names)], np.asarray(observed["timestamps"]))
        continued = read_continuation(observed.get("continuation"), len(form.layout.names))
        observation = replace(observation, continuation=continued)
        sequence = np.asarray(line["predicted"]["values"], dtype=np.float64)
        rest = None if remainder is None else np.asarray(remainder, dtype=np.float64)
        first, threads = line["predicted"]["first"], line.get("threads")
        return LoggedStep(line["step"], line["seed"], observation, rest, sequence, first, _usable_threads(threads))
    except (KeyError, IndexError, TypeError, ValueError, ProtocolError) as error:
        raise SessionLogError(f"{folder}: step {line.get('step')} lacks what a replay needs ({error!r})") from error


def replay(folder: str | Path, checkpoint: str | Path, overrides: Mapping[str, Any] | None = None) -> ReplayReport:
    """Recomputes a run.

    Args:
        folder: the run folder.
        checkpoint: the log's own, or another.
        overrides: changes of the log's engine settings, such as scheduler, steps or device.

    Raises:
        WorkspaceError: the log or the checkpoint cannot be read.
    """
    meta, steps = read_steps(folder)
    logged = meta.get("settings", {}).get("engine", {})
    known = {name: value for name, value in logged.items() if name in EngineSettings.__dataclass_fields__}
    known["threads"] = _usable_threads(known.get("threads")) or _usable_threads(meta.get("threads"))
    engine = PolicyEngine.open(checkpoint, EngineSettings(**{**known, **(overrides or {})}))
    logged_as, ours = logged_form(folder, meta), engine.form
    if (logged_as.layout.names, logged_as.cameras) != (ours.layout.names, ours.cameras):
        raise SessionLogError(
            f"{folder}: its steps are {list(logged_as.layout.names)} seen by {list(logged_as.cameras)}; this policy "
            f"expects {list(ours.layout.names)} seen by {list(ours.cameras)}"
        )
    about = {**engine.describe(), "software": software_versions()}
    same, machine = (all(about[name] == meta.get(name) for name in names) for names in (SAME, SAME_MACHINE))
    return compare(steps, engine, same_settings=same, same_machine=machine and about["device"] == "cpu")


def compare(steps: Sequence[LoggedStep], engine: Engine, *, same_settings: bool, same_machine: bool) -> ReplayReport:
    """Answers the logged observations with an engine and compares its answers with the logged ones."""
    frames, layout = len(steps[0].observation.timestamps), engine.form.layout
    if frames != engine.n_obs_steps:
        raise SessionLogError(f"the log's observations have {frames} frames, this policy reads {engine.n_obs_steps}")
    answers = [_ask(engine, step) for step in steps]
    before = np.stack([step.sequence[step.first : step.first + engine.n_action_steps] for step in steps])
    after = np.stack([answer.actions for answer in answers])
    if before.shape != after.shape:
        raise SessionLogError(f"the log's chunks are {before.shape[1:]}, this policy's {after.shape[1:]}")
    sequences = [_common(step.sequence, answer.sequence) for step, answer in zip(steps, answers, strict=True)]
    errors = score_chunks(after, before, layout=layout).means()
    apart = _furthest(layout.positions(after[:, 0]), layout.positions(before[:, 0])) * 1000
    joints = np.abs(layout.joints(after[:, 0]) - layout.joints(before[:, 0])).max(axis=1, initial=0.0)
    worst = int((apart if layout.has_pose else joints).argmax())
    numbers = [step.number for step in steps]
    missing = [f"{sentence}, and were not replayed" for sentence in missing_sentences(np.array(numbers))]
    return ReplayReport(
        steps=len(steps),
        same_settings=same_settings,
        same_machine=same_machine,
        bit_equal=sum(np.array_equal(*pair) for pair in sequences),
        largest=float(np.abs(before - after).max()),
        position_mm=errors["position_mm"],
        rotation_deg=errors["rotation_deg"],
        furthest_step=steps[worst].number,
        furthest_mm=float(apart.max()) if layout.has_pose else None,
        differences=tuple(missing + _gripper_differences(layout, before[:, 0], after[:, 0], numbers)),
        joints=errors[joint_error(layout)] if layout.has_joints else None,
        furthest_joint=float(joints.max()) if layout.has_joints else None,
        joint_unit=layout.joint_unit if layout.has_joints else None,
    )


def _furthest(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    """Returns (N,) largest distance between positions (N, P, 3) of any arm."""
    return np.linalg.norm(ours - theirs, axis=-1).max(axis=1, initial=0.0)


def _gripper_differences(
    layout: ActionLayout, before: FloatArray, after: FloatArray, numbers: Sequence[int]
) -> list[str]:
    """Returns ``event_differences`` of every gripper in commands (N, D), each with the name of its arm."""
    result = []
    for arm, ours, theirs in zip(
        layout.labels("gripper"), layout.grippers(before).T, layout.grippers(after).T, strict=True
    ):
        differences = event_differences(ours, theirs, numbers)
        result += [f"{arm} gripper: {sentence}" for sentence in differences] if arm else differences
    return result


def _usable_threads(logged: Any) -> int | None:
    """Returns a logged number of threads if this machine has that many cores, else None."""
    return logged if isinstance(logged, int) and 1 <= logged <= usable_cores() else None


def _ask(engine: Engine, step: LoggedStep) -> Inference:
    """Answers a step with its logged number of threads, since another number of threads sums in another order."""
    if step.threads is not None:
        torch.set_num_threads(step.threads)
    return engine.infer(step.observation, step.seed, step.remainder, Stages())


def _formatted(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _common(before: FloatArray, after: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Returns the steps that both denoised: the executed ones, and more where a setting needs them."""
    rows = min(len(before), len(after))
    return before[:rows], after[:rows]


def event_differences(before: FloatArray, after: FloatArray, numbers: Sequence[int]) -> list[str]:
    """Returns sentences on gripper events in commands (N,), like "B closes 3 steps earlier, at step 41 (A at 44)"."""
    ours, theirs = gripper_events(before), gripper_events(after)
    differences, unmatched = [], list(theirs)
    for step, kind in ours:
        same_kind = [event for event in unmatched if event[1] == kind]
        if not same_kind:
            differences.append(f"B does not {kind} where A does, at step {numbers[step]}")
            continue
        nearest: Event = min(same_kind, key=lambda event: abs(event[0] - step))
        unmatched.remove(nearest)
        if nearest[0] != step:
            offset = numbers[nearest[0]] - numbers[step]
            word = "later" if offset > 0 else "earlier"
            differences.append(
                f"B {kind}s {abs(offset)} step{'s' if abs(offset) > 1 else ''} {word}, at step {numbers[nearest[0]]} "
                f"(A at {numbers[step]})"
            )
    return differences + [f"B {kind}s at step {numbers[step]}, where A does not" for step, kind in unmatched]
