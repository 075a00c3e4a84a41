"""A policy behind one function: an observation in, a chunk of actions out.

    images --decode--> RGB --resize, policy_observation--> input --encode--> features --denoise--> actions
                       '--------- prepare ----------'       (kept by content)

``prepare`` does what training does to its frames (``images.resize_frame``, ``spec.policy_observation``), plus the one
thing that a dataset does beforehand: it turns quaternions to the hemisphere in which they were recorded.

A feature does not depend on whether its neighbor was cached, so a log can be replayed to the last bit.

Legend of shapes: To observation steps, T horizon, Ta executed steps, Da action dimensions, Do feature width. Actions
and states are in the layout of messages (``wire``).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_policy.checkpoint import load_policy, read_checkpoint
from diffusion_policy.cpu import CpuTimes, processor_name
from diffusion_policy.images import resize_frame
from diffusion_policy.model.cpu.arithmetic import multiplies_bf16
from diffusion_policy.policy.contract import DenoisingPolicy, PolicyModule, PreviousChunk
from diffusion_policy.policy.default_sampler import Sampler, sampler_note, sampler_of_training
from diffusion_policy.policy.noise import window_noise
from diffusion_policy.policy.quaternion_hemisphere import QuaternionHemispheres
from diffusion_policy.policy.registry import refuse_memory
from diffusion_policy.policy.sampler import set_sampler
from diffusion_policy.serve.engine.compute_threads import ComputeThreads
from diffusion_policy.serve.engine.fast_path import FastPath
from diffusion_policy.serve.engine.served import (
    answer_steps,
    check_served,
    committed_actions,
    continuations,
    normalizer_hash,
)
from diffusion_policy.serve.engine.wire import Wire
from diffusion_policy.serve.settings import EngineSettings, ServeError
from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport.continuation import CONTINUATIONS
from diffusion_policy.serve.transport.images import decode_image
from diffusion_policy.serve.transport.protocol import MessageForm, Observation
from diffusion_policy.spec import ImageArray, action_semantics, policy_observation
from diffusion_policy.storage import file_sha256

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]
Prepared = dict[str, NDArray[Any]]
# What a checkpoint records about its training recordings: (width, height) of pictures by camera, gripper scales.
TRAINED_ON = ("frame_sizes", "gripper_scale")
# A state that never moved in training may be off by this much: meters, or a quaternion's component.
RANGE_EPSILON = 0.005
# A state that took two values in training may be off by this share of their distance.
BINARY_SLACK = 0.01
# The variance of float32 numbers may miss that of two values by this share, as it does if a thousandth are between.
TWO_VALUES_SLACK = 1e-3


@dataclass(frozen=True)
class Inference:
    """The policy's answer, before any guard.

    Attributes:
        actions: (Ta, Da) float64, from the current step on.
        sequence: (t, Da) all denoised steps: T, or on the fast path the executed ones and one more.
        first: index in ``sequence`` of ``actions[0]``.
        encoded: how many frames had to be encoded; the others were cached.
        threads: number of threads that computed it; 0 if unknown.
    """

    actions: FloatArray
    sequence: FloatArray
    first: int
    encoded: int
    threads: int = 0


class Engine(Protocol):
    """What a session needs from a policy."""

    n_obs_steps: int
    n_action_steps: int
    form: MessageForm

    def infer(self, observation: Observation, seed: int, remainder: FloatArray | None, stages: Stages) -> Inference:
        """Answer one observation; ``remainder`` (n, Da), the rest of the last sequence, can serve as a start."""

    def inspect(self, observation: Observation, seed: int) -> tuple[Prepared, Inference]:
        """The model's input, together with the answer."""

    def outside_training(self, observation: Observation, margin: float) -> list[str]:
        """A sentence for each state that training never saw; it may leave the range by the share ``margin``."""

    def action_range(self) -> tuple[FloatArray, FloatArray]:
        """(Da,) smallest and largest actions in training."""

    def describe(self) -> dict[str, Any]:
        """What a client and a log should know: hashes, scheduler, steps, names, units."""


