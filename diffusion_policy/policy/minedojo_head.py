"""A head for MineDojo's slots: one linear layer per slot on VPT's latent, as a public guide builds it.

It exists next to VPT's joint head, so that both can be compared on the same frames: `minecraft.minedojo` translates
between slots and VPT's 22 numbers. What rounding takes from a turn is carried over to the next frame of the episode.

Legend of shapes: B episodes, T frames, F features, n choices per slot.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from diffusion_policy.minecraft.actions import BUTTONS
from diffusion_policy.minecraft.minedojo import CameraRemainder, MineDojoSpace

SLOTS = ("fore_back", "left_right", "posture", "pitch", "yaw", "function", "craft", "inventory")


class MineDojoHead(nn.ModuleDict):
    """Log-probabilities of each slot.

    Args:
        features: F.
        space: that defines the slots.
    """

    def __init__(self, features: int, space: MineDojoSpace) -> None:
        super().__init__({name: nn.Linear(features, n) for name, n in zip(SLOTS, space.sizes, strict=True)})
        self._space = space

    def forward(self, latent: Tensor) -> dict[str, Tensor]:
        """(B, T, F) -> (B, T, n) by slot."""
        return {name: functional.log_softmax(layer(latent).float(), dim=-1) for name, layer in self.items()}

    def classes_of(
        self, numbers: NDArray[np.floating], first: NDArray[np.bool_], owed: NDArray[np.floating]
    ) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.float64]]:
        """Actions as choices.

        Args:
            numbers: (B, T, 22).
            first: (B, T), where episodes start.
            owed: (B, 2) degrees of pitch and yaw left over from earlier frames.

        Returns:
            Choices (B, T) by slot, and (B, 2) degrees left over.
        """
        found = np.zeros((*numbers.shape[:2], len(SLOTS)), dtype=np.int64)
        left = np.zeros((len(numbers), 2))
        for row, (actions, starts) in enumerate(zip(numbers, first, strict=True)):
            remainder = CameraRemainder(np.array(owed[row], dtype=np.float64))
            for frame, (action, begins) in enumerate(zip(actions, starts, strict=True)):
                if begins:
                    remainder.reset()
                pressed = {name: int(value > 0.5) for name, value in zip(BUTTONS, action, strict=False)}
                turned = {**pressed, "camera": action[len(BUTTONS) :]}
                found[row, frame] = self._space.from_vpt(turned, remainder).action
            left[row] = remainder.degrees
        return dict(zip(SLOTS, np.moveaxis(found, -1, 0), strict=True)), left

    def numbers_of(self, classes: Mapping[str, Tensor]) -> NDArray[np.float32]:
        """Choices (B, T) by slot -> actions (B, T, 22)."""
        slots = torch.stack([classes[name] for name in SLOTS], dim=-1).cpu().numpy()
        actions = [self._space.to_vpt(one).action for one in slots.reshape(-1, len(SLOTS))]
        numbers = [[*(action[name] for name in BUTTONS), *action["camera"]] for action in actions]
        return np.array(numbers, dtype=np.float32).reshape(*slots.shape[:-1], -1)
