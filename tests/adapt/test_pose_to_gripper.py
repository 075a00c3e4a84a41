"""7-D to 8-D: what is kept, what is proven, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapt_factory import policy_cfg, policy_state, save_checkpoint
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from omegaconf import OmegaConf

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.adapt.pose_to_gripper import gripper_config, grow_7d_to_8d
from diffusion_policy.checkpoint import Checkpoint, load_policy, read_checkpoint, write_checkpoint
from diffusion_policy.dataset.replay_buffer import ReplayBuffer, low_dim_layout
from diffusion_policy.spec import POSE_GRIPPER, ROTVEC_WIDTH, SpecError

STATS = "normalizer.params_dict.action."


@pytest.fixture(scope="module")
def grown(pose_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Ledger]:
    path = tmp_path_factory.mktemp("grown") / "grown.ckpt"
    ledger = grow_7d_to_8d(pose_checkpoint.path, path)
    return read_checkpoint(path), ledger


def dataset(path: Path, gripper: list[float]) -> Path:
    buffer = ReplayBuffer.create(path, {"action": low_dim_layout(POSE_GRIPPER)})
    rows = torch.zeros(len(gripper), 8)
    rows[:, 6], rows[:, 7] = 1, torch.tensor(gripper)
    buffer.append({"action": rows.numpy()})
    return path


@pytest.mark.parametrize("part", ["model", "ema_model"])
def test_seven_slots_are_kept_and_the_eighth_starts_silent(grown, pose_checkpoint: Checkpoint, part: str) -> None:
    old, new = pose_checkpoint.state_dicts[part], grown[0].state_dicts[part]
    assert list(new) == list(old)
    assert torch.equal(new["model.input_emb.weight"][:, :7], old["model.input_emb.weight"])
    assert not new["model.input_emb.weight"][:, 7].any()
    assert torch.equal(new["model.head.weight"][:7], old["model.head.weight"])
    assert 0 < new["model.head.weight"][7].abs().max() < 0.2
    assert torch.equal(new["model.head.bias"], torch.cat([old["model.head.bias"], torch.zeros(1)]))
    for entry, gripper in {"scale": 2, "offset": -1, "input_stats.min": 0, "input_stats.max": 1}.items():
        assert torch.equal(new[STATS + entry], torch.cat([old[STATS + entry], torch.tensor([float(gripper)])]))
    untouched = [key for key in old if old[key].shape == new[key].shape]
    assert len(untouched) == len(old) - 9
    assert all(torch.equal(old[key], new[key]) for key in untouched)


def test_progress_is_reported_for_every_stage(pose_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Two parts are filled and proven, the file is written and read back; no other step is counted."""
    reported: list[tuple[int, int]] = []
    grow_7d_to_8d(
        pose_checkpoint.path, tmp_path / "new.ckpt", on_progress=lambda done, total: reported.append((done, total))
    )
    assert reported == [(done, 6) for done in range(7)]
    with pytest.raises(AdaptError, match="exists"):
        grow_7d_to_8d(
            pose_checkpoint.path, tmp_path / "new.ckpt", on_progress=lambda done, total: reported.append((9, 9))
        )
    assert (9, 9) not in reported


def test_model_and_ema_get_the_same_new_numbers(grown) -> None:
    model, ema = (grown[0].state_dicts[part]["model.head.weight"] for part in ("model", "ema_model"))
    assert torch.equal(model[7], ema[7])
    assert not torch.equal(model[:7], ema[:7])


def test_double_names_stay_one_tensor(grown) -> None:
    state = grown[0].state_dicts["model"]
    first, second = (f"obs_encoder.obs_nets.image.{name}.nets.0.weight" for name in ("backbone", "nets.0"))
    assert state[first].data_ptr() == state[second].data_ptr()


def test_ledger_accounts_for_everything_and_drops_the_optimizer(grown, pose_checkpoint: Checkpoint) -> None:
    checkpoint, ledger = grown
    ledger.check()
    assert ledger.parts == ("model", "ema_model", "optimizer", "pickles")
    for part in ("model", "ema_model"):
        counts = ledger.counts(part)
        assert counts["copied"].keys + counts["grown"].keys == len(pose_checkpoint.state_dicts[part])
        assert ledger.parameters(part)["grown"] == 32 + 32 + 1 + 6
    dropped = {entry.key: entry.rule for entry in ledger.of("dropped", part="optimizer")}
    assert set(dropped) == {"state.0.exp_avg", "state.0.step", "param_groups"}
    assert "new optimizer" in dropped["state.0.exp_avg"]
    assert "optimizer" not in checkpoint.state_dicts
    assert checkpoint.pickles == {"_output_dir": None, "global_step": 0, "epoch": 0}


