"""Which products a device computes fast, and the layers of a model that make use of it."""

from __future__ import annotations

import torch
from torch import nn

from diffusion_policy.model.cpu import kernels
from diffusion_policy.model.cpu.convolution import Convolution
from diffusion_policy.model.cpu.group_norm import GroupNorm


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 instructions; a CPU without them emulates bf16, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kernels.cpu_has("avx512_bf16", "amx_bf16")


def use_fast_layers(model: nn.Module, *, frozen: bool = False) -> str | None:
    """Let a float32 model on a CPU compute its convolutions and norms the fast way, with equal results up to rounding.

    Args:
        model: the model whose layers are changed.
        frozen: its weights will not change from now on, and gradients are not needed.

    Returns:
        Why nothing was changed, or None if it was.
    """
    reason = kernels.why_unavailable()
    if reason is None:
        for module in model.modules():
            if isinstance(module, Convolution | GroupNorm):
                module.fast = True
            if isinstance(module, Convolution):
                module.frozen = frozen
    return reason
