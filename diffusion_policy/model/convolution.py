"""Convolutions that learn faster on a CPU in float32: the same sums, in an order that costs less.

3x3, stride 1, many channels: Winograd (1980). A tile of m x m outputs needs m + 2 numbers of input each way. Brought to
(m + 2)^2 points by fixed small matrices, the convolution is one matrix product over channels at each point, and so are
both of its gradients: (m + 2)^2 / m^2 multiplications an output instead of 9. Matrices: Lavin & Gray 2015
(arXiv:1509.09308). All others are the library's, with weight gradients from planar copies, for which its AVX2 kernels
are twice as fast as with channels innermost. Rounding differs from torch's own in the sixth digit.

Legend of shapes: N images, H W size, C input and K output channels, m tile size, Q = (m + 2)^2 points, P tiles of all
images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Below this many channels the small matrices cost what the large products save.
FEWEST_CHANNELS = 128
# Feature maps this small are cut into tiles of 3, of which fewer hang over the border.
SMALL_MAP = 8


@dataclass(frozen=True)
class Points:
    """The small matrices of one tile size, for both directions at once.

    Attributes:
        of_input: (Q, Q) from an input tile to points.
        of_kernel: (Q, 9) from a kernel to points.
        to_output: (m * m, Q) from points to an output tile.
    """

    of_input: Tensor
    of_kernel: Tensor
    to_output: Tensor


@cache
def points(tile: int) -> Points:
    """Matrices of tiles of 3 (points 0, 1, -1, 2 and infinity) and 4 (0, 1, -1, 2, -2 and infinity)."""
    if tile == 3:
        of_input = [[2, -1, -2, 1, 0], [0, -2, -1, 1, 0], [0, 2, -3, 1, 0], [0, -1, 0, 1, 0], [0, 2, -1, -2, 1]]
        of_kernel = [[1 / 2, 0, 0], [-1 / 2] * 3, [-1 / 6, 1 / 6, -1 / 6], [1 / 6, 1 / 3, 2 / 3], [0, 0, 1]]
        to_output = [[1, 1, 1, 1, 0], [0, 1, -1, 2, 0], [0, 1, 1, 4, 1]]
    else:
        of_input = [
            [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
        ]  # fmt: skip
        of_kernel = [
            [1 / 4, 0, 0], [-1 / 6] * 3, [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
        ]  # fmt: skip
        to_output = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
    both = [torch.tensor(one, dtype=torch.float64) for one in (of_input, of_kernel, to_output)]
    return Points(*(torch.kron(matrix, matrix).float() for matrix in both))


@dataclass(frozen=True)
class Tiling:
    """How images of one size are cut into tiles."""

    n: int
    height: int
    width: int
    tile: int

    @classmethod
    def of(cls, images: Tensor) -> Tiling:
        """Of (N, H, W, channels)."""
        n, height, width, _ = images.shape
        return cls(n, height, width, 3 if min(height, width) <= SMALL_MAP else 4)

    @property
    def rows(self) -> int:
        """Tiles one above the other."""
        return -(-self.height // self.tile)

    @property
    def columns(self) -> int:
        """Tiles beside each other."""
        return -(-self.width // self.tile)

    def input_points(self, images: Tensor) -> Tensor:
        """(N, H, W, C) -> (Q, P, C): what a convolution with padding 1 reads, at points."""
        tile, size, channels = self.tile, self.tile + 2, images.shape[-1]
        below, right = self.rows * tile + 1 - self.height, self.columns * tile + 1 - self.width
        padded = functional.pad(images, (0, 0, 1, right, 1, below))
        image, row, column, channel = padded.stride()
        tiles = padded.as_strided(
            (size, size, self.n, self.rows, self.columns, channels),
            (row, column, image, tile * row, tile * column, channel),
        )
        return (points(tile).of_input @ tiles.reshape(size * size, -1)).view(size * size, -1, channels)

    def output(self, at_points: Tensor) -> Tensor:
        """(Q, P, K) -> (N, H, W, K)."""
        tile, channels = self.tile, at_points.shape[-1]
        tiles = points(tile).to_output @ at_points.reshape(len(at_points), -1)
        tiles = tiles.view(tile, tile, self.n, self.rows, self.columns, channels).permute(2, 3, 0, 4, 1, 5)
        whole = tiles.reshape(self.n, self.rows * tile, self.columns * tile, channels)
        return whole[:, : self.height, : self.width]

    def output_gradient_points(self, gradient: Tensor) -> Tensor:
        """(N, H, W, K) -> (Q, P, K): the transpose of `output`."""
        tile, channels = self.tile, gradient.shape[-1]
        below, right = self.rows * tile - self.height, self.columns * tile - self.width
        whole = functional.pad(gradient, (0, 0, 0, right, 0, below))
        tiles = whole.view(self.n, self.rows, tile, self.columns, tile, channels).permute(2, 4, 0, 1, 3, 5)
        matrix = points(tile).to_output
        return (matrix.T @ tiles.reshape(tile * tile, -1)).view(matrix.shape[1], -1, channels)


def _kernel_points(weight: Tensor, tile: int, *, turned: bool = False) -> Tensor:
    """(K, C, 3, 3) -> (Q, K, C); `turned` by 180 degrees."""
    matrix = points(tile).of_kernel
    if turned:
        matrix = matrix.flip(1)
    n_outputs = len(weight)
    # One small product an output channel: as one product it is three times slower, since 9 numbers lie side by side.
    return torch.bmm(matrix.expand(n_outputs, -1, -1), weight.reshape(n_outputs, -1, 9).mT).permute(1, 0, 2)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        images = images.permute(0, 2, 3, 1)
        tiling = Tiling.of(images)
        read = tiling.input_points(images)
        ctx.tiling = tiling
        ctx.save_for_backward(read, weight)
        at_points = torch.bmm(read, _kernel_points(weight, tiling.tile).transpose(1, 2))
        return tiling.output(at_points).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        tiling, (read, weight) = ctx.tiling, ctx.saved_tensors
        gradient = gradient.permute(0, 2, 3, 1).contiguous()
        kernel = torch.bmm(tiling.output_gradient_points(gradient).transpose(1, 2), read)  # (Q, K, C)
        of_weight = (points(tiling.tile).of_kernel.T @ kernel.view(len(kernel), -1)).T.reshape(weight.shape)
        # The gradient of the input is the convolution of the output's gradient with the turned kernel.
        turned = _kernel_points(weight, tiling.tile, turned=True)
        of_images = tiling.output(torch.bmm(tiling.input_points(gradient), turned))
        return of_images.permute(0, 3, 1, 2), of_weight


class _PlanarWeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.geometry = (None, stride, padding, (1, 1), False, (0, 0), 1)
        return functional.conv2d(images, weight, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        images, weight = ctx.saved_tensors
        gradients = torch.ops.aten.convolution_backward
        of_images = None
        if ctx.needs_input_grad[0]:
            of_images, _, _ = gradients(gradient, images, weight, *ctx.geometry, (True, False, False))
        planar = gradient.contiguous(), images.contiguous(), weight
        _, of_weight, _ = gradients(*planar, *ctx.geometry, (False, True, False))
        return of_images, of_weight, None, None


class Convolution(nn.Conv2d):
    """Convolution without bias; `fast` makes training steps use what this module is about (float32 on a CPU only)."""

    def __init__(self, in_channels: int, channels: int, size: int, stride: int = 1, *, padding: int = 0) -> None:
        super().__init__(in_channels, channels, size, stride, padding, bias=False)
        self.fast = False

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, ceil(H / stride), ceil(W / stride)) for odd sizes padded by half."""
        if not (self.fast and self.training):
            return super().forward(images)
        plain = self.kernel_size == (3, 3) and self.stride == (1, 1) and self.padding == (1, 1)
        if plain and min(self.weight.shape[:2]) >= FEWEST_CHANNELS:
            return _Winograd.apply(images, self.weight)
        return _PlanarWeightGradient.apply(images, self.weight, self.stride, self.padding)


def train_fast_on_cpu(model: nn.Module) -> None:
    """Let all convolutions of a model train the fast way; its results in eval mode stay what they are."""
    for module in model.modules():
        if isinstance(module, Convolution):
            module.fast = True
