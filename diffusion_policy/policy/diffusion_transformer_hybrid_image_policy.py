"""Diffusion policy on images and states, with a transformer as denoiser (Chi et al. 2023).

Equal to the public reference in parameter names and numbers: its checkpoints run here, and ours there.

Legend of shapes: B batch, T horizon, To observation steps, Ta executed steps, Da action width, Do feature width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from diffusion_policy.model.diffusion.mask_generator import LowdimMaskGenerator
from diffusion_policy.model.diffusion.transformer_for_diffusion import TransformerForDiffusion
from diffusion_policy.model.normalizer import LinearNormalizer
from diffusion_policy.model.obs_encoder import ACTIVATIONS, STRIDE, WIDTH, ObsEncoder
from diffusion_policy.model.placed_module import PlacedModule
from diffusion_policy.policy.observation_batch import PolicyError, observation_batch
from diffusion_policy.spec import read_shape_meta


class NoiseScheduler(Protocol):
    """What the policy uses of a diffusers scheduler."""

    timesteps: Any
    alphas_cumprod: Any

    @property
    def config(self) -> Any:
        """num_train_timesteps and prediction_type."""

    @property
    def set_timesteps(self) -> Callable[..., Any]:
        """Prepare for a number of denoising steps."""

    @property
    def step(self) -> Callable[..., Any]:
        """One denoising step."""


class DiffusionTransformerHybridImagePolicy(PlacedModule):
    """Denoises T actions, given the last To observations, and executes Ta of them.

    For To = 2, Ta = 8, T = 16; "now" is step 1, the last one observed::

        step          0     1     2     3    ...    8     9    ...   15
        observed      x    now
        denoised      x     x     x     x    ...    x     x    ...    x
        executed            x     x     x    ...    x
                            '------- Ta = 8 --------'

    Args:
        shape_meta: observation keys and action width, see ``spec.read_shape_meta``.
        noise_scheduler: a diffusers scheduler (DDPM for training); may be replaced by another one later.
        horizon: T.
        n_action_steps: Ta.
        n_obs_steps: To.
        num_inference_steps: denoising steps; None: as many as the scheduler trains with. May be set later.
        crop_shape: (h, w) of the image crop; None: whole images.
        obs_encoder_group_norm: GroupNorm in place of BatchNorm; the EMA copy needs it.
        eval_fixed_crop: centre crop outside training; False crops at random there too, as the reference does.
        n_layer, n_cond_layers, n_head, n_emb, p_drop_emb, p_drop_attn, causal_attn, time_as_cond: the denoiser, see
            :class:`TransformerForDiffusion`.
        obs_as_cond: features are a condition; False: they are part of the sample and kept there by inpainting.
        pred_action_steps_only: denoise only the Ta executed steps.
        color_jitter: see ``model.image_augmentation.ColorJitter``; after the crop, while training; None: off.
        eta: for schedulers that take it (DDIM: 0 deterministic, 1 as random as DDPM); None: the scheduler's default.
        encoder_width, encoder_stride: channels of the image encoder's first stage and pixels a cell of its last map,
            see :class:`ObsEncoder`; 64 and 32 are ResNet-18, as in the reference.
        encoder_activation: what image features end in, "relu" as in the reference or "none"; see :class:`ObsEncoder`.

    Every option is an attribute of the same name.

    Raises:
        PolicyError, ModelError, SpecError: options that do not fit each other or the shapes.
    """

    def __init__(
        self,
        shape_meta: Mapping[str, Any],
        noise_scheduler: NoiseScheduler,
        horizon: int,
        n_action_steps: int,
        n_obs_steps: int,
        num_inference_steps: int | None = None,
        crop_shape: Sequence[int] | None = (76, 76),
        obs_encoder_group_norm: bool = False,
        eval_fixed_crop: bool = False,
        n_layer: int = 8,
        n_cond_layers: int = 0,
        n_head: int = 4,
        n_emb: int = 256,
        p_drop_emb: float = 0.0,
        p_drop_attn: float = 0.3,
        causal_attn: bool = True,
        time_as_cond: bool = True,
        obs_as_cond: bool = True,
        pred_action_steps_only: bool = False,
        color_jitter: Mapping[str, float] | None = None,
        eta: float | None = None,
        encoder_width: int = WIDTH,
        encoder_stride: int = STRIDE,
        encoder_activation: str = ACTIVATIONS[0],
    ) -> None:
        super().__init__()
        self.shape_meta = shape_meta
        self.noise_scheduler = noise_scheduler
        self.horizon = horizon
        self.n_action_steps = n_action_steps
        self.n_obs_steps = n_obs_steps
        self.num_inference_steps = num_inference_steps or noise_scheduler.config.num_train_timesteps
        self.crop_shape = _crop_size(crop_shape)
        self.obs_encoder_group_norm = obs_encoder_group_norm
        self.eval_fixed_crop = eval_fixed_crop
        self.n_layer, self.n_cond_layers = n_layer, n_cond_layers
        self.n_head = n_head
        self.n_emb = n_emb
        self.p_drop_emb, self.p_drop_attn = p_drop_emb, p_drop_attn
        self.causal_attn = causal_attn
        self.time_as_cond = time_as_cond
        self.obs_as_cond = obs_as_cond
        self.pred_action_steps_only = pred_action_steps_only
        self.color_jitter = color_jitter
        self.eta = eta
        self.encoder_width, self.encoder_stride = encoder_width, encoder_stride
        self.encoder_activation = encoder_activation
        self._build()

    def _build(self) -> None:
        """Check the options and make the parts, in the order of existing files."""
        self._check_options()
        self.spec = read_shape_meta(self.shape_meta)
        self.action_dim = self.spec.action_dim
        self.obs_encoder = ObsEncoder(
            self.spec,
            self.crop_shape,
            use_group_norm=self.obs_encoder_group_norm,
            eval_fixed_crop=self.eval_fixed_crop,
            color_jitter=self.color_jitter,
            width=self.encoder_width,
            stride=self.encoder_stride,
            activation=self.encoder_activation,
        )
        (self.obs_feature_dim,) = self.obs_encoder.output_shape()
        sample_dim = self.action_dim if self.obs_as_cond else self.action_dim + self.obs_feature_dim
        self.model = TransformerForDiffusion(
            input_dim=sample_dim,
            output_dim=sample_dim,
            horizon=self.horizon,
            n_obs_steps=self.n_obs_steps,
            cond_dim=self.obs_feature_dim if self.obs_as_cond else 0,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_emb=self.n_emb,
            p_drop_emb=self.p_drop_emb,
            p_drop_attn=self.p_drop_attn,
            causal_attn=self.causal_attn,
            time_as_cond=self.time_as_cond,
            n_cond_layers=self.n_cond_layers,
        )
        self.mask_generator = LowdimMaskGenerator(
            action_dim=self.action_dim, obs_dim=sample_dim - self.action_dim, max_n_obs_steps=self.n_obs_steps
        )
        self.normalizer = LinearNormalizer()

    # ---- what is known, and what is to be denoised ----

    @property
    def sequence_length(self) -> int:
        """Steps of a sample: T, or Ta with pred_action_steps_only."""
        return self.n_action_steps if self.pred_action_steps_only else self.horizon

    @property
    def _executed(self) -> slice:
        """The Ta steps of T that are executed, from now on."""
        return slice(self.n_obs_steps - 1, self.n_obs_steps - 1 + self.n_action_steps)

    def _features(
        self, obs: Mapping[str, Tensor], n_steps: int, generator: torch.Generator | None = None, *, check_finite: bool
    ) -> Tensor:
        """Observations -> features (B, n_steps, Do)."""
        batch = observation_batch(self.spec, obs, n_steps, self.device, check_finite=check_finite)
        steps = {key: value.flatten(0, 1) for key, value in self.normalizer.normalize(batch).items()}
        return self.obs_encoder(steps, generator).unflatten(0, (-1, n_steps))

    # ---- sampling ----

    @torch.no_grad()
    def predict_action(
        self,
        obs: Mapping[str, Tensor],
        initial_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Denoise a sequence of actions.

        Args:
            obs: per key (B, To or more, ...), the first To steps count: images (C, H, W) as uint8 or floats in [0, 1],
                states in their own units. Nothing is filled in: a missing key or step is an error.
            initial_noise: what denoising starts from, (B, T, Da) (with pred_action_steps_only Ta steps; without
                obs_as_cond width Da + Do); None: drawn.
            generator: source of all random numbers; None: torch's default one.

        Returns:
            "action" (B, Ta, Da), to be executed from now on, and "action_pred" (B, T or Ta, Da), all of the sequence,
            in the dataset's units.

        Raises:
            PolicyError: an observation, the noise or the scheduler's setting does not fit.
            ModelError: there is no normaliser.
        """
        features = self._features(obs, self.n_obs_steps, generator, check_finite=True)
        shape = (len(features), self.sequence_length, self.model.input_emb.in_features)
        sample = self._initial_sample(shape, initial_noise, generator)
        known, mask = torch.zeros_like(sample), self.mask_generator(shape)
        if not self.obs_as_cond:
            known[:, : self.n_obs_steps, self.action_dim :] = features
        sample = self._denoise(sample, features if self.obs_as_cond else None, known, mask, generator)
        action_pred = self.normalizer["action"].unnormalize(sample[..., : self.action_dim])
        action = action_pred if self.pred_action_steps_only else action_pred[:, self._executed]
        return {"action": action, "action_pred": action_pred}

    def _denoise(
        self, sample: Tensor, cond: Tensor | None, known: Tensor, mask: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """From noise to a normalised sample, by the scheduler's steps; entries in ``mask`` are held at ``known``."""
        scheduler, options = self.noise_scheduler, self._step_options()
        if not 1 <= self.num_inference_steps <= scheduler.config.num_train_timesteps:
            raise PolicyError(
                f"num_inference_steps is {self.num_inference_steps}; "
                f"expected 1 to the {scheduler.config.num_train_timesteps} that the scheduler trains with"
            )
        scheduler.set_timesteps(self.num_inference_steps)
        for timestep in scheduler.timesteps:
            sample = torch.where(mask, known, sample)
            prediction = self.model(sample, timestep, cond)
            sample = scheduler.step(prediction, timestep, sample, generator=generator, **options).prev_sample
        return torch.where(mask, known, sample)

    def _initial_sample(
        self, shape: tuple[int, ...], initial_noise: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        if initial_noise is None:
            drawn_on = generator.device if generator is not None else self.device
            return torch.randn(shape, generator=generator, device=drawn_on, dtype=self.dtype).to(self.device)
        if tuple(initial_noise.shape) != shape or not initial_noise.isfinite().all():
            raise PolicyError(f"initial_noise has shape {tuple(initial_noise.shape)}; expected finite numbers {shape}")
        return initial_noise.to(device=self.device, dtype=self.dtype)

    def _step_options(self) -> dict[str, float]:
        if self.eta is None:
            return {}
        if "eta" not in inspect.signature(self.noise_scheduler.step).parameters:
            name = type(self.noise_scheduler).__name__
            raise PolicyError(f"eta is {self.eta}, but {name} takes none; set it to None")
        return {"eta": self.eta}

    # ---- training ----

    def set_normalizer(self, normalizer: LinearNormalizer) -> None:
        """Take over (copies of) the normaliser's numbers."""
        self.normalizer.load_state_dict(normalizer.state_dict())
        self.normalizer.to(self.device)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch does; the normaliser's entries are those of the file, moved to where the policy is."""
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self.normalizer.to(self.device)
        return result

    def compute_loss(
        self,
        batch: Mapping[str, Any],
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the predicted noise (or sample, as the scheduler's prediction_type says).

        Args:
            batch: "obs" as in :meth:`predict_action`, with T steps if observations are inpainted, else To or more;
                "action" (B, T, Da) in the dataset's units.
            noise: of the shape of a sample, see :meth:`predict_action`; None: drawn.
            timesteps: (B,) diffusion times from 0 on; None: drawn uniformly.
            weights: (B, T, Da) how much each number of the action counts in the mean; None: all the same. Only with
                obs_as_cond, where a sample is nothing but actions.

        Raises:
            PolicyError: a shape, type or image value does not fit, or weights are given for an inpainted sample.
        """
        clean, cond = self._training_sample(batch)
        noise = torch.randn_like(clean) if noise is None else noise.to(clean)
        if timesteps is None:
            n_times = self.noise_scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, n_times, (len(clean),), device=clean.device)
        timesteps = timesteps.to(clean.device)
        if noise.shape != clean.shape or timesteps.shape != clean.shape[:1]:
            found = f"noise {tuple(noise.shape)} and timesteps {tuple(timesteps.shape)}"
            raise PolicyError(f"{found} do not fit samples {tuple(clean.shape)}")
        mask = self.mask_generator(clean.shape)
        noisy = torch.where(mask, clean, self._add_noise(clean, noise, timesteps))
        prediction = self.model(noisy, timesteps, cond)
        target = noise if self.noise_scheduler.config.prediction_type == "epsilon" else clean
        # Known entries count as 0, and the mean is over all: the reference's weighting.
        errors = functional.mse_loss(prediction, target, reduction="none") * ~mask
        return errors.mean() if weights is None else (errors * self._loss_weights(weights, batch["action"])).mean()

    def _loss_weights(self, weights: Tensor, action: Tensor) -> Tensor:
        """Weights of the steps that are denoised."""
        if not self.obs_as_cond:
            raise PolicyError("loss weights count actions, but an inpainted sample holds features too; set obs_as_cond")
        if weights.shape != action.shape:
            raise PolicyError(f"loss weights have shape {tuple(weights.shape)}; expected {tuple(action.shape)}")
        return weights[:, self._executed] if self.pred_action_steps_only else weights

    def _training_sample(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Normalised sample without noise, and the condition."""
        action, expected = batch["action"], (self.horizon, self.action_dim)
        if tuple(action.shape[1:]) != expected:
            raise PolicyError(f"actions have shape {tuple(action.shape)}; expected (B, {expected[0]}, {expected[1]})")
        action = self.normalizer["action"].normalize(action)
        features = self._features(
            batch["obs"], self.n_obs_steps if self.obs_as_cond else self.horizon, check_finite=False
        )
        if len(features) != len(action):
            raise PolicyError(f"batch holds {len(action)} actions, but {len(features)} observations")
        if self.obs_as_cond:
            return action[:, self._executed] if self.pred_action_steps_only else action, features
        # Detached as in the reference: features that are their own target would learn to be nothing.
        return torch.cat((action, features), dim=-1).detach(), None

    def _add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The forward process at those times.

        Not the scheduler's add_noise: a DPM-Solver set up for few steps has only those steps' noise levels.
        """
        levels = self.noise_scheduler.alphas_cumprod.to(device=clean.device, dtype=clean.dtype)
        alphas = levels[timesteps, None, None]
        return alphas**0.5 * clean + (1 - alphas) ** 0.5 * noise

    def get_optimizer(
        self,
        transformer_weight_decay: float,
        obs_encoder_weight_decay: float,
        learning_rate: float,
        betas: Sequence[float],
    ) -> torch.optim.AdamW:
        """AdamW over three groups in the reference's order: denoiser matrices, the rest of it, observation encoder."""
        groups = [
            *self.model.get_optim_groups(weight_decay=transformer_weight_decay),
            {"params": list(self.obs_encoder.parameters()), "weight_decay": obs_encoder_weight_decay},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]))

    # ---- options ----

    def _check_options(self) -> None:
        """Refuse options that exclude each other, before anything is built."""
        for name in ("horizon", "n_obs_steps", "n_action_steps", "n_layer", "n_head", "n_emb"):
            if getattr(self, name) < 1:
                raise PolicyError(f"{name} is {getattr(self, name)}; expected 1 or more")
        last = self.n_obs_steps - 1 + self.n_action_steps
        if last > self.horizon:
            raise PolicyError(
                f"n_obs_steps - 1 + n_action_steps is {last}, beyond the horizon of {self.horizon}; "
                "lengthen horizon or shorten n_action_steps"
            )
        if self.obs_as_cond and not self.time_as_cond:
            raise PolicyError("time_as_cond: False works only with obs_as_cond: False (no condition tokens at all)")
        if self.pred_action_steps_only and not self.obs_as_cond:
            raise PolicyError("pred_action_steps_only needs obs_as_cond: inpainting keeps observed steps in the sample")
        prediction = self.noise_scheduler.config.prediction_type
        if prediction not in ("epsilon", "sample"):
            raise PolicyError(f"the scheduler's prediction_type is {prediction!r}; expected 'epsilon' or 'sample'")


def _crop_size(crop_shape: Sequence[int] | None) -> tuple[int, int] | None:
    if crop_shape is None:
        return None
    if len(crop_shape) != 2 or min(crop_shape) < 1:
        raise PolicyError(f"crop_shape is {list(crop_shape)}; expected (height, width) or null")
    return int(crop_shape[0]), int(crop_shape[1])
