"""Closed-loop rollouts of a policy on the built-in tabletop: does it pick the block up and put it in the tray?

Recorded episodes show a policy the states that the expert reached; here it lives with its own. A policy that copies the
measured gripper looks learned on recordings and never grasps here, since nothing closes before it commands it.

Legend: B episodes at once, To observation steps, Ta action steps.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_policy.images import decode_jpeg, resize_frame
from diffusion_policy.sim.camera import Camera
from diffusion_policy.sim.recorder import encode_jpeg
from diffusion_policy.sim.tabletop import Tabletop, draw_scene
from diffusion_policy.spec import (
    GRIPPER,
    POSE,
    SpecError,
    policy_observation,
    read_shape_meta,
)

RawStep = dict[str, NDArray[Any]]


class ActingPolicy(Protocol):
    """What a policy must offer to be rolled out."""

    n_obs_steps: int
    device: torch.device

    def predict_action(
        self, obs: dict[str, torch.Tensor], *, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Observations (B, To, ...) to {"action": (B, Ta, 8)}."""


@dataclass
class _Episode:
    """One tabletop, its camera, the last To observations and what has happened."""

    tabletop: Tabletop
    camera: Camera
    history: deque[RawStep]
    grasped: bool = False

    @property
    def finished(self) -> bool:
        return self.grasped and self.tabletop.placed


class TabletopRunner:
    """Rolls a policy out on scenes that no recording of the same seed range holds.

    Args:
        output_dir: unused; the interface of runners.
        shape_meta: of the policy; image size and action names are read from it.
        n_episodes: scenes, all at once.
        seed: of the first scene and of the sampling noise.
        max_steps: tenths of a second after which an episode has failed; the expert needs about 70.
        executed_steps: how many of the predicted actions are carried out before the policy is asked again.
        camera_size: (width, height) of the camera, as recorded; frames are JPEG-coded and resized as in a dataset.

    Raises:
        SpecError: the policy's actions have no gripper, or its keys are not those of the tabletop.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str] | None,
        shape_meta: Mapping[str, Any],
        n_episodes: int = 10,
        seed: int = 100_000,
        max_steps: int = 120,
        executed_steps: int = 6,
        camera_size: Sequence[int] = (640, 360),
    ):
        self.output_dir = output_dir
        self.spec = read_shape_meta(shape_meta)
        absent = [name for name in (*POSE, GRIPPER) if name not in self.spec.action_names]
        if absent:
            raise SpecError(f"the tabletop's robot needs a pose and a gripper command; the actions lack {absent}")
        if len(self.spec.rgb) != 1:
            raise SpecError(f"the tabletop has one camera; shape_meta.obs has {len(self.spec.rgb)} images")
        self.n_episodes = n_episodes
        self.seed = seed
        self.max_steps = max_steps
        self.executed_steps = executed_steps
        width, height = camera_size
        self.camera_size = (width, height)

    def run(self, policy: ActingPolicy) -> dict[str, float]:
        """Roll out; the share of episodes in which the block was grasped, and in which it lies in the tray."""
        generator = torch.Generator(device=policy.device).manual_seed(self.seed)
        episodes = [self._start(index, policy.n_obs_steps) for index in range(self.n_episodes)]
        for _ in range(0, self.max_steps, self.executed_steps):
            running = [episode for episode in episodes if not episode.finished]
            if not running:
                break
            chunks = self._act(policy, running, generator)
            for episode, chunk in zip(running, chunks, strict=True):
                self._carry_out(episode, chunk)
        return {
            "tabletop_grasped": float(np.mean([episode.grasped for episode in episodes])),
            "tabletop_success": float(np.mean([episode.finished for episode in episodes])),
        }

    def _start(self, index: int, n_obs_steps: int) -> _Episode:
        scene = draw_scene(np.random.default_rng([self.seed, index]))
        episode = _Episode(Tabletop(scene), Camera(scene, self.camera_size), deque(maxlen=n_obs_steps))
        first = self._observe(episode)
        episode.history.extend([first] * n_obs_steps)  # as the windows of a dataset start: nothing came before
        return episode

    def _observe(self, episode: _Episode) -> RawStep:
        (camera,) = self.spec.rgb
        frame = decode_jpeg(encode_jpeg(episode.camera.render(episode.tabletop)), "tabletop camera")
        return {
            camera.key: resize_frame(frame, *camera.width_height),
            "robot_eef_pose": episode.tabletop.pose,
            "robot_gripper_state": np.array([episode.tabletop.gripper]),
        }

    def _act(
        self, policy: ActingPolicy, episodes: Sequence[_Episode], generator: torch.Generator
    ) -> NDArray[np.float64]:
        """Predicted actions (B, Ta, 8), in the order x y z qx qy qz qw gripper."""
        raw = {
            key: np.stack([np.stack([step[key] for step in episode.history]) for episode in episodes])
            for key in episodes[0].history[0]
        }
        obs = {
            key: torch.from_numpy(value).to(policy.device) for key, value in policy_observation(self.spec, raw).items()
        }
        with torch.inference_mode():
            action = policy.predict_action(obs, generator=generator)["action"]
        order = [self.spec.action_names.index(name) for name in (*POSE, GRIPPER)]
        predicted: NDArray[np.float64] = action[..., order].double().cpu().numpy()
        return predicted

    def _carry_out(self, episode: _Episode, chunk: NDArray[np.float64]) -> None:
        n_executed = min(self.executed_steps, len(chunk))
        first_seen = n_executed - episode.history.maxlen if episode.history.maxlen else 0
        for step, action in enumerate(chunk[:n_executed]):
            episode.tabletop.step(action[: len(POSE)], float(action[len(POSE)]))
            episode.grasped |= episode.tabletop.holding
            if step >= first_seen:
                episode.history.append(self._observe(episode))
