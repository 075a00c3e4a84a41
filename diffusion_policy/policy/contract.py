"""What a policy is, for all code that trains, adapts, serves or judges one.

Code outside this package never checks the class of a policy; it uses this contract. A class is known by its entry in
`registry`; the type checker verifies the contract where the class derives from :class:`PolicyModule`.

Legend of shapes: B batch, T horizon, To observation steps, Ta executed steps, Da action width, S width of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusion_policy.model.normalizer import LinearNormalizer
from diffusion_policy.model.obs_encoder import ObsEncoder
from diffusion_policy.model.placed_module import PlacedModule
from diffusion_policy.policy.tensor_axes import PolicyTensors
from diffusion_policy.spec import StepSpec

Observations = Mapping[str, Tensor]
Draw = Mapping[str, Tensor]
# The memory of a recurrent policy, by name, (B, ...) each.
PolicyMemory = dict[str, Tensor]
# fast_engine: features per frame and its own denoiser (`AcceleratedPolicy`), hence half precision;
# warm_start: denoising may start from the rest of the last answer; previous_chunk: an answer may be held to that rest;
# loss_weights: numbers in the action may have different weights.
Capability = Literal["fast_engine", "warm_start", "previous_chunk", "loss_weights"]


class Policy(Protocol):
    """Observations in, a sequence of actions out.

    Attributes:
        shape_meta: observation keys and action width, as configured.
        spec: the same, parsed.
        horizon: T, steps predicted.
        n_obs_steps: To.
        n_action_steps: Ta.
        normalizer: for observations and actions; has no entries before training.
        tensors: the named axes of its tensors, and how files of the class are recognized.
    """

    shape_meta: Mapping[str, Any]
    spec: StepSpec
    horizon: int
    n_obs_steps: int
    n_action_steps: int
    normalizer: LinearNormalizer
    tensors: ClassVar[PolicyTensors]

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def sequence_length(self) -> int:
        """Steps in an answer."""

    @property
    def first_executed(self) -> int:
        """Index in an answer of the first step that is executed."""

    def lacks(self, capability: Capability) -> str | None:
        """Why it lacks the capability, as the end of a sentence; None if it has it."""

    # ---- answers ----

    def predict_action(
        self,
        obs: Observations,
        initial_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        before_step: Callable[[], None] | None = None,
    ) -> dict[str, Tensor]:
        """Answer observations (B, To or more, ...).

        Args:
            obs: per key, in the dataset's units; images as uint8 or in [0, 1].
            initial_noise: (B, steps, S), only for a `DenoisingPolicy`; None: drawn.
            generator: source of all random numbers; None: torch's default generator.
            before_step: called before each pass of the network; an exception that it raises aborts the answer.

        Returns:
            "action" (B, Ta, Da), to be executed from the current step on, and "action_pred" (B, sequence_length, Da).
        """

    def camera_features(self, obs: Observations, generator: torch.Generator) -> dict[str, Tensor]:
        """Features (B, F) of the first observed step, per camera."""

    # ---- training ----

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        """The random numbers that the loss of n windows needs, (n, ...) each, on the generator's device."""

    def loss(self, batch: Mapping[str, Any], draw: Draw, weights: Tensor | None = None) -> Tensor:
        """Mean loss of windows, a scalar.

        Args:
            batch: "obs" (B, steps, ...) and "action" (B, T, Da).
            draw: from :meth:`draw`, for these windows.
            weights: (B, T, Da) weight of each number in the action; None: all equal.
        """

    def parameter_groups(self, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Groups for AdamW with all options that the config's `optimizer` sets: lr, betas, weight_decay, ..."""

    def layers_above(self, name: str) -> int:
        """Number of layers between a parameter and the output; the top layer has 0."""

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        """Parameters of the observation encoder, which may have its own learning rate."""

    def set_normalizer(self, normalizer: LinearNormalizer) -> None:
        """Copy the parameters of a normalizer."""


class PolicyModule(PlacedModule, Policy):
    """A policy as a torch module."""


class NoiseScheduler(Protocol):
    """The part of a diffusers scheduler that is used."""

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


@dataclass(frozen=True)
class PreviousChunk:
    """The part of the last answer that was still to be executed when the observation was made.

    Attributes:
        actions: (B, n, Da) in the dataset's units; the first belongs to the time of the answer's first executed step.
        committed: how many of them will have been executed when the answer arrives.
    """

    actions: Tensor
    committed: int


@runtime_checkable
class DenoisingPolicy(Protocol):
    """What only diffusion policies have; other policies have no sampler to choose and do not start from noise.

    Attributes:
        noise_scheduler: may be replaced by another one over the same noise levels.
        num_inference_steps: denoising steps; can be set.
    """

    noise_scheduler: NoiseScheduler
    num_inference_steps: int

    @property
    def sample_shape(self) -> tuple[int, int]:
        """(steps, S) of what is denoised."""

    def continue_chunk(
        self,
        obs: Observations,
        previous: PreviousChunk,
        initial_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        before_step: Callable[[], None] | None = None,
    ) -> dict[str, Tensor]:
        """Like :meth:`Policy.predict_action`, but continues the last answer; committed steps are returned unchanged.

        ``policy.previous_chunk`` has the mathematics.
        """


@runtime_checkable
class RecurrentPolicy(Protocol):
    """What only policies with memory have. They answer with classes and are trained on sequences in order.

    An action consists of factors, each one of n classes (in VPT, "buttons" and "camera"). A row of a batch is a stream
    of frames; ``first`` (B, T) bool is true where an episode starts, anywhere in a chunk, and hides everything before
    it. A chunk gives the same results whether it is passed whole, in parts, or frame by frame.
    """

    def initial_memory(self, n: int) -> PolicyMemory:
        """The memory before the first frame of n episodes."""

    def log_probabilities(
        self, obs: Observations, first: Tensor, memory: PolicyMemory
    ) -> tuple[dict[str, Tensor], PolicyMemory]:
        """Log-probabilities (B, T, n) of the classes by factor, and the memory after the chunk.

        Args:
            obs: per key (B, T, ...), images uint8.
            first: (B, T).
            memory: before the chunk.
        """

    def classes_of(self, action: Tensor, first: Tensor, memory: PolicyMemory) -> tuple[dict[str, Tensor], PolicyMemory]:
        """Actions (B, T, Da) in the dataset's units -> class (B, T) int64 by factor, and the memory."""

    def action_of(self, classes: Mapping[str, Tensor]) -> Tensor:
        """Class (B, T) by factor -> actions (B, T, Da) in the dataset's units."""

    def answer(
        self, obs: Observations, first: Tensor, memory: PolicyMemory, generator: torch.Generator | None = None
    ) -> tuple[Tensor, PolicyMemory]:
        """Actions (B, T, Da) for frames in order, and the memory after them; without gradients.

        Args:
            obs: per key (B, T, ...); T = 1 in a closed loop.
            first: (B, T).
            memory: of the frames before.
            generator: draws the actions; None: the most probable one is taken.

        Raises:
            PolicyError: observations do not fit.
        """


class Denoiser(Protocol):
    """The denoiser of one request."""

    def set_timesteps(self, timesteps: Tensor) -> None:
        """Prepare for the sampler's timesteps."""

    def set_condition(self, features: Tensor) -> None:
        """Set the observations of a request, features (To, Do)."""

    def predict(self, sample: Tensor, timestep: int) -> Tensor:
        """The network's prediction for (1, t, S); valid until the next call."""


@runtime_checkable
class RecordableDenoiser(Denoiser, Protocol):
    """A denoiser whose step touches only memory that it owns, so that it can be captured as a CUDA graph.

    Attributes:
        device: where its memory is.
        sample_shape: (1, t, S).
    """

    device: torch.device
    sample_shape: tuple[int, int, int]

    def set_time(self, timestep: int) -> None:
        """Choose one of the timesteps set before."""

    def step(self, sample: Tensor) -> Tensor:
        """Prediction for (1, t, S) at that time."""


class AcceleratedPolicy(Policy, DenoisingPolicy, Protocol):
    """What the fast engine requires of a policy that supports it."""

    obs_encoder: ObsEncoder
    eta: float | None

    @property
    def denoises_in_part(self) -> bool:
        """Whether the first steps of an answer can be denoised without the later ones."""

    def make_denoiser(self, precision: str, rows: int | None) -> Denoiser:
        """The fastest denoiser for one robot on this device.

        Args:
            precision: "float32" or "bfloat16", of the operands of products.
            rows: denoise only this many first steps; None: all.
        """
