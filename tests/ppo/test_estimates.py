"""What reinforcement learning computes, against direct sums and cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion_policy.intervals import wilson_interval
from diffusion_policy.model.vpt.network import RunningReturns
from diffusion_policy.ppo import PPOError
from diffusion_policy.ppo.advantages import explained_variance, generalized_advantages
from diffusion_policy.ppo.objective import clipped_objective
from diffusion_policy.ppo.outcomes import LastEpisodes, Outcome
from diffusion_policy.ppo.settings import PPOSettings


@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
def test_advantages_are_the_discounted_sum_of_errors_within_an_episode(gae_lambda: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values, next_values = torch.randn(3, 4, 9, generator=generator, dtype=torch.float64)
    ended = torch.rand(4, 9, generator=generator) < 0.3
    discount = 0.8
    found = generalized_advantages(rewards, values, next_values, ended, discount, gae_lambda)
    errors = rewards + discount * next_values - values
    for row in range(4):
        for start in range(9):
            last = next((frame for frame in range(start, 9) if ended[row, frame]), 8)
            terms = [(discount * gae_lambda) ** k * float(errors[row, start + k]) for k in range(last - start + 1)]
            assert float(found[row, start]) == pytest.approx(sum(terms), abs=1e-12)


def test_lambda_1_gives_returns_that_a_cut_off_episode_ends_with_the_value_of_what_was_seen_last() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0, 0.0]]), torch.tensor([[0.3, 0.2, 0.1, 0.4]])
    ended = torch.tensor([[False, False, True, False]])
    terminated = generalized_advantages(rewards, values, torch.tensor([[0.2, 0.1, 0.0, 0.6]]), ended, 0.5, 1.0)
    cut_off = generalized_advantages(rewards, values, torch.tensor([[0.2, 0.1, 2.0, 0.6]]), ended, 0.5, 1.0)
    torch.testing.assert_close(terminated + values, torch.tensor([[0.25, 0.5, 1.0, 0.3]]))
    torch.testing.assert_close(cut_off + values, torch.tensor([[0.5, 1.0, 2.0, 0.3]]))


def test_the_objective_is_clipped_where_the_ratio_has_gone_far_enough_and_only_there() -> None:
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5, 1.1])
    advantages = torch.tensor([2.0, 2.0, -2.0, -2.0, 1.0])
    log_probs = ratios.log().requires_grad_()
    found = clipped_objective(log_probs, torch.zeros(5), advantages, clip=0.2)
    # min(r A, clip(r) A): 1.2 * 2, 0.5 * 2, 1.5 * -2, 0.8 * -2, 1.1 * 1
    assert found.loss.item() == pytest.approx(-(2.4 + 1.0 - 3.0 - 1.6 + 1.1) / 5)
    assert float(found.clip_share) == pytest.approx(4 / 5)
    assert float(found.kl_to_behavior) == pytest.approx(float((ratios - 1 - ratios.log()).mean()))
    found.loss.backward()
    assert log_probs.grad is not None
    # Where the clip decides there is no gradient; elsewhere it is -r A / 5.
    torch.testing.assert_close(log_probs.grad, -torch.tensor([0.0, 1.0, -3.0, 0.0, 1.1]) / 5)


def test_the_weight_of_the_divergence_decays_from_the_first_iteration_that_changes_the_policy() -> None:
    plain, warm = PPOSettings(), PPOSettings(value_warmup_iterations=3)
    assert [plain.kl_coefficient_at(number) for number in (0, 1, 100)] == [0.2, 0.2 * 0.9995, 0.2 * 0.9995**100]
    assert [warm.kl_coefficient_at(number) for number in (0, 2, 3, 4)] == [0.2, 0.2, 0.2, 0.2 * 0.9995]
    assert [warm.learns_policy(number) for number in (2, 3)] == [False, True]


def test_returns_are_normalized_by_debiased_averages_as_upstream_defines_them() -> None:
    batches = [torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, 5.0]]), torch.tensor([[0.0, -2.0]])]
    returns = RunningReturns()
    assert float(returns.denormalize(torch.ones(1))) == pytest.approx(0.1)  # a fresh one: variance 0.01
    mean = square = debiasing = 0.0
    for batch in batches:
        returns.update(batch)
        mean = 0.99999 * mean + 0.00001 * float(batch.mean())
        square = 0.99999 * square + 0.00001 * float((batch**2).mean())
        debiasing = 0.99999 * debiasing + 0.00001
    center, variance = mean / debiasing, square / debiasing - (mean / debiasing) ** 2
    assert center == pytest.approx((2 + 5 - 1) / 3, rel=1e-4)  # the first calls count alike
    normalized = returns.normalize(torch.tensor([4.0]))
    assert float(normalized) == pytest.approx((4 - center) / math.sqrt(variance), rel=1e-4)
    assert float(returns.denormalize(normalized)) == pytest.approx(4.0, rel=1e-5)


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert explained_variance(returns + 5, returns) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(4), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) < 0
    assert math.isnan(explained_variance(returns, torch.ones(4)))


def test_successes_are_of_the_last_episodes_with_their_interval() -> None:
    episodes = LastEpisodes(4)
    assert episodes.figures() == {"episodes": 0.0, "window_episodes": 0.0}  # nothing is invented
    episodes.add(Outcome(float(won), 10, won) for won in (True, True, False, False, False, True))
    found = episodes.figures()
    assert (found["episodes"], found["window_episodes"], found["success_share"]) == (6, 4, 0.25)
    assert (found["success_share_low"], found["success_share_high"]) == wilson_interval(1, 4)
    again = LastEpisodes(4)
    again.restore(episodes.to_plain())
    assert again.figures() == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frames": 100}, "ppo.frames is 100 and ppo.chunk_frames 64; expected a multiple"),
        ({"clip": 0}, "ppo.clip is 0; expected more than 0"),
        ({"discount": 1.5}, "ppo.discount is 1.5; expected 0 to 1"),
        ({"passes": 0}, "ppo.passes is 0; expected 1 or more"),
        ({"kl_coefficient": -1}, "ppo.kl_coefficient is -1; expected 0 or more"),
        ({"entropy": 1}, "ppo has no setting entropy; it has chunk_frames"),
        ({"environments": 2.5}, "ppo.environments is 2.5; expected a whole number"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, float], message: str) -> None:
    with pytest.raises(PPOError, match=message):
        PPOSettings.read(given)
