import math

import pytest
import torch
from torch import nn

from diffusion_policy.model import ModelError
from diffusion_policy.model.diffusion.transformer_for_diffusion import SinusoidalPosEmb, TransformerForDiffusion


def make_denoiser(**options: object) -> TransformerForDiffusion:
    settings = {
        "input_dim": 3,
        "output_dim": 3,
        "horizon": 6,
        "n_obs_steps": 2,
        "cond_dim": 5,
        "n_layer": 2,
        "n_head": 2,
        "n_emb": 16,
        "causal_attn": True,
        **options,
    }
    torch.manual_seed(0)
    return TransformerForDiffusion(**settings).eval()  # type: ignore[arg-type]


def make_lively(**options: object) -> TransformerForDiffusion:
    """With weights large enough that what a token sees shows in the output."""
    denoiser = make_denoiser(**options)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.ndim == 2:
                parameter.mul_(15)
    return denoiser


def inputs(**options: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(1)
    cond = None if options.get("cond_dim") == 0 else torch.randn(2, 2, 5)
    return torch.randn(2, 6, 3), torch.tensor([3, 40]), cond


SHAPES = {
    "features and time as condition": {},
    "transformer over the condition": {"n_cond_layers": 1},
    "not causal": {"causal_attn": False},
    "time as condition": {"cond_dim": 0},
    "time as token": {"cond_dim": 0, "time_as_cond": False},
    "time as token, not causal": {"cond_dim": 0, "time_as_cond": False, "causal_attn": False},
}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES.keys())
def test_every_shape_learns(options: dict[str, object]) -> None:
    denoiser = make_denoiser(**options).train()
    output = denoiser(*inputs(**options))
    assert output.shape == (2, 6, 3)
    output.square().mean().backward()
    idle = [name for name, p in denoiser.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES.keys())
def test_causal_steps_do_not_see_later_ones(options: dict[str, object]) -> None:
    denoiser = make_lively(**options)
    sample, time, cond = inputs(**options)
    later = sample.clone()
    later[:, 4:] += 1
    with torch.no_grad():
        difference = (denoiser(sample, time, cond) - denoiser(later, time, cond)).abs().amax(dim=(0, 2))
    assert difference[4:].min() > 1e-3
    assert bool(difference[:4].max() < 1e-5) is bool(options.get("causal_attn", True))


def test_steps_see_observations_up_to_their_own() -> None:
    denoiser = make_lively()
    sample, time, cond = inputs()
    assert cond is not None
    later = cond.clone()
    later[:, 1] += 1
    with torch.no_grad():
        difference = (denoiser(sample, time, cond) - denoiser(sample, time, later)).abs().amax(dim=(0, 2))
        assert difference[0] < 1e-5, "step 0 comes before observation 1"
        assert difference[1:].min() > 1e-3
        # A sequence that starts at the last observed step sees all of it.
        short = (denoiser(sample[:, :3], time, cond) - denoiser(sample[:, :3], time, later)).abs().amax(dim=(0, 2))
        assert short.min() > 1e-3


def test_masks_are_additive() -> None:
    denoiser = make_denoiser()
    inf = math.inf
    assert denoiser.mask is not None
    assert denoiser.mask[:2, :3].tolist() == [[0, -inf, -inf], [0, 0, -inf]]
    assert denoiser.memory_mask is not None
    assert denoiser.memory_mask[:3].tolist() == [[0, 0, -inf], [0, 0, 0], [0, 0, 0]]
    assert make_denoiser(cond_dim=0, time_as_cond=False).mask.shape == (7, 7)  # type: ignore[union-attr]


def test_forward_is_encode_then_decode() -> None:
    denoiser = make_denoiser(n_cond_layers=1)
    sample, time, cond = inputs()
    with torch.no_grad():
        memory = denoiser.encode_condition(time, cond)
        assert memory.shape == (2, 3, 16)
        torch.testing.assert_close(denoiser.decode(sample, memory), denoiser(sample, time, cond))


def test_one_time_serves_the_whole_batch() -> None:
    denoiser = make_denoiser()
    sample, _, cond = inputs()
    with torch.no_grad():
        expected = denoiser(sample, torch.tensor([7, 7]), cond)
        for time in (7, torch.tensor(7), torch.tensor([7])):
            torch.testing.assert_close(denoiser(sample, time, cond), expected)


def test_time_embedding() -> None:
    embedding = SinusoidalPosEmb(4)(torch.tensor([0, 2]))
    assert embedding[0].tolist() == [0, 0, 1, 1]
    expected = [math.sin(2), math.sin(2e-4), math.cos(2), math.cos(2e-4)]
    assert embedding[1].tolist() == pytest.approx(expected, abs=1e-6)


def test_initial_weights() -> None:
    denoiser = make_denoiser(n_emb=128, horizon=64)
    for name, parameter in denoiser.named_parameters():
        if parameter.ndim >= 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.25), name
            assert abs(parameter.mean().item()) < 0.01, name
    for module in denoiser.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.weight.eq(1).all()
        if isinstance(module, nn.Linear | nn.LayerNorm):
            assert module.bias.eq(0).all()
        if isinstance(module, nn.MultiheadAttention):
            assert module.in_proj_bias.eq(0).all()


def test_only_matrices_decay() -> None:
    denoiser = make_denoiser()
    decayed, others = denoiser.get_optim_groups(weight_decay=1e-3)
    assert (decayed["weight_decay"], others["weight_decay"]) == (1e-3, 0.0)
    names = {id(parameter): name for name, parameter in denoiser.named_parameters()}
    in_order = [names[id(parameter)] for parameter in decayed["params"]]
    assert in_order == sorted(in_order)
    assert all(name.endswith("weight") and "norm" not in name and "ln_f" not in name for name in in_order)
    rest = {names[id(parameter)] for parameter in others["params"]}
    assert {"pos_emb", "cond_pos_emb", "head.bias", "ln_f.weight", "_dummy_variable"} <= rest
    assert len(in_order) + len(rest) == len(names)


def test_inputs_that_do_not_fit_are_refused() -> None:
    denoiser = make_denoiser()
    sample, time, cond = inputs()
    with pytest.raises(ModelError, match=r"sample has shape \(2, 6, 2\); expected \(B, up to 6, 3\)"):
        denoiser(sample[..., :2], time, cond)
    with pytest.raises(ModelError, match="cond is missing"):
        denoiser(sample, time)
    with pytest.raises(ModelError, match=r"cond has shape \(2, 1, 5\); expected \(2, 2, 5\)"):
        denoiser(sample, time, torch.zeros(2, 1, 5))
    with pytest.raises(ModelError, match="cond is given"):
        make_denoiser(cond_dim=0)(sample, time, cond)


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ModelError, match="n_emb is 15"):
        make_denoiser(n_emb=15, n_head=3)
    with pytest.raises(ModelError, match="n_emb is 16; expected an even number >= 4 that n_head = 3"):
        make_denoiser(n_head=3)
    with pytest.raises(ModelError, match="leaves no condition tokens"):
        make_denoiser(time_as_cond=False)
