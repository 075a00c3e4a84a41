"""Reinforcement learning of a VPT policy: proximal policy optimization (Schulman et al. 2017) with a carried memory.

    settings      what can be chosen
    games         environments that are seeded by (seed, number, episode) and can be brought back to where they were
    rollouts      frames, actions and values of many environments, with the memory at the start of each chunk
    advantages    generalized advantage estimation, which tells a truncated episode from a terminated one
    objective     the clipped objective, and the coefficient of the KL divergence from the pretrained policy
    learner       the updates of one iteration
    outcomes      returns and successes of the last episodes

The loop is in `workspace/train_vpt_ppo_workspace.py`.
"""

from diffusion_policy.errors import WorkspaceError


class PPOError(WorkspaceError, ValueError):
    """Settings, environments or updates of reinforcement learning that cannot be; says what would settle it."""
