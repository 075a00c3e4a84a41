"""Trunk and heads of VPT, under the names of the released weights (``net``, ``pi_head``, ``value_head``).

Legend of shapes: B episodes, T frames, F features, n classes of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusion_policy.model.vpt.attention import Memory, RecurrentBlock
from diffusion_policy.model.vpt.layers import DownStack, ImageProcess, NormLinear, ResidualBlock, set_row_norms

State = list[Memory]
# Decay of the running statistics of returns.
_KEPT, _LEAST_DEBIASING, _LEAST_VARIANCE = 0.99999, 1e-5, 0.01
_BLOCK_CONV_NORM = (3**0.5 / 2**0.5) ** 0.5
_DENSE_NORM = 1.4
# Releases by features, width of the convolutions, heads and blocks.
_RELEASES = {(1024, 4, 8, 4): "1x", (2048, 8, 16, 4): "2x", (3072, 12, 24, 4): "3x"}


@dataclass(frozen=True)
class VPTSettings:
    """The settings that shape a policy.

    Attributes:
        hidsize: F, features of the trunk.
        impala_width: multiplies the channels of the convolutions.
        impala_chans: channels of the stacks.
        n_recurrence_layers: blocks of attention.
        attention_heads: of each block.
        attention_memory_size: frames; the window is this less ``timesteps``.
        timesteps: frames of a chunk that upstream trains with.
        pointwise_ratio: width of a block's dense layers in units of F.
        img_shape: (height, width, 3).
        temperature: divisor of the action logits.
    """

    hidsize: int = 2048
    impala_width: int = 8
    impala_chans: tuple[int, ...] = (16, 32, 32)
    n_recurrence_layers: int = 4
    attention_heads: int = 16
    attention_memory_size: int = 256
    timesteps: int = 128
    pointwise_ratio: int = 4
    img_shape: tuple[int, int, int] = (128, 128, 3)
    temperature: float = 2.0

    @property
    def window(self) -> int:
        """Frames that a frame can see, itself included."""
        return self.attention_memory_size - self.timesteps

    @property
    def release(self) -> str:
        """The release of this size, "1x", "2x" or "3x"; empty if there is none."""
        return _RELEASES.get((self.hidsize, self.impala_width, self.attention_heads, self.n_recurrence_layers), "")


class Recurrence(nn.Module):
    """A stack of attention blocks."""

    def __init__(self, settings: VPTSettings):
        super().__init__()
        self.blocks = nn.ModuleList(
            RecurrentBlock(settings.hidsize, settings.attention_heads, settings.window, settings.pointwise_ratio)
            for _ in range(settings.n_recurrence_layers)
        )

    def forward(self, features: Tensor, first: Tensor, state: Sequence[Memory]) -> tuple[Tensor, State]:
        """(B, T, F), (B, T) bool -> (B, T, F) and the memory of each block after it."""
        memories = []
        for block, memory in zip(self.blocks, state, strict=True):
            features, remembered = block(features, first, memory)
            memories.append(remembered)
        return features, memories


class VPTNetwork(nn.Module):
    """Maps frames to the latent that all heads read."""

    def __init__(self, settings: VPTSettings):
        super().__init__()
        height, width, _ = settings.img_shape
        self.img_process = ImageProcess((height, width), settings.impala_chans, settings.impala_width, settings.hidsize)
        self.recurrent_layer = Recurrence(settings)
        self.lastlayer = NormLinear(settings.hidsize, settings.hidsize)
        self.final_ln = nn.LayerNorm(settings.hidsize)

    def forward(self, frames: Tensor, first: Tensor, state: Sequence[Memory]) -> tuple[Tensor, State]:
        """(B, T, height, width, 3) uint8 and (B, T) bool -> (B, T, F) and the memory."""
        features, after = self.recurrent_layer(self.img_process(frames), first, state)
        return self.final_ln(self.lastlayer(functional.relu(features))), after

    def reset_parameters(self) -> None:
        """Initialize as upstream does: rows of weights have fixed norms, biases are 0."""
        for stack in self.img_process.cnn.stacks:
            assert isinstance(stack, DownStack)
            set_row_norms(stack.firstconv.layer, 1.0)
            for block in stack.blocks:
                assert isinstance(block, ResidualBlock)
                set_row_norms(block.conv0.layer, _BLOCK_CONV_NORM)
                set_row_norms(block.conv1.layer, _BLOCK_CONV_NORM)
        set_row_norms(self.img_process.cnn.dense.layer, _DENSE_NORM)
        set_row_norms(self.img_process.linear.layer, 1.0)
        set_row_norms(self.lastlayer.layer, 1.0)
        for block in self.recurrent_layer.blocks:
            assert isinstance(block, RecurrentBlock)
            block.reset_parameters(len(self.recurrent_layer.blocks))


class CategoricalHead(nn.Module):
    """Log-probabilities of one factor of the action."""

    def __init__(self, features: int, classes: int, temperature: float):
        super().__init__()
        self.linear_layer = nn.Linear(features, classes)
        self._temperature = temperature

    def forward(self, latent: Tensor) -> Tensor:
        """(B, T, F) -> (B, T, 1, n) log-probabilities."""
        logits = self.linear_layer(latent)[..., None, :] / self._temperature
        return functional.log_softmax(logits.float(), dim=-1)


class ActionHeads(nn.ModuleDict):
    """One head for each factor of the action."""

    def __init__(self, features: int, classes: Mapping[str, int], temperature: float):
        super().__init__({name: CategoricalHead(features, count, temperature) for name, count in classes.items()})

    def forward(self, latent: Tensor) -> dict[str, Tensor]:
        """(B, T, F) -> log-probabilities (B, T, 1, n) by factor."""
        return {name: head(latent) for name, head in self.items()}


class RunningReturns(nn.Module):
    """Mean and mean square of returns, kept by an exponential average that starts at 0 and is corrected for that."""

    def __init__(self) -> None:
        super().__init__()
        self.running_mean = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.running_mean_sq = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.debiasing_term = nn.Parameter(torch.zeros(()), requires_grad=False)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (1,), the variance at least 0.01."""
        bias = self.debiasing_term.clamp(min=_LEAST_DEBIASING)
        mean = self.running_mean / bias
        return mean, (self.running_mean_sq / bias - mean**2).clamp(min=_LEAST_VARIANCE)

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        """Add returns (B, T): their mean and mean square enter the averages, regardless of their number.

        The decay is upstream's; debiased, the averages weight the first hundred thousand calls almost equally.
        """
        for average, found in (
            (self.running_mean, returns.mean()),
            (self.running_mean_sq, returns.square().mean()),
            (self.debiasing_term, 1.0),
        ):
            average.mul_(_KEPT).add_(found * (1 - _KEPT))

    def normalize(self, returns: Tensor) -> Tensor:
        """Returns in normalized units: the inverse of ``denormalize``."""
        mean, variance = self.moments()
        return (returns - mean) / variance.sqrt()

    def denormalize(self, values: Tensor) -> Tensor:
        """Values in units of returns."""
        mean, variance = self.moments()
        return values * variance.sqrt() + mean


class ValueHead(nn.Module):
    """The expected return, in normalized units."""

    def __init__(self, features: int):
        super().__init__()
        self.linear = nn.Linear(features, 1)
        self.normalizer = RunningReturns()

    def forward(self, latent: Tensor) -> Tensor:
        """(B, T, F) -> (B, T, 1)."""
        return self.linear(latent)

    def denormalize(self, values: Tensor) -> Tensor:
        """(B, T, 1) in units of returns."""
        return self.normalizer.denormalize(values)
