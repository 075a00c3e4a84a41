"""Settings that change what is computed but no tensor: each is compared, and an override fixes it."""

import inspect
from typing import Any

import pytest
import torch
from adapt_factory import policy_cfg, policy_state
from omegaconf import DictConfig, OmegaConf, open_dict

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.inherit import inherit
from diffusion_policy.adapt.policy_settings import (
    POLICY,
    SCHEDULER,
    TARGET,
    Scope,
    differences,
    effect_of,
    root_of,
    settings_of,
    unknown_settings,
)
from diffusion_policy.adapt.settings_fit import SettingsError, check_settings
from diffusion_policy.adapt.starting_point import accepted_changes, check_actions, load_pretrained, plan_pretrained
from diffusion_policy.checkpoint import SCHEDULER_TARGETS, Checkpoint, build_policy, write_checkpoint
from diffusion_policy.installation import CONFIG
from diffusion_policy.policy.registry import policy_classes
from diffusion_policy.spec import read_shape_meta
from diffusion_policy.training_config import compose_training, keys_of

# Sections and keys of the config that do not concern the weights, with the reasons why they may differ.
FREE = {
    "_target_": "the training loop",
    "name": "a label", "task_name": "a label", "exp_name": "a label", "task.name": "a label",
    "past_action_visible": "read by other programs only", "keypoint_visible_rate": "read by other programs only",
    "dataset_obs_steps": "how many observed steps are loaded; the policy takes its own number of them",
    "n_action_steps": "how many of the predicted steps are executed",
    "pretrained": "where training starts", "normalizer": "a choice by itself: inherit keeps the checkpoint's numbers",
    "ema": "how the average follows", "dataloader": "how data is read", "val_dataloader": "how data is read",
    "optimizer": "how it is trained", "training": "how it is trained", "sampler": "how it is measured",
    "logging": "what is said", "checkpoint": "what is kept", "loss": "what is learned",
    "cloning": "what is learned",
    "stages": "how it is trained", "learning_rates": "how it is trained", "observation_dropout": "how it is trained",
    "task.dataset_path": "the data", "task.dataset": "the data", "task.env_runner": "how it is measured",
    "task.shape_meta.action": "compared with the names of its numbers, see check_actions",
    "policy.shape_meta.action": "the same", "shape_meta.action": "the same",
    "task.shape_meta": "a section", "shape_meta": "a section", "task": "a section", "policy": "a section",
    "policy.shape_meta": "a section", "policy.noise_scheduler": "a section", "policy._target_": "the policy's class",
}  # fmt: skip
# Sections of FREE whose entries must be listed one by one.
OPEN = {"task", "policy", "shape_meta", "task.shape_meta", "policy.shape_meta", "policy.noise_scheduler"}
ROOTS = {"horizon", "n_obs_steps", "obs_as_cond", "obs_as_global_cond", "n_latency_steps", "task.image_shape"}

SCHEDULE = "policy.noise_scheduler"
# A different value for every setting that a run must not change silently.
CHANGED: dict[str, Any] = {
    "n_latency_steps": 1, "horizon": 12, "n_obs_steps": 3, "obs_as_cond": False, "task.image_shape": [3, 360, 640],
    "policy.n_layer": 2, "policy.n_cond_layers": 2, "policy.n_emb": 64, "policy.encoder_width": 16, "policy.n_head": 8,
    "policy.crop_shape": [170, 280], "policy.eval_fixed_crop": False, "policy.encoder_stride": 16,
    "policy.encoder_activation": "none",
    "policy.obs_encoder_group_norm": False, "policy.causal_attn": False, "policy.time_as_cond": False,
    "policy.pred_action_steps_only": True,
    f"{SCHEDULE}.num_train_timesteps": 50, f"{SCHEDULE}.beta_schedule": "linear",
    f"{SCHEDULE}.trained_betas": [0.1, 0.2], f"{SCHEDULE}.rescale_betas_zero_snr": True,
    f"{SCHEDULE}.prediction_type": "sample", f"{SCHEDULE}.variance_type": "fixed_large",
    f"{SCHEDULE}.clip_sample": False, f"{SCHEDULE}.clip_sample_range": 2.0, f"{SCHEDULE}.thresholding": True,
    "task.shape_meta.obs.robot_eef_pose.names": ["x", "y", "z", "rx", "ry", "rz", "width"],
    "task.shape_meta.obs.robot_gripper_state.names": ["width"],
    "task.shape_meta.obs.robot_eef_pose.shape": [6], "task.shape_meta.obs.robot_gripper_state.shape": [2],
}  # fmt: skip
# Settings that only act if another one is set.
WITH: dict[str, dict[str, Any]] = {
    f"{SCHEDULE}.beta_start": {f"{SCHEDULE}.beta_schedule": "linear"},
    f"{SCHEDULE}.beta_end": {f"{SCHEDULE}.beta_schedule": "linear"},
    f"{SCHEDULE}.dynamic_thresholding_ratio": {f"{SCHEDULE}.thresholding": True},
    f"{SCHEDULE}.sample_max_value": {f"{SCHEDULE}.thresholding": True},
    "policy.n_action_steps": {"policy.pred_action_steps_only": True},
}
CONDITIONAL: dict[str, Any] = {
    f"{SCHEDULE}.beta_start": 0.001, f"{SCHEDULE}.beta_end": 0.03, f"{SCHEDULE}.dynamic_thresholding_ratio": 0.9,
    f"{SCHEDULE}.sample_max_value": 2.0, "policy.n_action_steps": 4,
}  # fmt: skip
LISTS = ("task.shape_meta.obs", "task.shape_meta.obs.image.type")  # no override can express these
# Only the UNet's.
UNET: dict[str, Any] = {
    "horizon": 12, "policy.down_dims": [256, 512, 1024],
    "policy.kernel_size": 3, "policy.diffusion_step_embed_dim": 256,
    "policy.cond_predict_scale": False, "policy.n_groups": 4,
}  # fmt: skip
SIZES = ["policy.n_layer", "policy.n_cond_layers", "policy.n_emb", "policy.encoder_width", "policy.horizon",
         "policy.n_obs_steps"]  # fmt: skip


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return compose_training()