def test_poses_do_not_depend_on_the_gripper_channel(grown, pose_checkpoint: Checkpoint) -> None:
    old, new = load_policy(pose_checkpoint.path), load_policy(grown[0].path)
    obs = {"image": torch.rand(2, 2, 3, 48, 64), "robot_eef_pose": torch.rand(2, 2, 7)}
    obs["robot_gripper_state"] = torch.rand(2, 2, 1)
    noise = torch.randn(2, 8, 7)
    expected = _deterministic(old, obs, noise)
    for gripper in (-3.0, 0.0, 2.0):
        found = _deterministic(new, obs, torch.cat([noise, torch.full((2, 8, 1), gripper)], dim=-1))
        torch.testing.assert_close(found[..., :7], expected, atol=1e-5, rtol=0)


def _deterministic(policy: Any, obs: dict[str, torch.Tensor], noise: torch.Tensor) -> torch.Tensor:
    policy.noise_scheduler = DDIMScheduler.from_config(policy.noise_scheduler.config)
    return policy.predict_action(obs, noise)["action_pred"]


def test_provenance_holds_ledger_rules_hash_proof_and_semantics(grown, pose_checkpoint: Checkpoint) -> None:
    checkpoint, ledger = grown
    adaptation = checkpoint.provenance["adaptation"]
    assert adaptation["ledger"] == ledger.to_json()
    assert adaptation["source"]["name"] == "pose.ckpt"
    assert len(adaptation["source"]["sha256"]) == 64
    assert adaptation["proof"]["ema_model"]["preserved"] is True
    assert adaptation["rules"][0]["name"] == "pose_to_gripper"
    assert checkpoint.provenance["action_semantics"]["gripper"] == {"open": 1.0, "closed": 0.0}
    beside = json.loads(Path(f"{checkpoint.path}.ledger.json").read_text())
    assert Ledger.from_json(beside).to_json() == ledger.to_json()
    assert beside["source"]["sha256"] == adaptation["source"]["sha256"]


def test_config_says_eight_named_dimensions_everywhere(grown) -> None:
    assert list(grown[0].cfg.task.shape_meta.action.names) == list(POSE_GRIPPER)
    quirk = OmegaConf.create({
        "shape_meta": "${task.shape_meta}",
        "task": {"shape_meta": {"action": {"shape": [7]}}, "dataset": {"shape_meta": {"action": {"shape": [8]}}}},
    })  # fmt: skip
    changed = gripper_config(quirk)
    assert changed.shape_meta.action.shape == changed.task.dataset.shape_meta.action.shape == [8]
    assert OmegaConf.is_interpolation(changed, "shape_meta")
    assert quirk.task.shape_meta.action.shape == [7]


def test_strip_starts_the_projections_anew_and_keeps_the_rest(pose_checkpoint: Checkpoint, tmp_path: Path) -> None:
    ledger = grow_7d_to_8d(pose_checkpoint.path, tmp_path / "s.ckpt", "strip", ledger_path=tmp_path / "l.json")
    assert (tmp_path / "l.json").exists()
    old, new = pose_checkpoint.state_dicts["model"], read_checkpoint(tmp_path / "s.ckpt").state_dicts["model"]
    anew = {"model.input_emb.weight", "model.input_emb.bias", "model.head.weight", "model.head.bias"}
    assert {entry.key for entry in ledger.of("fresh", part="model")} == anew
    assert {entry.key for entry in ledger.of("dropped", part="model")} == anew
    assert not torch.equal(new["model.input_emb.weight"][:, :7], old["model.input_emb.weight"])
    assert torch.equal(new["model.pos_emb"], old["model.pos_emb"])
    assert torch.equal(new[STATS + "scale"][:7], old[STATS + "scale"])
    assert any("not preserved" in note for note in ledger.notes)


def test_normalizer_of_the_gripper_comes_from_the_dataset(pose_checkpoint: Checkpoint, tmp_path: Path) -> None:
    zarr = dataset(tmp_path / "d.zarr", [0.0, 0.5, 0.5])
    with pytest.raises(SpecError, match="it never reaches 1"):
        grow_7d_to_8d(pose_checkpoint.path, tmp_path / "n.ckpt", dataset=zarr)
    grow_7d_to_8d(pose_checkpoint.path, tmp_path / "n.ckpt", dataset=zarr, gripper_scale="open1")
    state = read_checkpoint(tmp_path / "n.ckpt").state_dicts["ema_model"]
    assert state[STATS + "scale"][7] == 4
    assert state[STATS + "input_stats.max"][7] == 0.5


