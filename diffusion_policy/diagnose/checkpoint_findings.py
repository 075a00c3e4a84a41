"""Findings about a checkpoint, alone and together with a dataset; pure functions of the evidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffusion_policy.commands import command, setting
from diffusion_policy.dataset.split import words_of
from diffusion_policy.diagnose.checkpoint_evidence import CheckpointEvidence
from diffusion_policy.diagnose.dataset_evidence import DatasetEvidence
from diffusion_policy.diagnose.dataset_findings import reconvert
from diffusion_policy.diagnose.findings import Finding, Severity, ok, run_checks
from diffusion_policy.diagnose.pose_only import is_pose_only
from diffusion_policy.diagnose.quaternion_sign import quaternion_sign
from diffusion_policy.spec import POSE, SpecError, check_semantics, is_game
from diffusion_policy.spec.action_layout import is_gripper_name

# Averaged weights this far from the live ones, relative to their norm, are not their average.
FAR_AVERAGE = 0.5
# Normalized data beyond the first limit is a warning, beyond the second an error.
SLACK, FAR_OUT = 0.1, 3.0
# Dimensions that vary less than this, in meters or quaternion units, are constant.
FLAT = 1e-4


@dataclass(frozen=True)
class CheckpointAndDataset:
    """A checkpoint and the dataset it is to be trained or run on."""

    checkpoint: CheckpointEvidence
    dataset: DatasetEvidence


def checkpoint_findings(evidence: CheckpointEvidence) -> list[Finding]:
    """Returns all findings about a checkpoint by itself, in the order in which to act on them."""
    return run_checks(CHECKS, evidence)


def together_findings(checkpoint: CheckpointEvidence, dataset: DatasetEvidence) -> list[Finding]:
    """Whether a checkpoint and a dataset fit each other."""
    return run_checks(TOGETHER, CheckpointAndDataset(checkpoint, dataset))


def grow_command(path: str, dataset: str | None = None) -> str:
    """Returns the command that grows a 7-D checkpoint to 8-D."""
    data = () if dataset is None else ("--dataset", dataset)
    return command("finetune_from_7d_to_8d", "--old_ckpt", path, "--new_ckpt", "GROWN.ckpt", *data)


def projection(checkpoint: CheckpointEvidence) -> Finding | None:
    """Whether the action projections have the width given in the config, in both model and EMA."""
    if checkpoint.spec is None:
        return None
    widths = {
        f"{part} {name}": n_columns[i]
        for i, part in enumerate(("model", "ema_model"))
        for name, n_columns in (("input", checkpoint.input_width), ("head", checkpoint.head_width))
        if n_columns[i] is not None
    }
    wrong = {name: width for name, width in widths.items() if width != checkpoint.spec.action_dim}
    if wrong:
        listed = ", ".join(f"{name} {width}" for name, width in wrong.items())
        evidence = f"the projection was not adapted: the config has {checkpoint.spec.action_dim} numbers, {listed}"
        remedy = "adapt the original checkpoint again"
        return Finding("projection", "error", evidence, remedy, grow_command("ORIGINAL.ckpt"), checkpoint.path)
    return ok("projection", f"{checkpoint.spec.action_dim} numbers in every projection", checkpoint.path)


def weights_finite(checkpoint: CheckpointEvidence) -> Finding:
    """Whether the weights are free of NaN and infinity."""
    if checkpoint.not_finite:
        evidence = f"{len(checkpoint.not_finite)} tensors hold NaN or infinity, such as {checkpoint.not_finite[0]}"
        return Finding("weights-finite", "error", evidence, "go back to an earlier checkpoint", about=checkpoint.path)
    return ok("weights-finite", "every weight is finite", checkpoint.path)


def gripper_statistics(checkpoint: CheckpointEvidence) -> Finding | None:
    """Whether the normalizer was fitted to a gripper that is both closed and open."""
    action = checkpoint.statistics.get("action")
    if action is None or checkpoint.spec is None:
        return None
    if checkpoint.layout == "xyz_rotvec_width":
        evidence = "its action statistics are those of a rotation vector and gripper width, not of a quaternion pose"
        remedy = "it cannot be grown by shape; start from a checkpoint with quaternion poses"
        return Finding("gripper-statistics", "error", evidence, remedy, about=checkpoint.path)
    names = checkpoint.spec.action_names
    if is_game(names):
        return None
    if len(action.low) != len(names):
        evidence = f"the normalizer has {len(action.low)} action dimensions, the config {len(names)}"
        grow = grow_command("ORIGINAL.ckpt", "DATASET.zarr")
        return Finding("gripper-statistics", "error", evidence, "grow it", grow, checkpoint.path)
    grippers = [i for i, name in enumerate(names) if is_gripper_name(name)]
    if not grippers:
        return ok("gripper-statistics", "no gripper among its actions", checkpoint.path)
    spans = [f"{action.low[i]:.3g} to {action.high[i]:.3g}" for i in grippers]
    named = [f"{span} ({names[i]})" for i, span in zip(grippers, spans, strict=True)]
    text = f"the normalizer was fitted to gripper commands of {', '.join(spans if len(spans) == 1 else named)}"
    if any(action.high[i] - action.low[i] < FLAT for i in grippers):
        evidence = f"{text}: the gripper never moved there, so the policy always answers that number"
        remedy = "take the gripper's entry from a dataset that grasps, or train with normalizer=refit"
        return Finding(
            "gripper-statistics", "error", evidence, remedy, grow_command("ORIGINAL.ckpt", "DATASET.zarr"),
            checkpoint.path,
        )  # fmt: skip
    return ok("gripper-statistics", text, checkpoint.path)


def gripper_row(checkpoint: CheckpointEvidence) -> Finding | None:
    """Whether the gripper's output was ever trained."""
    if checkpoint.gripper_row is None:
        return None
    if checkpoint.gripper_row == 0:
        if not checkpoint.updates or checkpoint.start is None:
            evidence = "the gripper's output is new and not trained yet"
            train = command("train", "experiment=finetune_8d", setting("pretrained.path", checkpoint.path))
            return Finding("gripper-row", "note", evidence, "fine-tune it", train, checkpoint.path)
        evidence = f"the gripper's output is still zero after {checkpoint.updates} updates: it was never trained"
        remedy = "check that the loss includes the gripper and that its rows are not frozen"
        return Finding("gripper-row", "error", evidence, remedy, about=checkpoint.path)
    text = f"the gripper's output has weights up to {checkpoint.gripper_row:.3g}"
    return ok("gripper-row", text, checkpoint.path)


