"""A policy's answer in the robot's numbers: what evaluation and simulation call.

The policy's own ``predict_action`` uses the policy's numbers, whose rotations may have another representation and which
may be relative to the current pose (``spec.StepTransform``). If they equal the robot's numbers, this is just
``predict_action``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from diffusion_policy.moved import former_names
from diffusion_policy.spec import StepSpec, StepTransform


class ActionPredictor(Protocol):
    """What is required of a policy here."""

    spec: StepSpec
    n_obs_steps: int

    def predict_action(
        self,
        obs: Mapping[str, Tensor],
        initial_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Observations (B, To or more, ...) to actions (B, steps, Da) by name."""


def predict_robot_action(
    policy: ActionPredictor,
    obs: Mapping[str, Tensor],
    initial_noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Like ``Policy.predict_action``, with observations as the robot measures them and actions as it takes them.

    Args:
        policy: the policy that answers.
        obs: per key of ``policy.spec.robot`` (B, To or more, ...); the first To steps are used.
        initial_noise: as in ``predict_action``.
        generator: likewise.

    Returns:
        as in ``predict_action``, but (B, steps, D) absolute, in the order of ``policy.spec.robot.action_names``; a step
        whose rotation is invalid is NaN.

    Raises:
        PolicyError, SpecError: an observation does not fit.
    """
    transform = StepTransform(policy.spec)
    if transform.is_identity:
        return policy.predict_action(obs, initial_noise=initial_noise, generator=generator)
    measured = {
        field.key: obs[field.key][:, : policy.n_obs_steps].detach().cpu().numpy()
        for field in transform.robot.low_dim
        if field.key in obs
    }
    given = {key: torch.from_numpy(values) for key, values in transform.observed(measured).items()}
    answer = policy.predict_action({**obs, **given}, initial_noise=initial_noise, generator=generator)
    return {
        name: torch.from_numpy(transform.commanded(actions.double().cpu().numpy(), measured)).to(actions)
        for name, actions in answer.items()
    }


__getattr__ = former_names(__name__, {"robot_answer": "predict_robot_action"})