@pytest.fixture
def cfg(composed: DictConfig) -> DictConfig:
    return composed.copy()


def changed(cfg: DictConfig, values: dict[str, Any]) -> DictConfig:
    """The same config with other values and missing keys added."""
    other = cfg.copy()
    with open_dict(other):
        for path, value in values.items():
            OmegaConf.update(other, path, value, merge=False, force_add=True)
            names = f"{path.removesuffix('.shape')}.names"
            if path.endswith(".shape") and OmegaConf.select(other, names) is not None:
                OmegaConf.update(other, names, [f"n{i}" for i in range(value[0])], merge=False)
    return other


def all_settings() -> list[str]:
    """Every key that a config of the project sets, and every argument of policy and schedulers that it does not set."""
    experiments = {path.stem for path in (CONFIG / "experiment").glob("*.yaml")} - {
        "vpt_grove",
        "vpt_grove_ppo",
    }  # VPT's
    keys: set[str] = set()
    for chosen in ([], *([f"experiment={name}"] for name in sorted(experiments))):
        keys |= set(keys_of(compose_training(overrides=chosen)))
    for name in ("train_unet_cogact_robot", "train_vpt_bc"):
        keys |= set(keys_of(compose_training(name)))
    keys |= {f"policy.{name}" for kind in policy_classes() for name in inspect.signature(kind).parameters}
    return sorted(keys)


def is_said(key: str) -> bool:
    """Whether a key, or a section that contains it, is compared or free."""
    sections = [key.rsplit(".", depth)[0] for depth in range(key.count(".") + 1)]
    free = any(section in FREE and (section == key or section not in OPEN) for section in sections)
    return key in ROOTS or free or any(effect_of(section) is not None for section in sections)


def test_every_setting_of_a_config_is_compared_or_free_for_a_reason() -> None:
    """A new setting in config/ or in the policy fails here until it is listed as one or the other."""
    keys = all_settings()
    observations = ("task.shape_meta.obs", "shape_meta.obs")  # policy.shape_meta refers to them
    assert [key for key in keys if not is_said(key) and not key.startswith(observations)] == []
    assert not is_said("policy.rotary")
    assert not is_said("policy.noise_scheduler.offset_noise")
    assert not is_said("task.arm")
    assert not is_said("tokens")
    assert all(effect.note for effect in (*POLICY.values(), *SCHEDULER.values()))


@pytest.mark.parametrize("target", SCHEDULER_TARGETS)
def test_every_option_of_a_scheduler_has_an_effect(target: str) -> None:
    module, _, name = target.rpartition(".")
    kind = getattr(__import__(module, fromlist=[name]), name)
    options = set(inspect.signature(kind.__init__).parameters) - {"self"}
    assert options <= SCHEDULER.keys()


