"""How a policy is sampled: the scheduler and its number of steps, which need not be the DDPM that it was trained with.

Training uses 100 denoising steps of DDPM; a robot cannot wait for them. The other schedulers cover the same noise
levels in fewer steps, with the training settings (beta schedule, prediction type, clipping) carried over.
"""

from __future__ import annotations

from diffusion_policy.model.diffusion.noise_schedulers import scheduler_class, with_noise_levels_of
from diffusion_policy.policy import SCHEDULER_PATHS
from diffusion_policy.policy.contract import DenoisingPolicy, Policy
from diffusion_policy.policy.observation_batch import PolicyError


def set_sampler(policy: Policy, scheduler: str, steps: int) -> None:
    """Replace the policy's scheduler by another over the same noise levels, and set its number of steps.

    A policy that does not denoise has no sampler, and is left unchanged.

    Raises:
        PolicyError: no such scheduler, or a number of steps outside 1 to the number in training.
    """
    if scheduler not in SCHEDULER_PATHS:
        raise PolicyError(f"no scheduler {scheduler!r}; expected one of {', '.join(SCHEDULER_PATHS)}")
    if not isinstance(policy, DenoisingPolicy):
        return
    trained = int(policy.noise_scheduler.config.num_train_timesteps)
    if not 1 <= steps <= trained:
        raise PolicyError(f"{steps} denoising steps; expected 1 to the {trained} of training")
    kind = scheduler_class(SCHEDULER_PATHS[scheduler])
    policy.noise_scheduler = with_noise_levels_of(policy.noise_scheduler, kind)
    policy.num_inference_steps = steps
