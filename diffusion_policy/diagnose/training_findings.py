"""Findings about a config before it is run, and about a run's numbers. Pure: evidence in, finding out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffusion_policy.commands import DEFAULT_CONFIG, command, setting
from diffusion_policy.diagnose.dataset_evidence import DatasetEvidence
from diffusion_policy.diagnose.findings import Finding, Severity, ok, run_checks
from diffusion_policy.diagnose.minecraft_findings import UNIFORM_LOSS, is_minecraft_run
from diffusion_policy.diagnose.recordings_gate import position_finding
from diffusion_policy.diagnose.training_evidence import ConfigEvidence
from diffusion_policy.intervals import wilson_interval
from diffusion_policy.model.obs_encoder import IMAGE_FEATURES
from diffusion_policy.run_folder.reading import RunFolder
from diffusion_policy.spec import POSE_GRIPPER, find_layout, is_game
from diffusion_policy.training_config import RATES

# No released policy of this kind was trained by Adam with a learning rate outside these.
LOWEST_RATE, HIGHEST_RATE = 1e-6, 1e-3
# Predicting nothing for noise of variance 1 has a loss of 1; weights that know the task reach a few hundredths.
KNOWS_NOTHING = 0.7
FEW_UPDATES, USUAL_EPOCHS = 500, 200
# The loss has fallen if the last tenth of it is below this share of the first tenth.
FALLEN = 0.9
# An average whose loss is this many times that of the live weights does not follow them.
LAGGING = 1.5
POOR_F1 = 0.5
# Fewer image features in use than this are reported; the number is a choice, not a measurement.
FEW_FEATURES = 8


@dataclass(frozen=True)
class Planned:
    """A config, and the dataset that it would be run on, if available."""

    config: ConfigEvidence
    dataset: DatasetEvidence | None = None


def config_findings(config: ConfigEvidence, dataset: DatasetEvidence | None = None) -> list[Finding]:
    """Findings before a run is started."""
    return run_checks(CONFIG_CHECKS, Planned(config, dataset))


def run_findings(run: RunFolder) -> list[Finding]:
    """Findings about the numbers of a run."""
    return run_checks(RUN_CHECKS, run)


def paths(planned: Planned) -> Finding | None:
    """Whether the files that the config names exist."""
    config = planned.config
    if config.finished:
        return None
    if not config.dataset_exists:
        evidence = f"there is no dataset at {config.dataset}"
        convert = command("convert_cogact_to_zarr", "--input", "TRAJECTORIES", "--output", config.dataset)
        return Finding("paths", "error", evidence, "convert one, or set task.dataset_path", convert, config.name)
    if config.pretrained is not None and config.load_weights and not config.pretrained_exists:
        evidence = f"there is no checkpoint at {config.pretrained}"
        return Finding("paths", "error", evidence, "correct pretrained.path", about=config.name)
    return ok("paths", "the dataset and the checkpoint that it names exist", config.name)


def config_action(planned: Planned) -> Finding | None:
    """Whether the policy predicts pose and gripper, and the dataset has it."""
    config, data = planned.config, planned.dataset
    if config.spec is None:
        return None
    names = config.spec.robot.action_names
    text = f"the config predicts {config.spec.action_dim} numbers"
    if data is not None and not set(names) <= set(data.action_names):
        evidence = f"size mismatch: {text}, the dataset's actions have {len(data.action_names)}"
        remedy, again = "set task= to the dataset's", config.again("task=cogact_robot_7d")
        if is_game(data.action_names) != is_game(names):
            kind = "train_vpt_bc" if is_game(data.action_names) else DEFAULT_CONFIG
            remedy = "take the config of what the dataset holds"
            again = command("train", f"--config-name={kind}", setting("task.dataset_path", data.path))
        return Finding("config-action", "error", evidence, remedy, again, config.name)
    layout = find_layout(names)
    if layout is not None and layout.is_game:
        return ok("config-action", f"{text}: {layout.describe()}", config.name)
    if names != POSE_GRIPPER and layout is not None and layout.has_gripper:
        return ok("config-action", f"{text}: {layout.describe()}", config.name)
    if names != POSE_GRIPPER:
        evidence = f"{text}: {' '.join(names)}; without a gripper the client keeps it open"
        again = config.again("task=cogact_robot_8d")
        return Finding("config-action", "warning", evidence, "use the 8-D task", again, config.name)
    return ok("config-action", f"{text}: pose and gripper", config.name)


def config_start(planned: Planned) -> Finding | None:
    """Whether pretrained weights will be loaded."""
    config = planned.config
    if config.finished:
        return None
    if config.pretrained is None:
        remedy = "to fine-tune, name a checkpoint; from scratch it takes hundreds of epochs"
        again = config.again("experiment=finetune_8d", "pretrained.path=GROWN.ckpt")
        return Finding(
            "start", "note", "it trains from scratch: pretrained.path is not set", remedy, again, config.name
        )
    if not config.load_weights:
        evidence = f"pretrained.load_weights is false: {config.pretrained} is ignored"
        return Finding("start", "warning", evidence, "set pretrained.load_weights=true", about=config.name)
    return ok("start", f"it starts from {config.pretrained}", config.name)


def learning_rate(planned: Planned) -> Finding | None:
    """Whether the learning rate is in a usable range."""
    config = planned.config
    if config.learning_rate is None:
        return None
    text = f"the learning rate is {config.learning_rate:g}"
    if not LOWEST_RATE <= config.learning_rate <= HIGHEST_RATE:
        evidence = f"{text}, outside {LOWEST_RATE:g} to {HIGHEST_RATE:g}"
        reference = config.rate_setting == "optimizer.lr"
        again = config.again("optimizer.lr=1e-4") if reference else config.again("optimizer.learning_rate=1e-4")
        return Finding("learning-rate", "error", evidence, "use 1e-4, which trains this policy", again, config.name)
    return ok("learning-rate", text, config.name)


def warm_up(planned: Planned) -> Finding | None:
    """Whether the learning rate is ever reached."""
    config = planned.config
    updates = config.updates(None if planned.dataset is None else planned.dataset.n_steps)
    if updates is None or config.warm_up is None:
        return None
    text = f"warm-up takes {config.warm_up} of about {updates} updates"
    if config.warm_up > updates / 2:
        evidence = f"{text}: the learning rate is hardly reached"
        again = config.again(f"training.lr_warmup_steps={max(updates // 20, 1)}")
        return Finding("warm-up", "warning", evidence, "train longer, or warm up for less", again, config.name)
    return ok("warm-up", text, config.name)


def few_updates(planned: Planned) -> Finding | None:
    """Whether there are enough updates to learn anything."""
    config = planned.config
    updates = config.updates(None if planned.dataset is None else planned.dataset.n_steps)
    if updates is None:
        return None
    if updates < FEW_UPDATES:
        evidence = f"about {updates} updates in all: too few to learn from"
        again = config.again(f"training.num_epochs={_enough_epochs(config.epochs, updates)}")
        return Finding("few-updates", "warning", evidence, "train longer", again, config.name)
    return ok("few-updates", f"about {updates} updates", config.name)


def _enough_epochs(epochs: int | None, updates: int) -> int:
    """How long to train if so many epochs made so few updates; 200 epochs at least."""
    return max(USUAL_EPOCHS, math.ceil((epochs or 0) * FEW_UPDATES / max(updates, 1)))


def held_out(planned: Planned) -> Finding:
    """Whether anything is held out for measurements."""
    config = planned.config
    if config.val_ratio <= 0:
        evidence = "no episode is held out: nothing can tell learning from memorizing"
        again = config.again("task.dataset.val_ratio=0.1")
        return Finding("held-out", "warning", evidence, "hold a tenth out", again, config.name)
    return ok("held-out", f"{config.val_ratio:.0%} of the episodes are held out", config.name)


def device(planned: Planned) -> Finding | None:
    """Whether the device exists."""
    config = planned.config
    if config.finished:
        return None
    if not config.device_exists:
        evidence = f"training.device is {config.device}, but torch finds no CUDA device"
        again = config.again("training.device=cpu")
        return Finding("device", "error", evidence, "train on the CPU, or repair the driver", again, config.name)
    return ok("device", f"training.device is {config.device}", config.name)


def stopped(run: RunFolder) -> Finding | None:
    """Whether it completed all of its epochs; if not, its other numbers describe an unfinished run."""
    status = run.status
    if status is None:
        return None
    rounds = "iterations" if run.learns_from_rewards else "epochs"
    if not run.unfinished:
        return ok("stopped", f"it completed all of its {status['of_epochs']} {rounds}", run.name)
    updates, epochs = max(run.updates, status["updates"]), status["epochs"]
    how = {
        "stopped": f"it was stopped{' by ' + status['signal'] if status['signal'] else ''} after",
        "failed": f"it ended with an error ({status['error']}) after",
    }.get(status["state"], "it has not ended (it is still running, or was killed):")
    evidence = f"{how} {updates} of about {status['of_updates']} updates, {epochs} of {status['of_epochs']} {rounds}"
    return Finding("stopped", "warning", evidence, "continue it", run.resumed(), run.name)


def losses_finite(run: RunFolder) -> Finding | None:
    """Whether the losses are finite; NaN is logged as null."""
    losses = [line["train_loss"] for line in run.metrics if "train_loss" in line]
    if not losses:
        evidence = "it has no training loss: not one update was logged"
        return Finding("not-finite", "error", evidence, "see train.log for why it stopped", about=run.name)
    bad = sum(loss is None for loss in losses)
    if bad:
        evidence = f"{bad} of {len(losses)} training losses are not finite"
        remedy = "lower the learning rate, and check the dataset for NaN"
        look = command("doctor", "--run", run.path)
        return Finding("not-finite", "error", evidence, remedy, look, run.name)
    return ok("not-finite", f"{len(losses)} training losses, all finite", run.name)


def run_start(run: RunFolder) -> Finding | None:
    """Whether the requested weights were loaded."""
    origin = run.first.get("start")
    asked = run.flat_config().get("pretrained.path")
    if origin is None:
        return None
    if origin == "scratch":
        severity: Severity = "error" if asked else "note"
        evidence = "it started from scratch" + (f", although pretrained.path is {asked}" if asked else "")
        again = run.again("experiment=finetune_8d", "pretrained.path=GROWN.ckpt")
        return Finding("start", severity, evidence, "fine-tune from a checkpoint in a new run folder", again, run.name)
    counts = {name: run.first.get(f"{name}_parameters") for name in ("inherited", "grown", "fresh")}
    listed = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count is not None)
    if (counts["fresh"] or 0) > (counts["inherited"] or 0):
        evidence = f"most of its parameters are newly initialized: {listed}"
        return Finding("start", "warning", evidence, "look at the ledger: which rule leaves them out?", about=run.name)
    return ok("start", f"it started from: {origin}; parameters: {listed}", run.name)


def loss_before_first_update(run: RunFolder) -> Finding | None:
    """What the loss before the first update shows about the starting weights."""
    loss = run.first.get("train_loss_before_first_update")
    if loss is None:
        return None
    text = f"the loss before the first update is {loss:.3f}"
    nothing = UNIFORM_LOSS if is_minecraft_run(run) else 1.0
    if run.first.get("start") == "pretrained" and loss > KNOWS_NOTHING * nothing:
        evidence = f"{text}: the pretrained weights know nothing about this data ({nothing:.3g} is knowing nothing)"
        remedy = (
            "check that the weights are trained ones, and that robot, frame and normalizer are those of their training"
        )
        look = command("doctor", "--run", run.path)
        return Finding("loss-before-first-update", "warning", evidence, remedy, look, run.name)
    return ok("loss-before-first-update", text, run.name)


def rate_reached(run: RunFolder) -> Finding | None:
    """Whether the configured learning rate was reached."""
    wanted = next((rate for name in RATES if (rate := run.flat_config().get(name)) is not None), None)
    rates = [rate for _, rate in run.curve("lr")]
    if not isinstance(wanted, (int, float)) or not rates or run.unfinished:
        return None
    if max(rates) < wanted / 2:
        steps = run.flat_config().get("training.lr_warmup_steps")
        evidence = (
            f"the learning rate only reached {max(rates):.2g} of {wanted:g} (warm-up {steps}, {run.updates} updates)"
        )
        again = run.again(f"training.lr_warmup_steps={max(run.updates // 20, 1)}")
        return Finding("warm-up", "warning", evidence, "train longer, or warm up for less", again, run.name)
    return ok("warm-up", f"the learning rate reached {max(rates):.2g}", run.name)


def enough_updates(run: RunFolder) -> Finding | None:
    """Whether the run was long enough."""
    if run.unfinished:
        return None
    if run.updates < FEW_UPDATES:
        evidence = f"only {run.updates} updates"
        again = run.resumed(f"training.num_epochs={_enough_epochs(run.planned_epochs, run.updates)}")
        return Finding("few-updates", "warning", evidence, "train longer", again, run.name)
    return ok("few-updates", f"{run.updates} updates", run.name)


def loss_falls(run: RunFolder) -> Finding | None:
    """Whether the training loss went down."""
    losses = np.array([loss for _, loss in run.curve("train_loss")])
    if len(losses) < 2:
        return None
    tenth = max(1, len(losses) // 10)
    first, last = float(losses[:tenth].mean()), float(losses[-tenth:].mean())
    text = f"the training loss went from {first:.3g} to {last:.3g}"
    nothing = UNIFORM_LOSS if is_minecraft_run(run) else 1.0
    if first > nothing * KNOWS_NOTHING / 2 and last > FALLEN * first:
        evidence = f"the loss does not fall: {first:.3g} at first, {last:.3g} in the end"
        return Finding("loss-does-not-fall", "error", evidence, "look at the findings above", about=run.name)
    if last > first / FALLEN:
        return Finding("loss-does-not-fall", "warning", f"{text}: it rises", "lower the learning rate", about=run.name)
    return ok("loss-does-not-fall", text, run.name)


def average_follows(run: RunFolder) -> Finding | None:
    """Whether the averaged weights, which are deployed, keep up with the live ones."""
    average, live = run.last("val_loss"), run.last("val_loss_model")
    if average is None or live is None:
        return None
    text = f"validation loss {average:.3g} averaged, {live:.3g} live"
    if average > LAGGING * live:
        evidence = f"{text}: the EMA does not follow; were the pretrained weights loaded into it?"
        remedy = "train longer, or start both from the EMA: pretrained.which=ema_model"
        return Finding("ema-weights", "warning", evidence, remedy, run.again("pretrained.which=ema_model"), run.name)
    return ok("ema-weights", text, run.name)


def overfitting(run: RunFolder) -> Finding | None:
    """Whether the validation loss rises again; success may still improve, so it is only a note."""
    curve = run.curve("val_loss")
    if not curve and run.unfinished:
        return None
    if not curve:
        again = run.again("task.dataset.val_ratio=0.1")
        return Finding("held-out", "warning", "nothing was validated", "hold a tenth out", again, run.name)
    step, lowest = min(curve, key=lambda point: point[1])
    if curve[-1][1] > 1.2 * lowest:
        evidence = f"the validation loss rises from {lowest:.3g} at update {step} to {curve[-1][1]:.3g}"
        remedy = "deploy best.ckpt, which is chosen by gripper events and position errors"
        return Finding("overfitting", "note", evidence, remedy, about=run.name)
    return ok("overfitting", f"the validation loss ends at {curve[-1][1]:.3g}, its lowest is {lowest:.3g}", run.name)


def gripper_events_found(run: RunFolder) -> Finding | None:
    """Whether the recorded gripper events of held-out episodes were predicted."""
    f1, recorded = run.last("val_gripper_f1"), run.last("val_gripper_events_recorded")
    if recorded == 0:
        evidence = "the gripper was not measured: the held-out episodes contain no event, so F1 is not defined"
        remedy = "hold out episodes that grasp: another task.dataset.seed, or a larger task.dataset.val_ratio"
        command = run.again("task.dataset.val_ratio=0.2")
        return Finding("gripper-measured", "note", evidence, remedy, command, run.name)
    if f1 is None or not recorded:
        return None
    n_found = int(run.last("val_gripper_events_found") or 0)
    flips = int(run.last("val_gripper_false_flips") or 0)
    low, high = wilson_interval(n_found, int(recorded))
    share = f"(95 % interval {low:.0%}-{high:.0%})"
    text = f"{n_found} of {int(recorded)} held-out gripper events found {share}, {flips} false"
    if not n_found:
        return Finding(
            "gripper-verdict", "error", f"no recorded gripper event is predicted: {text}", "see above", about=run.name
        )
    scored = f"{text}: F1 {f1:.2f}" + ("" if run.tolerance is None else f" within {run.tolerance}")
    if f1 < POOR_F1:
        return Finding("gripper-verdict", "warning", scored, "train longer; see above", about=run.name)
    return ok("gripper-verdict", scored, run.name)


def position_error(run: RunFolder) -> Finding | None:
    """What held-out position errors predict about grasping; None if scenes were rolled out: better evidence."""
    error = run.last("val_position_error_mm")
    if error is None or run.last("val_gripper_events_recorded") is None or run.last("test_success") is not None:
        return None
    look = "" if run.deployable is None else command("evaluate_closed_loop", run.deployable)
    return position_finding(error, run.name, look)


def sight(run: RunFolder) -> Finding | None:
    """Whether the policy's image features depend on its images."""
    features = run.last("val_image_features")
    if features is None:
        return None
    stuck = "features that their ReLU keeps at zero for every image stay there"
    way, again = "without it", run.again("++policy.encoder_activation=none")
    if run.first.get("inherited_parameters"):  # weights trained with the ReLU need it
        way, again = "with a slower encoder", run.again("learning_rates.obs_encoder=0.1")
    if features == 0:
        evidence = "the policy sees nothing: no image feature changes between held-out frames"
        remedy = f"{stuck}; train again {way}"
        return Finding("sight", "error", evidence, remedy, again, run.name)
    if features < FEW_FEATURES:
        evidence = f"only {features:.0f} of {IMAGE_FEATURES} image features change between held-out frames"
        remedy = f"watch val_image_features: {stuck}; if more of them do, train again {way}"
        return Finding("sight", "note", evidence, remedy, again, run.name)
    return ok("sight", f"{features:.0f} of {IMAGE_FEATURES} image features change between held-out frames", run.name)


def checkpoints(run: RunFolder) -> Finding:
    """Whether there is a checkpoint to deploy."""
    if run.deployable is None:
        evidence = "it holds neither best.ckpt nor latest.ckpt"
        return Finding("checkpoints", "error", evidence, "it was stopped before the first was saved", about=run.name)
    return ok("checkpoints", f"it has {run.deployable.name} ({len(run.checkpoints)} checkpoints)", run.name)


CONFIG_CHECKS = (paths, config_action, config_start, learning_rate, warm_up, few_updates, held_out, device)
RUN_CHECKS = (
    stopped,
    losses_finite,
    run_start,
    loss_before_first_update,
    rate_reached,
    enough_updates,
    loss_falls,
    average_follows,
    overfitting,
    sight,
    gripper_events_found,
    position_error,
    checkpoints,
)
