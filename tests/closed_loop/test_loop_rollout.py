"""The control loop in the tabletop, through the real server."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closed_loop.test_evaluation import LOOSE
from closed_loop_factory import SEED, tabletop
from evaluation_factory import write_tiny_checkpoint

from diffusion_policy.closed_loop.evaluation import Evaluation, evaluate
from diffusion_policy.closed_loop.loop_rollout import LoopConditions, LoopEpisode, roll_out_in_loop
from diffusion_policy.closed_loop.server_actor import serve_settings, served
from diffusion_policy.env_runner.document import conditions as in_words
from diffusion_policy.env_runner.rollout import RolloutSettings, roll_out
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.client import STRATEGIES
from diffusion_policy.sim.tabletop_env import TabletopEnv

STEPS = 14


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("loop") / "latest.ckpt")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The commands that the environments received."""
    told: list[np.ndarray] = []
    step = TabletopEnv.step

    def spy(self: TabletopEnv, action: np.ndarray) -> Any:
        told.append(np.array(action, dtype=np.float64))
        return step(self, action)

    monkeypatch.setattr(TabletopEnv, "step", spy)
    return told


def test_without_delay_it_moves_the_arm_as_the_rollout_does(checkpoint: Path, commands: list[np.ndarray]) -> None:
    simulator, scenes = tabletop(max_steps=STEPS), {0: SEED, 1: SEED + 1}
    with served(serve_settings(checkpoint, None, LOOSE), simulator) as (actor, _):
        plain = list(roll_out(simulator, actor, scenes, RolloutSettings(3, at_once=1)))
    rolled_out = np.stack(commands)
    commands.clear()
    with served(serve_settings(checkpoint, None, LOOSE), simulator) as (actor, _):
        found = list(roll_out_in_loop(simulator, actor, scenes, LoopConditions("wait", 3)))
    in_loop = np.stack(commands)
    signs = np.sign((rolled_out[:, 3:7] * in_loop[:, 3:7]).sum(axis=1, keepdims=True))  # q and -q are the same rotation
    in_loop[:, 3:7] *= signs
    np.testing.assert_allclose(in_loop, rolled_out, atol=1e-6)
    for episode, result in zip(found, plain, strict=True):
        assert (episode.result.steps, episode.result.reason) == (result.steps, result.reason)
        assert (episode.result.requests, episode.result.position) == (result.requests, result.position)
        assert len(episode.path) == STEPS + 1


def idle(episode: LoopEpisode) -> int:
    return sum(episode.lines[-1]["holds"].values())


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in ("warm_start", "rtc")])
def test_a_delay_costs_idle_time_only_where_the_arm_waits(strategy: str, checkpoint: Path) -> None:
    simulator = tabletop(max_steps=STEPS)
    conditions = LoopConditions(strategy, 3, lambda scene, request: 0.2)
    with served(serve_settings(checkpoint, None, LOOSE), simulator) as (actor, _):
        [episode] = roll_out_in_loop(simulator, actor, {4: SEED}, conditions)
        [again] = roll_out_in_loop(simulator, actor, {4: SEED}, conditions)
    assert episode.result.latencies_ms == (200.0,) * len(episode.result.latencies_ms)
    assert idle(episode) == {"wait": 6, "skip": 2, "ensemble": 2}[strategy]
    np.testing.assert_array_equal(again.path, episode.path, err_msg="a run repeats itself")
    assert again.lines[1:] == episode.lines[1:]
    assert episode.lines[0]["scene"] == 4


def test_an_evaluation_names_its_strategy(checkpoint: Path) -> None:
    plain = Evaluation(tabletop(max_steps=8), 1, n_action_steps=3, threads=1, latency_ms=150.0)
    chosen = replace(plain, through_server=True, serve_words=LOOSE, strategy="skip", latency_jitter_ms=60.0)
    found = evaluate(checkpoint, chosen)
    assert "chunk strategy skip; latency of 150 ms injected; jitter of 60 ms" in in_words(found)
    [result] = found.results
    assert len(set(result.latencies_ms)) > 1
    assert all(0 < latency <= 310 for latency in result.latencies_ms), "seen in the control period after its arrival"
    with pytest.raises(WorkspaceError, match="add --through-server"):
        evaluate(checkpoint, replace(plain, strategy="skip"))
