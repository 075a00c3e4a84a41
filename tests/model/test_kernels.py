"""The compiled kernels compute what torch's layers compute, up to rounding, and report where they cannot be used."""

import copy
import importlib.util
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_marker import needs_bf16, needs_kernels
from torch import nn

from diffusion_policy.model.cpu import kernels
from diffusion_policy.model.cpu.arithmetic import use_fast_layers
from diffusion_policy.model.cpu.group_norm import GroupNorm, normalize, normalize_and_pool
from diffusion_policy.model.obs_encoder import ResNet18Conv

pytestmark = needs_kernels

# Relative to the largest number.
ROUNDING = 2e-6


def norm_of(channels: int) -> GroupNorm:
    norm = GroupNorm(channels)
    nn.init.normal_(norm.weight)  # of both signs: a norm can turn maxima into minima
    nn.init.normal_(norm.bias)
    return norm


def value_and_gradients(function, norm, *inputs):
    inputs = [value.detach().requires_grad_() for value in inputs]
    value = function(norm, *inputs)
    incoming = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).sin().view(value.shape)
    return [value.detach(), *torch.autograd.grad(value, (*inputs, norm.weight, norm.bias), incoming)]


def assert_same(function, norm, *inputs, rounding=ROUNDING):
    """The fast layers in float32 against torch's in float64."""
    expected = value_and_gradients(function, copy.deepcopy(norm).double(), *(value.double() for value in inputs))
    norm.fast = True
    for number, (found, exact) in enumerate(zip(value_and_gradients(function, norm, *inputs), expected, strict=True)):
        assert found.shape == exact.shape
        assert (found - exact).abs().max() <= rounding * exact.abs().max(), number


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 19), st.integers(1, 13), st.booleans(), st.booleans(),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
)  # fmt: skip
def test_norm_shortcut_and_relu(n, groups, height, width, shortcut, rectify, order):
    torch.manual_seed(n + groups + height + width)
    images = torch.randn(n, 16 * groups, height, width).contiguous(memory_format=order) + 0.5
    inputs = [images, torch.randn_like(images)] if shortcut else [images]
    assert_same(lambda norm, *values: normalize(norm, *values, rectify=rectify), norm_of(16 * groups), *inputs)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (7, 6), (12, 9), (81, 144)])
def test_norm_relu_and_pooling(height, width):
    torch.manual_seed(0)
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    images = torch.randn(2, 32, height, width)
    assert_same(lambda norm, value: normalize_and_pool(norm, pool, value), norm_of(32), images)


def test_equal_maxima_give_the_gradient_to_the_first_as_in_torch():
    images = torch.randn(1, 16, 6, 8).round()
    norm, pool = GroupNorm(16), nn.MaxPool2d(3, stride=2, padding=1)
    assert_same(lambda norm, value: normalize_and_pool(norm, pool, value), norm, images)


def test_a_mean_far_from_zero_costs_one_digit():
    torch.manual_seed(0)
    images = torch.randn(2, 32, 40, 30) + 100
    assert_same(normalize, norm_of(32), images, rounding=2e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 70), st.integers(1, 4), st.booleans(), st.sampled_from(kernels.THEN))
def test_product_of_few_rows(rows, depth, strips, with_bias, then):
    torch.manual_seed(rows + depth + strips)
    x, matrix, bias = torch.randn(rows, depth), torch.randn(depth, 16 * strips), torch.randn(16 * strips)
    out = torch.randn(rows, 16 * strips)
    exact = x.double() @ matrix.double() + (bias.double() if with_bias else 0)
    exact = {"write": exact, "add": exact + out, "gelu": torch.nn.functional.gelu(exact)}[then]
    call = kernels.prepare_product(x, kernels.strips_of(matrix), out, bias if with_bias else None, then=then)
    call()
    assert (out - exact).abs().max() < 1e-5 * max(1, exact.abs().max())
    x.zero_()  # a prepared call sees what its tensors hold when it is called
    out.zero_()
    call()
    expected = bias.expand_as(out) if with_bias else torch.zeros_like(out)
    if then == "gelu":
        expected = torch.nn.functional.gelu(expected)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


