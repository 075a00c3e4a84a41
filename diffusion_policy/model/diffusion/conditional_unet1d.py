"""The denoiser as a UNet: convolutions over the steps of the action sequence, conditioned in every block.

    time, observations --> c, which scales and shifts the channels of every residual block (FiLM)

    noisy actions -> down 0 -> down 1 -> ... -> mid -> ... -> up -> up -> final_conv      T, T/2, ... and back to T
                                 '-------- skip --------'

The skip of level 0 is not used, as in the reference, whose parameter names and numbers these are.

Legend of shapes: B batch, T steps, D width of a step, C channels, G width of the condition, E of the time embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from diffusion_policy.model import ModelError
from diffusion_policy.model.diffusion.positional_embedding import SinusoidalPosEmb

FINAL_GROUPS = 8  # of the last norm, regardless of the others


class ConvBlock(nn.Module):
    """Convolution, GroupNorm, Mish: (B, in_channels, T) -> (B, channels, T)."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, n_groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(in_channels, channels, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(n_groups, channels),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self.block(x)


class ConditionalResidualBlock(nn.Module):
    """Two convolutions with FiLM between them (Perez et al. 2018), and a shortcut.

    Args:
        in_channels, channels: before and after.
        cond_dim: width of the condition (B, cond_dim).
        kernel_size, n_groups: of the convolutions and norms.
        predict_scale: the condition scales channels and shifts them; False: it only shifts.
    """

    def __init__(
        self, in_channels: int, channels: int, cond_dim: int, kernel_size: int, n_groups: int, *, predict_scale: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([
            ConvBlock(in_channels, channels, kernel_size, n_groups),
            ConvBlock(channels, channels, kernel_size, n_groups),
        ])  # fmt: skip
        self.predict_scale = predict_scale
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, (2 if predict_scale else 1) * channels))
        self.residual_conv = nn.Conv1d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """(B, in_channels, T) and (B, cond_dim) -> (B, channels, T)."""
        first, second = self.blocks
        y, film = first(x), self.cond_encoder(cond)[:, :, None]
        if self.predict_scale:
            scale, shift = film.chunk(2, dim=1)
            y = scale * y + shift
        else:
            y = y + film
        return second(y) + self.residual_conv(x)


class Downsample(nn.Module):
    """Halves the number of steps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T/2)."""
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles the number of steps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, 2 T)."""
        return self.conv(x)


class ConditionalUnet1D(nn.Module):
    """Predicts the noise in (B, T, input_dim), given the diffusion time and the observed features.

    Args:
        input_dim: D.
        global_cond_dim: G; 0: observations are in the sample.
        diffusion_step_embed_dim: E.
        down_dims: channels of each level; T must be divisible by 2 ** (levels - 1).
        kernel_size, n_groups: of the convolutions and norms.
        cond_predict_scale: see :class:`ConditionalResidualBlock`.

    Raises:
        ModelError: incompatible settings.
    """

    def __init__(
        self,
        input_dim: int,
        global_cond_dim: int = 0,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 3,
        n_groups: int = 8,
        cond_predict_scale: bool = False,
    ) -> None:
        super().__init__()
        embed, widths = diffusion_step_embed_dim, [int(width) for width in down_dims]
        _check_settings(embed, widths, kernel_size, n_groups)
        self.input_dim, self.global_cond_dim = input_dim, global_cond_dim
        self.shortest = 2 ** (len(widths) - 1)

        def residual(in_channels: int, channels: int) -> ConditionalResidualBlock:
            return ConditionalResidualBlock(
                in_channels, channels, embed + global_cond_dim, kernel_size, n_groups, predict_scale=cond_predict_scale
            )

        # Modules are created in the order of existing files.
        self.mid_modules = nn.ModuleList([residual(widths[-1], widths[-1]) for _ in range(2)])
        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalPosEmb(embed), nn.Linear(embed, 4 * embed), nn.Mish(), nn.Linear(4 * embed, embed)
        )
        levels = list(pairwise([input_dim, *widths]))
        self.up_modules = nn.ModuleList(
            nn.ModuleList([residual(2 * after, before), residual(before, before), Upsample(before)])
            for before, after in reversed(levels[1:])
        )
        self.down_modules = nn.ModuleList(
            nn.ModuleList([
                residual(before, after),
                residual(after, after),
                Downsample(after) if level < len(widths) - 1 else nn.Identity(),
            ])
            for level, (before, after) in enumerate(levels)
        )  # fmt: skip
        self.final_conv = nn.Sequential(
            ConvBlock(widths[0], widths[0], kernel_size, FINAL_GROUPS), nn.Conv1d(widths[0], input_dim, 1)
        )

    def forward(self, sample: Tensor, timestep: Tensor | int, cond: Tensor | None = None) -> Tensor:
        """Predict the noise.

        Args:
            sample: (B, T, input_dim).
            timestep: diffusion time, one number or (B,).
            cond: features (B, To, Do), whose steps are joined to (B, G); None when they are part of the sample.

        Returns:
            (B, T, input_dim).

        Raises:
            ModelError: a shape does not fit the settings.
        """
        self._check(sample, cond)
        time = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        embedding, *layers = self.diffusion_step_encoder
        condition = embedding(time).to(sample.dtype)
        for layer in layers:
            condition = layer(condition)
        if cond is not None:
            condition = torch.cat((condition, cond.flatten(1)), dim=-1)
        x = sample.mT
        skips: list[Tensor] = []
        for level in self.down_modules:
            first, second, downsample = cast(nn.ModuleList, level)
            x = second(first(x, condition), condition)
            skips.append(x)
            x = downsample(x)
        for block in self.mid_modules:
            x = block(x, condition)
        for level in self.up_modules:
            first, second, upsample = cast(nn.ModuleList, level)
            x = torch.cat((x, skips.pop()), dim=1)
            x = upsample(second(first(x, condition), condition))
        return self.final_conv(x).mT

    def _check(self, sample: Tensor, cond: Tensor | None) -> None:
        if sample.ndim != 3 or sample.shape[2] != self.input_dim or sample.shape[1] % self.shortest:
            raise ModelError(
                f"sample has shape {tuple(sample.shape)}; expected (B, T, {self.input_dim}) with T a multiple of "
                f"{self.shortest}, since {self.shortest.bit_length() - 1} levels halve it"
            )
        width = 0 if cond is None else cond[:1].numel()
        if width != self.global_cond_dim or (cond is not None and len(cond) != len(sample)):
            problem = "missing" if cond is None else f"of shape {tuple(cond.shape)}"
            raise ModelError(
                f"cond is {problem}; expected {self.global_cond_dim} numbers for each of {len(sample)} rows"
            )


def _check_settings(embed: int, widths: Sequence[int], kernel_size: int, n_groups: int) -> None:
    if embed < 4 or embed % 2:
        raise ModelError(f"diffusion_step_embed_dim is {embed}; expected an even number >= 4")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ModelError(f"kernel_size is {kernel_size}; expected an odd number, which keeps the number of steps")
    wrong = [width for width in widths if n_groups < 1 or width < 1 or width % n_groups]
    if not widths or wrong:
        raise ModelError(f"down_dims is {list(widths)}; expected one or more widths that n_groups = {n_groups} divides")
    if widths[0] % FINAL_GROUPS:
        raise ModelError(
            f"down_dims begins with {widths[0]}; expected a multiple of {FINAL_GROUPS}, its last norm's groups"
        )
