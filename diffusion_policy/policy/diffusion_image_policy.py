"""What diffusion policies on images and states share: features, sampling, the loss, the normalizer.

A subclass adds its denoiser: its structure, its conditioning, and the names of its tensors.

Legend of shapes: B batch, T horizon, To observation steps, Ta executed steps, Da action width, Do feature width.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusion_policy.model.diffusion.mask_generator import LowdimMaskGenerator
from diffusion_policy.model.normalizer import LinearNormalizer
from diffusion_policy.model.obs_encoder import IMAGE_FEATURES, ObsEncoder
from diffusion_policy.policy.contract import Capability, Draw, NoiseScheduler, PolicyModule, PreviousChunk
from diffusion_policy.policy.observation_batch import PolicyError, observation_batch
from diffusion_policy.policy.previous_chunk import HeldChunk
from diffusion_policy.spec import StepSpec, read_shape_meta

RANDOM_CROPS = "its crops are random (eval_fixed_crop False)"


class DiffusionImagePolicy(PolicyModule):
    """Denoises T actions, given the last To observations, and executes Ta of them.

    A subclass sets all options as attributes, then calls :meth:`_build`. Observations either condition the denoiser or
    are part of the sample and kept there by inpainting: :attr:`observes_by_condition`.

    Attributes:
        condition_option: the option that chooses between the two.
    """

    condition_option: ClassVar[str]

    shape_meta: Mapping[str, Any]
    spec: StepSpec
    noise_scheduler: NoiseScheduler
    horizon: int
    n_action_steps: int
    n_obs_steps: int
    num_inference_steps: int
    crop_shape: tuple[int, int] | None
    obs_encoder_group_norm: bool
    eval_fixed_crop: bool
    color_jitter: Mapping[str, float] | None
    eta: float | None
    encoder_width: int
    encoder_stride: int
    encoder_activation: str
    obs_encoder: ObsEncoder
    model: nn.Module

    def _build(self) -> None:
        """Check the options and create the parts, in the order of existing files."""
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
        self.sample_dim = self.action_dim + (0 if self.observes_by_condition else self.obs_feature_dim)
        self.model = self._make_denoiser()
        self.mask_generator = LowdimMaskGenerator(
            action_dim=self.action_dim, obs_dim=self.sample_dim - self.action_dim, max_n_obs_steps=self.n_obs_steps
        )
        self.normalizer = LinearNormalizer()

    # ---- what a subclass provides ----

    @property
    def observes_by_condition(self) -> bool:
        """Whether features condition the denoiser instead of being part of the sample."""
        return bool(getattr(self, self.condition_option))

    @abc.abstractmethod
    def _make_denoiser(self) -> nn.Module:
        """The network (sample (B, t, S), timestep, cond (B, To, Do) or None) -> prediction (B, t, S)."""

    def _held_in_training(self, clean: Tensor, features: Tensor) -> Tensor:
        """Mask (B, T, S) of the known entries of an inpainted sample, in training."""
        return clean

    # ---- what is known, and what is denoised ----

    @property
    def sequence_length(self) -> int:
        """Steps of a sample."""
        return self.horizon

    @property
    def sample_shape(self) -> tuple[int, int]:
        """(steps, width) of what is denoised."""
        return self.sequence_length, self.sample_dim

    @property
    def first_executed(self) -> int:
        """Index in an answer of the first step that is executed."""
        return self.n_obs_steps - 1

    @property
    def _executed(self) -> slice:
        """The Ta of T steps that are executed, from the current one on."""
        return slice(self.n_obs_steps - 1, self.n_obs_steps - 1 + self.n_action_steps)

    def lacks(self, capability: Capability) -> str | None:
        """Why it lacks the capability; None if it has it."""
        if capability == "previous_chunk":
            return None
        if capability == "loss_weights":
            reason = f"the sample holds features, too ({self.condition_option} False)"
            return None if self.observes_by_condition else reason
        if not self.observes_by_condition:
            return f"its observations are not a condition ({self.condition_option} False)"
        return None if self.crop_shape is None or self.eval_fixed_crop else RANDOM_CROPS

    def _features(
        self, obs: Mapping[str, Tensor], n_steps: int, generator: torch.Generator | None = None, *, check_finite: bool
    ) -> Tensor:
        """Observations -> features (B, n_steps, Do)."""
        batch = observation_batch(self.spec, obs, n_steps, self.device, check_finite=check_finite)
        steps = {key: value.flatten(0, 1) for key, value in self.normalizer.normalize(batch).items()}
        return self.obs_encoder(steps, generator).unflatten(0, (-1, n_steps))

    def camera_features(self, obs: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Features (B, 64) of the first observed step as the denoiser gets them, per camera."""
        features = self._features(obs, 1, generator, check_finite=True)[:, 0]
        widths = [IMAGE_FEATURES if field.kind == "rgb" else field.shape[0] for field in self.spec.obs]
        parts = zip(self.spec.obs, features.split(widths, dim=1), strict=True)
        return {field.key: part for field, part in parts if field.kind == "rgb"}

    # ---- sampling ----

    def predict_action(
        self,
        obs: Mapping[str, Tensor],
        initial_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        before_step: Callable[[], None] | None = None,
    ) -> dict[str, Tensor]:
        """Denoise a sequence of actions.

        Args:
            obs: per key (B, To or more, ...), of which the first To steps are used: images (C, H, W) as uint8 or floats
                in [0, 1], states in their own units. Nothing is filled in: a missing key or step is an error.
            initial_noise: what denoising starts from, (B, *sample_shape); None: drawn.
            generator: source of all random numbers; None: torch's default generator.
            before_step: called before each denoising step; an exception that it raises ends denoising.

        Returns:
            "action" (B, Ta, Da), to be executed from the current step on, and "action_pred" (B, sequence_length, Da),
            everything that was denoised, in the dataset's units.

        Raises:
            PolicyError: an observation, the noise or the scheduler's setting does not fit.
            ModelError: there is no normalizer.
        """
        return self._answer(obs, None, initial_noise, generator, before_step)

    def continue_chunk(
        self,
        obs: Mapping[str, Tensor],
        previous: PreviousChunk,
        initial_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        before_step: Callable[[], None] | None = None,
    ) -> dict[str, Tensor]:
        """Like :meth:`predict_action`, held to what is left of the last answer; see ``previous_chunk``."""
        return self._answer(obs, previous, initial_noise, generator, before_step)

    @torch.no_grad()
    def _answer(
        self,
        obs: Mapping[str, Tensor],
        previous: PreviousChunk | None,
        initial_noise: Tensor | None,
        generator: torch.Generator | None,
        before_step: Callable[[], None] | None,
    ) -> dict[str, Tensor]:
        features = self._features(obs, self.n_obs_steps, generator, check_finite=True)
        shape = (len(features), *self.sample_shape)
        sample = self._initial_sample(shape, initial_noise, generator)
        known, mask = torch.zeros_like(sample), self.mask_generator(shape)
        if not self.observes_by_condition:
            known[:, : self.n_obs_steps, self.action_dim :] = features
        cond = features if self.observes_by_condition else None
        held = None if previous is None else self._held(previous, sample)
        sample = self._denoise(sample, cond, known, mask, held, generator, before_step)
        action_pred = self.normalizer["action"].unnormalize(sample[..., : self.action_dim])
        executed = slice(self.first_executed, self.first_executed + self.n_action_steps)
        return {"action": action_pred[:, executed], "action_pred": action_pred}

    def _denoise(
        self,
        sample: Tensor,
        cond: Tensor | None,
        known: Tensor,
        mask: Tensor,
        held: HeldChunk | None,
        generator: torch.Generator | None,
        before_step: Callable[[], None] | None,
    ) -> Tensor:
        """From noise to a normalized sample, in the scheduler's steps; entries in ``mask`` are held at ``known``."""
        scheduler, options = self.noise_scheduler, self._step_options()
        if not 1 <= self.num_inference_steps <= scheduler.config.num_train_timesteps:
            raise PolicyError(
                f"num_inference_steps is {self.num_inference_steps}; "
                f"expected 1 to the {scheduler.config.num_train_timesteps} that the scheduler trains with"
            )
        scheduler.set_timesteps(self.num_inference_steps)
        for timestep in scheduler.timesteps:
            if before_step is not None:
                before_step()
            sample = torch.where(mask, known, sample)
            if held is None:
                prediction = self._predict(timestep, cond, sample)
            else:
                prediction = held.guided(partial(self._predict, timestep, cond), timestep, sample)
            sample = scheduler.step(prediction, timestep, sample, generator=generator, **options).prev_sample
        sample = torch.where(mask, known, sample)
        return sample if held is None else held.settled(sample)

    def _predict(self, timestep: Tensor, cond: Tensor | None, sample: Tensor) -> Tensor:
        prediction: Tensor = self.model(sample, timestep, cond)
        return prediction

    def _held(self, previous: PreviousChunk, sample: Tensor) -> HeldChunk:
        known = self.normalizer["action"].normalize(previous.actions.to(self.device, self.dtype))
        return HeldChunk(known, previous.committed, self.first_executed, sample, self.noise_scheduler)

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
        """Copy the parameters of a normalizer."""
        self.normalizer.load_state_dict(normalizer.state_dict())
        self.normalizer.to(self.device)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Like torch's; the normalizer's entries are the file's, moved to the policy's device."""
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self.normalizer.to(self.device)
        return result

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Noise (n, *sample_shape) and diffusion times (n,) of n windows, on the generator's device."""
        n_times, device = int(self.noise_scheduler.config.num_train_timesteps), generator.device
        noise = torch.randn((n, *self.sample_shape), generator=generator, device=device)
        timesteps = torch.randint(0, n_times, (n,), generator=generator, device=device)
        return {"noise": noise, "timesteps": timesteps}

    def loss(self, batch: Mapping[str, Any], draw: Draw, weights: Tensor | None = None) -> Tensor:
        """:meth:`compute_loss` with the numbers of :meth:`draw`."""
        return self.compute_loss(batch, noise=draw["noise"], timesteps=draw["timesteps"], weights=weights)

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
            noise: in the shape of a sample, see :meth:`predict_action`; None: drawn.
            timesteps: (B,) diffusion times from 0 on; None: drawn uniformly.
            weights: (B, T, Da) weight of each number in the action in the mean; None: all equal. Only for samples that
                hold nothing but actions.

        Raises:
            PolicyError: a shape, type or image value does not fit, or weights are given for an inpainted sample.
        """
        clean, held, cond = self._training_sample(batch)
        noise = torch.randn_like(clean) if noise is None else noise.to(clean)
        if timesteps is None:
            n_times = self.noise_scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, n_times, (len(clean),), device=clean.device)
        timesteps = timesteps.to(clean.device)
        if noise.shape != clean.shape or timesteps.shape != clean.shape[:1]:
            found = f"noise {tuple(noise.shape)} and timesteps {tuple(timesteps.shape)}"
            raise PolicyError(f"{found} do not fit samples {tuple(clean.shape)}")
        mask = self.mask_generator(clean.shape)
        noisy = torch.where(mask, held, self._add_noise(clean, noise, timesteps))
        prediction = self.model(noisy, timesteps, cond)
        target = noise if self.noise_scheduler.config.prediction_type == "epsilon" else clean
        # Known entries count as 0, and the mean is over all entries: the reference's weighting.
        errors = functional.mse_loss(prediction, target, reduction="none") * ~mask
        return errors.mean() if weights is None else (errors * self._loss_weights(weights, batch["action"])).mean()

    def _loss_weights(self, weights: Tensor, action: Tensor) -> Tensor:
        """Weights of the denoised steps."""
        if not self.observes_by_condition:
            raise PolicyError(
                f"loss weights count actions, but an inpainted sample holds features too; set {self.condition_option}"
            )
        if weights.shape != action.shape:
            raise PolicyError(f"loss weights have shape {tuple(weights.shape)}; expected {tuple(action.shape)}")
        return self._steps_denoised(weights)

    def _steps_denoised(self, steps: Tensor) -> Tensor:
        """Those of T steps (B, T, ...) that a sample holds."""
        return steps

    def _training_sample(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normalized sample without noise, the mask and values of its known entries, and the condition."""
        action, expected = batch["action"], (self.horizon, self.action_dim)
        if tuple(action.shape[1:]) != expected:
            raise PolicyError(f"actions have shape {tuple(action.shape)}; expected (B, {expected[0]}, {expected[1]})")
        action = self.normalizer["action"].normalize(action)
        n_steps = self.n_obs_steps if self.observes_by_condition else self.horizon
        features = self._features(batch["obs"], n_steps, check_finite=False)
        if len(features) != len(action):
            raise PolicyError(f"batch holds {len(action)} actions, but {len(features)} observations")
        if self.observes_by_condition:
            clean = self._steps_denoised(action)
            return clean, clean, features
        # Detached as in the reference: features that are their own target would collapse to zero.
        clean = torch.cat((action, features), dim=-1).detach()
        return clean, self._held_in_training(clean, features), None

    def _add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The forward process at those times.

        Not the scheduler's add_noise: a DPM-Solver set up for few steps has only those steps' noise levels.
        """
        levels = self.noise_scheduler.alphas_cumprod.to(device=clean.device, dtype=clean.dtype)
        alphas = levels[timesteps, None, None]
        return alphas**0.5 * clean + (1 - alphas) ** 0.5 * noise

    # ---- what learns ----

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Parameters of the observation encoder."""
        return list(self.obs_encoder.parameters())

    # ---- options ----

    def _check_counts(self, *more: str) -> None:
        low = [name for name in ("horizon", "n_obs_steps", "n_action_steps", *more) if getattr(self, name) < 1]
        if low:
            raise PolicyError(f"{low[0]} is {getattr(self, low[0])}; expected 1 or more")

    def _check_options(self) -> None:
        """Refuse incompatible options, before anything is built."""
        self._check_counts()
        last = self.n_obs_steps - 1 + self.n_action_steps
        if last > self.horizon:
            raise PolicyError(
                f"n_obs_steps - 1 + n_action_steps is {last}, beyond the horizon of {self.horizon}; "
                "lengthen horizon or shorten n_action_steps"
            )
        prediction = self.noise_scheduler.config.prediction_type
        if prediction not in ("epsilon", "sample"):
            raise PolicyError(f"the scheduler's prediction_type is {prediction!r}; expected 'epsilon' or 'sample'")


def crop_size(crop_shape: Sequence[int] | None) -> tuple[int, int] | None:
    """The option crop_shape, checked; PolicyError if it is not a pair of sizes."""
    if crop_shape is None:
        return None
    if len(crop_shape) != 2 or min(crop_shape) < 1:
        raise PolicyError(f"crop_shape is {list(crop_shape)}; expected (height, width) or null")
    return int(crop_shape[0]), int(crop_shape[1])
