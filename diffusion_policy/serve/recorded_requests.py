"""Recorded episodes as requests of a client, with the actions that were recorded.

Legend of shapes: N requests, To observation steps, Ta executed actions, D action dimensions, in the layout of messages.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.evaluate.recorded_inference import RecordedEpisodes
from diffusion_policy.gripper_events import EventScore, score_gripper_events
from diffusion_policy.serve.engine.wire import Wire
from diffusion_policy.serve.transport.protocol import MessageForm, Observation


class RecordedRequests:
    """Recorded episodes as requests of a client, with the recorded actions.

    Attributes:
        wire: conversion between the policy's numbers and those of messages.
    """

    def __init__(self, recorded: RecordedEpisodes, numbers: Sequence[int], n_obs_steps: int, stride: int, hz: float):
        self._recorded, self._n_obs, self._hz = recorded, n_obs_steps, hz
        self.wire = Wire(recorded.policy.spec.robot, recorded.buffer.semantics)
        self._form = MessageForm(n_obs_steps, self.wire.layout)
        self.stride, self.numbers = stride, tuple(numbers)
        self.episodes = [recorded.steps(episode, stride) for episode in self.numbers]

    def __len__(self) -> int:
        return sum(len(steps) for steps in self.episodes)

    def observations(self, steps: NDArray[np.int64]) -> list[Observation]:
        """Returns the requests at these steps of one episode, with timestamps at the control rate."""
        low = int(steps[0])
        observed = self._recorded.observations(steps)
        cameras = [observed[camera.key].numpy() for camera in self._recorded.policy.spec.rgb]  # (N, To, 3, H, W) each
        result = []
        for row, step in enumerate(steps.tolist()):
            window = np.maximum(np.arange(step - self._n_obs + 1, step + 1), low)
            states = self.wire.recorded(self._recorded.logged_states(window), self._recorded.state_layout)
            frames = [np.ascontiguousarray(np.moveaxis(image, 0, -1)) for images in cameras for image in images[row]]
            times = (step - low + np.arange(1 - self._n_obs, 1)) / self._hz
            result.append(self._form.observation(frames, states, times))
        return result

    def score_events(self, number: int, chunks: NDArray[np.float64], tolerance_s: float) -> EventScore:
        """Scores gripper events of executed actions: ``stride`` actions of each chunk (N, Ta, D), then the next one.

        Where a chunk is shorter than the stride its last command is held. Events of several grippers are combined;
        without a gripper there are none.
        """
        recorded, _ = self.recorded(self._recorded.steps(number))
        within = np.minimum(np.arange(self.stride), chunks.shape[1] - 1)
        layout = self.wire.layout
        wanted = layout.grippers(recorded[:, 0]).T
        commands = layout.grippers(chunks[:, within].reshape(-1, chunks.shape[-1])[: len(recorded)]).T
        seconds = self._recorded.step_seconds(number)
        scores = [
            score_gripper_events(*pair, step_seconds=seconds, tolerance_s=tolerance_s)
            for pair in zip(commands, wanted, strict=True)
        ]
        return functools.reduce(operator.add, scores) if scores else EventScore((), (), (), 0, seconds)

    def recorded(self, steps: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Returns recorded actions (N, Ta, D), and (N, Ta) which of them are inside the episode."""
        chunks, inside = self._recorded.recorded_chunks(steps)
        return self.wire.actions(chunks), inside