@pytest.mark.parametrize(("time_as_cond", "causal"), [(True, True), (False, False)])
def test_inpainting_checkpoints_grow_between_action_and_features(
    tmp_path: Path, time_as_cond: bool, causal: bool
) -> None:
    cfg = policy_cfg(obs_as_cond=False, time_as_cond=time_as_cond, causal_attn=causal)
    old = save_checkpoint(tmp_path / "old.ckpt", cfg, parts=("model",)).state_dicts["model"]
    ledger = grow_7d_to_8d(tmp_path / "old.ckpt", tmp_path / "new.ckpt")
    new = read_checkpoint(tmp_path / "new.ckpt").state_dicts["model"]["model.input_emb.weight"]
    assert new.shape[1] == old["model.input_emb.weight"].shape[1] + 1
    assert torch.equal(new[:, 8:], old["model.input_emb.weight"][:, 7:])
    assert not new[:, 7].any()
    assert "agree within" in ledger.notes[-1]


def test_refuses_rotation_vector_and_width(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "w.ckpt", policy_cfg(), parts=("model",))
    state = dict(checkpoint.state_dicts["model"])
    state[STATS + "input_stats.min"] = torch.tensor([0.3, -0.2, 0.1, -3.1, -0.4, -0.3, 0.03])
    state[STATS + "input_stats.max"] = torch.tensor([0.7, 0.2, 0.5, 3.1, 0.4, 0.3, 0.08])
    write_checkpoint(tmp_path / "w2.ckpt", cfg=checkpoint.cfg, state_dicts={"model": state}, pickles={})
    with pytest.raises(AdaptError, match="rotation vector and the gripper's width"):
        grow_7d_to_8d(tmp_path / "w2.ckpt", tmp_path / "out.ckpt")
    assert not (tmp_path / "out.ckpt").exists()


def test_refuses_what_is_not_a_pose(grown, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="already has 8 numbers"):
        grow_7d_to_8d(grown[0].path, tmp_path / "out.ckpt")
    named = policy_cfg(action=ROTVEC_WIDTH)
    save_checkpoint(tmp_path / "named.ckpt", named, parts=("model",))
    with pytest.raises(AdaptError, match="named x y z rx ry rz width"):
        grow_7d_to_8d(tmp_path / "named.ckpt", tmp_path / "out.ckpt")
    bare = {key: value for key, value in policy_state(policy_cfg()).items() if "action.input_stats" not in key}
    write_checkpoint(tmp_path / "bare.ckpt", cfg=policy_cfg(), state_dicts={"model": bare}, pickles={})
    with pytest.raises(AdaptError, match="no normalizer statistics"):
        grow_7d_to_8d(tmp_path / "bare.ckpt", tmp_path / "out.ckpt")


def test_refuses_to_overwrite_and_to_write_its_source(pose_checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "there.ckpt").write_bytes(b"precious")
    with pytest.raises(AdaptError, match="exists; give another name, or --overwrite"):
        grow_7d_to_8d(pose_checkpoint.path, tmp_path / "there.ckpt")
    assert (tmp_path / "there.ckpt").read_bytes() == b"precious"
    (tmp_path / "link.ckpt").symlink_to(pose_checkpoint.path)
    with pytest.raises(AdaptError, match="is the source itself"):
        grow_7d_to_8d(pose_checkpoint.path, tmp_path / "link.ckpt", overwrite=True)


def test_refuses_unknown_mode_and_useless_datasets(pose_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="expected grow or strip"):
        grow_7d_to_8d(pose_checkpoint.path, tmp_path / "o.ckpt", "both")  # type: ignore[arg-type]
    still = dataset(tmp_path / "still.zarr", [1.0, 1.0])
    with pytest.raises(AdaptError, match="gripper never moves"):
        grow_7d_to_8d(pose_checkpoint.path, tmp_path / "o.ckpt", dataset=still)


def test_refuses_nan_weights(pose_checkpoint: Checkpoint, tmp_path: Path) -> None:
    state = {key: tensor.clone() for key, tensor in pose_checkpoint.state_dicts["model"].items()}
    state["model.ln_f.weight"][3] = float("nan")
    write_checkpoint(tmp_path / "nan.ckpt", cfg=pose_checkpoint.cfg, state_dicts={"model": state}, pickles={})
    with pytest.raises(AdaptError, match=r"model\.ln_f\.weight holds 1 numbers that are NaN"):
        grow_7d_to_8d(tmp_path / "nan.ckpt", tmp_path / "o.ckpt")


def test_the_references_checkpoint_grows_within_seconds(reference_checkpoint: Path, tmp_path: Path) -> None:
    ledger = grow_7d_to_8d(reference_checkpoint, tmp_path / "new.ckpt")
    assert ledger.counts("model")["copied"].keys == 202
    assert ledger.counts("model")["grown"].keys == 9
    assert ledger.coverage("model") > 0.9999
    content = torch.load(tmp_path / "new.ckpt", weights_only=False)
    assert set(content) == {"cfg", "state_dicts", "pickles", "provenance"}
    assert content["cfg"].task.shape_meta.action.shape == content["cfg"].task.dataset.shape_meta.action.shape == [8]
