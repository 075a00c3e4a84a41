"""VPT's policy under the contract: names, memory, answers, files, and what it refuses."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from vpt_factory import SIZES, actions, config, frames, shape_meta, tiny_policy

from diffusion_policy.adapt.inherit import inherit
from diffusion_policy.checkpoint import CheckpointError, build_policy, load_policy, read_checkpoint, write_checkpoint
from diffusion_policy.families import recognize
from diffusion_policy.minecraft.actions import VPT_ACTION
from diffusion_policy.policy.contract import DenoisingPolicy, RecurrentPolicy
from diffusion_policy.policy.observation_batch import PolicyError
from diffusion_policy.policy.sequences import divergence, sequence_loss
from diffusion_policy.policy.vpt_image_policy import VPTImagePolicy
from diffusion_policy.policy.vpt_policy import MinecraftAgentPolicy, VPTAgent
from diffusion_policy.policy.vpt_weights import RELEASED


def starts(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def test_it_has_the_released_names_and_a_normalizer_that_scales_nothing() -> None:
    with torch.device("meta"):
        names = list(VPTImagePolicy(shape_meta(128), horizon=128).state_dict())
        released = list(MinecraftAgentPolicy().state_dict())
    assert (len(released), names[: len(released)]) == (134, released)
    assert all(name.startswith("normalizer.") for name in names[134:])
    policy = tiny_policy()
    action = actions(3)
    assert torch.equal(policy.normalizer["action"].normalize(action), action)
    policy.set_normalizer(_statistics(action))
    assert torch.equal(policy.normalizer["action"].normalize(action), action)
    assert torch.equal(policy.normalizer["action"].get_input_stats()["max"], action.amax(0))


def _statistics(action: Tensor) -> Any:
    from diffusion_policy.model.normalizer import LinearNormalizer, get_image_range_normalizer

    found = LinearNormalizer()
    found.fit({"action": action})
    found["pov"] = get_image_range_normalizer()
    return found


@pytest.mark.parametrize("parts", [[11], [4, 4, 3], [1] * 11])
def test_its_answers_do_not_depend_on_how_a_sequence_is_cut(parts: list[int]) -> None:
    policy, seen = tiny_policy(), frames(2, 11)
    first = torch.zeros(2, 11, dtype=torch.bool)
    first[:, 0] = first[0, 5] = first[1, 8] = True
    expected, end = policy.log_probabilities(seen, first, policy.initial_memory(2))
    memory, found = policy.initial_memory(2), []
    for one, begins in zip(seen["pov"].split(parts, dim=1), first.split(parts, dim=1), strict=True):
        answer, memory = policy.log_probabilities({"pov": one}, begins, memory)
        found.append(answer)
    for name, whole in expected.items():
        torch.testing.assert_close(torch.cat([one[name] for one in found], dim=1), whole, atol=1e-4, rtol=0)
    assert memory.keys() == end.keys()
    alone, _ = policy.log_probabilities({"pov": seen["pov"][:1, 5:]}, first[:1, 5:], policy.initial_memory(1))
    torch.testing.assert_close(alone["camera"], expected["camera"][:1, 5:], atol=1e-4, rtol=0)
    forgetful, _ = policy.log_probabilities({"pov": seen["pov"][:1, 4:5]}, starts([1]), policy.initial_memory(1))
    assert (forgetful["camera"] - expected["camera"][:1, 4:5]).abs().max() > 1e-2, "memory that does not matter"


def test_actions_become_classes_and_come_back() -> None:
    policy, wanted = tiny_policy(), torch.zeros(1, 3, len(VPT_ACTION))
    wanted[0, 1, VPT_ACTION.index("forward")] = 1
    wanted[0, 2, -1] = 10.0  # yaw
    memory = policy.initial_memory(1)
    classes, after = policy.classes_of(wanted, starts([1, 0, 0]), memory)
    assert classes["buttons"].tolist() == [[0, 288, 1]]
    assert classes["camera"].tolist() == [[60, 60, 65]]
    assert torch.equal(policy.action_of(classes), wanted)
    assert after is memory


def test_it_keeps_the_contract() -> None:
    policy, seen = tiny_policy(), frames(2, 3)
    assert isinstance(policy, RecurrentPolicy)
    assert not isinstance(policy, DenoisingPolicy)
    assert policy.lacks("fast_engine")
    assert policy.lacks("loss_weights")
    answer = policy.predict_action(seen)
    expected, _ = policy.answer({"pov": seen["pov"][:, :1]}, starts([1], [1]), policy.initial_memory(2))
    assert torch.equal(answer["action"], expected)
    assert answer["action_pred"].shape == (2, policy.sequence_length, 22)
    drawn = [policy.predict_action(seen, generator=torch.Generator().manual_seed(seed))["action"] for seed in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert policy.camera_features(seen, torch.Generator())["pov"].shape == (2, SIZES["hidsize"])
    batch = {"obs": seen, "action": actions(2, 3)}
    loss, _ = sequence_loss(policy, {**batch, "first": starts([1, 0, 0], [1, 0, 0])}, policy.initial_memory(2))
    assert torch.equal(policy.loss(batch, policy.draw(2, torch.Generator())), loss)
    parameters = {name: policy.layers_above(name) for name, _ in policy.named_parameters()}
    assert [parameters[f"net.recurrent_layer.blocks.{block}.pre_r_ln.weight"] for block in (1, 0)] == [2, 3]
    assert (parameters["net.lastlayer.layer.weight"], parameters["pi_head.camera.linear_layer.bias"]) == (1, 0)
    assert parameters["net.img_process.linear.layer.weight"] == 4


def test_padding_does_not_count() -> None:
    policy, seen, done = tiny_policy(), frames(2, 4), actions(2, 4)
    first, valid = starts([1, 0, 0, 0], [1, 0, 0, 0]), starts([1, 1, 1, 1], [1, 0, 0, 0])
    losses = []
    for filling in (0, 255):
        seen["pov"][1, 1:] = filling
        batch = {"obs": seen, "action": done, "first": first, "valid": valid}
        losses.append(sequence_loss(policy, batch, policy.initial_memory(2))[0])
    assert torch.equal(*losses)


def test_divergence_is_zero_of_itself_and_positive_of_another() -> None:
    found = [tiny_policy(seed).log_probabilities(frames(1, 3), starts([1, 0, 0]), tiny_policy().initial_memory(1))[0]
             for seed in (0, 0, 1)]  # fmt: skip
    assert torch.equal(divergence(found[0], found[1]), torch.zeros(1, 3))
    assert (divergence(found[0], found[2]) > 0).all()


# ---- files ----


def test_a_checkpoint_and_bare_weights_open_as_the_same_policy(tmp_path: Path) -> None:
    policy = tiny_policy()
    cfg, state = OmegaConf.create(config()), policy.state_dict()
    write_checkpoint(tmp_path / "a.ckpt", cfg=cfg, state_dicts={"model": state}, pickles={"global_step": 3})
    bare = {name: value for name, value in state.items() if name.startswith(RELEASED)}
    extra = {f"aux_value_head.{number}": torch.zeros(2) for number in range(5)}
    torch.save({**bare, **extra}, tmp_path / "a.weights")
    opened = {name: read_checkpoint(tmp_path / name) for name in ("a.ckpt", "a.weights")}
    assert {one.deployed for one in opened.values()} == {"model"}
    expected = policy.predict_action(frames(1, 1))["action"]
    for one in opened.values():
        found = load_policy(one, one.deployed)
        assert torch.equal(found.predict_action(frames(1, 1))["action"], expected)
        assert all(torch.equal(found.state_dict()[name], bare[name]) for name in bare)
    ledger = inherit(opened["a.weights"], build_policy(cfg), None)
    assert ledger.counts("model")["dropped"].tensors == 5
    assert "a second value head" in str({entry.rule for entry in ledger.of("dropped")})
    assert ledger.counts("model")["fresh"].tensors == 0
    kind = recognize({name: tuple(value.shape) for name, value in bare.items()})
    assert kind is not None
    assert kind.family.name == "vpt"


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda name: f"module.policy.{name}", r"begins with 'module\.policy\.'.*load_vpt\.py .* --repair --out"),
        (lambda name: name.removeprefix("net."), r"'net\.' was stripped"),
    ],
)
def test_bare_weights_under_other_names_are_refused_with_the_remedy(rename: Any, message: str, tmp_path: Path) -> None:
    bare = {rename(name): value for name, value in tiny_policy().state_dict().items() if name.startswith(RELEASED)}
    torch.save(bare, tmp_path / "a.weights")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "a.weights")


def test_a_runs_weights_are_written_as_upstream_reads_them(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(repository / "scripts" / "load_vpt.py"))["main"]
    policy, average = tiny_policy(), tiny_policy(1)
    states = {"model": policy.state_dict(), "ema_model": average.state_dict()}
    source, out = tmp_path / "a.ckpt", tmp_path / "a.weights"
    write_checkpoint(source, cfg=OmegaConf.create(config()), state_dicts=states, pickles={})
    assert main([str(source), "--out", str(out)]) == 0
    count = sum(name.startswith(RELEASED) for name in states["model"])
    assert f"wrote {count} tensors to {out}" in capsys.readouterr().out.replace("\n", " ")
    plain = torch.load(out, weights_only=True)
    assert len(plain) == count
    assert all(torch.equal(plain[name], states["ema_model"][name]) for name in plain)
    assert VPTAgent.from_weights(out).loaded is not None
    assert main([str(source), "--out", str(out)]) == 2
    assert "exists; give another name" in capsys.readouterr().err


# ---- refusals ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_action_steps": 2}, "VPT answers each frame with one action"),
        ({"attention_heads": 3}, "cannot be split into 3 heads"),
        ({"window": 0}, "window is 0; expected 1 to"),
        ({"n_recurrence_layers": 10**9}, "n_recurrence_layers is 1000000000; expected 1 to 64"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"impala_chans": [4, 4]}, "expected channels of three stacks"),
        ({"learns": "other"}, "expected all or heads"),
        ({"heads": "joint"}, "heads is not an option"),
    ],
)
def test_options_that_fit_no_policy_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build_policy(OmegaConf.create(config(**options)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": {"shape": [8]}}, "VPT's is .*use task=minecraft"),
        ({"action": {"shape": [22], "names": list(reversed(VPT_ACTION))}}, "use task=minecraft"),
        ({"obs": {"pov": {"shape": [3, 128, 96], "type": "rgb"}}}, "or another square"),
        ({"obs": {"pov": {"shape": [3, 8, 8], "type": "rgb"}, "pose": {"shape": [7]}}}, "one camera and nothing else"),
    ],
)
def test_steps_of_another_world_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        VPTImagePolicy({**shape_meta(), **change}, horizon=4, **SIZES)


@pytest.mark.parametrize(
    ("obs", "first", "message"),
    [
        ({}, starts([1]), "lacks 'pov'"),
        ({"pov": torch.zeros(1, 1, 3, 16, 16)}, starts([1]), r"float32 .*expected uint8 \(B, T, 3, 16, 16\)"),
        ({"pov": torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8)}, starts([1]), r"expected uint8 \(B, T, 3"),
        (frames(1, 1), torch.ones(1, 1), "first is torch.float32"),
        (frames(1, 2), starts([1]), r"expected bool \(1, 2\)"),
    ],
)
def test_observations_that_do_not_fit_are_refused(obs: dict[str, Tensor], first: Tensor, message: str) -> None:
    policy = tiny_policy()
    with pytest.raises(PolicyError, match=message):
        policy.answer(obs, first, policy.initial_memory(1))
