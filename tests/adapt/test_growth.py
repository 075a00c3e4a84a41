"""Every config change that the rules files in config/adapt are for: what grows, and whether the function is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from adapt_factory import IMAGE, OBS, policy_cfg, save_checkpoint
from omegaconf import DictConfig

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.apply import adapt_checkpoint
from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.adapt.plan import PlanError
from diffusion_policy.adapt.rules import RULES_DIRECTORY, Rules, parse_rules, read_rules
from diffusion_policy.adapt.target import target_from_config
from diffusion_policy.checkpoint import Checkpoint, build_policy, load_policy, read_checkpoint
from diffusion_policy.dataset.replay_buffer import ReplayBuffer, low_dim_layout
from diffusion_policy.spec import POSE, POSE_GRIPPER

PRESERVED = "agree within"


def adapt(
    source: Checkpoint, cfg: DictConfig, out: Path, *rules: str, dataset: Path | None = None, **options: Any
) -> Ledger:
    target = target_from_config(cfg, "target", dataset)
    return adapt_checkpoint(source, target, read_rules(*rules) if rules else Rules(), out, **options)


def numbers(path: Path, **columns: Sequence[str]) -> Path:
    """A dataset of random numbers with these named vectors."""
    buffer = ReplayBuffer.create(path, {key: low_dim_layout(tuple(names)) for key, names in columns.items()})
    buffer.append({key: torch.rand(20, len(names)).numpy() for key, names in columns.items()})
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_checkpoint(tmp_path_factory.mktemp("source") / "old.ckpt", policy_cfg(), parts=("model",))


def test_removed_and_reordered_action_dimensions(tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "old.ckpt", policy_cfg(action=8), parts=("model",))
    names = ("gripper", *POSE[::-1])
    ledger = adapt(source, policy_cfg(action=names), tmp_path / "new.ckpt", "action_dims")
    assert PRESERVED in ledger.notes[-1]
    old, new = source.state_dicts["model"], read_checkpoint(tmp_path / "new.ckpt").state_dicts["model"]
    order = [POSE_GRIPPER.index(name) for name in names]
    assert torch.equal(new["model.head.weight"], old["model.head.weight"][order])
    assert "reordered" in next(iter(ledger.of("grown"))).slots[0].describe()
    assert ledger.parameters("model")["grown"] == 0
    # A removed input changes what the others see unless the policy ignored it; the proof measures this.
    fewer = adapt(source, policy_cfg(action=7), tmp_path / "fewer.ckpt", "action_dims")
    assert "removed gripper" in next(iter(fewer.of("grown"))).slots[0].describe()
    assert "outputs change by" in fewer.notes[-1]


def test_same_width_with_other_names_is_not_copied(source: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="same shape, different meaning"):
        adapt(source, policy_cfg(action=POSE[::-1]), tmp_path / "new.ckpt")


def test_action_dimension_without_known_range_needs_a_dataset(source: Checkpoint, tmp_path: Path) -> None:
    cfg = policy_cfg(action=(*POSE, "force"))
    with pytest.raises(AdaptError, match=r"no value is known for axis 0 \(action\): 7 kept, new force.*--dataset"):
        adapt(source, cfg, tmp_path / "new.ckpt", "action_dims")
    zarr = numbers(tmp_path / "d.zarr", action=(*POSE, "force"))
    ledger = adapt(source, cfg, tmp_path / "new.ckpt", "action_dims", dataset=zarr)
    assert PRESERVED in ledger.notes[-1]
    taken = [note for note in ledger.notes if "normalizer statistics of new dimensions" in note]
    assert len(taken) == 1, "only what is new takes the dataset's numbers, and the notes say no more than that"
    assert "of new dimensions of action come from" in taken[0]


def test_new_low_dimensional_observation(source: Checkpoint, tmp_path: Path) -> None:
    # Inserted between the others: features are found by name, not by position.
    obs = {"image": OBS["image"], "force": {"shape": [3], "type": "low_dim"}, **OBS}
    zarr = numbers(tmp_path / "d.zarr", action=POSE, force=("fx", "fy", "fz"))
    obs["force"]["names"] = ["fx", "fy", "fz"]
    ledger = adapt(source, policy_cfg(obs=obs), tmp_path / "new.ckpt", "new_low_dim", dataset=zarr, must_preserve=True)
    assert PRESERVED in ledger.notes[-1]
    new = read_checkpoint(tmp_path / "new.ckpt").state_dicts["model"]["model.cond_obs_emb.weight"]
    assert not new[:, 64:67].any()
    assert torch.equal(new[:, 67:], source.state_dicts["model"]["model.cond_obs_emb.weight"][:, 64:])


def test_new_camera_with_a_fresh_encoder(source: Checkpoint, tmp_path: Path) -> None:
    obs = {"wrist": {"shape": [3, 32, 40], "type": "rgb"}, **OBS}
    cfg = policy_cfg(obs=obs, crop_shape=None)
    without_crop = save_checkpoint(tmp_path / "old.ckpt", policy_cfg(crop_shape=None), parts=("model",))
    ledger = adapt(without_crop, cfg, tmp_path / "new.ckpt", "new_camera")
    assert PRESERVED in ledger.notes[-1]
    encoder = build_policy(cfg).obs_encoder.obs_nets["wrist"]
    assert ledger.counts("model")["fresh"].parameters >= sum(p.numel() for p in encoder.parameters()) > 700_000


def test_new_camera_whose_encoder_is_a_copy(source: Checkpoint, tmp_path: Path) -> None:
    copied = {"copy": "obs_encoder.obs_nets.wrist.*", "from": "obs_encoder.obs_nets.image.*"}
    rules = parse_rules({"name": "copy", "rules": [copied, *read_rules("new_camera").to_json()[0]["rules"][1:]]})
    target = target_from_config(policy_cfg(obs={**OBS, "wrist": IMAGE}), "two cameras")
    ledger = adapt_checkpoint(source, target, rules, tmp_path / "new.ckpt", must_preserve=True)
    assert PRESERVED in ledger.notes[-1]
    state = read_checkpoint(tmp_path / "new.ckpt").state_dicts["model"]
    for name in ("backbone.nets.0.weight", "nets.3.bias"):
        assert torch.equal(state[f"obs_encoder.obs_nets.wrist.{name}"], state[f"obs_encoder.obs_nets.image.{name}"])


def test_longer_horizon_keeps_the_steps_that_both_have(source: Checkpoint, tmp_path: Path) -> None:
    ledger = adapt(source, policy_cfg(horizon=12), tmp_path / "new.ckpt", "longer_horizon")
    assert "over 8 steps agree within" in ledger.notes[-1]
    assert {entry.key for entry in ledger.of("recomputed")} == {"model.mask", "model.memory_mask"}
    assert load_policy(tmp_path / "new.ckpt", "model").horizon == 12


def test_more_observation_steps_say_by_how_much_outputs_move(source: Checkpoint, tmp_path: Path) -> None:
    ledger = adapt(source, policy_cfg(n_obs_steps=3), tmp_path / "new.ckpt", "more_obs_steps")
    assert "not preserved: outputs change by" in ledger.notes[-1]
    with pytest.raises(AdaptError, match=r"nothing was written: model: .* not preserved"):
        adapt(source, policy_cfg(n_obs_steps=3), tmp_path / "strict.ckpt", "more_obs_steps", must_preserve=True)
    assert not (tmp_path / "strict.ckpt").exists()


@pytest.mark.parametrize("options", [{}, {"obs_as_cond": False, "time_as_cond": False, "causal_attn": False}])
def test_more_layers_start_as_identity(tmp_path: Path, options: dict[str, Any]) -> None:
    source = save_checkpoint(tmp_path / "old.ckpt", policy_cfg(**options), parts=("model",))
    ledger = adapt(source, policy_cfg(n_layer=4, **options), tmp_path / "new.ckpt", "more_layers", must_preserve=True)
    assert PRESERVED in ledger.notes[-1]
    assert {entry.init for entry in ledger.of("fresh", part="model")} == {"zeros", "as the target initializes it"}


def test_another_crop_recomputes_the_grids(source: Checkpoint, tmp_path: Path) -> None:
    ledger = adapt(source, policy_cfg(crop_shape=[20, 24]), tmp_path / "new.ckpt", "crop_size")
    assert {entry.key.rsplit(".", 1)[1] for entry in ledger.of("recomputed")} == {"pos_x", "pos_y"}
    assert "outputs change by" in ledger.notes[-1]
    state = read_checkpoint(tmp_path / "new.ckpt").state_dicts["model"]
    first, second = (f"obs_encoder.obs_nets.image.{name}.pos_x" for name in ("pool", "nets.1"))
    assert state[first].shape == (1, 1)
    assert state[first].data_ptr() == state[second].data_ptr()


def test_another_image_size_changes_no_tensor(source: Checkpoint, tmp_path: Path) -> None:
    obs = {**OBS, "image": {"shape": [3, 60, 80], "type": "rgb"}}
    ledger = adapt(source, policy_cfg(obs=obs), tmp_path / "new.ckpt")
    assert not ledger.of("grown", "recomputed", part="model")
    assert "outputs change by" in ledger.notes[-1]


def test_rules_files_combine(source: Checkpoint, tmp_path: Path) -> None:
    cfg = policy_cfg(action=8, horizon=12, n_layer=3)
    rules = ("pose_to_gripper", "longer_horizon", "more_layers")
    ledger = adapt(source, cfg, tmp_path / "new.ckpt", *rules, must_preserve=True)
    assert PRESERVED in ledger.notes[-1]
    both = adapt(source, policy_cfg(horizon=12, n_obs_steps=3), tmp_path / "b.ckpt", "longer_horizon", "more_obs_steps")
    assert both.of("recomputed")


def test_weights_may_come_from_one_copy(pose_checkpoint: Checkpoint, tmp_path: Path) -> None:
    target = target_from_config(policy_cfg(), "same")
    ledger = adapt_checkpoint(
        pose_checkpoint, target, parse_rules({"name": "ema", "weights": "ema_model"}), tmp_path / "new.ckpt"
    )
    assert {entry.rule for entry in ledger.of("dropped", part="model")} == {"weights: ema_model"}
    states = read_checkpoint(tmp_path / "new.ckpt").state_dicts
    assert torch.equal(states["model"]["model.pos_emb"], pose_checkpoint.state_dicts["ema_model"]["model.pos_emb"])
    ledger.check()


def test_missing_weights(source: Checkpoint, tmp_path: Path) -> None:
    target = target_from_config(policy_cfg(), "same")
    rules = parse_rules({"name": "ema", "weights": "ema_model"})
    with pytest.raises(AdaptError, match="has no weights 'ema_model'"):
        adapt_checkpoint(source, target, rules, tmp_path / "new.ckpt")


@pytest.mark.parametrize("path", sorted(RULES_DIRECTORY.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_rules_file_is_read_and_says_how_it_is_used(path: Path) -> None:
    assert read_rules(path).rules
    assert "python scripts/" in path.read_text()
    assert read_rules(path).name == path.stem
