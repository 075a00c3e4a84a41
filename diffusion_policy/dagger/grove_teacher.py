"""Corrections in the grove: every state that the policy visits is labeled with the action that the expert would have
taken there.

The policy plays; the recording has the frames that it saw and the expert's actions, so that a clone learns what to do
in the states that its own mistakes lead to (Ross, Gordon and Bagnell 2011). Labels need not be what was done, since
VPT does not see its own actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from diffusion_policy.env_runner.results import SceneResult
from diffusion_policy.env_runner.simulator import Env, Simulator
from diffusion_policy.minecraft.expert import Expert
from diffusion_policy.minecraft.grove import GroveEnv
from diffusion_policy.minecraft.recorder import EpisodeWriter
from diffusion_policy.storage import rename, unfinished, write_text

LABELED = "labeled by the expert"


@dataclass
class _Notes:
    """Episodes that are being recorded, by the seed of their scene; their videos have temporary names."""

    folder: Path
    variation: float
    episodes: dict[int, EpisodeWriter] = field(default_factory=dict)

    def video(self, seed: int) -> Path:
        """Where the video of a scene is until it has its number."""
        return unfinished(self.folder / f"scene_{seed}.mp4")


class _LabelingEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A grove that records what is seen, with what the expert would do."""

    def __init__(self, env: Env, notes: _Notes) -> None:
        super().__init__(env)
        self._notes = notes

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        begun = super().reset(seed=seed, options=options)
        if seed is not None:
            self._expert = Expert(np.random.default_rng(seed), self._notes.variation)
            self._episode = self._notes.episodes[seed] = EpisodeWriter(self._notes.video(seed))
            self._seen = begun[0]["pov"]
        return begun

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        grove = self.unwrapped
        assert isinstance(grove, GroveEnv)
        self._episode.add(grove.world, self._seen, self._expert.act(grove.world))
        followed = super().step(action)
        self._seen = followed[0]["pov"]
        return followed


@dataclass(frozen=True)
class _LabelingSimulator(Simulator):
    """Settings of a grove whose environments record."""

    notes: _Notes | None = None

    def make(self) -> Env:
        """Creates an environment."""
        assert self.notes is not None
        return _LabelingEnv(super().make(), self.notes)


class GroveTeacher:
    """The scripted expert of the grove, which labels; see ``teacher.Teacher``.

    Args:
        simulator: of the grove, with VPT's action and ``pov``.
        folder: of the recordings.
        variation: of the expert, 0 to 1.
    """

    def __init__(self, simulator: Simulator, folder: Path, variation: float) -> None:
        self.settings: Mapping[str, Any] = {"variation": variation, "labels": "every step"}
        self._folder, self._notes = folder, _Notes(folder, variation)
        kept = {name: getattr(simulator, name) for name in Simulator.__dataclass_fields__}
        self.simulator: Simulator = _LabelingSimulator(**kept, notes=self._notes)

    def correct(self, result: SceneResult, number: int) -> list[dict[str, Any]]:
        """Gives the recording of one scene its number."""
        episode = self._notes.episodes.pop(result.seed)
        file = self._folder / f"episode_{number:04d}.mp4"
        # Lines first: by its name, a video without lines would pass for a complete recording.
        write_text(file.with_suffix(".jsonl"), episode.close())
        rename(self._notes.video(result.seed), file)
        about = {"scene": result.scene, "seed": result.seed, "step": 0, "why": LABELED}
        return [{**about, "episode": file.stem, "frames": len(episode)}]

    def close(self) -> None:
        """Drops the videos of scenes that did not end."""
        for seed, episode in self._notes.episodes.items():
            episode.abandon()
            self._notes.video(seed).unlink(missing_ok=True)
        self._notes.episodes.clear()