@dataclass
class PolicyEngine:
    """The engine of a checkpoint; see :meth:`open`.

    Attributes:
        policy: the policy, in eval mode and with its sampler set.
        settings: how the policy is run.
        max_pixels: size limit of one image.
        identity: the part of :meth:`describe` about the checkpoint.
        threads: chosen again before each answer; None leaves torch's number as it is.
        semantics: units of the checkpoint's actions that neither names nor ``shape_meta`` give, such as joints'.
    """

    policy: PolicyModule
    settings: EngineSettings
    max_pixels: int = 4096 * 2160
    identity: dict[str, Any] = field(default_factory=dict)
    threads: ComputeThreads | None = None
    semantics: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        spec = self.policy.spec
        self.wire = Wire(spec, self.semantics)
        check_served(self.wire, spec)
        set_sampler(self.policy, self.settings.scheduler, self.settings.steps)
        self.n_obs_steps = self.policy.n_obs_steps
        self.n_action_steps = answer_steps(self.policy, self.settings)
        self.form = MessageForm(self.n_obs_steps, self.wire.layout, tuple(camera.key for camera in spec.rgb))
        self._hemispheres = QuaternionHemispheres(spec, self.policy.normalizer)
        self._decoders = ThreadPoolExecutor(self.n_obs_steps, "decode")  # decodes the frames of a request in parallel
        self._fast = FastPath.of(self.policy, self.settings) if self._takes_the_fast_path() else None

    def _takes_the_fast_path(self) -> bool:
        """Whether it is requested and possible; raises ServeError if an option needs what the policy lacks."""
        if self.settings.precision == "bfloat16" and not multiplies_bf16(self.policy.device):
            logger.warning(
                "engine.precision is bfloat16, but this device has no instructions for it: emulated, it is many times "
                "slower than float32"
            )
        why_not = self.policy.lacks("fast_engine")
        if not self.settings.fast or why_not is None:
            return self.settings.fast
        if self.settings.warm_start or self.settings.precision != "float32":
            raise ServeError(
                f"engine.warm_start and engine.precision need the fast path; this policy has none: {why_not}"
            )
        logger.warning("served by the plain path: %s", why_not)
        return False

    @classmethod
    def open(cls, path: str | Path, settings: EngineSettings, max_pixels: int = 4096 * 2160) -> PolicyEngine:
        """Loads and hashes a checkpoint, with the loader used everywhere (``checkpoint.load_policy``).

        Raises:
            WorkspaceError: the checkpoint cannot be read, or its policy cannot be served.
        """
        if torch.device(settings.device).type == "cuda" and not torch.cuda.is_available():
            raise ServeError(f"engine.device is {settings.device!r}, but no CUDA device is available")
        since = CpuTimes.now()
        checkpoint = read_checkpoint(path)
        provenance = checkpoint.provenance or {}
        refuse_memory(checkpoint.cfg.policy, checkpoint.path)
        policy = load_policy(checkpoint, which=settings.weights, device=settings.device)
        digest = file_sha256(checkpoint.path)
        trained = sampler_of_training(checkpoint.provenance, checkpoint.cfg)
        note = sampler_note(trained, Sampler(settings.scheduler, settings.steps))
        if note is not None:
            logger.warning("%s: %s", path, note)
        identity = {
            "checkpoint": checkpoint.where,
            "checkpoint_sha256": digest,
            "epoch": checkpoint.pickles.get("epoch"),
            "measured_with": None if trained is None else str(trained),
            "normalizer_sha256": normalizer_hash(policy),
            "trained_on": {name: provenance[name] for name in TRAINED_ON if name in provenance},
        }
        semantics = provenance.get("action_semantics")
        return cls(policy, settings, max_pixels, identity, ComputeThreads(settings.threads, since), semantics)

    def infer(self, observation: Observation, seed: int, remainder: FloatArray | None, stages: Stages) -> Inference:
        """Answers one observation; the answer is the same for the same observation, seed and remainder.

        Raises:
            ProtocolError: an image is too large or does not decode.
            GivenUpError: the answer is no longer awaited (``stages.check``, asked before each denoising step).
            WorkspaceError: anything else that the policy cannot act on.
        """
        if self.threads is not None:
            self.threads.choose_again()
        generator = torch.Generator().manual_seed(seed)
        drawn = window_noise(self.policy, generator)
        noise = None if drawn is None else drawn[None]
        states = self._hemispheres.turned(observation.states, self.wire.layout.arms)
        previous = self._previous(observation, states)
        if self._fast is None:
            sequence, encoded = self._answer_plainly(observation, previous, noise, generator, stages), self.n_obs_steps
        else:
            assert noise is not None
            features, encoded = self._features(self._fast, observation, stages)
            start = self._start(observation, remainder, states)
            with stages.measure("denoise"):
                sequence = self._fast.denoise(features, noise, generator, start, stages.check, previous)
        first = self.policy.first_executed
        chunk = self.wire.actions(sequence.double().cpu().numpy(), states)
        if previous is not None:  # as sent, without the rounding of a conversion to the policy's numbers and back
            chunk[first : first + previous.committed] = committed_actions(observation)[: len(chunk) - first]
        return Inference(chunk[first : first + self.n_action_steps], chunk, first, encoded, torch.get_num_threads())

    def inspect(self, observation: Observation, seed: int) -> tuple[Prepared, Inference]:
        """Returns the model's input, (To, ...) per key, together with the answer."""
        frames = [self.decode(observation, index) for index in range(len(observation.images))]
        prepared = self.prepare(frames, self._hemispheres.turned(observation.states, self.wire.layout.arms))
        return prepared, self.infer(observation, seed, None, Stages())

    def _features(self, fast: FastPath, observation: Observation, stages: Stages) -> tuple[Tensor, int]:
        """Returns features (To, Do), and how many steps had to be encoded."""
        states, n_steps = self._hemispheres.turned(observation.states, self.wire.layout.arms), self.n_obs_steps
        views = [observation.images[step::n_steps] for step in range(n_steps)]  # of each step, by camera
        keys = [fast.key(images, state) for images, state in zip(views, states, strict=True)]
        known = {key: fast.known(key) for key in keys}
        unseen = {key: step for step, key in enumerate(keys) if known[key] is None}
        if unseen:
            steps = list(unseen.values())
            wanted = [camera * n_steps + step for camera in range(len(self.form.cameras)) for step in steps]
            with stages.measure("decode"):
                frames = list(self._decoders.map(functools.partial(self.decode, observation), wanted))
            with stages.measure("prepare"):
                prepared = self.prepare(frames, states[steps])
            with stages.measure("encode"):
                known |= fast.encode(prepared, list(unseen))
        return torch.cat([features for key in keys if (features := known[key]) is not None]), len(unseen)

    def _previous(self, observation: Observation, states: FloatArray) -> PreviousChunk | None:
        """Returns the actions that constrain the answer, in the policy's numbers."""
        continued = observation.continuation
        if continued is None or continued.mode != "rtc":
            return None
        actions = torch.from_numpy(self._continued(continued.actions, states))
        return PreviousChunk(actions[None], continued.committed)

    def _start(self, observation: Observation, remainder: FloatArray | None, states: FloatArray) -> FloatArray | None:
        """Returns the actions that denoising starts from: the request's or, if so configured, the last answer's."""
        continued = observation.continuation
        if continued is not None and continued.mode == "warm_start":
            before = continued.actions[:1].repeat(self.policy.first_executed, axis=0)
            return self._continued(np.concatenate([before, continued.actions]), states)
        if remainder is None or not self.settings.warm_start:
            return None
        return self.wire.policy_actions(remainder, states)

    def _continued(self, actions: FloatArray, states: FloatArray) -> FloatArray:
        return self.wire.policy_actions(self._hemispheres.turned(actions, self.wire.layout.arms), states)

    def _answer_plainly(
        self,
        observation: Observation,
        previous: PreviousChunk | None,
        noise: Tensor | None,
        generator: torch.Generator,
        stages: Stages,
    ) -> Tensor:
        """Returns (T, Da), computed as in training's evaluation: the whole policy, with nothing cached."""
        with stages.measure("decode"):
            frames = [self.decode(observation, index) for index in range(len(observation.images))]
        with stages.measure("prepare"):
            prepared = self.prepare(frames, self._hemispheres.turned(observation.states, self.wire.layout.arms))
        with stages.measure("denoise"):
            batch = {key: torch.from_numpy(value)[None] for key, value in prepared.items()}
            if previous is None:
                answer = self.policy.predict_action(batch, noise, generator, before_step=stages.check)
            else:
                answer = self._denoising.continue_chunk(batch, previous, noise, generator, before_step=stages.check)
            return answer["action_pred"][0]

    @property
    def _denoising(self) -> DenoisingPolicy:
        """The policy, typed as one that can continue previous actions."""
        assert isinstance(self.policy, DenoisingPolicy)
        return self.policy

    def decode(self, observation: Observation, index: int) -> ImageArray:
        """Returns one image of an observation as an RGB frame; raises ProtocolError if it cannot be decoded."""
        if observation.decoded is not None and (frame := observation.decoded[index]) is not None:
            return frame
        return decode_image(observation.images[index], self.max_pixels, f"images[{index}]")

    def prepare(self, frames: Sequence[ImageArray], states: FloatArray) -> Prepared:
        """Converts frames of any size and states (n, Da) to policy input (n, ...), by the same path as training.

        The frames are n of the first camera, then n of the next.
        """
        raw: Prepared = {**self.wire.observed(states)}
        for index, camera in enumerate(self.policy.spec.rgb):
            own = frames[index * len(states) : (index + 1) * len(states)]
            raw[camera.key] = np.stack([resize_frame(frame, *camera.width_height) for frame in own])
        return policy_observation(self.policy.spec, raw)

    def warm_up(self, requests: int = 3) -> None:
        """Answers a gray image at the middle of the training range, so that the first robot does not wait longer."""
        sizes = [camera.width_height[::-1] for camera in self.policy.spec.rgb]
        frames = [np.full((*size, 3), 128, dtype=np.uint8) for size in sizes]
        states = np.tile(self.wire.middle(*self.action_range()), (self.n_obs_steps, 1))
        times = np.arange(self.n_obs_steps) / 10
        for request in range(requests):
            images = [frame + np.uint8(request) for frame in frames for _ in range(self.n_obs_steps)]
            self.infer(self.form.observation(images, states, times), request, None, Stages())

    # ---- what training saw ----

    def outside_training(self, observation: Observation, margin: float) -> list[str]:
        """A sentence for each state that training never saw.

        Such a state is outside the range by more than ``margin`` of it, or between the only two values it took.
        """
        observed, result = self.wire.observed(self._hemispheres.turned(observation.states, self.wire.layout.arms)), []
        for field_ in self.policy.spec.low_dim:
            low, high = self._range(field_.key)
            value = observed[field_.key][-1]
            slack = np.maximum(margin * (high - low), RANGE_EPSILON)
            outside = (value < low - slack) | (value > high + slack)
            off = np.minimum(np.abs(value - low), np.abs(value - high)) > BINARY_SLACK * (high - low)
            between = (
                self._has_two_values(field_.key) & off & [name not in self.wire.motion_names for name in field_.names]
            )
            for i in np.flatnonzero(outside | between):
                seen = f"only {low[i]:g} and {high[i]:g}" if between[i] else f"{low[i]:.4f} to {high[i]:.4f}"
                result.append(f"{field_.key} {field_.names[i]} is {value[i]:.4f}; training saw {seen}")
        return result

    def action_range(self) -> tuple[FloatArray, FloatArray]:
        """(Da,) smallest and largest actions in training; for relative actions, those of the observed states."""
        observed: dict[str, tuple[float, float]] = {}
        for field_ in self.policy.spec.low_dim:
            observed |= dict(zip(field_.names, zip(*self._range(field_.key), strict=True), strict=True))
        return self.wire.range(*self._range("action"), observed)

    def _range(self, key: str) -> tuple[FloatArray, FloatArray]:
        return self._statistic(key, "min"), self._statistic(key, "max")

    def _statistic(self, key: str, name: str) -> FloatArray:
        values: FloatArray = self.policy.normalizer[key].get_input_stats()[name].detach().double().cpu().numpy()
        return values

    def _has_two_values(self, key: str) -> NDArray[np.bool_]:
        """(D,) whether training saw nothing but the smallest and the largest value.

        Of all distributions with a given range and mean, only those have the largest variance, (max - mean) (mean -
        min) (Bhatia and Davis, 2000), so four statistics suffice.
        """
        low, high = self._range(key)
        mean, deviation = self._statistic(key, "mean"), self._statistic(key, "std")
        largest = (high - mean) * (mean - low)
        return (high > low) & (deviation**2 >= (1 - TWO_VALUES_SLACK) * largest)

    def describe(self) -> dict[str, Any]:
        """What a client and a log should know."""
        threads = torch.get_num_threads() if self.threads is None else self.threads.count  # torch's is per thread
        layout = self.wire.layout
        return {
            **self.identity,
            "weights": self.settings.weights,
            "scheduler": self.settings.scheduler,
            "steps": self.settings.steps,
            "precision": self.settings.precision,
            "warm_start": self.settings.warm_start,
            "seed": self.settings.seed,
            "device": self.settings.device,
            "processor": f"{processor_name()}, {threads} threads",
            "threads": threads,
            "fast": self._fast is not None,
            "cuda_graphs": self._fast is not None and self._fast.uses_cuda_graphs,
            "denoised_steps": self.policy.sequence_length if self._fast is None else self._fast.denoised_steps,
            "n_obs_steps": self.n_obs_steps,
            "n_action_steps": self.n_action_steps,
            "horizon": self.policy.horizon,
            "cameras": list(self.form.cameras),
            **self._image_sizes(),
            "action_semantics": action_semantics(layout.names, dict(zip(layout.names, layout.units, strict=True))),
            **self.form.metadata(),
            CONTINUATIONS: continuations(self.policy, fast=self._fast is not None),
        }

    def _image_sizes(self) -> dict[str, Any]:
        """(width, height) of the policy's pictures; by camera where there are several."""
        sizes = {camera.key: list(camera.width_height) for camera in self.policy.spec.rgb}
        return {"image_size": next(iter(sizes.values()))} if len(sizes) == 1 else {"image_sizes": sizes}
