"""VPT's agent: the policy under the names of the released weights, and the agent that plays with it.

    agent = VPTAgent(policy_kwargs, pi_head_kwargs)
    report = agent.load_weights("foundation-model-2x.weights")   # states what was loaded and what was dropped
    agent.reset()
    action = agent.get_action({"pov": frame})                    # {"attack": 0 | 1, ..., "camera": (pitch, yaw)}

``policy_kwargs`` and ``pi_head_kwargs`` are upstream's; settings that shape tensors can also be read from a file
(``settings_of``). Weights are opened without running code.

Legend of shapes: B episodes, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion_policy.minecraft.actions import N_BUTTONS, N_CAMERA, to_environment, to_factored
from diffusion_policy.model.vpt.attention import Memory
from diffusion_policy.model.vpt.network import ActionHeads, State, ValueHead, VPTNetwork, VPTSettings
from diffusion_policy.policy.sequences import divergence, draw_classes, total_surprise
from diffusion_policy.policy.vpt_weights import (
    LoadReport,
    VPTError,
    check_settings,
    check_trunk,
    load_weights,
    prefix_of,
    read_model_file,
    read_settings,
    settings_of,
)
from diffusion_policy.tensor_file import open_tensor_file

__all__ = [
    "LoadReport",
    "MinecraftAgentPolicy",
    "VPTAgent",
    "VPTError",
    "load_weights",
    "read_model_file",
    "read_settings",
    "settings_of",
]

FACTORS = {"camera": N_CAMERA, "buttons": N_BUTTONS}


class MinecraftAgentPolicy(nn.Module):
    """Network and heads under the released names: 134 tensors at four blocks."""

    def __init__(self, settings: VPTSettings | None = None):
        super().__init__()
        self.settings = settings or VPTSettings()
        self.net = VPTNetwork(self.settings)
        self.value_head = ValueHead(self.settings.hidsize)
        self.pi_head = ActionHeads(self.settings.hidsize, FACTORS, self.settings.temperature)
        self.net.reset_parameters()

    def initial_state(self, batch: int = 1) -> State:
        """The memory before the first frame."""
        weight = self.net.final_ln.weight
        empty = weight.new_zeros(batch, self.settings.window, self.settings.hidsize)
        return [Memory(None, empty, empty) for _ in range(self.settings.n_recurrence_layers)]

    def forward(
        self, observation: Mapping[str, Tensor], first: Tensor, state: Sequence[Memory]
    ) -> tuple[tuple[dict[str, Tensor], Tensor, None], State]:
        """Log-probabilities and values of a chunk of frames, and the memory after it.

        Args:
            observation: {"img": (B, T, 128, 128, 3) uint8 RGB}.
            first: (B, T) bool, true where an episode starts, anywhere in the chunk.
            state: of each block.

        Returns:
            (({"camera": (B, T, 1, 121), "buttons": (B, T, 1, 8641)}, (B, T, 1) normalized values, None), state).

        Raises:
            VPTError: frames or ``first`` have the wrong type or shape.
        """
        frames = observation["img"]
        if frames.dtype != torch.uint8 or frames.ndim != 5 or tuple(frames.shape[2:]) != self.settings.img_shape:
            expected = ", ".join(map(str, self.settings.img_shape))
            raise VPTError(f"img is {frames.dtype} {tuple(frames.shape)}; expected uint8 (B, T, {expected}), RGB")
        if first.dtype != torch.bool or first.shape != frames.shape[:2]:
            raise VPTError(f"first is {first.dtype} {tuple(first.shape)}; expected bool {tuple(frames.shape[:2])}")
        latent, after = self.net(frames, first, state)
        return (self.pi_head(latent), self.value_head(latent), None), after

    def log_prob(self, log_probabilities: Mapping[str, Tensor], action: Mapping[str, Tensor]) -> Tensor:
        """(B, T) log-probability of actions (B, T, 1) by factor: the sum of both factors, as upstream counts it."""
        return -total_surprise(log_probabilities, action).squeeze(-1)

    def entropy(self, log_probabilities: Mapping[str, Tensor]) -> Tensor:
        """(B, T) entropy, the sum over both factors."""
        return torch.stack([-(part.exp() * part).sum(dim=(-2, -1)) for part in log_probabilities.values()]).sum(dim=0)

    def kl(self, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
        """(B, T, 1) KL divergence of ``one`` from ``other``, the sum over both factors."""
        return divergence(one, other)

    def sample(
        self, log_probabilities: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Actions (B, T, 1) by factor: drawn with the generator, or the most probable without one."""
        return draw_classes(log_probabilities, generator)