@needs_bf16
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.sampled_from(kernels.THEN))
def test_product_in_bf16(rows, depth, strips, with_bias, then):
    """Factors are rounded as in torch; nothing else is."""
    torch.manual_seed(rows + depth + strips)
    depth *= 16
    x, matrix, bias = torch.randn(rows, depth), torch.randn(depth, 16 * strips).bfloat16(), torch.randn(16 * strips)
    out = torch.randn(rows, 16 * strips)
    exact = x.bfloat16().double() @ matrix.double() + (bias.double() if with_bias else 0)
    exact = {"write": exact, "add": exact + out, "gelu": torch.nn.functional.gelu(exact)}[then]
    kernels.prepare_product(x, kernels.strips_of(matrix), out, bias if with_bias else None, then=then)()
    assert (out - exact).abs().max() < 1e-5 * max(1, exact.abs().max())


@needs_bf16
def test_products_in_bf16_beside_each_other():
    torch.manual_seed(0)
    x, matrices = torch.randn(3, 7, 48), torch.randn(3, 48, 32).bfloat16()
    expected = x.bfloat16().float() @ matrices.float()
    torch.testing.assert_close(kernels.product(x, kernels.strips_of(matrices)), expected, atol=1e-4, rtol=1e-5)
    with pytest.raises(ValueError, match="found products of 40 numbers; expected a multiple of 16 in bf16"):
        kernels.product(x[..., :40].contiguous(), kernels.strips_of(matrices[:, :40]))


