"""Diffusion policy on images and states, with a convolutional UNet as denoiser (Chi et al. 2023).

Parameter names and outputs are those of the public reference: its checkpoints run here, and ours there.

Legend of shapes: B batch, T horizon, To observation steps, Ta executed steps, Da action width, Do feature width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_policy.model.diffusion.conditional_unet1d import ConditionalUnet1D
from diffusion_policy.model.diffusion.fast_denoiser import FullDenoiser
from diffusion_policy.model.obs_encoder import ACTIVATIONS, STRIDE, WIDTH
from diffusion_policy.policy.contract import NoiseScheduler
from diffusion_policy.policy.diffusion_image_policy import DiffusionImagePolicy, crop_size
from diffusion_policy.policy.observation_batch import PolicyError
from diffusion_policy.policy.tensor_axes import PolicyTensors
from diffusion_policy.policy.unet_tensors import EMBED_DIM, TENSORS

OPTIMIZER = "torch.optim.AdamW"
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
_LEVEL = re.compile(r"^model\.(down|up)_modules\.(\d+)\.")


class DiffusionUnetHybridImagePolicy(DiffusionImagePolicy):
    """Denoises T actions, given the last To observations, and executes Ta of them.

    Args:
        shape_meta: observation keys and action width, see ``spec.read_shape_meta``.
        noise_scheduler: a diffusers scheduler (DDPM for training); may be replaced later.
        horizon: T, a multiple of 2 ** (levels - 1).
        n_action_steps: Ta.
        n_obs_steps: To.
        num_inference_steps: denoising steps; None: as many as the scheduler trains with. Can be set later.
        obs_as_global_cond: features of the To steps are the condition; False: features of all T steps are part of the
            sample, and those of the first To are kept there by inpainting (training then needs T observed steps).
        crop_shape: (h, w) of the image crop; None: whole images.
        diffusion_step_embed_dim, down_dims, kernel_size, n_groups, cond_predict_scale: the denoiser, see
            :class:`ConditionalUnet1D`.
        obs_encoder_group_norm: GroupNorm instead of BatchNorm; the EMA copy needs it.
        eval_fixed_crop: center crop outside training; False: random crops there too, as in the reference.
        color_jitter: see ``model.image_augmentation.ColorJitter``; applied after the crop, in training only; None: off.
        eta: for schedulers that take it (DDIM: 0 deterministic, 1 as random as DDPM); None: the scheduler's default.
        encoder_width, encoder_stride: channels of the image encoder's first stage and pixels per cell of its last map,
            see :class:`ObsEncoder`; 64 and 32 are ResNet-18, as in the reference.
        encoder_activation: final activation of image features, "relu" as in the reference, or "none"; see
            :class:`ObsEncoder`.

    Every option is an attribute of the same name.

    Raises:
        PolicyError, ModelError, SpecError: options that do not fit each other or the shapes.
    """

    tensors: ClassVar[PolicyTensors] = TENSORS
    condition_option = "obs_as_global_cond"
    model: ConditionalUnet1D

    def __init__(
        self,
        shape_meta: Mapping[str, Any],
        noise_scheduler: NoiseScheduler,
        horizon: int,
        n_action_steps: int,
        n_obs_steps: int,
        num_inference_steps: int | None = None,
        obs_as_global_cond: bool = True,
        crop_shape: Sequence[int] | None = (76, 76),
        diffusion_step_embed_dim: int = EMBED_DIM,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        n_groups: int = 8,
        cond_predict_scale: bool = True,
        obs_encoder_group_norm: bool = False,
        eval_fixed_crop: bool = False,
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
        self.obs_as_global_cond = obs_as_global_cond
        self.crop_shape = crop_size(crop_shape)
        self.diffusion_step_embed_dim = diffusion_step_embed_dim
        self.down_dims = tuple(down_dims)
        self.kernel_size = kernel_size
        self.n_groups = n_groups
        self.cond_predict_scale = cond_predict_scale
        self.obs_encoder_group_norm = obs_encoder_group_norm
        self.eval_fixed_crop = eval_fixed_crop
        self.color_jitter = color_jitter
        self.eta = eta
        self.encoder_width, self.encoder_stride = encoder_width, encoder_stride
        self.encoder_activation = encoder_activation
        self._build()

    def _make_denoiser(self) -> ConditionalUnet1D:
        return ConditionalUnet1D(
            self.sample_dim,
            global_cond_dim=self.n_obs_steps * self.obs_feature_dim if self.obs_as_global_cond else 0,
            diffusion_step_embed_dim=self.diffusion_step_embed_dim,
            down_dims=self.down_dims,
            kernel_size=self.kernel_size,
            n_groups=self.n_groups,
            cond_predict_scale=self.cond_predict_scale,
        )

    def _check_options(self) -> None:
        super()._check_options()
        levels = len(self.down_dims)
        if levels and self.horizon % 2 ** (levels - 1):
            raise PolicyError(
                f"horizon is {self.horizon}; expected a multiple of {2 ** (levels - 1)}, since the {levels} levels of "
                "down_dims halve it from one to the next"
            )

    def _held_in_training(self, clean: Tensor, features: Tensor) -> Tensor:
        # As in the reference, not detached: the encoder gets its gradient through these entries only.
        return torch.cat((clean[..., : self.action_dim], features), dim=-1)

    # ---- serving ----

    @property
    def denoises_in_part(self) -> bool:
        """False: convolutions see both sides, so the first steps cannot be denoised without the later ones."""
        return False

    def make_denoiser(self, precision: str, rows: int | None) -> FullDenoiser:
        """The denoiser for one robot: the network itself, in float32 regardless of the precision of images."""
        assert rows is None, "every step sees later ones"
        return FullDenoiser(self.model)

    # ---- what learns ----

    def parameter_groups(self, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One group of everything except the normalizer; weight decay includes biases and norms, as in the reference.

        Args:
            settings: options of torch's AdamW, with torch's defaults for missing ones; `_target_` may name it.

        Raises:
            PolicyError: another optimizer, or an unknown option.
        """
        options = {**ADAMW, **{name: value for name, value in settings.items() if name != "_target_"}}
        target = settings.get("_target_", OPTIMIZER)
        if target != OPTIMIZER or options.keys() != ADAMW.keys():
            found = ", ".join(sorted(options.keys() - ADAMW.keys())) or target
            raise PolicyError(f"optimizer has {found}; expected {OPTIMIZER} with {', '.join(ADAMW)}")
        learning = [parameter for name, parameter in self.named_parameters() if not name.startswith("normalizer.")]
        return [{"params": learning, **options, "betas": tuple(options["betas"])}]

    def layers_above(self, name: str) -> int:
        """Number of blocks between a parameter and the output; the last upward one has 0, like the output itself.

        The time embedding and the observation encoder are below all blocks.
        """
        levels = len(self.down_dims)
        if name.startswith("model.final_conv."):
            return 0
        if name.startswith("model.mid_modules."):
            return levels - 1
        match = _LEVEL.match(name)
        if match is None:
            return 2 * levels
        number = int(match[2])
        return levels - 2 - number if match[1] == "up" else 2 * levels - 1 - number
