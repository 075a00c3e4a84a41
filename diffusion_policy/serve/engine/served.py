"""What the server asks of a policy: whether it can be served, the length of its answers, how they may continue."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.commands import command
from diffusion_policy.policy.contract import Policy
from diffusion_policy.serve.engine.wire import Wire
from diffusion_policy.serve.settings import EngineSettings, ServeError
from diffusion_policy.serve.transport.continuation import Mode
from diffusion_policy.serve.transport.observations import Observation
from diffusion_policy.spec import POSE, POSE_GRIPPER, StepSpec
from diffusion_policy.storage import sha256


def answer_steps(policy: Policy, settings: EngineSettings) -> int:
    """Returns the number of steps in an answer: the setting, or the policy's own; ServeError beyond its horizon."""
    chosen, n_predicted = settings.n_action_steps, policy.sequence_length - policy.first_executed
    if chosen is not None and chosen > n_predicted:
        raise ServeError(f"engine.n_action_steps is {chosen}; the policy predicts {n_predicted} steps from now on")
    return policy.n_action_steps if chosen is None else chosen


def continuations(policy: Policy, *, fast: bool) -> list[Mode]:
    """Returns the modes in which an answer may continue the chunk under execution."""
    rtc: list[Mode] = ["rtc"] if policy.lacks("previous_chunk") is None else []
    return [*rtc, "warm_start"] if fast and policy.lacks("warm_start") is None else rtc


def committed_actions(observation: Observation) -> NDArray[np.float64]:
    """(d, D) actions of the last answer that will have been executed when the next one comes."""
    continued = observation.continuation
    assert continued is not None
    return continued.actions[: continued.committed]


def check_served(wire: Wire, spec: StepSpec) -> None:
    """Raises ServeError if no guard can judge the policy's actions, or no message can carry its observations."""
    layout, names = wire.layout, list(spec.action_names)
    if not (layout.has_pose or layout.has_joints) or spec.action_names == POSE:
        grow = command("finetune_from_7d_to_8d", "--old_ckpt", "SERVED.ckpt", "--new_ckpt", "GROWN.ckpt")
        raise ServeError(
            f"the policy's action is {names}; clients expect {list(POSE_GRIPPER)}. A 7-D pose "
            f"policy grows a gripper: {grow}"
        )
    limited = {*layout.motion_columns, *layout.gripper_columns}
    others = [name for column, name in enumerate(layout.names) if column not in limited]
    if others:
        raise ServeError(
            f"the policy's action is {names}; the motion guard limits poses, joints and grippers, but has no limit for "
            f"{others}. Train without them"
        )
    unknown = wire.unknown_keys
    if unknown or not spec.rgb:
        raise ServeError(
            f"the policy reads the cameras {[camera.key for camera in spec.rgb]} and the states "
            f"{[state.key for state in spec.low_dim]}; the protocol carries at least one camera and "
            f"{list(layout.names)}" + (f", which do not hold {unknown}" if unknown else "")
        )


def normalizer_hash(policy: Policy) -> str:
    """Returns the SHA-256 of the normalizer's names and numbers."""
    numbers = sorted(policy.normalizer.state_dict().items())
    named = ((name.encode(), value.detach().cpu().contiguous().numpy()) for name, value in numbers)
    return sha256(*itertools.chain.from_iterable(named)).hex()
