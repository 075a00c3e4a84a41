"""The denoiser: a transformer over the action sequence that predicts the noise in it.

    time ------------+--> condition tokens --> encoder --> memory --+
    observations ----+      (1 + To)                                v
    noisy actions --> input_emb + pos_emb ----------------> decoder (self- and cross-attention) --> ln_f --> head

Legend of shapes: B batch, T horizon, t tokens of the given sequence (t <= T), To observation steps, E = n_emb.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffusion_policy.model import ModelError
from diffusion_policy.model.diffusion.positional_embedding import SinusoidalPosEmb
from diffusion_policy.model.placed_module import PlacedModule


class TransformerForDiffusion(PlacedModule):
    """Predicts the noise in (B, t, input_dim), given the diffusion time and the observed features.

    Three variants, by ``cond_dim`` and ``time_as_cond``:

    * features and time as condition (``cond_dim`` > 0, the users' setting): 1 + To condition tokens;
    * time alone as condition: one condition token, observations are in the sample;
    * ``time_as_cond`` False: no decoder; time is the first of T + 1 tokens of an encoder (n_cond_layers is not used).

    Args:
        input_dim, output_dim: widths of a sample's step.
        horizon: T; the longest sequence.
        n_obs_steps: To.
        cond_dim: width of an observation's features; 0: they are not a condition.
        n_layer, n_head, n_emb: depth, heads and width.
        p_drop_emb, p_drop_attn: dropout of embeddings and in the layers.
        causal_attn: a step sees itself and earlier ones, and only the observations up to its own time.
        time_as_cond: see above.
        n_cond_layers: self-attention layers over the condition tokens; 0: a two-layer perceptron on each.

    Raises:
        ModelError: incompatible settings.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        horizon: int,
        n_obs_steps: int,
        cond_dim: int = 0,
        n_layer: int = 12,
        n_head: int = 12,
        n_emb: int = 768,
        p_drop_emb: float = 0.1,
        p_drop_attn: float = 0.1,
        causal_attn: bool = False,
        time_as_cond: bool = True,
        n_cond_layers: int = 0,
    ) -> None:
        super().__init__()
        if n_emb % n_head or n_emb % 2 or n_emb < 4:
            raise ModelError(f"n_emb is {n_emb}; expected an even number >= 4 that n_head = {n_head} divides")
        if cond_dim > 0 and not time_as_cond:
            raise ModelError("time_as_cond: False leaves no condition tokens; observations must then be in the sample")
        self.horizon = horizon
        self.n_obs_steps = n_obs_steps
        self.obs_as_cond = cond_dim > 0
        self.time_as_cond = time_as_cond
        self.causal_attn = causal_attn
        tokens = horizon if time_as_cond else horizon + 1
        cond_tokens = (1 + n_obs_steps if cond_dim > 0 else 1) if time_as_cond else 0

        # Parameters and modules are created in the order of existing files.
        self.pos_emb = nn.Parameter(torch.zeros(1, tokens, n_emb))
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, cond_tokens, n_emb)) if cond_tokens else None
        self._register_masks(tokens, cond_tokens)
        self.input_emb = nn.Linear(input_dim, n_emb)
        self.drop = nn.Dropout(p_drop_emb)
        self.time_emb = SinusoidalPosEmb(n_emb)
        self.cond_obs_emb = nn.Linear(cond_dim, n_emb) if cond_dim > 0 else None
        self._build_trunk(n_layer, n_cond_layers, n_head, n_emb, p_drop_attn)
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, output_dim)
        self.apply(_init_weights)

    def _build_trunk(self, n_layer: int, n_cond_layers: int, n_head: int, n_emb: int, p_drop_attn: float) -> None:
        """Encoder and decoder, or the encoder alone when time is a token."""
        layer: dict[str, Any] = {
            "d_model": n_emb,
            "nhead": n_head,
            "dim_feedforward": 4 * n_emb,
            "dropout": p_drop_attn,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }
        self.encoder: nn.Module
        self.decoder: nn.TransformerDecoder | None = None
        if not self.time_as_cond:
            self.encoder = _transformer_encoder(layer, n_layer)
        else:
            self.encoder = _transformer_encoder(layer, n_cond_layers) if n_cond_layers > 0 else _perceptron(n_emb)
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), n_layer)

    def _register_masks(self, tokens: int, cond_tokens: int) -> None:
        """Additive masks, 0 where a token may look: the past, and the observations of steps up to its own."""
        self.mask: Tensor | None
        self.memory_mask: Tensor | None
        mask = memory_mask = None
        if self.causal_attn:
            mask = _additive_mask(tokens, tokens, last=0)
            if self.obs_as_cond:
                # Condition token s is the time for s = 0, then observation step s - 1.
                memory_mask = _additive_mask(tokens, cond_tokens, last=1)
        self.register_buffer("mask", mask)
        self.register_buffer("memory_mask", memory_mask)

    def forward(self, sample: Tensor, timestep: Tensor | int, cond: Tensor | None = None) -> Tensor:
        """Predict the noise.

        Args:
            sample: (B, t, input_dim).
            timestep: diffusion time, one number or (B,).
            cond: features (B, To, cond_dim); None when they are part of the sample.

        Returns:
            (B, t, output_dim).

        Raises:
            ModelError: a shape does not fit the settings.
        """
        self._check(sample, cond)
        time = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        if self.decoder is None:
            tokens = torch.cat((self._embed_time(time), self.input_emb(sample)), dim=1)
            length = tokens.shape[1]
            mask = None if self.mask is None else self.mask[:length, :length]
            x = self.drop(tokens + self.pos_emb[:, :length])
            x = self.encoder(x, mask=mask, is_causal=self.causal_attn)[:, 1:]
            return self.head(self.ln_f(x))
        return self.decode(sample, self.encode_condition(time, cond))

    def encode_condition(self, time: Tensor, cond: Tensor | None) -> Tensor:
        """Times (B,) and features (B, To, cond_dim) -> memory (B, 1 + To, E), which :meth:`decode` attends to."""
        assert self.cond_pos_emb is not None, "a denoiser without a decoder has no condition"
        tokens = self._embed_time(time)
        if self.cond_obs_emb is not None:
            tokens = torch.cat((tokens, self.cond_obs_emb(cond)), dim=1)
        return self.encoder(self.drop(tokens + self.cond_pos_emb))

    def decode(self, sample: Tensor, memory: Tensor) -> Tensor:
        """Predict the noise in (B, t, input_dim) from the memory.

        A sequence shorter than the horizon holds the steps from the last observed one on (pred_action_steps_only), so
        all observations lie in its past.
        """
        assert self.decoder is not None, "a denoiser without a decoder has no memory"
        length = sample.shape[1]
        first = self.n_obs_steps - 1 if length < self.horizon else 0
        x = self.decoder(
            self.drop(self.input_emb(sample) + self.pos_emb[:, :length]),
            memory,
            tgt_mask=None if self.mask is None else self.mask[:length, :length],
            memory_mask=None if self.memory_mask is None else self.memory_mask[first : first + length],
            # Stated here, so that torch does not compare the mask on the device at each call.
            tgt_is_causal=self.causal_attn,
        )
        return self.head(self.ln_f(x))

    def _embed_time(self, time: Tensor) -> Tensor:
        return self.time_emb(time).to(self.dtype)[:, None]  # (B, 1, E)

    def _check(self, sample: Tensor, cond: Tensor | None) -> None:
        width, longest = self.input_emb.in_features, self.horizon
        if sample.ndim != 3 or sample.shape[2] != width or not 1 <= sample.shape[1] <= longest:
            raise ModelError(f"sample has shape {tuple(sample.shape)}; expected (B, up to {longest}, {width})")
        if (cond is not None) != self.obs_as_cond:
            problem = "missing" if cond is None else "given"
            raise ModelError(f"cond is {problem}, but the denoiser was built with obs_as_cond {self.obs_as_cond}")
        if cond is not None and self.cond_obs_emb is not None:
            expected = (len(sample), self.n_obs_steps, self.cond_obs_emb.in_features)
            if tuple(cond.shape) != expected:
                raise ModelError(f"cond has shape {tuple(cond.shape)}; expected {expected}")

    def get_optim_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer: decayed ones, then the others, each by name.

        Matrices of linear and attention layers decay; biases, LayerNorm and position embeddings do not.
        """
        named = sorted(self.named_parameters())
        return [
            {"params": [p for _, p in named if p.ndim == 2], "weight_decay": weight_decay},
            {"params": [p for _, p in named if p.ndim != 2], "weight_decay": 0.0},
        ]


def _transformer_encoder(layer: dict[str, Any], n_layer: int) -> nn.TransformerEncoder:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(**layer), n_layer, enable_nested_tensor=False)


def _perceptron(n_emb: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))


def _init_weights(module: nn.Module) -> None:
    """Matrices and position embeddings normal(0, 0.02), biases 0; LayerNorm stays at torch's 1 and 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=0.02)
        nn.init.zeros_(module.in_proj_bias)
    elif isinstance(module, TransformerForDiffusion):
        nn.init.normal_(module.pos_emb, std=0.02)
        if module.cond_pos_emb is not None:
            nn.init.normal_(module.cond_pos_emb, std=0.02)


def _additive_mask(tokens: int, seen: int, *, last: int) -> Tensor:
    """(tokens, seen): 0 where token t may look at token s <= t + last, else -inf."""
    mask = torch.zeros(tokens, seen)
    if mask.is_meta:  # of a module that is built for its shapes alone
        return mask
    return mask.masked_fill(torch.arange(seen) > torch.arange(tokens)[:, None] + last, -torch.inf)
