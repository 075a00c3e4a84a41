"""Findings about a dataset of VPT's actions, in place of those about poses, grippers and a robot's rate."""

from __future__ import annotations

import math

from diffusion_policy.diagnose.dataset_evidence import DatasetEvidence
from diffusion_policy.diagnose.findings import Finding, ok
from diffusion_policy.diagnose.step_evidence import StepEvidence
from diffusion_policy.diagnose.unit_findings import reconvert
from diffusion_policy.minecraft.actions import N_BUTTONS, N_CAMERA
from diffusion_policy.minecraft.world import TICK_SECONDS
from diffusion_policy.run_folder.reading import RunFolder
from diffusion_policy.spec import CAMERA_TURN, is_game

SLACK = 0.05  # of a tick
UNIFORM_LOSS = math.log(N_BUTTONS) + math.log(
    N_CAMERA
)  # loss of a policy for which every joint action is equally likely


def is_minecraft(data: DatasetEvidence) -> bool:
    """Whether its actions are those of a game's player, as VPT's are."""
    return is_game(data.action_names)


def are_minecraft(data: StepEvidence) -> bool:
    """The same, of its steps."""
    return is_game(data.action_names)


def is_minecraft_run(run: RunFolder) -> bool:
    """The same, of a run's policy."""
    return is_game(run.flat_config().get("shape_meta.action.names") or ())


def buttons_and_camera(data: DatasetEvidence) -> Finding:
    """Whether actions are buttons of 0 or 1 and turns of at most half a circle."""
    limits = {name: (-180, 180) if name in CAMERA_TURN else (0, 1) for name in data.action_names}
    ranges = zip(limits.items(), data.low, data.high, strict=True)
    outside = [name for (name, (least, most)), low, high in ranges if low < least or high > most]
    if outside:
        evidence = (
            f"{', '.join(outside)} beyond what VPT's actions are: buttons 0 or 1, turns -180 to 180 degrees a tick"
        )
        convert = reconvert(names=data.action_names)
        return Finding("action-shape", "error", evidence, "check the recordings", convert, data.path)
    text = f"actions are VPT's: {len(limits) - len(CAMERA_TURN)} buttons, and pitch and yaw in degrees a tick"
    return ok("action-shape", text, data.path)


def never_pressed(data: StepEvidence) -> Finding:
    """Buttons that a clone of it will not press either."""
    highest = {one.name: one.high for one in data.dimensions if one.key == "action" and one.name not in CAMERA_TURN}
    unused = [name for name, high in highest.items() if not high]
    if unused:
        evidence = f"never pressed in it: {', '.join(unused)}; what is cloned from it will hardly press them"
        return Finding("never-pressed", "note", evidence, "see that the task needs none of them", about=data.where)
    return ok("never-pressed", "every button is pressed somewhere", data.where)


def ticks(data: DatasetEvidence) -> Finding | None:
    """Time between steps, compared with the game's tick."""
    if data.step_seconds is None:
        return None
    text = f"steps are {data.step_seconds:.3g} s apart"
    if data.clock is not None or abs(data.step_seconds / TICK_SECONDS - 1) > SLACK:
        evidence = f"{text}; the game and VPT have a step every {TICK_SECONDS:g} s"
        return Finding("step-spacing", "warning", evidence, "record every tick", about=data.path)
    return ok("step-spacing", f"{text}, the game's ticks", data.path)
