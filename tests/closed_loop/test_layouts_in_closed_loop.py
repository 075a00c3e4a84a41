"""Policies of every layout, and in other representations, move a simulated arm alike on every path."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from closed_loop.test_evaluation import LOOSE
from closed_loop_factory import Follower, follower
from evaluation_factory import tiny_config, write_policy
from layout_factory import JOINTS, NAMES, episode, trained_arrays, trained_meta

from diffusion_policy.checkpoint import load_policy
from diffusion_policy.closed_loop.loop_rollout import LoopConditions, roll_out_in_loop
from diffusion_policy.closed_loop.server_actor import serve_settings, served
from diffusion_policy.closed_loop.simulated_arm import open_simulated_arm
from diffusion_policy.env_runner.actors import PolicyActor
from diffusion_policy.env_runner.rollout import RolloutSettings, roll_out
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.policy.sampler import set_sampler
from diffusion_policy.serve.client import STRATEGIES, VirtualClock
from diffusion_policy.spec import ActionLayout, action_semantics
from diffusion_policy.spec.rotations import Representation

STEPS = 7
FREE = (*LOOSE, "guard.max_step_joint=10", "guard.max_chunk_joint=10", "engine.n_action_steps=6")
FAST = (*FREE, "engine.fast=true", "engine.steps=4")
Case = tuple[str, Representation | None, bool]
TRAINED: list[tuple[str, Representation | None]] = [
    *((kind, None) for kind in NAMES),
    ("one arm", "rotation_6d_rows"),
    ("one arm", "rotation_vector"),
]
REPRESENTATIVES: list[Case] = [
    ("one arm", "rotation_6d_rows", False),
    ("one arm", "rotation_6d_rows", True),
    ("two arms", None, True),
    ("joints", None, True),
]
CASES = [
    pytest.param(case, marks=() if case in REPRESENTATIVES else pytest.mark.exhaustive, id=" ".join(map(str, case)))
    for case in ((*trained, relative) for trained in TRAINED for relative in (False, True))
]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def checkpoint(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, rotation, relative = case
    config, meta = tiny_config(), trained_meta(kind, rotation, relative=relative)
    config["policy"]["shape_meta"] = meta  # type: ignore[index]
    semantics = action_semantics(NAMES[kind], dict.fromkeys(JOINTS, "rad"))
    return write_policy(
        tmp_path_factory.mktemp("layout") / "latest.ckpt", config, trained_arrays(kind, meta), semantics
    )


@pytest.fixture
def simulator(case: Case) -> Simulator:
    return follower(case[0], STEPS)


def told(kind: str) -> np.ndarray:
    """The commands to the arm since the last call, rotations as quaternions with positive real part."""
    layout = ActionLayout.of(NAMES[kind])
    common = layout.with_rotations_as("quaternion")
    actions = layout.converted(np.stack(Follower.told), common)
    Follower.told.clear()
    turns = common.rotations(actions)
    sides = np.sign((turns * turns[:1]).sum(axis=-1, keepdims=True))
    return common.replaced(actions, rotations=turns * sides)


def test_all_ways_move_the_arm_alike(checkpoint: Path, simulator: Simulator, case: Case) -> None:
    policy = load_policy(checkpoint)
    set_sampler(policy, "ddim", 2)
    results = list(roll_out(simulator, PolicyActor(policy, simulator), {0: 0}, RolloutSettings(3, at_once=1)))
    in_process = told(case[0])
    with served(serve_settings(checkpoint, None, FREE), simulator) as (actor, _):
        results += roll_out(simulator, actor, {0: 0}, RolloutSettings(3, at_once=1))
    through_server = told(case[0])
    with served(serve_settings(checkpoint, None, FREE), simulator) as (actor, _):
        results += [episode.result for episode in roll_out_in_loop(simulator, actor, {0: 0}, LoopConditions("wait", 3))]
    in_loop = told(case[0])
    assert all((result.steps, dict(result.refusals)) == (STEPS, {}) for result in results)
    np.testing.assert_allclose(through_server, in_process, atol=1e-4)
    np.testing.assert_allclose(in_loop, through_server, atol=1e-4)


def test_every_strategy_moves_the_arm_while_the_policy_computes(checkpoint: Path, simulator: Simulator) -> None:
    with served(serve_settings(checkpoint, None, FAST), simulator) as (actor, _):
        for strategy in STRATEGIES:
            conditions = LoopConditions(strategy, 3, lambda scene, request: 0.15)
            [episode] = roll_out_in_loop(simulator, actor, {0: 0}, conditions)
            assert (episode.result.steps, episode.result.refusals) == (STEPS, {})
            held = sum(episode.lines[-1]["holds"].values())
            assert held == (4 if strategy == "wait" else 2), f"{strategy}: only the first answer is waited for"


def test_the_arm_of_run_robot_takes_what_the_server_sends(
    checkpoint: Path, simulator: Simulator, case: Case, tmp_path: Path
) -> None:
    settings = tmp_path / "follower.yaml"
    settings.write_text(
        yaml.safe_dump({"env": simulator.env, "observations": simulator.observations, "action": [*simulator.action]})
    )
    clock = VirtualClock(0.0)
    arm, hz = open_simulated_arm(settings, checkpoint, clock, seed=0)
    layout = ActionLayout.of(NAMES[case[0]])
    command = layout.converted(episode(case[0], 12, 0)["action"][4], layout.with_rotations_as("quaternion"))
    arm.move(command)
    clock.advance(1 / hz)
    np.testing.assert_allclose(arm.observe().state, command, atol=1e-9)
    np.testing.assert_allclose(told(case[0])[0], command, atol=1e-9)
