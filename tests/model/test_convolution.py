"""Fast CPU convolutions give the same results as torch's, up to rounding."""

import copy

import pytest
import torch
from kernel_marker import needs_kernels
from torch import nn

from diffusion_policy.model.cpu import convolution
from diffusion_policy.model.cpu.arithmetic import use_fast_layers
from diffusion_policy.model.cpu.convolution import Convolution

pytestmark = needs_kernels

# Relative to the largest number.
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
    assert use_fast_layers(fast) is None
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
    assert use_fast_layers(fast) is None
    images = torch.randn(2, 128, 10, 12)
    expected = layer(images)
    assert not torch.equal(fast(images), expected)  # otherwise this test proves nothing
    fast(images).sum().backward()
    assert all(p.grad is not None for p in fast.parameters())
    with torch.inference_mode():
        assert (fast.eval()(images) - expected).abs().max() < ROUNDING * expected.abs().max()
    assert fast.state_dict().keys() == layer.state_dict().keys()


def test_many_images_are_brought_to_points_in_several_goes(monkeypatch):
    torch.manual_seed(0)
    whole, parts = (torch.randn(7, 13, 9, 64) for _ in range(2))
    kernel = torch.randn(36, 64, 64)
    one_go = convolution.convolve(whole, kernel, 4), convolution.kernel_gradient(whole, parts, 4)
    monkeypatch.setattr(convolution, "images_at_a_time", lambda *_: 3)
    several = convolution.convolve(whole, kernel, 4), convolution.kernel_gradient(whole, parts, 4)
    for one, other in zip(one_go, several, strict=True):
        assert (one - other).abs().max() < ROUNDING * one.abs().max()


@pytest.mark.parametrize(
    ("n_inputs", "n_outputs", "size", "stride", "height", "width"),
    [
        (64, 80, 3, 1, 21, 36),  # Winograd
        (128, 64, 3, 1, 6, 9),  # a small map: one product
        (64, 96, 3, 2, 11, 18),
        (64, 32, 1, 2, 11, 18),
        (64, 40, 3, 2, 11, 18),  # channels that do not fill whole strips: the library's
        (3, 64, 7, 2, 31, 42),
    ],
)
def test_frozen_weights(n_inputs, n_outputs, size, stride, height, width):
    torch.manual_seed(0)
    direct = Convolution(n_inputs, n_outputs, size, stride, padding=size // 2)
    frozen = copy.deepcopy(direct)
    assert use_fast_layers(frozen, frozen=True) is None
    images = torch.randn(2, n_inputs, height, width)
    with torch.inference_mode():
        exact = copy.deepcopy(direct).double()(images.double())
        for _ in range(2):  # also with cached weights
            found = frozen(images)
            assert found.shape == exact.shape
            assert (found - exact).abs().max() < ROUNDING * exact.abs().max()
        alone = torch.cat([frozen(image[None]) for image in images])
        assert torch.equal(alone, found), "an image's result depends on the one beside it"
