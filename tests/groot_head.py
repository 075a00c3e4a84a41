"""The action head of GR00T N1.5, small, from diffusers' own blocks, with the names of its checkpoints.

Built from the description of names and shapes in `diffusion_policy.families.groot_n1_5`; it learns actions from given
features by flow matching. The vision-language backbone, which is two thirds of the released model, is not included.

Legend of shapes: B batch, N tokens of features, F their width, T action steps, A action, S state.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers.models.attention import Attention, BasicTransformerBlock, FeedForward
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu, silu


class Features(NamedTuple):
    """The head's inputs.

    Attributes:
        tokens: (B, N, F) of the backbone.
        state: (B, 1, S).
        embodiment: (B,) long, which of the per-embodiment layers to use.
    """

    tokens: Tensor
    state: Tensor
    embodiment: Tensor


class PerEmbodiment(nn.Module):
    """A linear layer with one matrix per embodiment: W (E, in, out), b (E, out)."""

    def __init__(self, embodiments: int, rows: int, columns: int):
        super().__init__()
        self.W = nn.Parameter(0.02 * torch.randn(embodiments, rows, columns))
        self.b = nn.Parameter(torch.zeros(embodiments, columns))

    def forward(self, x: Tensor, embodiment: Tensor) -> Tensor:
        return x @ self.W[embodiment] + self.b[embodiment][:, None]


class TwoLayers(nn.Module):
    """Encoder of states, decoder of actions."""

    def __init__(self, embodiments: int, rows: int, hidden: int, columns: int):
        super().__init__()
        self.layer1 = PerEmbodiment(embodiments, rows, hidden)
        self.layer2 = PerEmbodiment(embodiments, hidden, columns)

    def forward(self, x: Tensor, embodiment: Tensor) -> Tensor:
        return self.layer2(relu(self.layer1(x, embodiment)), embodiment)


class ActionEncoder(nn.Module):
    """Noisy actions and their time -> tokens."""

    def __init__(self, embodiments: int, action: int, width: int):
        super().__init__()
        self.W1 = PerEmbodiment(embodiments, action, width)
        self.W2 = PerEmbodiment(embodiments, 2 * width, width)
        self.W3 = PerEmbodiment(embodiments, width, width)
        self.times = Timesteps(width, flip_sin_to_cos=False, downscale_freq_shift=0)

    def forward(self, actions: Tensor, time: Tensor, embodiment: Tensor) -> Tensor:
        embedded = self.W1(actions, embodiment)
        when = self.times(time)[:, None].expand_as(embedded)
        return self.W3(silu(self.W2(torch.cat([embedded, when], dim=-1), embodiment)), embodiment)


class TimedNorm(nn.Module):
    """Layer norm whose scale and shift come from the time."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.linear(silu(time))[:, None].chunk(2, dim=-1)
        return layer_norm(x, x.shape[-1:], eps=1e-5) * (1 + scale) + shift


class DiTBlock(nn.Module):
    """Attention to features or to itself, then a feed-forward layer."""

    def __init__(self, heads: int, head: int, features: int | None):
        super().__init__()
        width = heads * head
        self.norm1 = TimedNorm(width)
        self.attn1 = Attention(width, cross_attention_dim=features, heads=heads, dim_head=head, bias=True)
        self.ff = FeedForward(width, activation_fn="gelu-approximate")

    def forward(self, x: Tensor, time: Tensor, features: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x, time), encoder_hidden_states=features)
        return x + self.ff(layer_norm(x, x.shape[-1:], eps=1e-5))


class DiT(nn.Module):
    """The diffusion transformer: even blocks look at the features, odd ones at the sequence."""

    def __init__(self, layers: int, heads: int, head: int, features: int, output: int):
        super().__init__()
        width = heads * head
        self.timestep_encoder = nn.Module()
        self.timestep_encoder.timestep_embedder = TimestepEmbedding(256, width)
        self.transformer_blocks = nn.ModuleList(
            DiTBlock(heads, head, None if i % 2 else features) for i in range(layers)
        )
        self.proj_out_1, self.proj_out_2 = nn.Linear(width, 2 * width), nn.Linear(width, output)
        self.times = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=1)

    def forward(self, x: Tensor, time: Tensor, features: Tensor) -> Tensor:
        embedded = self.timestep_encoder.timestep_embedder(self.times(time))
        for i, block in enumerate(self.transformer_blocks):
            x = block(x, embedded, None if i % 2 else features)
        shift, scale = self.proj_out_1(silu(embedded))[:, None].chunk(2, dim=-1)
        return self.proj_out_2(layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)


class SelfAttention(nn.Module):
    """The part that progressive layers deepen: blocks over the features."""

    def __init__(self, layers: int, heads: int, head: int):
        super().__init__()
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                heads * head, heads, head, activation_fn="gelu-approximate", attention_bias=True, norm_eps=1e-5
            )
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.transformer_blocks:
            x = block(x)
        return x


class GrootHead(nn.Module):
    """The action head for an ``action_head_cfg``, with the settings of N1.5."""

    def __init__(self, config: dict):
        super().__init__()
        dit, vl = config["diffusion_model_cfg"], config["vl_self_attention_cfg"]
        embodiments, width = config["max_num_embodiments"], config["input_embedding_dim"]
        hidden, features = config["hidden_size"], config["backbone_embedding_dim"]
        self.model = DiT(
            dit["num_layers"], dit["num_attention_heads"], dit["attention_head_dim"], features, dit["output_dim"]
        )
        self.state_encoder = TwoLayers(embodiments, config["max_state_dim"], hidden, width)
        self.action_encoder = ActionEncoder(embodiments, config["action_dim"], width)
        self.action_decoder = TwoLayers(embodiments, hidden, hidden, config["action_dim"])
        self.future_tokens = nn.Embedding(config["num_target_vision_tokens"], width)
        self.vlln = nn.LayerNorm(features)
        self.vl_self_attention = SelfAttention(vl["num_layers"], vl["num_attention_heads"], vl["attention_head_dim"])
        self.position_embedding = nn.Embedding(config["max_seq_len"], width)
        for table in (self.future_tokens, self.position_embedding):
            nn.init.normal_(table.weight, 0.0, 0.02)
        self.steps, self.buckets = config["action_horizon"], config["num_timestep_buckets"]

    def forward(self, given: Features, noisy: Tensor, time: Tensor) -> Tensor:
        """Velocity (B, T, A) of noisy actions (B, T, A) at times (B,) from 0, noise, to 1, actions."""
        features = self.vl_self_attention(self.vlln(given.tokens))
        bucket = (time * self.buckets).long()
        positions = self.position_embedding.weight[: self.steps]
        sequence = [
            self.state_encoder(given.state, given.embodiment),
            self.future_tokens.weight.expand(len(noisy), -1, -1),
            self.action_encoder(noisy, bucket, given.embodiment) + positions,
        ]
        answer = self.model(torch.cat(sequence, dim=1), bucket, features)
        return self.action_decoder(answer[:, -self.steps :], given.embodiment)

    def loss(self, given: Features, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Flow matching: the velocity from noise to actions, at random times."""
        noise = torch.randn(actions.shape, generator=generator)
        time = torch.rand(len(actions), generator=generator)
        mix = time[:, None, None]
        return (self(given, noise + mix * (actions - noise), time) - (actions - noise)).square().mean()
