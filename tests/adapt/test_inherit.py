"""Loading weights into a training run's models: both or neither, keeping track of what is not yet trained."""

from pathlib import Path

import pytest
import torch
from adapt_factory import policy_cfg, save_checkpoint

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.inherit import inherit
from diffusion_policy.adapt.pose_to_gripper import grow_7d_to_8d
from diffusion_policy.checkpoint import Checkpoint, build_policy, read_checkpoint, write_checkpoint
from diffusion_policy.workspace.param_groups import parameter_roles


def numbers(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])


def test_model_and_ema_get_their_own_weights_and_the_normalizer(pose_checkpoint: Checkpoint) -> None:
    model, ema = build_policy(policy_cfg()), build_policy(policy_cfg())
    ledger = inherit(pose_checkpoint, model, ema)
    ledger.check()
    for module, part in ((model, "model"), (ema, "ema_model")):
        state = module.state_dict()
        assert state.keys() == pose_checkpoint.state_dicts[part].keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in pose_checkpoint.state_dicts[part].items())
        assert ledger.coverage(part) == 1
    assert {role.kind for role in parameter_roles(ledger, model).values()} == {"inherited"}


def test_an_average_may_start_from_the_live_weights(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "m.ckpt", policy_cfg(), parts=("model",))
    model, ema = build_policy(policy_cfg()), build_policy(policy_cfg())
    inherit(checkpoint, model, ema)
    assert torch.equal(numbers(model), numbers(ema))
    inherit(checkpoint, model, None)
    with pytest.raises(AdaptError, match="expected the weights 'model'"):
        inherit(Checkpoint(tmp_path, checkpoint.cfg, {"weights": {}}, {}), model, None)


def test_nothing_is_touched_if_the_second_model_does_not_fit(pose_checkpoint: Checkpoint) -> None:
    model, ema = build_policy(policy_cfg()), build_policy(policy_cfg(n_layer=3))
    before = numbers(model), numbers(ema)
    with pytest.raises(AdaptError, match=r"model\.decoder\.layers\.2"):
        inherit(pose_checkpoint, model, ema)
    assert torch.equal(before[0], numbers(model))
    assert torch.equal(before[1], numbers(ema))


def test_a_seven_dimensional_checkpoint_is_not_half_loaded_into_eight(pose_checkpoint: Checkpoint) -> None:
    model = build_policy(policy_cfg(action=8))
    before = numbers(model)
    with pytest.raises(AdaptError, match="3 of another shape or meaning"):
        inherit(pose_checkpoint, model, None)
    assert torch.equal(before, numbers(model))


def test_required_coverage(pose_checkpoint: Checkpoint) -> None:
    model = build_policy(policy_cfg(n_layer=3))
    ledger = inherit(pose_checkpoint, model, None, min_coverage=0.97)
    assert {entry.rule for entry in ledger.of("fresh")} == {next(iter(ledger.of("fresh"))).rule}
    assert "allowed by min_coverage 0.97" in ledger.of("fresh")[0].rule
    assert 0.97 < ledger.coverage("model") < 1
    assert {role.kind for role in parameter_roles(ledger, model).values()} == {"inherited", "fresh"}
    before = numbers(model)
    with pytest.raises(AdaptError, match=r"covers 97\.\d\d% of model, but 99\.50% are required"):
        inherit(pose_checkpoint, model, None, min_coverage=0.995)
    assert torch.equal(before, numbers(model))


def test_an_adapted_checkpoint_remembers_what_is_new_until_it_is_trained(
    pose_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    grow_7d_to_8d(pose_checkpoint.path, tmp_path / "new.ckpt")
    adapted = read_checkpoint(tmp_path / "new.ckpt")
    model = build_policy(policy_cfg(action=8))
    ledger = inherit(adapted, model, None)
    ledger.check()
    roles = parameter_roles(ledger, model)
    grown = {name for name, role in roles.items() if role.kind == "grown"}
    assert grown == {"model.input_emb.weight", "model.head.weight", "model.head.bias"}
    mask = roles["model.input_emb.weight"].new_mask((32, 8))
    assert mask[:, 7].all()
    assert not mask[:, :7].any()
    write_checkpoint(
        tmp_path / "trained.ckpt", cfg=adapted.cfg, state_dicts=adapted.state_dicts,
        pickles={"global_step": 10, "epoch": 1}, provenance=adapted.provenance,
    )  # fmt: skip
    assert not inherit(read_checkpoint(tmp_path / "trained.ckpt"), model, None).of("grown")
