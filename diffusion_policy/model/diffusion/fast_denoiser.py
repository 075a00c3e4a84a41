"""The denoiser of one request, as fast as possible with the same numbers.

The network is the trained :class:`TransformerForDiffusion`; only the order of its sums changes. Whatever does not
change from one denoising step to the next is computed once:

* the condition's keys and values. The time token's are computed once for all timesteps of the sampler, the
  observations' once per request. They are also folded with the query and output projections around them: with few
  condition tokens, ``(h Wq) K'`` is ``h (Wq K')`` and ``(p V) Wo`` is ``p (V Wo)``, and two large products per layer
  and step become two small ones;
* the norms' scales and shifts, which are folded into the product that follows;
* every intermediate buffer: the loop writes into preallocated tensors (``out=``), so it allocates nothing.

On a CPU :class:`CompiledDenoiser` computes the same steps with the compiled kernels.

With causal attention a step does not see later ones, so steps that are not executed need not be denoised: ``rows``.

Legend of shapes: t action tokens, S = 1 + To condition tokens, E = n_emb, H heads, L layers, R = H * S. Batch is 1: one
robot requests one answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_policy.model.cpu import kernels
from diffusion_policy.model.diffusion.transformer_for_diffusion import TransformerForDiffusion

NORM_EPS = 1e-5  # of torch's LayerNorm


def is_foldable(model: TransformerForDiffusion) -> bool:
    """Whether condition tokens are independent of each other, so that only the time token changes with the step."""
    return model.obs_as_cond and model.time_as_cond and isinstance(model.encoder, nn.Sequential)


def _dtype_of(precision: str) -> torch.dtype:
    """The dtype of products' operands."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@dataclass(frozen=True)
class _Product:
    """``x @ weight + bias`` with the weight (in, out)."""

    bias: Tensor
    weight: Tensor

    def write(self, x: Tensor, out: Tensor) -> Tensor:
        """Write the product (t, out) to ``out``."""
        return torch.addmm(self.bias, x, self.weight, out=out)


@dataclass(frozen=True)
class _Layer:
    """Products of one decoder layer, with the preceding norms folded in."""

    qkv: _Product
    out: _Product
    linear1: _Product
    linear2: _Product
    cross_out_bias: Tensor