def test_another_value_is_known_of_every_setting_that_matters(cfg: DictConfig) -> None:
    plain = OmegaConf.to_container(cfg)
    matters = {root_of(plain, path) for path in settings_of(cfg) if not effect_of(path).scope.free}  # type: ignore[union-attr,arg-type]
    gaps = {f"{SCHEDULE}.{name}" for name, effect in SCHEDULER.items() if not effect.scope.free}
    tried = CHANGED.keys() | CONDITIONAL.keys() | set(LISTS)
    settled = {name for name in matters | gaps if not name.endswith("type") or name in tried}
    assert settled - {TARGET} <= tried, "another class is refused as a whole, see below"


def test_a_checkpoint_of_another_class_is_refused_with_the_config_that_trains_it(cfg: DictConfig) -> None:
    other = compose_training("train_unet_cogact_robot").policy._target_
    (found,) = differences(changed(cfg, {TARGET: other}), {}, cfg)
    assert (found.name, found.trained, found.override) == (TARGET, other, "--config-name=train_unet_cogact_robot")
    assert not found.effect.scope.free


@pytest.mark.parametrize("name", [*CHANGED, *CONDITIONAL])
def test_a_setting_that_matters_is_refused_with_the_override_that_mends_it(cfg: DictConfig, name: str) -> None:
    cfg = changed(cfg, WITH.get(name, {}))
    value = {**CHANGED, **CONDITIONAL}[name]
    checkpoint = Checkpoint("old.ckpt", changed(cfg, {name: value}), {"model": {}}, {})  # type: ignore[arg-type]
    with pytest.raises(SettingsError) as caught:
        check_settings(checkpoint, cfg)
    found = [one for one in differences(checkpoint.cfg, {}, cfg) if not one.effect.scope.free]
    assert name in {difference.name for difference in found}
    assert str(caught.value).startswith("old.ckpt was trained with other settings than this config: ")
    assert "add to the command: " in caught.value.remedy
    again = changed(cfg, {difference.name: difference.trained for difference in found})
    check_settings(checkpoint, again)
    acting = [difference.name for difference in found if difference.effect.scope is Scope.FUNCTION]
    if len(acting) == len(found):
        check_settings(checkpoint, cfg, acting)
        assert caught.value.acceptance.startswith("pretrained.accept=[")
    else:
        assert not caught.value.acceptance


@pytest.mark.parametrize("name", SIZES)
def test_a_setting_of_size_is_seen_in_names_or_shapes(cfg: DictConfig, name: str) -> None:
    root = root_of(OmegaConf.to_container(cfg), name)  # type: ignore[arg-type]
    with torch.device("meta"):
        ours, theirs = (build_policy(each).state_dict() for each in (cfg, changed(cfg, {root: CHANGED[root]})))
    shapes = [{key: tuple(tensor.shape) for key, tensor in state.items()} for state in (ours, theirs)]
    assert shapes[0] != shapes[1]
    # From the tensors alone, if the file's config does not describe the policy.
    (difference,) = differences(OmegaConf.create({}), shapes[1], cfg)
    assert (difference.name, difference.trained) == (root, CHANGED[root])


@pytest.mark.parametrize(("name", "value"), [
    ("policy.p_drop_attn", 0.1), ("policy.p_drop_emb", 0.1), ("policy.num_inference_steps", 8),
    ("policy.color_jitter", {"hue": 0.1}), ("policy.eta", 0.5), ("n_action_steps", 4),
    (f"{SCHEDULE}._target_", SCHEDULER_TARGETS[1]), (f"{SCHEDULE}.timestep_spacing", "trailing"),
    (f"{SCHEDULE}.beta_start", 0.5), (f"{SCHEDULE}.beta_end", 0.5), (f"{SCHEDULE}.sample_max_value", 2.0),
    ("training.seed", 7),
])  # fmt: skip
def test_what_may_differ_passes(cfg: DictConfig, name: str, value: Any) -> None:
    """A cosine schedule ignores the beta range, and disabled clipping ignores its limits."""
    other = changed(cfg, {name: value})
    if name.endswith("_target_"):
        with open_dict(other):
            del other.policy.noise_scheduler.variance_type  # which that class does not have
    check_settings(Checkpoint("old.ckpt", other, {"model": {}}, {}), cfg)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", UNET)
