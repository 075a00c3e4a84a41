"""Diffusion policy on images and states, with a transformer as denoiser (Chi et al. 2023).

Parameter names and outputs are those of the public reference: its checkpoints run here, and ours there.

Legend of shapes: B batch, T horizon, To observation steps, Ta executed steps, Da action width, Do feature width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_policy.model.diffusion.fast_denoiser import CompiledDenoiser, FastDenoiser, FullDenoiser, is_foldable
from diffusion_policy.model.diffusion.transformer_for_diffusion import TransformerForDiffusion
from diffusion_policy.model.obs_encoder import ACTIVATIONS, STRIDE, WIDTH
from diffusion_policy.policy.contract import NoiseScheduler
from diffusion_policy.policy.diffusion_image_policy import DiffusionImagePolicy, crop_size
from diffusion_policy.policy.observation_batch import PolicyError
from diffusion_policy.policy.tensor_axes import PolicyTensors
from diffusion_policy.policy.transformer_tensors import TENSORS

_LAYER = re.compile(r"^model\.(?:decoder|encoder)\.layers\.(\d+)\.")
_TOP = ("model.ln_f.", "model.head.")


class DiffusionTransformerHybridImagePolicy(DiffusionImagePolicy):
    """Denoises T actions, given the last To observations, and executes Ta of them.

    For To = 2, Ta = 8, T = 16; "now" is step 1, the last one observed::

        step          0     1     2     3    ...    8     9    ...   15
        observed      x    now
        denoised      x     x     x     x    ...    x     x    ...    x
        executed            x     x     x    ...    x
                            '------- Ta = 8 --------'

    Args:
        shape_meta: observation keys and action width, see ``spec.read_shape_meta``.
        noise_scheduler: a diffusers scheduler (DDPM for training); may be replaced later.
        horizon: T.
        n_action_steps: Ta.
        n_obs_steps: To.
        num_inference_steps: denoising steps; None: as many as the scheduler trains with. Can be set later.
        crop_shape: (h, w) of the image crop; None: whole images.
        obs_encoder_group_norm: GroupNorm instead of BatchNorm; the EMA copy needs it.
        eval_fixed_crop: center crop outside training; False: random crops there too, as in the reference.
        n_layer, n_cond_layers, n_head, n_emb, p_drop_emb, p_drop_attn, causal_attn, time_as_cond: the denoiser, see
            :class:`TransformerForDiffusion`.
        obs_as_cond: features are the condition; False: they are part of the sample and kept there by inpainting.
        pred_action_steps_only: denoise only the Ta executed steps.
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
    condition_option = "obs_as_cond"
    model: TransformerForDiffusion

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
        self.crop_shape = crop_size(crop_shape)
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

    def _make_denoiser(self) -> TransformerForDiffusion:
        return TransformerForDiffusion(
            input_dim=self.sample_dim,
            output_dim=self.sample_dim,
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

    def _check_options(self) -> None:
        self._check_counts("n_layer", "n_head", "n_emb")
        super()._check_options()
        if self.obs_as_cond and not self.time_as_cond:
            raise PolicyError("time_as_cond: False works only with obs_as_cond: False (no condition tokens at all)")
        if self.pred_action_steps_only and not self.obs_as_cond:
            raise PolicyError("pred_action_steps_only needs obs_as_cond: inpainting keeps observed steps in the sample")

    # ---- which steps are denoised ----

    @property
    def sequence_length(self) -> int:
        """Steps of a sample: T, or Ta with pred_action_steps_only."""
        return self.n_action_steps if self.pred_action_steps_only else self.horizon

    @property
    def first_executed(self) -> int:
        """Index in an answer of the first step that is executed."""
        return 0 if self.pred_action_steps_only else super().first_executed

    def _steps_denoised(self, steps: Tensor) -> Tensor:
        return steps[:, self._executed] if self.pred_action_steps_only else steps

    # ---- serving ----

    @property
    def denoises_in_part(self) -> bool:
        """Whether the first steps can be denoised without the later ones."""
        return is_foldable(self.model) and self.causal_attn and not self.pred_action_steps_only

    def make_denoiser(self, precision: str, rows: int | None) -> FastDenoiser | FullDenoiser:
        """The fastest denoiser for one robot that model and device allow.

        Args:
            precision: "float32" or "bfloat16", of the operands of products.
            rows: denoise only this many first steps; None: all.
        """
        if not is_foldable(self.model):
            return FullDenoiser(self.model)
        kind = CompiledDenoiser if CompiledDenoiser.suits(self.model, precision) else FastDenoiser
        return kind(self.model, self.sequence_length, precision, rows)

    # ---- what learns ----

    def parameter_groups(self, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Three groups in the reference's order: matrices of the denoiser, the rest of it, observation encoder.

        Args:
            settings: learning_rate, betas, transformer_weight_decay and obs_encoder_weight_decay.
        """
        betas = settings["betas"]
        options = {"lr": settings["learning_rate"], "betas": (betas[0], betas[1])}
        groups = [
            *self.model.get_optim_groups(weight_decay=settings["transformer_weight_decay"]),
            {"params": self.encoder_parameters(), "weight_decay": settings["obs_encoder_weight_decay"]},
        ]
        return [{**group, **options} for group in groups]

    def get_optimizer(
        self,
        transformer_weight_decay: float,
        obs_encoder_weight_decay: float,
        learning_rate: float,
        betas: Sequence[float],
    ) -> torch.optim.AdamW:
        """AdamW over :meth:`parameter_groups`."""
        settings = {
            "transformer_weight_decay": transformer_weight_decay,
            "obs_encoder_weight_decay": obs_encoder_weight_decay,
            "learning_rate": learning_rate,
            "betas": betas,
        }
        return torch.optim.AdamW(self.parameter_groups(settings), lr=learning_rate, betas=(betas[0], betas[1]))

    def layers_above(self, name: str) -> int:
        """Number of layers between a parameter and the head; the top layer has 0, like the head itself.

        Embeddings, the condition's encoder and the observation encoder are below all layers.
        """
        if name.startswith(_TOP):
            return 0
        match, n_layers = _LAYER.match(name), max(self.n_layer, self.n_cond_layers if self.time_as_cond else 0)
        return n_layers - 1 - int(match[1]) if match else n_layers
