"""The policy with a UNet through every command: grown from 7-D to 8-D, fine-tuned, resumed, served, judged offline."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from adapt_factory import policy_state
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from serve_factory import parsed
from tiny_run import CONFIG, OVERRIDES, write_dataset

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.apply import adapt_checkpoint
from diffusion_policy.adapt.pose_to_gripper import gripper_config
from diffusion_policy.adapt.rules import parse_rules
from diffusion_policy.adapt.target import target_from_config
from diffusion_policy.checkpoint import CheckpointError, build_policy, load_policy, read_checkpoint, write_checkpoint
from diffusion_policy.diagnose.checkpoint_evidence import look_at_checkpoint
from diffusion_policy.evaluate.recorded_inference import run_recorded_inference
from diffusion_policy.families import recognize
from diffusion_policy.policy.contract import PolicyModule
from diffusion_policy.resolvers import register_resolvers
from diffusion_policy.run_log import read_log
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.stages import Stages
from diffusion_policy.spec import POSE_GRIPPER
from diffusion_policy.whatif.config_change import what_if

NAME = "train_unet_cogact_robot"
SMALL = (
    *(word for word in OVERRIDES if not word.startswith("policy.n_")),
    "policy.down_dims=[16,32]",
    "policy.diffusion_step_embed_dim=16",
)


def settings(*overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONFIG), version_base="1.2"):
        return compose(NAME, overrides=[*SMALL, *overrides])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("unet_data") / "set.zarr")


@pytest.fixture(scope="module")
def pose_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 7-D policy whose model and average differ."""
    cfg = settings("task=cogact_robot_7d", "task.dataset_path=none")
    OmegaConf.resolve(cfg)
    path = tmp_path_factory.mktemp("unet") / "pose.ckpt"
    states = {part: policy_state(cfg, seed) for seed, part in enumerate(("model", "ema_model"))}
    write_checkpoint(path, cfg=cfg, state_dicts=states, pickles={"_output_dir": None, "global_step": 7, "epoch": 1})
    return path