def test_the_unets_settings_are_refused_alike(name: str) -> None:
    cfg = compose_training("train_unet_cogact_robot")
    checkpoint = Checkpoint("unet.ckpt", changed(cfg, {name: UNET[name]}), {"model": {}}, {})  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=rf"unet\.ckpt was trained .*{name} .*\nadd to the command: '?{name}="):
        check_settings(checkpoint, cfg)
    shapes = []
    with torch.device("meta"):
        shapes = [{key: tuple(tensor.shape) for key, tensor in build_policy(each).state_dict().items()}
                  for each in (cfg, checkpoint.cfg)]  # fmt: skip
    size = effect_of(name) is not None and effect_of(name).scope is Scope.SIZE  # type: ignore[union-attr]
    assert not size or shapes[0] != shapes[1]
    if name in ("horizon", "policy.n_groups"):
        assert shapes[0] == shapes[1]
        check_settings(checkpoint, cfg, [name])


@pytest.mark.parametrize(("theirs", "ours"), [
    ("train_unet_cogact_robot", "train_cogact_robot"), ("train_cogact_robot", "train_unet_cogact_robot"),
])  # fmt: skip
def test_a_checkpoint_of_the_other_policy_is_sent_to_its_config(theirs: str, ours: str) -> None:
    checkpoint = Checkpoint("old.ckpt", compose_training(theirs), {"model": {}}, {})  # type: ignore[arg-type]
    with pytest.raises(SettingsError) as caught:
        check_settings(checkpoint, compose_training(ours))
    assert caught.value.overrides == (f"--config-name={theirs}",)


def test_one_line_of_overrides_makes_a_config_that_fits(cfg: DictConfig) -> None:
    demo = compose_training(overrides=["experiment=demo", "policy.n_head=8"])
    with torch.device("meta"):
        state = build_policy(demo).state_dict()
    checkpoint = Checkpoint("demo.ckpt", demo, {"model": state}, {})  # type: ignore[arg-type]
    with pytest.raises(SettingsError) as caught:
        check_settings(checkpoint, cfg)
    assert caught.value.remedy == (
        "add to the command: 'policy.crop_shape=[84,152]' policy.n_layer=2 policy.n_cond_layers=2 policy.n_head=8 "
        "policy.n_emb=128 +policy.encoder_width=16 +policy.encoder_stride=16 +policy.encoder_activation=none "
        "policy.noise_scheduler.prediction_type=sample 'task.image_shape=[3,90,160]'"
    )
    check_settings(checkpoint, compose_training(overrides=caught.value.overrides))


@pytest.mark.parametrize(("overrides", "line"), [
    (("horizon=8", "n_action_steps=4"), "horizon=8 n_action_steps=4"),
    (("horizon=8", "n_action_steps=4", "n_latency_steps=2"), "n_latency_steps=2 horizon=8 n_action_steps=4"),
    ((f"{SCHEDULE}.num_train_timesteps=20", "policy.num_inference_steps=20"),
     f"{SCHEDULE}.num_train_timesteps=20 policy.num_inference_steps=20"),
    (("n_action_steps=4", "policy.n_head=8"), "policy.n_head=8"),
])  # fmt: skip
def test_free_settings_follow_where_they_have_to_fit(cfg: DictConfig, overrides: tuple[str, ...], line: str) -> None:
    """Eight steps cannot be executed of a horizon of eight with two observed steps."""
    theirs = compose_training(overrides=overrides)
    checkpoint = Checkpoint("old.ckpt", theirs, {"model": {}}, {})  # type: ignore[arg-type]
    with pytest.raises(SettingsError) as caught:
        check_settings(checkpoint, cfg)
    assert caught.value.remedy.splitlines()[0] == f"add to the command: {line}"
    with torch.device("meta"):
        build_policy(compose_training(overrides=line.split()))


def test_tensors_count_where_a_config_says_otherwise(cfg: DictConfig) -> None:
    with torch.device("meta"):
        state = build_policy(changed(cfg, {"policy.n_emb": 64})).state_dict()
    with pytest.raises(SettingsError, match=r"add to the command: policy\.n_emb=64$"):
        check_settings(Checkpoint("old.ckpt", cfg, {"model": state}, {}), cfg)  # type: ignore[arg-type]


def test_the_order_of_observations_and_their_kinds_are_compared(cfg: DictConfig) -> None:
    other = OmegaConf.create(OmegaConf.to_container(cfg))
    obs = other.task.shape_meta.obs
    other.task.shape_meta.obs = {key: obs[key] for key in reversed(list(obs))}
    with pytest.raises(SettingsError, match=r"set task.shape_meta.obs to the checkpoint.s value, \['robot_gripper_"):
        check_settings(Checkpoint("old.ckpt", other, {"model": {}}, {}), cfg)  # type: ignore[arg-type]


