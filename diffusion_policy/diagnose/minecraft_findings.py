"""Findings about a dataset of VPT's actions, in place of those about poses, grippers and a robot's rate."""

from __future__ import annotations

import math

from diffusion_policy.diagnose.dataset_evidence import DatasetEvidence
from diffusion_policy.diagnose.findings import Finding, ok
from diffusion_policy.diagnose.step_evidence import StepEvidence
from diffusion_policy.diagnose.unit_findings import reconvert
from diffusion_policy.minecraft.actions import N_BUTTONS, N_CAMERA, VPT_ACTION
from diffusion_policy.minecraft.world import TICK_SECONDS
from diffusion_policy.run_folder.reading import RunFolder

SLACK = 0.05  # of a tick
UNIFORM_LOSS = math.log(N_BUTTONS) + math.log(N_CAMERA)  # of a policy that holds every joint action for as likely


def is_minecraft(data: DatasetEvidence) -> bool:
    """Whether its actions are VPT's."""
    return data.action_names == VPT_ACTION


def are_minecraft(data: StepEvidence) -> bool:
    """The same, of its steps."""
    return tuple(part.name for part in data.dimensions if part.key == "action") == VPT_ACTION


def is_minecraft_run(run: RunFolder) -> bool:
    """Whether a run's policy has VPT's actions."""
    return tuple(run.flat_config().get("shape_meta.action.names") or ()) == VPT_ACTION


def buttons_and_camera(data: DatasetEvidence) -> Finding:
    """Whether actions are buttons of 0 or 1 and turns of at most half a circle."""
    buttons, turns = slice(0, len(VPT_ACTION) - 2), slice(len(VPT_ACTION) - 2, None)
    outside = [
        name
        for name, low, high in zip(VPT_ACTION[buttons], data.low[buttons], data.high[buttons], strict=True)
        if low < 0 or high > 1
    ]
    outside += [
        name
        for name, low, high in zip(VPT_ACTION[turns], data.low[turns], data.high[turns], strict=True)
        if low < -180 or high > 180
    ]
    if outside:
        evidence = (
            f"{', '.join(outside)} beyond what VPT's actions are: buttons 0 or 1, turns -180 to 180 degrees a tick"
        )
        return Finding("action-shape", "error", evidence, "check the recordings", reconvert(), data.path)
    return ok("action-shape", "actions are VPT's: 20 buttons, and pitch and yaw in degrees a tick", data.path)


def ticks(data: DatasetEvidence) -> Finding | None:
    """Time between steps, compared with the game's tick."""
    if data.step_seconds is None:
        return None
    text = f"steps are {data.step_seconds:.3g} s apart"
    if data.clock is not None or abs(data.step_seconds / TICK_SECONDS - 1) > SLACK:
        evidence = f"{text}; the game and VPT have a step every {TICK_SECONDS:g} s"
        return Finding("step-spacing", "warning", evidence, "record every tick", about=data.path)
    return ok("step-spacing", f"{text}, the game's ticks", data.path)