def ema_weights(checkpoint: CheckpointEvidence) -> Finding:
    """Whether the averaged weights, which are deployed, exist and are an average of the live ones."""
    if not checkpoint.has_average:
        if not checkpoint.expects_average:
            return ok("ema-weights", "trained without EMA", checkpoint.path)
        evidence = "it holds no ema_model, although its config trains one: the deployed weights are missing"
        remedy = "deploy the live weights (--weights model), or go back to an intact checkpoint"
        return Finding("ema-weights", "error", evidence, remedy, about=checkpoint.path)
    if checkpoint.head_width[0] != checkpoint.head_width[1] or checkpoint.input_width[0] != checkpoint.input_width[1]:
        evidence = f"EMA and model predict {checkpoint.head_width[1]} and {checkpoint.head_width[0]} numbers"
        remedy = "adapt both; the 7-D to 8-D command does"
        return Finding("ema-weights", "error", evidence, remedy, grow_command("ORIGINAL.ckpt"), checkpoint.path)
    if checkpoint.average_distance is None:
        evidence = "EMA and model hold different tensors"
        return Finding("ema-weights", "error", evidence, "go back to an intact checkpoint", about=checkpoint.path)
    text = f"the EMA differs from the live weights by {checkpoint.average_distance:.2g} of their norm"
    if checkpoint.average_distance > FAR_AVERAGE:
        evidence = f"{text}: it does not average them, so the pretrained weights were not loaded into it"
        remedy = "train again from the pretrained checkpoint; training now loads both models or refuses to start"
        return Finding("ema-weights", "error", evidence, remedy, about=checkpoint.path)
    return ok("ema-weights", text, checkpoint.path)


def start(checkpoint: CheckpointEvidence) -> Finding | None:
    """Where its weights came from."""
    if checkpoint.start is None:
        return None
    if checkpoint.start == "scratch" and is_pose_only(checkpoint.spec):
        return ok("start", "trained from scratch, as expected of a policy that others are grown from", checkpoint.path)
    if checkpoint.start == "scratch":
        evidence = "trained from scratch: no pretrained weights were loaded"
        remedy = "if it was meant to be fine-tuned, set pretrained.path and a new run folder"
        train = command("train", "experiment=finetune_8d", "pretrained.path=GROWN.ckpt")
        return Finding("start", "warning", evidence, remedy, train, checkpoint.path)
    share = (
        "" if checkpoint.inherited is None else f"; {checkpoint.inherited:.1%} of its parameters in inherited tensors"
    )
    return ok("start", f"started from: {checkpoint.start}{share}", checkpoint.path)


def adaptation(checkpoint: CheckpointEvidence) -> Finding | None:
    """Whether growing it kept its function."""
    if not checkpoint.proofs:
        return None
    broken = [part for part, preserved in checkpoint.proofs.items() if not preserved]
    if broken:
        evidence = f"growing changed the predictions of {' and '.join(broken)}, according to the proof in the file"
        remedy = "unless that was intended (strip, fresh rules), grow it again"
        return Finding("adaptation", "warning", evidence, remedy, grow_command("ORIGINAL.ckpt"), checkpoint.path)
    text = f"growing kept the function of {' and '.join(checkpoint.proofs)}, proven"
    return ok("adaptation", text, checkpoint.path)