def test_unknown_names_are_refused_and_unknown_settings_reported(
    cfg: DictConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AdaptError, match=r"not a setting of the policy; the closest is policy\.n_head"):
        check_settings(Checkpoint("old.ckpt", cfg, {}, {}), cfg, ["policy.n_heads"])  # type: ignore[arg-type]
    other = changed(cfg, {"policy.rotary": True, f"{SCHEDULE}.offset_noise": 0.1})
    assert unknown_settings(other) == ["policy.rotary", f"{SCHEDULE}.offset_noise"]
    check_settings(Checkpoint("old.ckpt", other, {}, {}), cfg)  # type: ignore[arg-type]
    assert "does not know: policy.rotary" in caplog.text
    for wrong in ("policy.n_head", [3], {"policy.n_head": 1}):
        with pytest.raises(AdaptError, match="expected names of settings"):
            accepted_changes(changed(cfg, {"pretrained.accept": wrong}))


@pytest.mark.parametrize(("options", "key"), [
    ({"crop_shape": [32, 32]}, "obs_encoder.obs_nets.image.pool.pos_x"),
    ({"causal_attn": False}, "model.mask"),
    ({"n_head": 4}, None),
])  # fmt: skip
def test_an_accepted_change_loads_with_the_runs_own_masks_and_grids(
    tmp_path: Any, options: dict[str, Any], key: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    cfg, ours = policy_cfg(encoder_width=16), policy_cfg(encoder_width=16, **options)
    write_checkpoint(tmp_path / "old.ckpt", cfg=cfg, state_dicts={"model": policy_state(cfg)}, pickles={})
    run = {"pretrained": {"which": "same", "min_coverage": 1.0}, "training": {"use_ema": True}}
    started = OmegaConf.merge(ours, run)
    assert isinstance(started, DictConfig)
    (name,) = (f"policy.{option}" for option in options)
    for ask in (plan_pretrained, lambda path, cfg: load_pretrained(path, cfg, build_policy(cfg), None)):
        with pytest.raises(SettingsError, match=rf"or, to keep the change.*pretrained\.accept=\[{name}\]"):
            ask(tmp_path / "old.ckpt", started)
    started.pretrained.accept = [name]
    model = build_policy(started)
    fresh = {entry: tensor.clone() for entry, tensor in model.state_dict().items()}
    _, ledger = load_pretrained(tmp_path / "old.ckpt", started, model, None)
    ledger.check()
    planned = plan_pretrained(tmp_path / "old.ckpt", started)
    assert [(e.key, e.action) for e in planned.entries if e.part == "model"] == [
        (e.key, e.action) for e in ledger.entries
    ]
    assert "accepted by pretrained.accept" in caplog.text
    if key in fresh:
        assert torch.equal(model.state_dict()[key], fresh[key])


def test_without_acceptance_masks_are_not_recomputed() -> None:
    cfg, ours = policy_cfg(encoder_width=16), policy_cfg(encoder_width=16, causal_attn=False)
    checkpoint = Checkpoint("old.ckpt", cfg, {"model": policy_state(cfg)}, {})  # type: ignore[arg-type]
    with pytest.raises(AdaptError, match=r"model\.mask"):
        inherit(checkpoint, build_policy(ours), None)
    assert inherit(checkpoint, build_policy(ours), None, recompute=True).of("dropped")


def test_poses_that_are_read_as_rotation_vectors_are_refused_by_their_statistics(cfg: DictConfig) -> None:
    low, high = [0.3, -0.2, 0.0, -3.1, -1.0, -1.0, 0.03], [0.5, 0.2, 0.4, 3.1, 1.0, 1.0, 0.08]
    entry = "normalizer.params_dict.robot_eef_pose.input_stats"
    state = {f"{entry}.min": torch.tensor(low), f"{entry}.max": torch.tensor(high)}
    spec = read_shape_meta(OmegaConf.to_container(cfg.task.shape_meta, resolve=True))  # type: ignore[arg-type]
    with pytest.raises(AdaptError, match="reads robot_eef_pose as rotation vector and gripper width"):
        check_actions(Checkpoint("old.ckpt", cfg, {"model": state}, {}), spec)  # type: ignore[arg-type]


def test_a_task_with_the_checkpoints_actions_is_named(cfg: DictConfig) -> None:
    pose = compose_training(overrides=["task=cogact_robot_7d"])
    spec = read_shape_meta(OmegaConf.to_container(pose.task.shape_meta, resolve=True))  # type: ignore[arg-type]
    with pytest.raises(AdaptError, match=r"predicts 8 numbers.*\nadd to the command: task=cogact_robot_8d$"):
        check_actions(Checkpoint("old.ckpt", cfg, {"model": {}}, {}), spec)  # type: ignore[arg-type]
