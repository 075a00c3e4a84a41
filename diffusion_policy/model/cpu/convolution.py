"""Convolutions that are cheaper on a CPU in float32: the same sums, in another order.

3x3, stride 1, many channels: Winograd (1980). A tile of m x m outputs needs m + 2 input numbers each way. Transformed
to (m + 2)^2 points by small fixed matrices, the convolution is one matrix product over channels at each point, and so
are both of its gradients: (m + 2)^2 / m^2 multiplications per output instead of 9. Matrices: Lavin & Gray 2015
(arXiv:1509.09308). The transforms are compiled (kernels/winograd.cpp). All other convolutions are trained with the
library's. Rounding differs from torch's own in the sixth digit.

Legend of shapes: N images, H W size, C input and K output channels, m tile size, Q = (m + 2)^2 points, P tiles of all
images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from diffusion_policy.model.cpu import kernels

# Below this many channels the transforms cost what the cheaper products save.
FEWEST_CHANNELS = 64
# Feature maps this small use the smaller tiles, which waste less at the border.
SMALL_MAP, SMALL_TILE, LARGE_TILE = 8, 3, 4
# Numbers of points processed at a time: 8 MB stay in a CPU's cache. Larger kernels: enough to pay for reading one.
CACHED = 2 << 20


def tile_of(images: Tensor) -> int:
    """Size of the tiles of images (N, H, W, C)."""
    return SMALL_TILE if min(images.shape[1:3]) <= SMALL_MAP else LARGE_TILE


@cache
def of_kernel(tile: int) -> Tensor:
    """The matrix (Q, 9) from a 3x3 kernel to points; the others are in kernels/winograd.cpp."""
    if tile == SMALL_TILE:
        matrix = [[1 / 2, 0, 0], [-1 / 2] * 3, [-1 / 6, 1 / 6, -1 / 6], [1 / 6, 1 / 3, 2 / 3], [0, 0, 1]]
    else:
        matrix = [
            [1 / 4, 0, 0], [-1 / 6] * 3, [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
        ]  # fmt: skip
    exact = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(exact, exact).float()


def kernel_points(weight: Tensor, tile: int, *, turned: bool = False) -> Tensor:
    """(K, C, 3, 3) -> (Q, K, C); with `turned`, rotated by 180 degrees."""
    matrix = of_kernel(tile)
    if turned:
        matrix = matrix.flip(1)
    n_outputs = len(weight)
    # One small product per output channel: a single product is three times slower, since only 9 numbers are adjacent.
    return torch.bmm(matrix.expand(n_outputs, -1, -1), weight.reshape(n_outputs, -1, 9).mT).permute(1, 0, 2)


def images_at_a_time(images: Tensor, tile: int, kernel: Tensor) -> int:
    """How many of the images (N, H, W, C) to transform at once."""
    _, height, width, channels = images.shape
    one = (tile + 2) ** 2 * -(-height // tile) * -(-width // tile) * channels
    return max(1, max(CACHED, 2 * kernel.numel()) // one)


def convolve(images: Tensor, kernel: Tensor, tile: int) -> Tensor:
    """Images (N, H, W, C) with a kernel at points (Q, C, K), or these in strips, -> (N, H, W, K)."""
    in_strips = kernel.ndim > 3
    multiply: Callable[[Tensor, Tensor], Tensor] = kernels.product if in_strips else torch.bmm
    outputs = kernel.shape[1] * kernels.STRIP if in_strips else kernel.shape[2]
    output = images.new_empty(*images.shape[:3], outputs)
    number = images_at_a_time(images, tile, kernel)
    for read, written in zip(images.split(number), output.split(number), strict=True):
        kernels.write_output(multiply(kernels.input_points(read, tile), kernel), written, tile)
    return output


def kernel_gradient(images: Tensor, gradient: Tensor, tile: int) -> Tensor:
    """Images (N, H, W, C) and the output's gradient (N, H, W, K) -> the gradient of the kernel at points (Q, K, C)."""
    total = images.new_zeros((tile + 2) ** 2, gradient.shape[-1], images.shape[-1])
    number = images_at_a_time(images, tile, total)
    for read, incoming in zip(images.split(number), gradient.split(number), strict=True):
        total.baddbmm_(kernels.gradient_points(incoming, tile).transpose(1, 2), kernels.input_points(read, tile))
    return total