class VPTAgent:
    """A policy with its memory, one frame at a time, with the interface of upstream's agent.

    Attributes:
        policy: the network and its heads.
        hidden_state: its memory; replaced by ``reset``.
        loaded: report of the last load; None before the first.
    """

    loaded: LoadReport | None = None

    def __init__(
        self,
        policy_kwargs: Mapping[str, Any] | None = None,
        pi_head_kwargs: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
    ):
        self.device = torch.device(device)
        self.policy = MinecraftAgentPolicy(read_settings(policy_kwargs, pi_head_kwargs)).to(self.device).eval()
        self.hidden_state = self.policy.initial_state()

    @classmethod
    def from_weights(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        *,
        model: str | Path | None = None,
        repair: bool = True,
    ) -> VPTAgent:
        """An agent with a file's weights, in the size given by their shapes.

        Args:
            path: of a ``.weights`` file.
            device: to act on.
            model: the released ``.model`` file of that size, which also holds the temperature; None: 2.0, as released.
            repair: whether to remove a prefix that a wrapper put before every name.

        Raises:
            VPTError: the files are not VPT's, or their sizes differ.
            WorkspaceError: one cannot be opened safely.
        """
        shapes = {name: info.shape for name, info in open_tensor_file(path).tensors.items()}
        prefix = prefix_of(shapes)
        named = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
        check_trunk(path, named)
        settings = settings_of(named)
        if model is not None:
            from_file = read_model_file(model)
            check_settings(settings, from_file, model)
            settings = from_file
        agent = cls.__new__(cls)
        agent.device = torch.device(device)
        agent.policy = MinecraftAgentPolicy(settings).to(agent.device).eval()
        agent.hidden_state = agent.policy.initial_state()
        agent.load_weights(path, repair=repair)
        return agent

    def load_weights(self, path: str | Path, *, repair: bool = False) -> LoadReport:
        """Load all weights of a file into the policy, or none.

        Args:
            path: of a ``.weights`` file.
            repair: whether to remove a prefix that a wrapper put before every name.

        Raises:
            VPTError: names or shapes do not match; says why, and what would fix it.
            WorkspaceError: the file cannot be opened safely.
        """
        self.loaded = load_weights(self.policy, path, repair=repair)
        self.reset()
        return self.loaded

    def reset(self) -> None:
        """Forget all frames, at the start of an episode."""
        self.hidden_state = self.policy.initial_state()

    @torch.inference_mode()
    def get_action(
        self, observation: Mapping[str, Any] | NDArray[np.uint8], generator: torch.Generator | None = None
    ) -> dict[str, Any]:
        """The action for one frame: {"attack": 0 | 1, ..., "camera": (2,) degrees (pitch, yaw)}.

        Args:
            observation: {"pov": (H, W, 3) uint8 RGB}, or the frame alone, also as (1, H, W, 3).
            generator: draws the action; without it, the most probable one is taken.

        Raises:
            VPTError: the frame has the wrong type or shape.
        """
        frame = torch.from_numpy(self._frame(observation))[None, None].to(self.device)
        first = torch.zeros(1, 1, dtype=torch.bool, device=self.device)
        (found, _, _), self.hidden_state = self.policy({"img": frame}, first, self.hidden_state)
        joint = {name: value[0, 0, 0].cpu().numpy() for name, value in self.policy.sample(found, generator).items()}
        return to_environment(to_factored(joint))

    def _frame(self, observation: Mapping[str, Any] | NDArray[np.uint8]) -> NDArray[np.uint8]:
        if isinstance(observation, Mapping) and "pov" not in observation:
            raise VPTError(f"an observation with {sorted(map(str, observation))}; expected 'pov'")
        frame = np.asarray(observation["pov"] if isinstance(observation, Mapping) else observation)
        if frame.ndim == 4 and len(frame) == 1:
            frame = frame[0]
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            hint = "; it is channels first: transpose it" if frame.ndim == 3 and frame.shape[0] == 3 else ""
            raise VPTError(f"the frame is {frame.dtype} {frame.shape}; expected uint8 (H, W, 3), RGB{hint}")
        height, width, _ = self.policy.settings.img_shape
        if frame.shape[:2] != (height, width):
            frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
        return np.ascontiguousarray(frame)
