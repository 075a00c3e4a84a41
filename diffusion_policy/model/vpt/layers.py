"""Layers of VPT: norm, then linear or convolution, then ReLU; a bias only where there is no norm.

Names of parameters are those of the released weights (``norm``, ``layer``).

Legend of shapes: N frames, C channels, H W height and width, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 1
DENSE_WIDTH = 256


class NormLinear(nn.Module):
    """LayerNorm, linear without bias, and ReLU if ``activates``; without ``normalizes``, linear with a bias."""

    def __init__(self, inputs: int, outputs: int, *, normalizes: bool = True, activates: bool = True):
        super().__init__()
        self.norm = nn.LayerNorm(inputs) if normalizes else None
        self.layer = nn.Linear(inputs, outputs, bias=not normalizes)
        self._activates = activates

    def forward(self, features: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        features = self.layer(features if self.norm is None else self.norm(features))
        return functional.relu(features) if self._activates else features


class NormConv(nn.Module):
    """GroupNorm of one group, 3x3 convolution without bias, ReLU; without ``normalizes`` a convolution with a bias."""

    def __init__(self, inputs: int, outputs: int, *, normalizes: bool = True):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, inputs) if normalizes else None
        self.layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not normalizes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        return functional.relu(self.layer(images if self.norm is None else self.norm(images)))


class ResidualBlock(nn.Module):
    """Two convolutions whose output, after its ReLU, is added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv0 = NormConv(channels, channels)
        self.conv1 = NormConv(channels, channels)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return images + self.conv1(self.conv0(images))


class DownStack(nn.Module):
    """Convolution, max pooling to half the size, norm, and residual blocks."""

    def __init__(self, inputs: int, outputs: int, *, normalizes_first: bool, n_blocks: int = 2):
        super().__init__()
        self.firstconv = NormConv(inputs, outputs, normalizes=normalizes_first)
        self.n = nn.GroupNorm(GROUPS, outputs)
        self.blocks = nn.ModuleList(ResidualBlock(outputs) for _ in range(n_blocks))

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / 2, W / 2)."""
        images = self.n(functional.max_pool2d(self.firstconv(images), 3, stride=2, padding=1))
        for block in self.blocks:
            images = block(images)
        return images


class ImpalaCNN(nn.Module):
    """Stacks of convolutions (Espeholt et al. 2018, IMPALA), flattened in the order C, H, W, and one dense layer."""

    def __init__(self, image_size: tuple[int, int], channels: Sequence[int], width: int):
        super().__init__()
        counts = [3, *(width * channel for channel in channels)]
        self.stacks = nn.ModuleList(
            DownStack(before, after, normalizes_first=index > 0)
            for index, (before, after) in enumerate(pairwise(counts))
        )
        height, breadth = image_size
        for _ in channels:
            height, breadth = -(-height // 2), -(-breadth // 2)
        self.dense = NormLinear(counts[-1] * height * breadth, DENSE_WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float -> (N, 256)."""
        for stack in self.stacks:
            images = stack(images)
        return self.dense(images.flatten(1))


class ImageProcess(nn.Module):
    """Frames to features of the trunk's width."""

    def __init__(self, image_size: tuple[int, int], channels: Sequence[int], width: int, features: int):
        super().__init__()
        self.cnn = ImpalaCNN(image_size, channels, width)
        self.linear = NormLinear(DENSE_WIDTH, features)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 -> (B, T, F)."""
        batch, steps = frames.shape[:2]
        images = frames.flatten(0, 1).permute(0, 3, 1, 2).to(self.linear.layer.weight.dtype) / 255
        return self.linear(self.cnn(images)).reshape(batch, steps, -1)


@torch.no_grad()
def set_row_norms(layer: nn.Linear | nn.Conv2d, norm: float) -> None:
    """Scale each output unit's weights to this L2 norm, and set its bias to 0."""
    weight = layer.weight
    if weight.is_meta:  # of a module that is built for its shapes alone
        return
    weight *= norm / weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
    if layer.bias is not None:
        layer.bias.zero_()