@pytest.fixture(scope="module")
def grown(pose_checkpoint: Path, repository: Path) -> Path:
    path = pose_checkpoint.with_name("grown.ckpt")
    script = runpy.run_path(str(repository / "scripts" / "finetune_from_7d_to_8d.py"))
    assert script["main"](["--old_ckpt", str(pose_checkpoint), "--new_ckpt", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def finetuned(grown: Path, dataset: Path) -> Path:
    """The run folder of a fine-tune that was stopped after one epoch, and resumed."""
    folder = grown.with_name("run")
    words = (f"task.dataset_path={dataset}", f"pretrained.path={grown}", "experiment=finetune_8d", "loss=plain")
    for epochs in (1, 2):
        cfg = settings(*words, f"training.num_epochs={epochs}", "training.max_train_steps=2", "training.sample_every=1")
        get_class(cfg._target_)(cfg, folder).run()
    return folder


def test_growing_is_proven_and_its_ledger_adds_up(grown: Path, pose_checkpoint: Path) -> None:
    ledger = json.loads(Path(f"{grown}.ledger.json").read_text())
    adaptation = (read_checkpoint(grown).provenance or {})["adaptation"]
    for part in ("model", "ema_model"):
        proof = adaptation["proof"][part]
        assert proof["preserved"] is True
        assert proof["largest_difference"] <= 1e-5
        assert (len(proof["names"]), tuple(proof["new_names"])) == (7, ("gripper",))
        counted = sum(ledger["counts"][part][action]["keys"] for action in ("copied", "grown", "recomputed", "fresh"))
        assert counted == ledger["target_totals"][part]["keys"] > 0
        assert ledger["counts"][part]["fresh"]["keys"] == 0
    old, new = (load_policy(path, which="model").state_dict() for path in (pose_checkpoint, grown))
    first = "model.down_modules.0.0."
    for key in (f"{first}blocks.0.block.0.weight", f"{first}residual_conv.weight"):
        assert torch.equal(new[key][:, :7], old[key])
        assert not new[key][:, 7].any(), "poses do not hear the gripper until trained to"
    assert torch.equal(new["model.final_conv.1.weight"][:7], old["model.final_conv.1.weight"])
    assert new["model.final_conv.1.weight"][7].any()


def test_the_proof_sees_a_gripper_that_moves_the_pose(pose_checkpoint: Path, tmp_path: Path) -> None:
    """The same growth with a nonzero column, which the proof must notice."""
    rules = yaml.safe_load((CONFIG / "adapt" / "pose_to_gripper.yaml").read_text())
    rules["rules"][0]["init"] = {"normal": 0.1}
    source = read_checkpoint(pose_checkpoint)
    target = target_from_config(gripper_config(source.cfg), "8-D")
    with pytest.raises(AdaptError, match="not preserved: outputs change by"):
        adapt_checkpoint(source, target, parse_rules(rules), tmp_path / "new.ckpt", must_preserve=True)


def test_stripping_starts_the_projections_anew(pose_checkpoint: Path, repository: Path, tmp_path: Path) -> None:
    script = runpy.run_path(str(repository / "scripts" / "finetune_from_7d_to_8d.py"))
    out = tmp_path / "strip.ckpt"
    assert script["main"](["--old_ckpt", str(pose_checkpoint), "--new_ckpt", str(out), "--mode", "strip"]) == 0
    old, new = (load_policy(path, which="model").state_dict() for path in (pose_checkpoint, out))
    changed = {key for key in new if new[key].shape != old[key].shape or not torch.equal(new[key], old[key])}
    assert {key for key in changed if key.startswith("model.")} == {
        *(f"model.down_modules.0.0.blocks.0.block.0.{part}" for part in ("weight", "bias")),
        *(f"model.down_modules.0.0.residual_conv.{part}" for part in ("weight", "bias")),
        *(f"model.final_conv.1.{part}" for part in ("weight", "bias")),
    }


def test_a_fine_tune_starts_from_it_and_continues(finetuned: Path) -> None:
    lines = [json.loads(line) for line in (finetuned / "logs.json.txt").read_text().splitlines()]
    assert (lines[0]["start"], lines[0]["fresh_tensors"], lines[0]["grown_tensors"]) == ("pretrained", 0, 4 + 6)
    assert all(np.isfinite(line["train_loss"]) for line in lines[1:])
    assert [line["global_step"] for line in lines if "val_position_error_mm" in line] == [2, 4]
    assert lines[-1]["val_image_features"] > 0
    written = read_checkpoint(finetuned / "checkpoints" / "latest.ckpt")
    (group,) = written.state_dicts["optimizer"]["param_groups"]
    names = [name for name, _ in build_policy(written.cfg).named_parameters()]
    assert group["params"] == list(range(len(names)))
    assert {0, len(names) - 1}.isdisjoint(written.state_dicts["optimizer"]["state"]), "as in the reference's files"
    assert group["weight_decay"] == 1e-6


def test_it_is_served_and_both_paths_agree(finetuned: Path) -> None:
    checkpoint = finetuned / "checkpoints" / "latest.ckpt"
    plain, fast = (PolicyEngine.open(checkpoint, EngineSettings(steps=3, fast=fast)) for fast in (False, True))
    answers = [engine.infer(parsed(), 3, None, Stages()) for engine in (plain, fast)]
    assert answers[0].actions.shape == (8, 8)
    assert answers[0].first == 1
    np.testing.assert_allclose(answers[1].actions, answers[0].actions, atol=1e-4)
    assert (plain.describe()["fast"], fast.describe()["fast"]) == (False, True)
    warm = PolicyEngine.open(checkpoint, EngineSettings(steps=3, warm_start=0.5))
    remainder = answers[0].sequence[6:]
    assert np.abs(warm.infer(parsed(), 3, remainder, Stages()).actions - answers[0].actions).max() > 1e-4


def test_it_is_judged_offline(finetuned: Path, dataset: Path, tmp_path: Path) -> None:
    checkpoint = finetuned / "checkpoints" / "latest.ckpt"
    paths = run_recorded_inference(checkpoint, dataset, tmp_path, steps=2, stride=4)
    logs = [read_log(path) for path in paths]
    assert logs
    assert all(log.actions.shape[1:] == (8, 8) for log in logs)
    assert all(np.isfinite(log.actions).all() for log in logs)


def test_it_is_recognized_and_looked_at(grown: Path) -> None:
    state = read_checkpoint(grown).state_dict("model")
    found = recognize({key: tuple(tensor.shape) for key, tensor in state.items()})
    assert found is not None
    assert found.family.name == "robot_unet_policy"
    assert found.settings == {
        "action_dim": 8, "down_dims": [16, 32], "kernel_size": 5, "diffusion_step_embed_dim": 16, "cameras": ["image"],
        "encoder_width": 16,
        "observation features": 2 * 72,
    }  # fmt: skip
    evidence = look_at_checkpoint(grown)
    assert (evidence.head_width, evidence.input_width) == ((8, 8), (8, 8))
    assert evidence.gripper_row is not None
    assert evidence.gripper_row > 0
    assert what_if(NAME, ["policy.kernel_size=3"]).to_json()["shape_mismatch"]
    assert not what_if(NAME, ["horizon=32"]).to_json()["shape_mismatch"], "convolutions take any length"


@pytest.mark.parametrize(("override", "message"), [
    ("horizon=15", r"horizon is 15; expected a multiple of 2"),
    ("policy.kernel_size=4", "kernel_size is 4; expected an odd number"),
    ("policy.n_groups=6", r"down_dims is \[16, 32\]; .* that n_groups = 6 divides"),
    ("policy.down_dims=[12,24] policy.n_groups=4", "down_dims begins with 12; expected a multiple of 8"),
    ("policy.down_dims=[]", "down_dims is []"),
    ("policy.diffusion_step_embed_dim=5", "diffusion_step_embed_dim is 5; expected an even number"),
    ("+policy.n_layer=2", "policy.n_layer is not an option of DiffusionUnetHybridImagePolicy"),
    ("policy.n_action_steps=17", "beyond the horizon of 16"),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(override: str, message: str) -> None:
    cfg = settings("task.dataset_path=none", *override.split())
    with pytest.raises(CheckpointError, match=message.replace("[]", r"\[\]")):
        build_policy(cfg)


def policy_of(*overrides: str) -> PolicyModule:
    torch.manual_seed(0)
    policy = build_policy(settings("task.dataset_path=none", *overrides))
    state = policy_state(OmegaConf.create(OmegaConf.to_container(_resolved(*overrides))))
    policy.load_state_dict(state)
    return policy


def _resolved(*overrides: str) -> DictConfig:
    cfg = settings("task.dataset_path=none", *overrides)
    OmegaConf.resolve(cfg)
    return cfg


@pytest.mark.parametrize(("override", "capabilities"), [
    ("obs_as_global_cond=true", {}),
    ("policy.eval_fixed_crop=false", {"fast_engine": "random", "warm_start": "random"}),
    ("obs_as_global_cond=false", {
        "fast_engine": "obs_as_global_cond False", "warm_start": "obs_as_global_cond False",
        "loss_weights": "holds features",
    }),
])  # fmt: skip
def test_what_it_can_do_is_asked(override: str, capabilities: dict[str, str]) -> None:
    policy = build_policy(settings("task.dataset_path=none", override))
    for capability in ("fast_engine", "warm_start", "loss_weights"):
        why_not = policy.lacks(capability)
        assert (why_not is not None) == (capability in capabilities)
        assert capabilities.get(capability, "") in (why_not or "")


def test_inpainting_teaches_the_encoder_through_the_observed_steps_alone() -> None:
    policy = policy_of("obs_as_global_cond=false").eval()
    draw = policy.draw(2, torch.Generator().manual_seed(0))
    obs: dict[str, Any] = {
        "image": torch.randint(0, 256, (2, 16, 3, 36, 40), dtype=torch.uint8),
        "robot_eef_pose": torch.rand(2, 16, 7), "robot_gripper_state": torch.rand(2, 16, 1),
    }  # fmt: skip
    assert draw["noise"].shape == (2, 16, 8 + 72)
    policy.loss({"obs": obs, "action": torch.rand(2, 16, 8)}, draw).backward()
    gradients = [parameter.grad for parameter in policy.encoder_parameters() if parameter.requires_grad]
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    policy.num_inference_steps = 2
    answer = policy.predict_action({key: value[:, :2] for key, value in obs.items()})
    assert answer["action"].shape == (2, 8, len(POSE_GRIPPER))


def test_distance_from_the_output_falls_along_the_network() -> None:
    policy = build_policy(settings("task.dataset_path=none", "policy.down_dims=[16,32,64]"))
    path = ("obs_encoder.x", "model.diffusion_step_encoder.1.weight", "model.down_modules.0.0.x",
            "model.down_modules.1.0.x", "model.down_modules.2.0.x", "model.mid_modules.0.x", "model.up_modules.0.0.x",
            "model.up_modules.1.0.x", "model.final_conv.1.weight")  # fmt: skip
    assert [policy.layers_above(name) for name in path] == [6, 6, 5, 4, 3, 2, 1, 0, 0]


@pytest.mark.parametrize(("settings_of", "message"), [
    ({"_target_": "torch.optim.SGD", "lr": 1e-4}, "torch.optim.SGD; expected torch.optim.AdamW"),
    ({"lr": 1e-4, "momentum": 0.9}, "momentum; expected torch.optim.AdamW with lr"),
    ({"learning_rate": 1e-4}, "learning_rate; expected"),
])  # fmt: skip
def test_another_optimizer_is_refused(settings_of: dict[str, Any], message: str) -> None:
    policy = build_policy(settings("task.dataset_path=none"))
    with pytest.raises(ValueError, match=message):
        policy.parameter_groups(settings_of)