def fits_dataset(both: CheckpointAndDataset) -> Finding | None:
    """Action width and meaning, image size."""
    if both.checkpoint.spec is None:
        return None
    spec, data = both.checkpoint.spec.robot, both.dataset
    if set(spec.action_names) != set(data.action_names):
        evidence = (
            f"size mismatch: the checkpoint predicts {spec.action_dim} numbers ({' '.join(spec.action_names)}), the "
            f"dataset's actions have {len(data.action_names)} ({' '.join(data.action_names)})"
        )
        grows = spec.action_names == POSE and set(POSE) < set(data.action_names)
        grow = grow_command(both.checkpoint.path, data.path) if grows else ""
        remedy = "grow the checkpoint" if grows else "use a dataset and a checkpoint with the same actions"
        return Finding("checkpoint-fits-dataset", "error", evidence, remedy, grow, both.checkpoint.path)
    if both.checkpoint.semantics is not None:
        try:
            check_semantics(data.semantics, both.checkpoint.semantics, f"{data.path} with {both.checkpoint.path}")
        except SpecError as error:
            return Finding("checkpoint-fits-dataset", "error", str(error), "wrong dataset", about=data.path)
    for field in spec.rgb:
        if data.image_size is not None and field.key in data.keys and field.width_height != data.image_size:
            width, height = field.width_height
            evidence = f"the checkpoint reads images of {width} x {height} pixels, the dataset has {data.image_size}"
            again = reconvert("--resolution", width, height, names=data.action_names)
            return Finding("checkpoint-fits-dataset", "error", evidence, "convert at its size", again, data.path)
    return ok("checkpoint-fits-dataset", "checkpoint and dataset have the same actions and images", data.path)


def normalizer_range(both: CheckpointAndDataset) -> Finding | None:
    """Whether the data is within the range that the normalizer was fitted to."""
    statistics, spec, data = both.checkpoint.statistics.get("action"), both.checkpoint.spec, both.dataset
    if statistics is None or spec is None or len(statistics.scale) != spec.action_dim:
        return None
    if spec.layout.is_game:
        return ok("normaliser-range", "action classes are not normalized", data.path)
    if spec.relative:
        evidence = (
            "the checkpoint's actions are relative to the current pose, so their range differs from the dataset's"
        )
        return Finding("normaliser-range", "note", evidence, "nothing to do: training compares them", about=data.path)
    names = [name for name in spec.action_names if name in data.action_names]
    worst_name, worst = "", 0.0
    for name in names:
        i, j = spec.action_names.index(name), data.action_names.index(name)
        ends = np.array([data.low[j], data.high[j]]) * statistics.scale[i] + statistics.offset[i]
        if np.abs(ends).max() > worst:
            worst_name, worst = name, float(np.abs(ends).max())
    if worst > 1 + SLACK:
        i, j = spec.action_names.index(worst_name), data.action_names.index(worst_name)
        evidence = (
            f"{worst_name} is {data.low[j]:.3g} to {data.high[j]:.3g} in the dataset, {statistics.low[i]:.3g} to "
            f"{statistics.high[i]:.3g} in the checkpoint's normalizer: normalized up to {worst:.2f}, expected 1"
        )
        remedy = "is this the checkpoint's robot, frame and task? if the data is right, train with normalizer=refit"
        severity: Severity = "error" if worst > FAR_OUT else "warning"
        return Finding("normaliser-range", severity, evidence, remedy, "", data.path)
    return ok("normaliser-range", f"normalized data reaches {worst:.2f} (1 expected)", data.path)


def sign_of_quaternions(both: CheckpointAndDataset) -> Finding | None:
    """Whether the data has q where the checkpoint was trained with -q."""
    return quaternion_sign(both.checkpoint, both.dataset)


def training_episodes(both: CheckpointAndDataset) -> Finding | None:
    """Which of the dataset's episodes the policy was trained on."""
    split, identities = both.checkpoint.split, both.dataset.identities
    if not identities:
        return None
    if split is None:
        evidence = "its episodes may have been trained on: the checkpoint does not record its training episodes"
        remedy = "do not call an error on them held-out unless you know that they were held out"
        return Finding("split", "note", evidence, remedy, about=both.dataset.path)
    statuses = split.statuses([identities])
    evidence = f"of its {len(statuses)} episodes: {words_of(statuses)}"
    if not {"held out", "unseen"} & set(statuses):
        remedy = "it cannot tell learning from memorizing: evaluate on other episodes"
        return Finding("split", "note", evidence, remedy, about=both.dataset.path)
    return ok("split", evidence, both.dataset.path)


CHECKS = (projection, weights_finite, gripper_statistics, gripper_row, ema_weights, start, adaptation)
TOGETHER = (fits_dataset, sign_of_quaternions, normalizer_range, training_episodes)