def patches_of(images: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """The input of each output pixel of a convolution: (N, H, W, C) -> (N, rows, columns, size * size * C)."""
    padded = functional.pad(images, (0, 0, padding, padding, padding, padding)) if padding else images
    n, height, width, channels = padded.shape
    image, row, pixel, _ = padded.stride()
    shape = n, (height - size) // stride + 1, (width - size) // stride + 1, size, size * channels
    # Neighboring pixels are consecutive in memory.
    return padded.as_strided(shape, (image, stride * row, stride * pixel, row, 1)).flatten(3).contiguous()


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        images = kernels.channels_last(images)
        ctx.save_for_backward(images, weight)
        tile = tile_of(images)
        return convolve(images, kernel_points(weight, tile).transpose(1, 2), tile).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        images, weight = ctx.saved_tensors
        tile = tile_of(images)
        gradient = kernels.channels_last(gradient)
        kernel = kernel_gradient(images, gradient, tile)
        of_weight = (of_kernel(tile).T @ kernel.view(len(kernel), -1)).T.reshape(weight.shape)
        # The gradient of the input is the convolution of the output's gradient with the rotated kernel.
        of_images = convolve(gradient, kernel_points(weight, tile, turned=True), tile)
        return of_images.permute(0, 3, 1, 2), of_weight


class Convolution(nn.Conv2d):
    """Convolution without bias; `fast` selects this module's methods (float32 on a CPU only).

    `frozen` says that the weights will not change and gradients are not needed: whatever depends only on the weights is
    computed once. There are few images then, so strided convolutions and those of the smallest maps become one product
    of few rows each. An image's result does not depend on the others in the batch.
    """

    def __init__(self, in_channels: int, channels: int, size: int, stride: int = 1, *, padding: int = 0) -> None:
        super().__init__(in_channels, channels, size, stride, padding, bias=False)
        self.fast = False
        self.frozen = False
        self._at_points: Tensor | None = None  # for large tiles
        self._in_strips: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, ceil(H / stride), ceil(W / stride)) for odd sizes padded by half."""
        if self.fast and self.frozen:
            return self._infer(images)
        if self.fast and self._is_cheaper_at_points():
            return _Winograd.apply(images, self.weight)
        return super().forward(images)

    def _infer(self, images: Tensor) -> Tensor:
        if self.in_channels < FEWEST_CHANNELS or self.out_channels % kernels.STRIP:
            return torch.cat([super(Convolution, self).forward(image) for image in images.split(1)])
        last = kernels.channels_last(images)
        # On the smallest maps, reading a kernel at points takes longer than the multiplications it saves.
        if self._is_cheaper_at_points() and tile_of(last) == LARGE_TILE:
            if self._at_points is None:
                points = kernel_points(self.weight.detach(), LARGE_TILE).transpose(1, 2)
                self._at_points = kernels.strips_of(points)
            return convolve(last, self._at_points, LARGE_TILE).permute(0, 3, 1, 2)
        if self._in_strips is None:
            matrix = self.weight.detach().permute(2, 3, 1, 0).reshape(-1, self.out_channels)
            self._in_strips = kernels.strips_of(matrix)
        patches = patches_of(last, self.kernel_size[0], self.stride[0], int(self.padding[0]))
        output = kernels.product(patches.flatten(0, 2), self._in_strips)
        return output.view(*patches.shape[:3], -1).permute(0, 3, 1, 2)

    def _is_cheaper_at_points(self) -> bool:
        plain = self.kernel_size == (3, 3) and self.stride == (1, 1) and self.padding == (1, 1)
        channels = self.in_channels, self.out_channels
        return plain and all(n >= FEWEST_CHANNELS and n % kernels.LANES == 0 for n in channels)
