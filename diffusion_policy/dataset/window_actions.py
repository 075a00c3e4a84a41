"""The actions of windows as a policy learns them: in its rotation representation, absolute or relative to the newest
pose.

Legend: N steps in all, D numbers of a recorded action, Da of the policy's, B windows, T horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_policy.dataset.observations import gather
from diffusion_policy.dataset.sources import Source
from diffusion_policy.dataset.windows import IndexArray
from diffusion_policy.spec import SpecError, StepSpec, StepTransform, arms_of

# Windows whose relative actions are computed at a time.
_WINDOWS_AT_ONCE = 4096


class WindowActions:
    """Actions by step or, if relative, by window.

    Args:
        transform: to the policy's numbers.
        sources: as recorded, in order.
        device: on which actions are returned.

    Attributes:
        relative: whether a window's actions also depend on its newest observation.
    """

    def __init__(self, transform: StepTransform, sources: Sequence[Source], device: str | torch.device) -> None:
        self._transform = transform
        self.relative = transform.policy.relative
        self._recorded: NDArray[np.float32] = np.concatenate([source.action for source in sources])
        self._device = torch.device(device)
        if self.relative:
            keys = [field.key for field in transform.robot.low_dim]
            states = {key: np.concatenate([source.low_dim[key] for source in sources])[:, None] for key in keys}
            self._states = transform.state(states)
        else:
            rows = self._recorded if transform.is_identity else transform.trained(self._recorded, None)
            self.rows = torch.from_numpy(rows.astype(np.float32, copy=False)).to(self._device)

    def at(self, newest: IndexArray, steps: IndexArray) -> Tensor:
        """(B, T, Da) float32 of the steps (B, T), in windows whose newest observed steps are ``newest`` (B,)."""
        if not self.relative:
            return gather(self.rows, steps)
        parts = [
            self._transform.trained(self._recorded[steps[part]], self._states[newest[part]])
            for part in _parts(len(steps))
        ]
        return torch.from_numpy(np.concatenate(parts).astype(np.float32)).to(self._device)


def with_differences(source: Source, spec: StepSpec) -> Source:
    """The dataset with differences of successive commands as actions; the first of each episode is zero.

    Raises:
        SpecError: the policy's action has names of a pose, joints or grippers, which a difference is not.
    """
    if any(arm.position or arm.rotation or arm.gripper or arm.joints for arm in arms_of(spec.action_names)):
        raise SpecError(
            f"task.dataset.action_differences: shape_meta.action.names are {list(spec.action_names)}; "
            "differences are not poses, and executed as such they would move the arm to its base: name them dx, dy, ..."
        )
    differences = np.diff(source.action, axis=0, prepend=source.action[:1])
    differences[source.episode_ends[:-1]] = 0
    return replace(source, action=differences)


def _parts(n: int) -> list[slice]:
    return [slice(start, start + _WINDOWS_AT_ONCE) for start in range(0, max(n, 1), _WINDOWS_AT_ONCE)]
