"""A recurrent policy in closed loop: its memory and draws depend on the scene, not on others played with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from closed_loop_factory import driver
from vpt_factory import SIDE, tiny_policy

from diffusion_policy.env_runner.actors import ActionRequest
from diffusion_policy.env_runner.gym_runner import GymRunner
from diffusion_policy.env_runner.memory_actor import MemoryActor, actor_of
from diffusion_policy.env_runner.rollout import RolloutSettings, roll_out
from diffusion_policy.env_runner.simulator import Simulator, SimulatorError
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.installation import CONFIG
from diffusion_policy.policy.noise import noise_seed

GROVE = CONFIG / "simulator" / "grove.yaml"


def grove(max_steps: int = 4) -> Simulator:
    return Simulator.load(GROVE, max_steps=max_steps)


class Watched(MemoryActor):
    """Remembers its answers, by scene."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.taken: dict[int, list[np.ndarray]] = {}

    def answer(self, requests: Any) -> Any:
        replies = super().answer(requests)
        for request, reply in zip(requests, replies, strict=True):
            self.taken.setdefault(request.scene, []).append(reply.actions)
        return replies


def played(scenes: dict[int, int], at_once: int, *, greedy: bool = False, seed: int = 3) -> dict[int, np.ndarray]:
    actor = Watched(tiny_policy(), grove(), seed, greedy=greedy)
    list(roll_out(grove(), actor, scenes, RolloutSettings(1, at_once=at_once)))
    return {scene: np.concatenate(taken) for scene, taken in actor.taken.items()}


SCENES = {scene: 100 + scene for scene in range(5)}


@pytest.mark.parametrize("greedy", [False, True])
def test_a_scene_is_the_same_alone_and_among_others(greedy: bool) -> None:
    """One at a time, in overlapping batches, or only the later ones as after an interruption."""
    alone = played(SCENES, 1, greedy=greedy)
    assert not np.array_equal(alone[0], alone[1])
    for other in (
        played(SCENES, 3, greedy=greedy),
        played({scene: SCENES[scene] for scene in (3, 4)}, 2, greedy=greedy),
    ):
        for scene, taken in other.items():
            np.testing.assert_array_equal(taken, alone[scene])


def test_draws_are_the_seeds_and_none_are_greedy() -> None:
    assert not np.array_equal(played({0: 100}, 1, seed=3)[0], played({0: 100}, 1, seed=4)[0])
    np.testing.assert_array_equal(
        played({0: 100}, 1, greedy=True, seed=3)[0], played({0: 100}, 1, greedy=True, seed=4)[0]
    )


@torch.no_grad()
def test_it_acts_on_what_the_episode_has_seen_and_on_no_other() -> None:
    """Each answer is the policy's for all frames of the episode so far, drawn by (seed, scene, step)."""
    policy, simulator = tiny_policy(), grove()
    actor, rng = MemoryActor(policy, simulator, seed=7), np.random.default_rng(0)
    films = rng.integers(0, 256, (2, 4, 40, 64, 3), dtype=np.uint8)
    small = np.stack(
        [[cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for frame in film] for film in films]
    )
    answers = [
        actor.answer([ActionRequest(scene, step, step, ({"pov": films[scene, step]},)) for scene in range(2)])
        for step in range(4)
    ]
    first = torch.tensor([[True, False, False, False]])
    for scene in range(2):
        frames = torch.from_numpy(small[scene]).permute(0, 3, 1, 2)[None]
        whole, _ = policy.log_probabilities({"pov": frames}, first, policy.initial_memory(1))
        for step in range(4):
            generator = torch.Generator().manual_seed(noise_seed(7, scene + 1, step))
            own = {name: part[:, step : step + 1] for name, part in whole.items()}
            expected = policy.action_of(policy.sample(own, generator))[0]
            np.testing.assert_array_equal(answers[step][scene].actions, expected.double().numpy())


def test_a_scene_that_starts_again_remembers_nothing() -> None:
    actor, rng = MemoryActor(tiny_policy(), grove(), greedy=True), np.random.default_rng(1)
    frames = rng.integers(0, 256, (3, 40, 64, 3), dtype=np.uint8)

    def film() -> list[Any]:
        return [actor.answer([ActionRequest(0, step, step, ({"pov": frames[step]},))])[0].actions for step in range(3)]

    np.testing.assert_array_equal(film(), film())
    assert actor.answer([]) == []


def test_what_is_not_finite_is_not_an_answer_and_nothing_is_pressed() -> None:
    policy = tiny_policy()
    policy.net.final_ln.weight.data[:] = torch.nan
    actor = MemoryActor(policy, grove())
    (reply,) = actor.answer([ActionRequest(0, 0, 0, ({"pov": np.zeros((8, 8, 3), np.uint8)},))])
    assert (reply.actions, reply.refusal) == (None, "not finite: a probability is NaN or infinity")
    (result,) = roll_out(grove(3), actor, {0: 1}, RolloutSettings(1))
    assert (result.steps, result.refusals) == (3, {"not finite": 3})


def test_only_probabilities_can_be_greedy() -> None:
    with pytest.raises(WorkspaceError, match="--greedy is for policies that give probabilities"):
        actor_of(object(), driver(), 0, greedy=True)  # type: ignore[arg-type]


def test_it_is_measured_while_it_trains() -> None:
    policy = tiny_policy()
    runner = GymRunner(None, policy.shape_meta, grove(4), n_scenes=2, seed=5)
    found = runner.run(policy)
    assert (found["test_success"], found["test_scenes"], found["test_n_action_steps"]) == (0.0, 2.0, 1.0)
    assert "test_grasped" not in found


def test_an_unknown_interpolation_is_refused() -> None:
    with pytest.raises(SimulatorError, match=r"simulator\.resize is 'cubic'; expected area or linear"):
        Simulator.read({"env": grove().env, "observations": {}, "resize": "cubic"})
    assert "resize" not in replace(grove(), resize="area").describe()
