"""Attention over the frames of the last window, with a memory carried between calls.

A frame attends to itself and to the W - 1 frames before it, however long the chunk; so a chunk gives the same results
as its frames one at a time. The memory holds keys and values of earlier frames. The start of an episode, anywhere in a
chunk, hides everything before it.

Legend of shapes: B episodes, T frames of a chunk, W window, h heads, e features of a head, F = h * e.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusion_policy.model.vpt.layers import NormLinear, set_row_norms

RELATIVE_BASES = 10
_HIDDEN = -1e9


class Memory(NamedTuple):
    """The memory of a block.

    Attributes:
        mask: (B, 1, W) bool, which remembered frames belong to the same episode; None: none do.
        keys: (B, W, F) before they are split into heads.
        values: (B, W, F).
    """

    mask: Tensor | None
    keys: Tensor
    values: Tensor


class WindowedAttention(nn.Module):
    """Attention with a relative bias that depends on the query.

    Logits are q.k / e (not divided by the root of e) plus, for a key of age d, the product of ten numbers of the query
    with column d of ``b_nd``.
    """

    def __init__(self, features: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.q_layer = nn.Linear(features, features)
        self.k_layer = nn.Linear(features, features, bias=False)
        self.v_layer = nn.Linear(features, features, bias=False)
        self.proj_layer = nn.Linear(features, features)
        self.b_nd = nn.Parameter(nn.init.normal_(torch.empty(RELATIVE_BASES, window), std=0.2))
        self.r_layer = nn.Linear(features, RELATIVE_BASES * heads)

    def forward(self, features: Tensor, first: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """(B, T, F) and (B, T) bool, true where an episode starts -> (B, T, F) and the memory after it."""
        batch, steps, width = features.shape
        keys = torch.cat([memory.keys, self.k_layer(features)], dim=1)
        values = torch.cat([memory.values, self.v_layer(features)], dim=1)
        visible, kept = self._visible(first, memory.mask)
        query = self._split(self.q_layer(features))
        logits = query @ self._split(keys).transpose(-1, -2) / (width // self.heads) + self._relative(features)
        logits = logits.masked_fill(~visible[:, None], _HIDDEN)
        attended = functional.softmax(logits, dim=-1) @ self._split(values)
        output = self.proj_layer(attended.transpose(1, 2).reshape(batch, steps, width))
        window = slice(keys.shape[1] - self.window, None)
        return output, Memory(kept, keys[:, window], values[:, window])

    def _split(self, features: Tensor) -> Tensor:
        """(B, T, F) -> (B, h, T, e)."""
        batch, steps, width = features.shape
        return features.reshape(batch, steps, self.heads, width // self.heads).transpose(1, 2)

    def _relative(self, features: Tensor) -> Tensor:
        """(B, h, T, W + T): the bias of each key by its age; 0 outside the window."""
        batch, steps, _ = features.shape
        coefficients = self.r_layer(features).reshape(batch, steps, self.heads, RELATIVE_BASES)
        by_age = torch.einsum("bthn,nd->bhtd", coefficients, self.b_nd)
        ages = self._ages(steps, features.device)
        inside = (ages >= 0) & (ages < self.window)
        columns = ages.clamp(0, self.window - 1).expand(batch, self.heads, -1, -1)
        return torch.where(inside, by_age.gather(-1, columns), 0.0)

    def _ages(self, steps: int, device: torch.device) -> Tensor:
        """(T, W + T): how many frames the key of a column is older than the query of a row."""
        rows = torch.arange(self.window, self.window + steps, device=device)
        return rows[:, None] - torch.arange(self.window + steps, device=device)[None]

    def _visible(self, first: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, T, W + T) which keys a frame sees, and (B, 1, W) which remembered frames belong to the last episode."""
        batch, steps = first.shape
        ages = self._ages(steps, first.device)
        remembered = first.new_zeros(batch, self.window) if mask is None else mask[:, 0]
        # Episodes are counted: 0 is the remembered one, and a frame that starts one begins the next.
        episode = first.long().cumsum(dim=1)
        of_keys = torch.cat([torch.where(remembered, 0, -1), episode], dim=1)
        visible = (ages >= 0) & (ages < self.window) & (episode[..., None] == of_keys[:, None])
        kept = of_keys[:, -self.window :] == episode[:, -1:]
        return visible, kept[:, None]


class _Attention(nn.Module):
    """Adds the level of names between a block and its attention."""

    def __init__(self, features: int, heads: int, window: int):
        super().__init__()
        self.orc_block = WindowedAttention(features, heads, window)


class RecurrentBlock(nn.Module):
    """Norm, attention and two dense layers; both residuals are around the normalized input."""

    def __init__(self, features: int, heads: int, window: int, ratio: int):
        super().__init__()
        self.mlp0 = NormLinear(features, ratio * features)
        self.mlp1 = NormLinear(ratio * features, features, normalizes=False, activates=False)
        self.pre_r_ln = nn.LayerNorm(features)
        self.r = _Attention(features, heads, window)

    def forward(self, features: Tensor, first: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """(B, T, F) -> (B, T, F), and the memory after it."""
        features = self.pre_r_ln(features)
        attended, memory = self.r.orc_block(features, first, memory)
        features = features + attended
        return features + self.mlp1(self.mlp0(features)), memory

    def reset_parameters(self, n_blocks: int) -> None:
        """Initialize as upstream does for that many blocks (facts measured on a fresh upstream model)."""
        scale = n_blocks**-0.5 * 2**-0.5
        attention = self.r.orc_block
        norms = [(attention.q_layer, 0.1), (attention.k_layer, 0.2), (attention.r_layer, 0.1)]
        norms += [(attention.v_layer, scale**0.5), (attention.proj_layer, scale**0.5)]
        for layer, norm in [*norms, (self.mlp0.layer, 1.0), (self.mlp1.layer, scale)]:
            set_row_norms(layer, norm)