class FastDenoiser:
    """Predicts the noise in one sequence, given condition tokens folded beforehand.

    Call :meth:`set_timesteps` once per sampler, :meth:`set_condition` once per request, then :meth:`predict` at each
    step. ``device`` is the model's, ``sample_shape`` is (1, t, Da).

    Args:
        model: in eval mode; its weights are copied, so later changes to it have no effect.
        length: steps of a whole sequence.
        precision: of the large products; sums, norms and the condition stay float32. "bfloat16" rounds their operands.
        rows: t, how many first steps are denoised; None: all. Fewer only with causal attention.
    """

    def __init__(
        self, model: TransformerForDiffusion, length: int, precision: str = "float32", rows: int | None = None
    ) -> None:
        assert is_foldable(model)
        assert model.decoder is not None
        assert model.cond_pos_emb is not None
        assert rows is None or model.causal_attn, "without causal attention every step sees every other"
        self._model = model
        self._dtype = _dtype_of(precision)
        self.device = model.device
        self._n_tokens = model.cond_pos_emb.shape[1]
        self._n_head = model.decoder.layers[0].self_attn.num_heads
        self._width = model.pos_emb.shape[2]
        self._scale = 1 / math.sqrt(self._width // self._n_head)
        self._layers = [self._read_layer(layer) for layer in model.decoder.layers]
        self._read_cross_attention(list(model.decoder.layers))
        self._head = self._product(model.head.weight, model.head.bias, model.ln_f)
        self._input = model.input_emb.weight.detach().t().contiguous()
        rows = length if rows is None else rows
        self._position = (model.pos_emb[0, :rows] + model.input_emb.bias).detach().clone()
        self._read_masks(model, length, rows)
        self._allocate(rows)
        self.sample_shape = (1, rows, model.input_emb.in_features)
        self._time_rows: dict[int, int] = {}

    def _product(self, weight: Tensor, bias: Tensor, norm: nn.LayerNorm | None = None) -> _Product:
        weight, bias = _after_norm(weight, bias, norm)
        return _Product(bias.to(self._dtype), weight.t().contiguous().to(self._dtype))

    def _read_layer(self, layer: Any) -> _Layer:
        attention, cross = layer.self_attn, layer.multihead_attn
        return _Layer(
            qkv=self._product(attention.in_proj_weight, attention.in_proj_bias, layer.norm1),
            out=self._product(attention.out_proj.weight, attention.out_proj.bias),
            linear1=self._product(layer.linear1.weight, layer.linear1.bias, layer.norm3),
            linear2=self._product(layer.linear2.weight, layer.linear2.bias),
            cross_out_bias=cross.out_proj.bias.detach().clone(),
        )

    def _read_cross_attention(self, layers: list[Any]) -> None:
        """Projections around the condition, of all layers: (L, E, E) of keys and values, (L, H, d, E) of the rest."""
        size = self._width // self._n_head
        attentions = [layer.multihead_attn for layer in layers]
        weights, biases = (
            torch.stack([getattr(attention, name).detach() for attention in attentions]).chunk(3, dim=1)
            for name in ("in_proj_weight", "in_proj_bias")
        )
        queries = [
            _after_norm(weight, bias, layer.norm2)
            for weight, bias, layer in zip(weights[0], biases[0], layers, strict=True)
        ]
        query, query_bias = (torch.stack(tensors) / math.sqrt(size) for tensors in zip(*queries, strict=True))
        self._query = query.unflatten(1, (self._n_head, size))
        self._query_bias = query_bias.unflatten(1, (self._n_head, size))[..., None]
        self._to_keys, self._to_values = (weight.transpose(1, 2).contiguous() for weight in weights[1:])
        self._to_keys_bias, self._to_values_bias = biases[1][:, None], biases[2][:, None]
        out = torch.stack([attention.out_proj.weight.detach().t() for attention in attentions])
        self._out = out.unflatten(1, (self._n_head, size)).contiguous()

    def _read_masks(self, model: TransformerForDiffusion, length: int, rows: int) -> None:
        heads, tokens = self._n_head, self._n_tokens
        first = model.n_obs_steps - 1 if length < model.horizon else 0
        nothing = torch.zeros(rows, rows, device=self.device)
        mask = nothing if model.mask is None else model.mask[:rows, :rows]
        seen = torch.zeros(rows, tokens, device=self.device)
        if model.memory_mask is not None:
            seen = model.memory_mask[first : first + rows]
        self._mask = mask.expand(heads, -1, -1).contiguous()  # (H, t, t)
        self._memory_mask = seen[:, None, :].expand(-1, heads, -1).contiguous()  # (t, H, S)

    def _allocate(self, length: int) -> None:
        """Allocate everything that the loop writes to."""
        heads, width, tokens, layers = self._n_head, self._width, self._n_tokens, len(self._layers)

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=self.device)

        self._x = buffer(length, width)
        self._normed, self._mean, self._rstd = buffer(length, width), buffer(length), buffer(length)
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
        self._keys = buffer(layers, heads, tokens, width)  # Wq K' / sqrt(d)
        self._key_bias = buffer(layers, heads, tokens)
        self._values = buffer(layers, heads, tokens, width)  # V Wo
        self._output = buffer(length, self._model.head.out_features, dtype=self._dtype)
        self._x_view, self._norm_out = self._x[None], (self._normed[None], self._mean, self._rstd)
        # Views are made once: in a loop of small products they cost as much as some of them.
        self._query_view, self._key_view, self._value_view = (
            self._qkv.view(length, 3, heads, -1).permute(1, 2, 0, 3).unbind()  # (H, t, d) each
        )
        self._key_view = self._key_view.transpose(1, 2)
        self._mixed_view, self._joined_view = self._mixed.transpose(0, 1), self._joined.view(length, -1)
        self._cross_view, self._cross_shares_view = (
            self._cross.view(length, heads, tokens),
            self._cross_shares.view(length, -1),
        )
        self._folded = [
            (self._key_bias[layer].view(-1), self._keys[layer].view(-1, width).t(), self._values[layer].view(-1, width))
            for layer in range(layers)
        ]

    # ---- once per sampler and request ----

    @torch.no_grad()
    def set_timesteps(self, timesteps: Tensor) -> None:
        """Fold the time token of every timestep of a sampler: (n,) diffusion times."""
        model = self._model
        assert model.cond_pos_emb is not None
        time = model.time_emb(timesteps.to(self.device)).to(model.dtype) + model.cond_pos_emb[0, :1]
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
        self._keys[:, :, 1:].copy_(keys)
        self._key_bias[..., 1:].copy_(bias)
        self._values[:, :, 1:].copy_(values)

    def _fold(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Condition tokens (n, E) -> Wq K' (L, H, n, E), bq K' (L, H, n) and V Wo (L, H, n, E)."""
        keys = (tokens @ self._to_keys + self._to_keys_bias).unflatten(2, (self._n_head, -1))  # (L, n, H, d)
        values = (tokens @ self._to_values + self._to_values_bias).unflatten(2, (self._n_head, -1))
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)  # (L, H, n, d)
        return keys @ self._query, (keys @ self._query_bias).squeeze(-1), values @ self._out

    # ---- every denoising step ----

    @torch.no_grad()
    def predict(self, sample: Tensor, timestep: int) -> Tensor:
        """Noise in (1, t, Da) at one of the timesteps; the result is valid until the next call."""
        self.set_time(timestep)
        return self.step(sample)

    def set_time(self, timestep: int) -> None:
        """Put the time token of one of the timesteps next to the observations' tokens."""
        row = self._time_rows[timestep]
        self._keys[:, :, 0].copy_(self._time_keys[:, :, row])
        self._key_bias[..., 0].copy_(self._time_bias[..., row])
        self._values[:, :, 0].copy_(self._time_values[:, :, row])

    @torch.no_grad()
    def step(self, sample: Tensor) -> Tensor:
        """Noise in (1, t, Da) at the time set before; the same kernels on the same memory at each call."""
        torch.addmm(self._position, sample[0], self._input, out=self._x)
        for index, layer in enumerate(self._layers):
            self._attend_to_itself(layer)
            self._attend_to_condition(index, layer)
            self._feed_forward(layer)
        self._normalize()
        return self._head.write(self._half, self._output)[None].float()

    def _normalize(self) -> None:
        """Normalize each row of x to mean 0 and variance 1, in float32 and in the dtype of products.

        Uses batch norm in training mode with the rows as channels: the only such kernel with an output argument.
        """
        torch.native_batch_norm(
            self._x_view, None, None, None, None, training=True, momentum=0.0, eps=NORM_EPS, out=self._norm_out
        )
        if self._half is not self._normed:
            self._half.copy_(self._normed)

    def _attend_to_itself(self, layer: _Layer) -> None:
        self._normalize()
        qkv = layer.qkv.write(self._half, self._qkv_half)
        if qkv is not self._qkv:
            self._qkv.copy_(qkv)
        torch.baddbmm(self._mask, self._query_view, self._key_view, alpha=self._scale, out=self._scores)
        torch.softmax(self._scores, dim=-1, out=self._shares)
        torch.bmm(self._shares, self._value_view, out=self._mixed)
        self._joined.copy_(self._mixed_view)
        self._x.add_(layer.out.write(self._joined_view, self._projected))

    def _attend_to_condition(self, index: int, layer: _Layer) -> None:
        key_bias, keys, values = self._folded[index]
        self._normalize()
        torch.addmm(key_bias, self._normed, keys, out=self._cross)
        torch.softmax(self._cross_view.add_(self._memory_mask), dim=-1, out=self._cross_shares)
        self._x.addmm_(self._cross_shares_view, values)
        self._x.add_(layer.cross_out_bias)

    def _feed_forward(self, layer: _Layer) -> None:
        self._normalize()
        torch.ops.aten.gelu.out(layer.linear1.write(self._half, self._hidden), out=self._active)
        self._x.add_(layer.linear2.write(self._active, self._projected))


def _after_norm(weight: Tensor, bias: Tensor, norm: nn.LayerNorm | None) -> tuple[Tensor, Tensor]:
    """A product's weight (out, in) and bias, with the scale and shift of the preceding norm folded in."""
    weight, bias = weight.detach(), bias.detach()
    if norm is None:
        return weight.clone(), bias.clone()
    shifted = bias.double() + weight.double() @ norm.bias.detach().double()
    return weight * norm.weight.detach(), shifted.to(bias)


class CompiledDenoiser(FastDenoiser):
    """The same steps on a CPU, each as a list of compiled calls on the same buffers.

    With so few rows, torch's own operations spend more time starting and synchronizing than computing.
    """

    def __init__(
        self, model: TransformerForDiffusion, length: int, precision: str = "float32", rows: int | None = None
    ) -> None:
        super().__init__(model, length, rows=rows)  # everything but products is float32
        dtype = _dtype_of(precision)

        def prepared(product: _Product, x: Tensor, out: Tensor, then: str = "write") -> kernels.Prepared:
            return kernels.prepare_product(x, kernels.strips_of(product.weight.to(dtype)), out, product.bias, then=then)

        norm = kernels.prepare_normalization(self._x, self._normed, NORM_EPS)
        qkv = self._qkv.view(len(self._qkv), 3, self._n_head, -1)
        attend = kernels.prepare_self_attention(qkv, self._mask[0], self._joined)
        joined, tokens = self._joined_view, (self._n_head, self._n_tokens)
        self._calls: list[kernels.Prepared] = []
        for layer, folded in zip(self._layers, self._folded, strict=True):
            key_bias, keys, values = folded
            self._calls += [
                norm, prepared(layer.qkv, self._normed, self._qkv), attend,
                prepared(layer.out, joined, self._x, "add"),
                norm, kernels.prepare_cross_attention(
                    self._normed, keys.t().view(*tokens, -1), key_bias.view(tokens), self._memory_mask,
                    values.view(*tokens, -1), layer.cross_out_bias, self._x,
                ),
                norm, prepared(layer.linear1, self._normed, self._hidden, "gelu"),
                prepared(layer.linear2, self._hidden, self._x, "add"),
            ]  # fmt: skip
        self._calls.append(norm)
        self._layers.clear()  # their weights are in the calls

    @classmethod
    def suits(cls, model: TransformerForDiffusion, precision: str = "float32") -> bool:
        """Whether the kernels work here in this precision and for a model of this width."""
        assert model.decoder is not None
        width, heads = model.pos_emb.shape[2], model.decoder.layers[0].self_attn.num_heads
        fits = width % kernels.STRIP == 0 and width // heads % kernels.LANES == 0
        can = kernels.multiplies_bf16() if precision == "bfloat16" else kernels.why_unavailable() is None
        return fits and model.device.type == "cpu" and can

    @torch.no_grad()
    def step(self, sample: Tensor) -> Tensor:
        """Noise in (1, t, Da) at the time set before."""
        torch.addmm(self._position, sample[0], self._input, out=self._x)
        for call in self._calls:
            call.run()
        return self._head.write(self._normed, self._output)[None]


class FullDenoiser:
    """The same three calls for a model that cannot be folded, because its whole condition changes with the time."""

    def __init__(self, model: nn.Module) -> None:
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
