"""Accelerated inference of a policy for one robot: earlier results are reused.

* A step's features are kept by its content (image and state), so a frame shared by two requests is encoded once.
* The denoiser's condition is folded once per request, its time tokens once and for all
(``model.diffusion.fast_denoiser``). * Steps of the sequence that no executed step depends on are not denoised (causal
attention, samplers without noise). * Convolutions run in the memory layout that suits them, in bfloat16 if asked for;
the spatial softmax, whose sums
  decide where a keypoint is, stays float32.
* On a CUDA device a denoising step is one CUDA graph (``cuda_graph``).

The policy itself is not changed; its plain ``predict_action`` remains the reference for what is computed here.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion_policy.host_memory import keep_freed_memory
from diffusion_policy.images import image_key
from diffusion_policy.model.cpu.arithmetic import use_fast_layers
from diffusion_policy.model.diffusion.noise_schedulers import DDPMScheduler
from diffusion_policy.policy.contract import AcceleratedPolicy, Denoiser, Policy, PreviousChunk, RecordableDenoiser
from diffusion_policy.policy.observation_batch import observation_batch
from diffusion_policy.policy.previous_chunk import HeldChunk
from diffusion_policy.serve.engine.cuda_graph import GraphedDenoiser
from diffusion_policy.serve.engine.served import answer_steps
from diffusion_policy.serve.recent import Recent
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.spec import ImageArray

logger = logging.getLogger(__name__)

# Share of the denoising steps skipped when a request brings actions to start from and engine.warm_start is not set.
CONTINUED_WARM_START = 0.5


def is_cuda(device: torch.device) -> bool:
    """Whether a device can replay CUDA graphs."""
    return device.type == "cuda"


class FastPath:
    """The two accelerated halves of ``predict_action``: :meth:`encode` and :meth:`denoise`.

    The policy must support the fast engine: its features depend on the frame alone and serve as a condition.
    """

    @classmethod
    def of(cls, policy: Policy, settings: EngineSettings) -> FastPath:
        """Builds the fast path of any policy that supports it."""
        assert policy.lacks("fast_engine") is None
        return cls(cast(AcceleratedPolicy, policy), settings)

    def __init__(self, policy: AcceleratedPolicy, settings: EngineSettings) -> None:
        self._policy = policy
        self._warm_start = settings.warm_start
        self._dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        self._cameras = {camera.key: self._settled(camera.key, settings) for camera in policy.spec.rgb}
        self._features: Recent[Tensor] = Recent(settings.cached_frames)
        policy.noise_scheduler.set_timesteps(policy.num_inference_steps)
        self._timesteps: list[int] = policy.noise_scheduler.timesteps.tolist()
        self.denoised_steps = _steps_to_denoise(policy, settings)
        self._denoiser = self._build_denoiser(settings)

    def _settled(self, camera: str, settings: EngineSettings) -> tuple[Any, Any]:
        """Returns a camera's convolutions, in the configured layout and precision, and the layers after them."""
        core: Any = self._policy.obs_encoder.obs_nets[camera]
        backbone = copy.deepcopy(core.backbone).to(dtype=self._dtype, memory_format=torch.channels_last)
        if self._policy.device.type == "cpu":
            self._settle_on_cpu(backbone, settings)
        return torch.compile(backbone) if settings.compile else backbone, core.nets[1:]

    def _settle_on_cpu(self, backbone: nn.Module, settings: EngineSettings) -> None:
        keep_freed_memory()
        if self._dtype == torch.float32 and not settings.compile:
            reason = use_fast_layers(backbone, frozen=True)
            if reason is not None:
                logger.warning("images are encoded at half the speed, without the compiled kernels: %s", reason)

    @property
    def uses_cuda_graphs(self) -> bool:
        """Whether a denoising step is launched as a whole."""
        return isinstance(self._denoiser, GraphedDenoiser)

    def _build_denoiser(self, settings: EngineSettings) -> Denoiser | GraphedDenoiser:
        """Returns the fastest denoiser that the policy and the device allow."""
        policy = self._policy
        rows = self.denoised_steps if self.denoised_steps < policy.sequence_length else None
        denoiser = policy.make_denoiser(settings.precision, rows)
        denoiser.set_timesteps(policy.noise_scheduler.timesteps)
        if not isinstance(denoiser, RecordableDenoiser) or not is_cuda(policy.device) or not settings.cuda_graphs:
            return denoiser
        try:
            return GraphedDenoiser(denoiser, self._timesteps[0])
        except RuntimeError as error:
            logger.warning(
                "a denoising step cannot be recorded as a CUDA graph; kernels are launched one by one: %s", error
            )
            return denoiser

    # ---- features ----

    def key(self, images: Sequence[bytes | ImageArray], state: NDArray[np.float64]) -> bytes:
        """Returns a short key of all that a step's features depend on: one image per camera, and the state."""
        return b"".join(map(image_key, images)) + state.tobytes()

    def known(self, key: bytes) -> Tensor | None:
        """Returns the cached features (1, Do) of a step; None if there are none."""
        return self._features.get(key)

    @torch.no_grad()
    def encode(self, prepared: Mapping[str, NDArray[Any]], keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        """Returns features (1, Do) by key for n steps of policy input (n, ...), and caches them.

        Convolutions process all n at once, which changes no bit of a result. The layers after them run one step at a
        time, since products of other sizes may sum in another order.
        """
        policy, encoder = self._policy, self._policy.obs_encoder
        tensors = {name: torch.from_numpy(value)[:, None] for name, value in prepared.items()}
        batch = observation_batch(policy.spec, tensors, 1, policy.device, check_finite=True)
        steps = {name: value[:, 0] for name, value in policy.normalizer.normalize(batch).items()}
        for camera, (backbone, _) in self._cameras.items():
            images = steps[camera] if encoder.crop is None else encoder.crop(steps[camera])
            steps[camera] = backbone(images.to(dtype=self._dtype, memory_format=torch.channels_last)).float()
        encoded = {}
        for row, key in enumerate(keys):
            step = {name: value[row : row + 1] for name, value in steps.items()}
            for camera, (_, after) in self._cameras.items():
                step[camera] = encoder.activate(after(step[camera]))
            encoded[key] = torch.cat([step[field.key] for field in policy.spec.obs], dim=-1)
        self._features.update(encoded)
        return encoded

    # ---- actions ----

    @torch.no_grad()
    def denoise(
        self,
        features: Tensor,
        noise: Tensor,
        generator: torch.Generator,
        start: NDArray[np.float64] | None,
        before_step: Callable[[], None] = lambda: None,
        previous: PreviousChunk | None = None,
    ) -> Tensor:
        """Denoises noise (1, T, Da) given features (To, Do): actions (t, Da) in dataset units, t = ``denoised_steps``.

        A start (n, Da), the remainder of the last sequence, is noised to a later timestep, and denoising continues from
        there; its missing end repeats its last row, a guess that is denoised like the rest. ``before_step`` is
        called before each step; what it raises ends the loop. For ``previous`` see ``policy.previous_chunk``.
        """
        policy, scheduler = self._policy, self._policy.noise_scheduler
        options = {} if policy.eta is None else {"eta": policy.eta}
        self._denoiser.set_condition(features)
        scheduler.set_timesteps(policy.num_inference_steps)
        sample, skipped = noise[:, : self.denoised_steps].to(policy.device), 0
        if start is not None and len(start):
            skipped = int((self._warm_start or CONTINUED_WARM_START) * len(self._timesteps))
            sample = self._noised(start, sample, self._timesteps[skipped])
        held = None if previous is None else self._held(previous, sample)
        for timestep in self._timesteps[skipped:]:
            before_step()
            if held is None:
                prediction = self._predict(timestep, sample)
            else:
                prediction = held.guided(partial(self._predict, timestep), timestep, sample)
            sample = scheduler.step(prediction, timestep, sample, generator=generator, **options).prev_sample
        return policy.normalizer["action"].unnormalize(sample if held is None else held.settled(sample))[0]

    def _predict(self, timestep: int, sample: Tensor) -> Tensor:
        return self._denoiser.predict(sample, timestep).clone()  # a multistep solver keeps a reference to it

    def _held(self, previous: PreviousChunk, sample: Tensor) -> HeldChunk:
        policy = self._policy
        known = policy.normalizer["action"].normalize(previous.actions.float())
        return HeldChunk(known, previous.committed, policy.first_executed, sample, policy.noise_scheduler)

    def _noised(self, remainder: NDArray[np.float64], noise: Tensor, timestep: int) -> Tensor:
        """Returns the remainder, normalized and at the noise level of a timestep: (1, T, Da)."""
        start = self._policy.normalizer["action"].normalize(torch.from_numpy(remainder).float())
        rows = torch.arange(noise.shape[1], device=start.device).clamp(max=len(start) - 1)
        alpha = self._policy.noise_scheduler.alphas_cumprod[timestep].to(noise)
        return alpha.sqrt() * start[rows][None] + (1 - alpha).sqrt() * noise


def _steps_to_denoise(policy: AcceleratedPolicy, settings: EngineSettings) -> int:
    """Returns how many steps of the sequence must be denoised: those executed, and one more for the next chunk's seam.

    It is all of them where a step sees later ones, where the remainder is a start for the next chunk, or where the
    sampler draws noise (in one draw for the whole sequence) or scales a sample by a statistic of all its numbers.
    """
    needed = policy.first_executed + answer_steps(policy, settings) + 1
    config = policy.noise_scheduler.config
    draws = (
        isinstance(policy.noise_scheduler, DDPMScheduler)
        or bool(policy.eta)
        or str(config.get("algorithm_type", "")).startswith("sde")
    )
    whole = not policy.denoises_in_part or bool(settings.warm_start) or draws or bool(config.get("thresholding"))
    return policy.sequence_length if whole else min(needed, policy.sequence_length)
