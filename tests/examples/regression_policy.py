"""Behavior cloning by regression: one action for each step of a chunk, from states and camera features.

Legend of shapes: B batch, T horizon, To observed steps, Ta executed steps, Da action width, Do feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion_policy.model.normalizer import LinearNormalizer
from diffusion_policy.model.obs_encoder import IMAGE_FEATURES, ObsEncoder
from diffusion_policy.policy.contract import Capability, Draw, Observations, PolicyModule
from diffusion_policy.policy.observation_batch import observation_batch
from diffusion_policy.policy.tensor_axes import SHARED_TENSORS, NamedTensor, PolicyTensors
from diffusion_policy.spec import read_shape_meta

TENSORS = PolicyTensors(
    name="regression_policy",
    title="Behavior cloning by regression",
    marker="model.trunk.weight",  # which only files of this class have
    inside=("trunk", "step", "head"),
    entry="",  # no sample enters the network: nothing is denoised
    head="model.head.weight",
    named=(
        NamedTensor("model.head.weight", {0: "sample"}, {"normal": 0.02}),
        NamedTensor("model.head.bias", {0: "sample"}, "zeros"),
        *SHARED_TENSORS,
    ),
    slots=lambda options, spec: {"sample": spec.action_names},
    settings=lambda shapes: {"hidden": shapes["model.trunk.weight"][0], "action_dim": shapes["model.head.weight"][0]},
    summary=("horizon", "n_obs_steps", "n_action_steps", "crop_shape", "hidden"),
)


class StepRegressor(nn.Module):
    """Features (B, To * Do) -> normalized actions (B, T, Da)."""

    def __init__(self, features: int, hidden: int, horizon: int, action_dim: int) -> None:
        super().__init__()
        self.trunk = nn.Linear(features, hidden)
        self.step = nn.Embedding(horizon, hidden)
        self.head = nn.Linear(hidden, action_dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(torch.relu(self.trunk(features)[:, None] + self.step.weight))


class RegressionPolicy(PolicyModule):
    """Predicts the mean action of the demonstrations; every option is an attribute of the same name."""

    tensors: ClassVar[PolicyTensors] = TENSORS

    def __init__(
        self,
        shape_meta: Mapping[str, Any],
        horizon: int,
        n_action_steps: int,
        n_obs_steps: int,
        crop_shape: Sequence[int],
        hidden: int = 256,
        eval_fixed_crop: bool = True,  # center crop outside training; set by the proof of a growth
    ) -> None:
        super().__init__()
        self.shape_meta, self.spec = shape_meta, read_shape_meta(shape_meta)
        self.horizon, self.n_action_steps, self.n_obs_steps = horizon, n_action_steps, n_obs_steps
        height, width = self.crop_shape = tuple(crop_shape)
        self.hidden, self.eval_fixed_crop = hidden, eval_fixed_crop
        self.obs_encoder = ObsEncoder(self.spec, (height, width), use_group_norm=True, eval_fixed_crop=eval_fixed_crop)
        (features,) = self.obs_encoder.output_shape()
        self.model = StepRegressor(n_obs_steps * features, hidden, horizon, self.spec.action_dim)
        self.normalizer = LinearNormalizer()

    @property
    def sequence_length(self) -> int:
        return self.horizon

    @property
    def first_executed(self) -> int:
        return self.n_obs_steps - 1

    def lacks(self, capability: Capability) -> str | None:
        return None if capability == "loss_weights" else "nothing is denoised"

    def _features(self, obs: Observations, steps: int, generator: torch.Generator | None = None) -> Tensor:
        """Observations -> (B, steps, Do)."""
        batch = observation_batch(self.spec, obs, steps, self.device, check_finite=not self.training)
        flat = {key: value.flatten(0, 1) for key, value in self.normalizer.normalize(batch).items()}
        return self.obs_encoder(flat, generator).unflatten(0, (-1, steps))

    # ---- answers ----

    @torch.no_grad()
    def predict_action(
        self,
        obs: Observations,
        initial_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        before_step: Callable[[], None] | None = None,
    ) -> dict[str, Tensor]:
        features = self._features(obs, self.n_obs_steps, generator)
        if before_step is not None:
            before_step()  # what it raises ends the answer: the server's deadline
        answer = self.normalizer["action"].unnormalize(self.model(features.flatten(1)))
        executed = slice(self.first_executed, self.first_executed + self.n_action_steps)
        return {"action": answer[:, executed], "action_pred": answer}

    def camera_features(self, obs: Observations, generator: torch.Generator) -> dict[str, Tensor]:
        widths = [IMAGE_FEATURES if field.kind == "rgb" else field.shape[0] for field in self.spec.obs]
        parts = self._features(obs, 1, generator)[:, 0].split(widths, dim=1)
        return {field.key: part for field, part in zip(self.spec.obs, parts, strict=True) if field.kind == "rgb"}

    # ---- training ----

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}  # the loss takes no random numbers

    def loss(self, batch: Mapping[str, Any], draw: Draw, weights: Tensor | None = None) -> Tensor:
        target = self.normalizer["action"].normalize(batch["action"])
        errors = (self.model(self._features(batch["obs"], self.n_obs_steps).flatten(1)) - target).square()
        return errors.mean() if weights is None else (errors * weights).mean()

    def parameter_groups(self, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        learning = [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("normalizer.")]
        rate, betas = settings["lr"], tuple(settings["betas"])
        return [{"params": learning, "lr": rate, "betas": betas, "weight_decay": settings["weight_decay"]}]

    def layers_above(self, name: str) -> int:
        return 0 if name.startswith("model.head.") else 1 if name.startswith("model.") else 2

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.obs_encoder.parameters())

    def set_normalizer(self, normalizer: LinearNormalizer) -> None:
        self.normalizer.load_state_dict(normalizer.state_dict())
        self.normalizer.to(self.device)
