"""A task that can only be solved with carried memory, a tiny policy for it, and settings for a run of seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from omegaconf import OmegaConf
from vpt_factory import SIZES, shape_meta

from diffusion_policy.checkpoint import write_checkpoint
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.minecraft.actions import BUTTONS, MIDDLE, NULL, VPT_ACTION, Factored, to_joint
from diffusion_policy.policy.vpt_image_policy import VPTImagePolicy
from diffusion_policy.ppo.games import Game, Shaping
from diffusion_policy.ppo.settings import PPOSettings

SIDE = 8
POLICY: dict[str, Any] = {
    "shape_meta": shape_meta(SIDE), "horizon": 4,
    **SIZES, "n_recurrence_layers": 1, "impala_chans": [4, 4, 4],  # the norms leave no color of a frame in two channels
}  # fmt: skip
SIMULATOR: dict[str, Any] = {
    "env": {"_target_": f"{__name__}.CueEnv", "wait": 3},
    "observations": {"pov": "pov"},
    "action": list(VPT_ACTION),
    "jpeg": False,
}


class CueEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """Red or blue at first, then black, and finally green, when `attack` is right after red and wrong after blue.

    Args:
        wait: frames between the cue and the question.
        cut_off: truncates the episode there, before the question; None for never.
        noisy: frames contain noise that no seed determines.
    """

    def __init__(self, wait: int, cut_off: int | None = None, *, noisy: bool = False) -> None:
        self.wait, self.cut_off, self.noisy = wait, cut_off, noisy

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.ticks, self.red = 0, bool(self.np_random.random() < 0.5)
        return self._observe(), {"success": False, "ticks": 0}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        asked = self.ticks == self.wait
        right = asked and bool(action[VPT_ACTION.index("attack")] > 0.5) == self.red
        self.ticks += 1
        return self._observe(), float(right), asked, self.ticks == self.cut_off, {"success": right, "ticks": self.ticks}

    def _observe(self) -> dict[str, np.ndarray]:
        frame = np.zeros((SIDE, SIDE, 3), np.uint8)
        if self.ticks == 0:
            frame[..., 0 if self.red else 2] = 255
        if self.ticks == self.wait:
            frame[..., 1] = 255
        if self.noisy:
            frame[:2] = np.random.default_rng().integers(0, 256, (2, SIDE, 3))
        return {"pov": frame}


def cue_policy(seed: int = 0) -> VPTImagePolicy:
    """A policy that does nothing or attacks with equal probability, like a clone of someone who does only these."""
    torch.manual_seed(seed)
    policy = VPTImagePolicy(**POLICY)
    attack = np.array([int(name == "attack") for name in BUTTONS])
    classes = to_joint(Factored(attack, np.array([MIDDLE, MIDDLE])))
    with torch.no_grad():
        for name, chosen in (("buttons", [NULL["buttons"], int(classes["buttons"])]), ("camera", [NULL["camera"]])):
            bias = policy.pi_head[name].linear_layer.bias
            bias.fill_(-60.0)
            bias[chosen] = 0.0
    return policy


def games(policy: VPTImagePolicy, count: int, shaping: Shaping | None = None, **env: Any) -> list[Game]:
    """Environments of the task."""
    simulator = Simulator.read({**SIMULATOR, "env": {**SIMULATOR["env"], **env}})
    return [Game(simulator, policy.spec, 0, number, shaping) for number in range(count)]


def write_policy(path: Path, policy: VPTImagePolicy | None = None) -> Path:
    """A checkpoint of the policy, as cloning writes one."""
    options = {"_target_": f"{VPTImagePolicy.__module__}.{VPTImagePolicy.__qualname__}", **POLICY}
    weights = {"model": (policy or cue_policy()).state_dict()}
    write_checkpoint(path, cfg=OmegaConf.create({"policy": options}), state_dicts=weights, pickles={})
    return path


def settings(**changes: Any) -> PPOSettings:
    """An iteration of a quarter of a second."""
    small = {"environments": 16, "frames": 16, "chunk_frames": 2, "sequences_per_update": 32, "discount": 0.95}
    return PPOSettings.read({**small, "kl_coefficient": 0.0, **changes})
