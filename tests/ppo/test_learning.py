"""Rollouts with a carried memory, updates, and a task that only the memory solves."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from ppo_factory import cue_policy, games, settings

from diffusion_policy.minecraft.actions import VPT_ACTION
from diffusion_policy.policy.vpt_image_policy import VPTImagePolicy, as_state
from diffusion_policy.ppo import PPOError
from diffusion_policy.ppo.games import Shaping
from diffusion_policy.ppo.learner import Learner, PretrainedPolicy
from diffusion_policy.ppo.outcomes import LastEpisodes
from diffusion_policy.ppo.rollouts import Collector, Rollout


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def collected(policy: VPTImagePolicy, frames: int = 12, chunk: int = 3, **env: Any) -> Rollout:
    return Collector(games(policy, 3, **env), policy, 0).collect(frames, chunk)


def learner(policy: VPTImagePolicy, rate: float = 0.005, **changes: Any) -> Learner:
    chosen = settings(**changes)
    return Learner(policy, torch.optim.AdamW(policy.parameters(), lr=rate, weight_decay=0.0), chosen, 0)


def test_a_rollout_is_what_its_frames_say_whole_or_in_chunks() -> None:
    """Log-probabilities and values of acting, one frame at a time, equal those of whole rows with resets inside."""
    policy = cue_policy()
    policy.value_head.normalizer.update(torch.tensor([[1.0, 4.0]]))
    rollout = collected(policy)
    assert rollout.first[:, ::4].all()
    assert rollout.first.sum() == 9  # episodes of four frames
    assert torch.equal(rollout.ended[:, :-1], rollout.first[:, 1:])
    (found, values, _), _ = policy({"img": rollout.frames}, rollout.first, policy.initial_state(3))
    torch.testing.assert_close(policy.log_prob(found, rollout.actions), rollout.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(policy.value_head.denormalize(values)[..., 0], rollout.values, atol=1e-5, rtol=0)
    for number, memory in enumerate(rollout.memories):
        chunk = rollout.chunk(number)
        (part, _, _), _ = policy({"img": rollout.frames[:, chunk]}, rollout.first[:, chunk], as_state(memory))
        for name in found:
            torch.testing.assert_close(part[name], found[name][:, chunk], atol=1e-5, rtol=0)


def test_the_value_after_an_action_tells_a_cut_off_episode_from_one_that_ended() -> None:
    policy = cue_policy()
    ended, cut = collected(policy), collected(policy, cut_off=2)
    assert (ended.next_values[ended.ended] == 0).all()
    inside = ~ended.ended[:, :-1]
    assert torch.equal(ended.next_values[:, :-1][inside], ended.values[:, 1:][inside])
    assert cut.ended[:, 1::2].all()
    assert not cut.ended[:, ::2].any()
    # The third frame of each episode, which the policy did not act on, with the memory of the two before it.
    for row in range(3):
        shown = torch.cat([cut.frames[row : row + 1, :2], torch.zeros_like(cut.frames[row : row + 1, :1])], dim=1)
        first = torch.tensor([[True, False, False]])
        (_, values, _), _ = policy({"img": shown}, first, policy.initial_state(1))
        expected = policy.value_head.denormalize(values)[0, 2, 0]
        torch.testing.assert_close(cut.next_values[row, 1], expected, atol=1e-5, rtol=0)
    assert [outcome.frames for outcome in cut.outcomes] == [2] * 18


def test_at_the_first_pass_all_ratios_are_1_and_the_pretrained_policy_is_near_itself() -> None:
    policy = cue_policy()
    frozen = PretrainedPolicy(cue_policy(), 3)
    still = learner(policy, rate=0.0, kl_coefficient=0.2, passes=1)
    collector = Collector(games(policy, 3), policy, 0)
    for iteration in range(2):  # in the second one memory comes from the first
        figures = still.learn(collector.collect(6, 3), frozen, iteration)
        assert figures["clip_share"] == 0
        assert abs(figures["kl_to_behavior"]) < 1e-6
        assert abs(figures["kl_to_pretrained"]) < 1e-6


def test_the_divergence_is_that_of_the_pretrained_policy_from_the_one_that_learns() -> None:
    policy = cue_policy()
    figures = learner(policy, rate=0.0, kl_coefficient=0.5, passes=1, sequences_per_update=1000).learn(
        rollout := collected(policy), PretrainedPolicy(other := cue_policy(seed=1), 3), 0
    )
    (old, _, _), _ = other({"img": rollout.frames}, rollout.first, other.initial_state(3))
    (new, _, _), _ = policy({"img": rollout.frames}, rollout.first, policy.initial_state(3))
    expected = sum((old[name].exp() * (old[name] - new[name])).sum(-1).mean().item() for name in old)
    assert figures["kl_to_pretrained"] == pytest.approx(expected, abs=1e-5)
    total = figures["policy_loss"] + 0.5 * figures["value_loss"] + 0.5 * figures["kl_to_pretrained"]
    assert figures["loss"] == pytest.approx(total, abs=1e-5)


def test_the_value_head_learns_alone_while_it_warms_up() -> None:
    policy = cue_policy()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    rollout = collected(policy)
    warming = learner(policy, rate=0.05, value_warmup_iterations=4, passes=4)
    losses = [warming.learn(rollout, None, iteration)["value_loss"] for iteration in range(4)]
    changed = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith("value_head.")}
    assert losses[-1] < losses[0]
    warming.learn(rollout, None, 4)
    assert not torch.equal(policy.state_dict()["net.lastlayer.layer.weight"], before["net.lastlayer.layer.weight"])


def test_what_a_cue_said_is_remembered_over_chunks_that_do_not_hold_it() -> None:
    """With chunks of two frames and a cue 3 frames before the question, half the answers are wrong without memory."""
    policy = cue_policy()
    learns, episodes = learner(policy), LastEpisodes(64)
    collector = Collector(games(policy, 16), policy, 0)
    for iteration in range(13):
        rollout = collector.collect(16, 2)
        episodes.add(rollout.outcomes)
        learns.learn(rollout, None, iteration)
    assert episodes.figures()["success_share"] > 0.9


def test_an_environment_comes_back_to_where_it_was_or_says_so(caplog: pytest.LogCaptureFixture) -> None:
    policy = cue_policy()
    straight = Collector(games(policy, 3), policy, 0)
    straight.collect(6, 3)
    saved = straight.to_plain()
    resumed = Collector(games(policy, 3), policy, 1)
    resumed.restore(saved)
    one, two = straight.collect(6, 3), resumed.collect(6, 3)
    for name in ("frames", "first", "log_probs", "rewards", "values", "next_values", "ended"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert not caplog.records
    noisy = Collector(games(policy, 3, noisy=True), policy, 0)
    noisy.collect(6, 3)
    again = Collector(games(policy, 3, noisy=True), policy, 0)
    with caplog.at_level(logging.WARNING):
        again.restore(noisy.to_plain())
    assert [record.args for record in caplog.records] == [(0,), (1,), (2,)]
    assert again.collect(3, 3).first[:, 0].all()


def test_episodes_follow_from_seed_environment_and_number() -> None:
    policy = cue_policy()
    shown = [np.stack([game.reset() for _ in range(12)]) for game in games(policy, 2)]
    assert not np.array_equal(*shown)
    assert np.array_equal(shown[0], np.stack([game.reset() for game in games(policy, 1) for _ in range(12)]))


def test_shaped_rewards_add_up_to_what_the_environment_gives_less_the_first_potential() -> None:
    """And what is reported of an episode is the environment's own."""
    policy, discount = cue_policy(), 0.9
    shaping = Shaping({"success": 0.5, "ticks": 0.25}, discount)
    (plain,), (shaped,) = games(policy, 1), games(policy, 1, shaping=shaping)
    attack = np.array([float(name == "attack") for name in VPT_ACTION])
    for _ in range(3):
        plain.reset()
        shaped.reset()
        played = [(plain.step(attack), shaped.step(attack)) for _ in range(4)]
        rewards = np.array([[one.reward, other.reward] for one, other in played])
        assert played[-1][0].outcome == played[-1][1].outcome
        # ticks: 0 at first, and the potential of an end is 0
        assert rewards[:, 1] == pytest.approx(rewards[:, 0] + [0.225, 0.2, 0.175, -0.75])
        assert (discount ** np.arange(4)) @ (rewards[:, 1] - rewards[:, 0]) == pytest.approx(0)
    with pytest.raises(PPOError, match=r"ppo.shaping names \['nearness'\]; the environment's info has"):
        games(policy, 1, shaping=Shaping({"nearness": 1.0}, discount))[0].reset()