def test_gelu_from_one_end_to_the_other():
    numbers = torch.cat([torch.linspace(-12, 12, 100_000), torch.tensor([0.0, -1e30, 1e30, float("inf"), 1e-30])])
    x = numbers[: len(numbers) // 16 * 16].reshape(1, -1).contiguous()
    out = torch.empty_like(x)
    kernels.prepare_product(torch.zeros(1, 1), torch.zeros(x.shape[1] // 16, 1, 16), out, x[0], then="gelu")()
    exact = torch.nn.functional.gelu(x.double())
    assert (out - exact).abs().max() < 1e-6
    for bad in (float("nan"), float("inf")):
        bias = torch.full((16,), bad)
        out = torch.zeros(1, 16)
        kernels.prepare_product(torch.zeros(1, 1), torch.zeros(1, 1, 16), out, bias, then="gelu")()
        assert torch.equal(out.isfinite(), torch.zeros(1, 16, dtype=torch.bool)), bad


@pytest.mark.parametrize("causal", [True, False])
def test_self_attention(causal):
    torch.manual_seed(0)
    qkv, out = torch.randn(10, 3, 4, 16) * 2, torch.empty(10, 4, 16)
    mask = torch.full((10, 10), -torch.inf).triu(1) if causal else torch.zeros(10, 10)
    kernels.prepare_self_attention(qkv, mask, out)()
    query, key, value = (part.transpose(0, 1) for part in qkv.unbind(1))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(out.transpose(0, 1), expected, atol=2e-6, rtol=1e-5)


def test_cross_attention():
    torch.manual_seed(0)
    x, keys, values = torch.randn(10, 32), torch.randn(4, 3, 32), torch.randn(4, 3, 32)
    key_bias, bias, before = torch.randn(4, 3), torch.randn(32), torch.randn(10, 32)
    mask = torch.zeros(10, 4, 3)
    mask[:2, :, 2] = -torch.inf
    out = before.clone()
    kernels.prepare_cross_attention(x, keys, key_bias, mask, values, bias, out)()
    shares = (torch.einsum("te,hse->ths", x, keys) + key_bias + mask).softmax(-1)
    torch.testing.assert_close(out, before + torch.einsum("ths,hse->te", shares, values) + bias, atol=1e-5, rtol=1e-5)


def test_products_beside_each_other():
    torch.manual_seed(0)
    x, matrices = torch.randn(3, 7, 50), torch.randn(3, 50, 32)
    torch.testing.assert_close(kernels.product(x, kernels.strips_of(matrices)), x @ matrices, atol=1e-4, rtol=1e-5)


def test_rows_at_mean_zero_and_variance_one():
    x, out = torch.randn(7, 40) * 3 + 50, torch.empty(7, 40)
    kernels.prepare_normalization(x, out, 1e-5)()
    torch.testing.assert_close(out, torch.nn.functional.layer_norm(x.double(), (40,)).float(), atol=5e-6, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("pooled", [True, False])
def test_what_is_not_a_number_is_not_hidden(bad, pooled):
    images = torch.randn(1, 32, 6, 6)
    images[0, 3, 2, 2] = bad
    norm = norm_of(32)
    norm.fast = True
    y = normalize_and_pool(norm, nn.Identity(), images) if pooled else normalize(norm, images)
    assert y[0, :16].isnan().any()
    assert not y[0, 16:].isnan().any()


def test_the_whole_backbone_value_and_gradients():
    torch.manual_seed(0)
    direct = ResNet18Conv(GroupNorm)
    fast = copy.deepcopy(direct)
    assert use_fast_layers(fast) is None
    images = torch.randn(2, 3, 162, 96)
    results = []
    for net, given_images in ((direct.double(), images.double()), (fast, images)):
        maps = net(given_images)
        maps.square().mean().backward()
        results.append([maps.detach(), *(p.grad for p in net.parameters())])
    for exact, found in zip(*results, strict=True):
        assert (found - exact).abs().max() < 1e-4 * exact.abs().max()
    assert fast.state_dict().keys() == direct.state_dict().keys()


def test_sums_do_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    net = ResNet18Conv(GroupNorm)
    use_fast_layers(net)
    norm, images = net.nets[1], torch.randn(3, 64, 40, 33)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(value_and_gradients(normalize, norm, images))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_other_tensors_than_a_kernel_reads_are_refused():
    images, numbers = torch.randn(2, 5, 4, 32), torch.ones(32)
    with pytest.raises(ValueError, match=r"found contiguous torch.float64 .* expected contiguous torch.float32"):
        kernels.group_norm(images.double(), numbers, numbers, 1e-5)
    with pytest.raises(ValueError, match=r"found contiguous torch.float32 \(16,\) on cpu"):
        kernels.group_norm(images, numbers[:16], numbers, 1e-5)
    with pytest.raises(ValueError, match="found not contiguous"):
        kernels.input_points(images.permute(0, 2, 1, 3), 4)


@pytest.fixture
def asked_anew():
    kernels.why_unavailable.cache_clear()
    yield
    kernels.why_unavailable.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_without_a_compiler_nothing_is_changed_and_the_reason_is_reported(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not built" in kernels.why_unavailable()
    net = ResNet18Conv(GroupNorm)
    assert use_fast_layers(net) == kernels.why_unavailable()
    assert not any(getattr(module, "fast", False) for module in net.modules())


@pytest.mark.usefixtures("asked_anew")
def test_kernels_older_than_their_sources_are_not_called(monkeypatch, tmp_path):
    library, source = tmp_path / "_compiled.so", tmp_path / "norms.cpp"
    for path in (library, source):
        path.touch()
    os.utime(library, (1000, 1000))
    monkeypatch.setattr(kernels, "_library_path", lambda: library)
    assert "_compiled.so is older than its sources; install" in kernels.why_unavailable()
    kernels.why_unavailable.cache_clear()
    os.utime(source, (999, 999))
    assert kernels.why_unavailable() is None


@pytest.mark.usefixtures("asked_anew")
def test_a_cpu_without_avx2_does_not_run_them(monkeypatch):
    monkeypatch.setattr(kernels.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert kernels.why_unavailable() == "this CPU has no AVX2"
