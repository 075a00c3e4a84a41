"""Smoothing of what a plan has yet to execute: a binomial filter over its steps.

A denoised chunk carries noise of a few millimeters from step to step, which an arm feels as jerk. Each pass replaces a
step by the mean of itself (weight 1/2) and its two neighbors (1/4 each); before the first step that neighbor is what
the arm is commanded to, so the seam to the former chunk is smoothed as well. The filter is symmetric and adds no delay.
Grippers are left as they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from diffusion_policy.serve.client.plan import Plan
from diffusion_policy.serve.client.strategies import mean_action

_WEIGHTS = np.array([0.25, 0.5, 0.25])


def smoothed(plan: Plan, passes: int) -> Plan:
    """Returns the plan with its remaining steps smoothed; its last step stays.

    Args:
        plan: whose steps from ``plan.first`` on are smoothed.
        passes: how often; 0 returns the plan as it is.
    """
    if not passes:
        return plan
    rows, columns = plan.chunk.actions.copy(), list(plan.layout.gripper_columns)
    for _ in range(passes):
        before = rows.copy()
        for step in range(plan.first, len(rows) - 1):
            earlier = before[step - 1] if step > plan.first else plan.start
            rows[step] = mean_action(plan.layout, [earlier, before[step], before[step + 1]], _WEIGHTS)
        rows[:, columns] = plan.chunk.actions[:, columns]
    return replace(plan, chunk=replace(plan.chunk, actions=rows))
