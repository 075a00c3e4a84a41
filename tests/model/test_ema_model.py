import copy

import pytest
import torch
from torch import nn

from diffusion_policy.model import ModelError
from diffusion_policy.model.diffusion.ema_model import EMAModel


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.same_linear = self.linear
        self.norm = nn.BatchNorm1d(2)
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)


def change(model: Small) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        model.norm.running_mean.add_(1)


def test_schedule_warms_up_within_its_limits() -> None:
    ema = EMAModel(nn.Linear(1, 1), power=0.75, max_value=0.9999)
    assert [ema.get_decay(step) for step in (0, 1)] == [0.0, 0.0]
    # 1 - 3 ** -0.75 and 1 - 100 ** -0.75, by hand.
    assert ema.get_decay(3) == pytest.approx(0.561309, abs=1e-6)
    assert ema.get_decay(100) == pytest.approx(0.968377, abs=1e-6)
    assert ema.get_decay(10**7) == 0.9999
    late = EMAModel(nn.Linear(1, 1), update_after_step=10, inv_gamma=2.0, min_value=0.5)
    assert late.get_decay(11) == 0.0
    assert late.get_decay(12) == 0.5


def test_numbers_equal_the_plain_update() -> None:
    torch.manual_seed(0)
    live = Small()
    ema = EMAModel(copy.deepcopy(live), power=0.75)
    plain = live.linear.weight.detach().clone()
    for step in range(30):
        change(live)
        ema.step(live)
        decay = ema.get_decay(step)
        assert ema.decay == decay
        plain.mul_(decay).add_(live.linear.weight.detach(), alpha=1 - decay)
        assert torch.equal(ema.averaged_model.linear.weight, plain)
    assert ema.optimization_step == 30
    assert not torch.allclose(plain, live.linear.weight)


def test_fixed_parameters_and_batch_norm_are_copied() -> None:
    torch.manual_seed(0)
    live = Small()
    ema = EMAModel(copy.deepcopy(live))
    for _ in range(5):
        change(live)
        ema.step(live)
    averaged = ema.averaged_model
    assert torch.equal(averaged.fixed, live.fixed)
    for name, value in live.norm.state_dict().items():
        assert torch.equal(averaged.norm.state_dict()[name], value), name


def test_the_average_is_for_inference() -> None:
    ema = EMAModel(Small().train())
    assert not ema.averaged_model.training
    assert not any(parameter.requires_grad for parameter in ema.averaged_model.parameters())


def test_a_resumed_average_continues() -> None:
    torch.manual_seed(0)
    live = Small()
    straight = EMAModel(copy.deepcopy(live))
    for _ in range(4):
        change(live)
        straight.step(live)
    resumed = EMAModel(copy.deepcopy(straight.averaged_model))
    resumed.load_state_dict(straight.state_dict())
    assert (resumed.optimization_step, resumed.decay) == (4, straight.decay)
    change(live)
    for ema in (straight, resumed):
        ema.step(live)
    assert torch.equal(straight.averaged_model.linear.weight, resumed.averaged_model.linear.weight)


def test_models_that_differ_are_refused() -> None:
    with pytest.raises(ModelError, match=r"model and EMA copy differ in \['0.bias'"):
        EMAModel(nn.Linear(2, 2)).step(nn.Sequential(nn.Linear(2, 2)))
