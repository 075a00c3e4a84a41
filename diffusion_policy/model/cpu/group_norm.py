"""GroupNorm fused with what follows it in a ResNet: one pass over memory each way if the compiled kernels are used.

Torch's own layers read and write a feature map five times for GroupNorm, shortcut and ReLU, and again for their
gradients; on a CPU this takes longer than some of the convolutions between them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from diffusion_policy.model.cpu import kernels


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float, shortcut: Tensor | None, rectify: bool
    ) -> Tensor:
        images = kernels.channels_last(images)
        added = None if shortcut is None else kernels.channels_last(shortcut)
        y, mean, rstd = kernels.group_norm(images, weight, bias, eps, added, rectify=rectify)
        ctx.has_shortcut = shortcut is not None
        ctx.save_for_backward(images, y if rectify else None, weight, mean, rstd)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        of_images, of_shortcut, of_weight, of_bias = kernels.group_norm_gradients(
            kernels.channels_last(incoming), *ctx.saved_tensors, shortcut=ctx.has_shortcut
        )
        if of_shortcut is not None:
            of_shortcut = of_shortcut.permute(0, 3, 1, 2)
        return of_images.permute(0, 3, 1, 2), of_weight, of_bias, None, of_shortcut, None


class _NormAndPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        images = kernels.channels_last(images)
        pooled, origin, mean, rstd = kernels.group_norm_pool(images, weight, bias, eps)
        ctx.save_for_backward(images, origin, weight, mean, rstd)
        return pooled.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        of_images, of_weight, of_bias = kernels.group_norm_pool_gradients(
            kernels.channels_last(incoming), *ctx.saved_tensors
        )
        return of_images.permute(0, 3, 1, 2), of_weight, of_bias, None


class GroupNorm(nn.GroupNorm):
    """Groups of 16 channels; ``fast`` makes :func:`normalize` and :func:`normalize_and_pool` use the kernels."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels // kernels.GROUP, channels)
        self.fast = False


def normalize(norm: nn.Module, images: Tensor, shortcut: Tensor | None = None, *, rectify: bool = True) -> Tensor:
    """Norm of (N, C, H, W), plus the shortcut, then ReLU."""
    if isinstance(norm, GroupNorm) and norm.fast:
        return _Norm.apply(images, norm.weight, norm.bias, norm.eps, shortcut, rectify)
    images = norm(images)
    if shortcut is not None:
        images = images + shortcut
    return functional.relu(images, inplace=True) if rectify else images


def normalize_and_pool(norm: nn.Module, pool: nn.Module, images: Tensor) -> Tensor:
    """Norm of (N, C, H, W), ReLU, then ``pool``: the maximum over 3x3 pixels at stride 2, padding 1."""
    if isinstance(norm, GroupNorm) and norm.fast:
        return _NormAndPool.apply(images, norm.weight, norm.bias, norm.eps)
    return pool(functional.relu(norm(images), inplace=True))
