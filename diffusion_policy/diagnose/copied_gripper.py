"""Whether the commanded gripper can be copied from the measured one: the one measure of this in recorded data.

If a command is already measured at the step that gives it, it is part of the policy's input, so a policy can learn to
copy it and never to decide. What a policy has learned is measured on its own commands: `evaluate.verdicts` judges those
of a log, and `evaluate.open_loop` compares them with the baseline that copies the measured gripper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffusion_policy.diagnose.steps import Steps
from diffusion_policy.gripper_events import OPEN, gripper_events, gripper_states


@dataclass(frozen=True)
class Copying:
    """Commanded and measured grippers of recorded steps, over all episodes.

    Attributes:
        equal_steps: number of steps at which both are equal for every gripper.
        transitions: number of events of the commanded grippers.
        equal_transitions: how many of these are measured at the very step that commands them.
        first_measured: steps from a command to its measurement, for each transition that is measured at all.
        equal_share: share of the numbers that are equal, over steps and grippers.
    """

    equal_steps: int
    transitions: int
    equal_transitions: int
    first_measured: tuple[int, ...]
    equal_share: float

    @property
    def leading(self) -> int:
        """Transitions that are not yet measured at the step that commands them, which a copy gets wrong."""
        return self.transitions - self.equal_transitions


def copying_of(steps: Steps) -> Copying | None:
    """Compares the commanded with the measured grippers; None if one of them is missing."""
    command, measured = steps.commanded_grippers(), steps.measured_grippers()
    if command is None or measured is None:
        return None
    command, measured = np.nan_to_num(command), np.nan_to_num(measured)
    delays: list[int | None] = []
    for part in steps.slices:
        for commands, positions in zip(command[part].T, measured[part].T, strict=True):
            states = gripper_states(positions)
            for step, kind in gripper_events(commands):
                there = np.flatnonzero((states[step:] == OPEN) == (kind == "open"))
                delays.append(int(there[0]) if len(there) else None)
    return Copying(
        equal_steps=int((command == measured).all(axis=1).sum()),
        transitions=len(delays),
        equal_transitions=sum(delay == 0 for delay in delays),
        first_measured=tuple(delay for delay in delays if delay is not None),
        equal_share=float((command == measured).mean()),
    )
