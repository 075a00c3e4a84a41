"""Convolutions that train fast on a CPU give what torch's own give, to rounding."""

import copy

import pytest
import torch
from torch import nn

from diffusion_policy.model.convolution import Convolution, train_fast_on_cpu

# Of the largest number.
ROUNDING = 2e-5


def value_and_gradients(layer: nn.Conv2d, images: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
    images = images.detach().requires_grad_()
    value = layer(images)
    return [value.detach(), *torch.autograd.grad(value, (images, layer.weight), gradient)]


@pytest.mark.parametrize(
    ("n_inputs", "n_outputs", "size", "stride", "height", "width"),
    [
        (128, 144, 3, 1, 21, 36),  # tiles of 4, some of them over the border
        (144, 128, 3, 1, 9, 12),
        (128, 160, 3, 1, 6, 9),  # tiles of 3
        (160, 128, 3, 1, 2, 5),
        (16, 24, 3, 1, 11, 7),  # too few channels for Winograd
        (24, 16, 3, 2, 11, 18),
        (16, 32, 1, 2, 11, 18),
        (3, 16, 7, 2, 31, 42),
    ],
)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_value_and_both_gradients_are_those_of_a_direct_convolution(
    n_inputs, n_outputs, size, stride, height, width, order
):
    torch.manual_seed(0)
    direct = Convolution(n_inputs, n_outputs, size, stride, padding=size // 2)
    fast = copy.deepcopy(direct)
    train_fast_on_cpu(fast)
    images = torch.randn(3, n_inputs, height, width).contiguous(memory_format=order)
    gradient = torch.randn_like(direct(images))
    exact = value_and_gradients(copy.deepcopy(direct).double(), images.double(), gradient.double())
    for found, expected in zip(value_and_gradients(fast, images, gradient), exact, strict=True):
        assert found.shape == expected.shape
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < ROUNDING * expected.abs().max()


def test_images_without_gradient_and_a_model_in_eval_mode():
    layer = nn.Sequential(Convolution(128, 128, 3, padding=1), Convolution(128, 8, 3, 2, padding=1))
    fast = copy.deepcopy(layer)
    train_fast_on_cpu(fast)
    images = torch.randn(2, 128, 10, 12)
    assert not torch.equal(fast(images), layer(images))  # else the test below proves nothing
    fast(images).sum().backward()
    assert all(p.grad is not None for p in fast.parameters())
    assert torch.equal(fast.eval()(images), layer(images))
    assert fast.state_dict().keys() == layer.state_dict().keys()
