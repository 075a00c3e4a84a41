"""Reinforcement learning of a VPT policy: proximal policy optimization (Schulman et al. 2017) with memory carried over.

    settings      the settings and their checks
    games         environments that are seeded by (seed, number, episode) and can be restored to an earlier state
    rollouts      frames, actions and values of many environments, with the memory at the start of each chunk
    advantages    generalized advantage estimation, which distinguishes truncated from terminated episodes
    objective     the clipped objective, and the coefficient of the KL divergence from the pretrained policy
    learner       the updates of one iteration
    outcomes      returns and successes of the last episodes

The loop is in `workspace/train_vpt_ppo_workspace.py`.
"""

from diffusion_policy.errors import WorkspaceError


class PPOError(WorkspaceError, ValueError):
    """Settings, environments or updates of reinforcement learning are invalid; says what would fix it."""
