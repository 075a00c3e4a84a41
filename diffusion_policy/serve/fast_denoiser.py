"""The denoiser of one request, as fast as equal numbers allow.

The network is the trained :class:`TransformerForDiffusion`; only the order of its sums changes. What does not change
from one denoising step to the next is computed once:

* the condition's keys and values. The time token's are computed once for all timesteps of the sampler, the
  observations' once a request. They are even folded with the query and output projections around them: with few
  condition tokens, ``(h Wq) K'`` is ``h (Wq K')`` and ``(p V) Wo`` is ``p (V Wo)``, and two large products a layer and
  step become two small ones;
* every intermediate buffer: the loop writes into tensors that exist (``out=``), so nothing is allocated in it.

Legend of shapes: t action tokens, S = 1 + To condition tokens, E = n_emb, H heads, L layers, R = H * S. Batch is 1: one
robot asks for one answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_policy.model.diffusion.transformer_for_diffusion import TransformerForDiffusion


def is_foldable(model: TransformerForDiffusion) -> bool:
    """Whether condition tokens are independent of each other, so that only the time token changes with the step."""
    return model.obs_as_cond and model.time_as_cond and isinstance(model.encoder, nn.Sequential)


@dataclass(frozen=True)
class _Layer:
    """Weights of one decoder layer, transposed for ``x @ W``."""

    norm1: tuple[Tensor, Tensor]
    qkv: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    norm2: tuple[Tensor, Tensor]
    norm3: tuple[Tensor, Tensor]
    linear1: tuple[Tensor, Tensor]
    linear2: tuple[Tensor, Tensor]
    cross_out_bias: Tensor


class FastDenoiser:
    """Predicts the noise in one sequence, given condition tokens that were folded beforehand.

    Call :meth:`set_timesteps` once a sampler, :meth:`set_condition` once a request, then :meth:`predict` step by step.

    Args:
        model: in eval mode; its weights are copied, later changes to it are not seen.
        length: t, tokens of the sequence.
        dtype: of the large products; sums, norms and the condition stay float32.
    """

    def __init__(self, model: TransformerForDiffusion, length: int, dtype: torch.dtype = torch.float32) -> None:
        assert is_foldable(model)
        assert model.decoder is not None
        assert model.cond_pos_emb is not None
        self._model = model
        self._dtype = dtype
        self._device = model.device
        self._n_tokens = model.cond_pos_emb.shape[1]
        self._n_head = model.decoder.layers[0].self_attn.num_heads
        self._width = model.pos_emb.shape[2]
        self._layers = [self._read_layer(layer) for layer in model.decoder.layers]
        self._read_cross_attention([layer.multihead_attn for layer in model.decoder.layers])
        self._head = self._linear(model.head.weight, model.head.bias)
        self._ln_f = _norm(model.ln_f)
        self._input = self._linear(model.input_emb.weight, model.input_emb.bias)
        self._position = (model.pos_emb[0, :length] + model.input_emb.bias).detach().clone()
        self._read_masks(model, length)
        self._allocate(length)
        self._time_rows: dict[int, int] = {}

    def _linear(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight.detach().t().contiguous().to(self._dtype), bias.detach().clone().to(self._dtype)

    def _read_layer(self, layer: Any) -> _Layer:
        attention, cross = layer.self_attn, layer.multihead_attn
        return _Layer(
            norm1=_norm(layer.norm1),
            qkv=self._linear(attention.in_proj_weight, attention.in_proj_bias),
            out=self._linear(attention.out_proj.weight, attention.out_proj.bias),
            norm2=_norm(layer.norm2),
            norm3=_norm(layer.norm3),
            linear1=self._linear(layer.linear1.weight, layer.linear1.bias),
            linear2=self._linear(layer.linear2.weight, layer.linear2.bias),
            cross_out_bias=cross.out_proj.bias.detach().clone(),
        )

    def _read_cross_attention(self, layers: list[Any]) -> None:
        """Projections around the condition, of all layers: (L, E, E) of keys and values, (L, H, d, E) of the rest."""
        size = self._width // self._n_head
        weights, biases = (
            torch.stack([getattr(layer, name).detach() for layer in layers]).chunk(3, dim=1)
            for name in ("in_proj_weight", "in_proj_bias")
        )
        self._query = weights[0].unflatten(1, (self._n_head, size)) / math.sqrt(size)
        self._query_bias = biases[0].unflatten(1, (self._n_head, size))[..., None] / math.sqrt(size)
        self._to_keys, self._to_values = (weight.transpose(1, 2).contiguous() for weight in weights[1:])
        self._to_keys_bias, self._to_values_bias = biases[1][:, None], biases[2][:, None]
        out = torch.stack([layer.out_proj.weight.detach().t() for layer in layers])
        self._out = out.unflatten(1, (self._n_head, size)).contiguous()

    def _read_masks(self, model: TransformerForDiffusion, length: int) -> None:
        heads, tokens = self._n_head, self._n_tokens
        first = model.n_obs_steps - 1 if length < model.horizon else 0
        nothing = torch.zeros(length, length, device=self._device)
        mask = nothing if model.mask is None else model.mask[:length, :length]
        seen = torch.zeros(length, tokens, device=self._device)
        if model.memory_mask is not None:
            seen = model.memory_mask[first : first + length]
        self._mask = mask.expand(heads, -1, -1).contiguous()  # (H, t, t)
        self._memory_mask = seen[:, None, :].expand(-1, heads, -1).contiguous()  # (t, H, S)

    def _allocate(self, length: int) -> None:
        """All that the loop writes to."""
        heads, width, tokens, layers = self._n_head, self._width, self._n_tokens, len(self._layers)

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=self._device)

        self._x = buffer(length, width)
        self._normed, self._mean, self._rstd = buffer(length, width), buffer(length, 1), buffer(length, 1)
        plain = self._dtype == torch.float32
        self._half = self._normed if plain else buffer(length, width, dtype=self._dtype)
        self._qkv = buffer(length, 3 * width)
        self._qkv_half = self._qkv if plain else buffer(length, 3 * width, dtype=self._dtype)
        self._scores, self._shares = buffer(heads, length, length), buffer(heads, length, length)
        self._mixed = buffer(heads, length, width // heads)
        self._joined = buffer(length, heads, width // heads, dtype=self._dtype)
        self._projected = buffer(length, width, dtype=self._dtype)
        self._hidden, self._active = (buffer(length, 4 * width, dtype=self._dtype) for _ in range(2))
        self._cross, self._cross_shares = buffer(length, heads * tokens), buffer(length, heads, tokens)
        self._keys = buffer(layers, width, heads, tokens)  # Wq K' / sqrt(d), by head and token
        self._key_bias = buffer(layers, heads, tokens)
        self._values = buffer(layers, heads, tokens, width)  # V Wo
        self._output = buffer(length, self._model.head.out_features, dtype=self._dtype)

    # ---- once ----

    @torch.no_grad()
    def set_timesteps(self, timesteps: Tensor) -> None:
        """Fold the time token of every timestep of a sampler: (n,) diffusion times."""
        model = self._model
        assert model.cond_pos_emb is not None
        time = model.time_emb(timesteps.to(self._device)).to(model.dtype) + model.cond_pos_emb[0, :1]
        self._time_keys, self._time_bias, self._time_values = self._fold(model.encoder(time))
        self._time_rows = {int(timestep): row for row, timestep in enumerate(timesteps.tolist())}

    @torch.no_grad()
    def set_condition(self, features: Tensor) -> None:
        """Fold the observations of one request, features (To, Do)."""
        model = self._model
        assert model.cond_obs_emb is not None
        assert model.cond_pos_emb is not None
        tokens = model.encoder(model.cond_obs_emb(features) + model.cond_pos_emb[0, 1:])
        keys, bias, values = self._fold(tokens)
        self._keys[..., 1:].copy_(keys)
        self._key_bias[..., 1:].copy_(bias)
        self._values[:, :, 1:].copy_(values)

    def _fold(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Condition tokens (n, E) -> Wq K' (L, E, H, n), bq K' (L, H, n) and V Wo (L, H, n, E)."""
        keys = (tokens @ self._to_keys + self._to_keys_bias).unflatten(2, (self._n_head, -1))  # (L, n, H, d)
        values = (tokens @ self._to_values + self._to_values_bias).unflatten(2, (self._n_head, -1))
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)  # (L, H, n, d)
        folded = (keys @ self._query).permute(0, 3, 1, 2).contiguous()
        return folded, (keys @ self._query_bias).squeeze(-1), values @ self._out

    # ---- every denoising step ----

    @torch.no_grad()
    def predict(self, sample: Tensor, timestep: int) -> Tensor:
        """Noise in (1, t, Da) at one of the timesteps; the result is valid until the next call."""
        row = self._time_rows[timestep]
        self._keys[..., 0].copy_(self._time_keys[..., row])
        self._key_bias[..., 0].copy_(self._time_bias[..., row])
        self._values[:, :, 0].copy_(self._time_values[:, :, row])
        torch.addmm(self._position, sample[0], self._input[0].float(), out=self._x)
        for index, layer in enumerate(self._layers):
            self._attend_to_itself(layer)
            self._attend_to_condition(index, layer)
            self._feed_forward(layer)
        self._normalize(self._ln_f)
        weight, bias = self._head
        torch.addmm(bias, self._half, weight, out=self._output)
        return self._output[None].float()

    def _normalize(self, norm: tuple[Tensor, Tensor]) -> None:
        """LayerNorm of x, as float32 and in the dtype of the products."""
        weight, bias = norm
        torch.ops.aten.native_layer_norm.out(
            self._x, (self._width,), weight, bias, 1e-5, out0=self._normed, out1=self._mean, out2=self._rstd
        )
        if self._half is not self._normed:
            self._half.copy_(self._normed)

    def _attend_to_itself(self, layer: _Layer) -> None:
        length, heads = len(self._x), self._n_head
        self._normalize(layer.norm1)
        torch.addmm(layer.qkv[1], self._half, layer.qkv[0], out=self._qkv_half)
        if self._qkv_half is not self._qkv:
            self._qkv.copy_(self._qkv_half)
        query, key, value = self._qkv.view(length, 3, heads, -1).permute(1, 2, 0, 3)  # (H, t, d) each
        torch.baddbmm(self._mask, query, key.transpose(1, 2), alpha=1 / math.sqrt(query.shape[2]), out=self._scores)
        torch.softmax(self._scores, dim=-1, out=self._shares)
        torch.bmm(self._shares, value, out=self._mixed)
        self._joined.copy_(self._mixed.transpose(0, 1))
        torch.addmm(layer.out[1], self._joined.view(length, -1), layer.out[0], out=self._projected)
        self._x.add_(self._projected)

    def _attend_to_condition(self, index: int, layer: _Layer) -> None:
        length = len(self._x)
        self._normalize(layer.norm2)
        torch.addmm(
            self._key_bias[index].view(-1), self._normed, self._keys[index].view(self._width, -1), out=self._cross
        )
        scores = self._cross.view(self._memory_mask.shape).add_(self._memory_mask)
        torch.softmax(scores, dim=-1, out=self._cross_shares)
        self._x.addmm_(self._cross_shares.view(length, -1), self._values[index].view(-1, self._width))
        self._x.add_(layer.cross_out_bias)

    def _feed_forward(self, layer: _Layer) -> None:
        self._normalize(layer.norm3)
        torch.addmm(layer.linear1[1], self._half, layer.linear1[0], out=self._hidden)
        torch.ops.aten.gelu.out(self._hidden, out=self._active)
        torch.addmm(layer.linear2[1], self._active, layer.linear2[0], out=self._projected)
        self._x.add_(self._projected)


def _norm(module: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return module.weight.detach().clone(), module.bias.detach().clone()


class WholeDenoiser:
    """The same three calls for a model whose condition tokens see each other, and so cannot be folded."""

    def __init__(self, model: TransformerForDiffusion) -> None:
        self._model = model
        self._features: Tensor | None = None

    def set_timesteps(self, timesteps: Tensor) -> None:
        """Nothing to prepare."""

    def set_condition(self, features: Tensor) -> None:
        """Keep the features (To, Do)."""
        self._features = features[None]

    @torch.no_grad()
    def predict(self, sample: Tensor, timestep: int) -> Tensor:
        """Noise in (1, t, Da), by the model itself."""
        return self._model(sample, timestep, self._features)
