"""Law 6 for every setting: stopped at any update and resumed, a run equals one never stopped, to the bit.

Configs are found in config/, so a file added there is tested from then on. Keys and options that no file of a
group sets have cases here, and one that appears in neither is found by the last tests. Files and cases that combine
what others test separately, and further places to keep a dataset's numbers, are exhaustive.
"""

import copy
import inspect
import shutil

import dataset_factory
import pytest
import tiny_run
import torch
from same_runs import assert_same_runs

from diffusion_policy.adapt.policy_settings import Scope, differences
from diffusion_policy.adapt.pose_to_gripper import grow_7d_to_8d
from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.policy.diffusion_transformer_hybrid_image_policy import DiffusionTransformerHybridImagePolicy
from diffusion_policy.training_config import keys_of
from diffusion_policy.workspace.start import LATEST
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

# 23 windows in batches of 5, two batches an update: 5 batches and 3 updates an epoch; a small encoder.
TINY = (
    "task.dataset.val_ratio=0.2",
    "++policy.encoder_stride=32",
    "policy.n_cond_layers=0",
    "dataloader.batch_size=5",
    "val_dataloader.batch_size=32",
    "training.gradient_accumulate_every=2",
    "training.num_epochs=2",
    "training.lr_warmup_steps=2",
    "training.checkpoint_every=50",
    "training.val_every=1",
    "training.sample_every=0",
    "training.rollout_every=0",
    "training.cache=none",
    "training.resume=True",
    "checkpoint.topk.k=0",
)
GROUPS = sorted(
    path.name
    for path in tiny_run.CONFIG.iterdir()
    # rules of the adapter; job launchers; simulators, which have a case; mappings of the converter; settings of PPO
    if path.is_dir() and path.name not in ("adapt", "hydra", "env_runner", "simulator", "recordings", "ppo")
)
NAMED = sorted(f"{group}={path.stem}" for group in GROUPS for path in (tiny_run.CONFIG / group).glob("*.yaml"))
# Tasks of other datasets; experiments of VPT, whose runs have their own tests.
OF_OTHERS = ("task=pusht", "task=minecraft", "experiment=vpt_grove", "experiment=vpt_grove_ppo")
FILES = [file for file in NAMED if file not in OF_OTHERS]
# The experiment below has weighted losses and dropout, and stages freeze groups; rates by groups have a test with the
# workspace's (test_a_fine_tuned_run_resumes_with_its_groups).
FURTHER_FILES = {
    *(file for file in FILES if file.startswith("experiment=") and file != "experiment=finetune_8d"),
    *(file for file in FILES if file.startswith(("learning_rates=", "loss=", "observation_dropout="))),
    "task=cogact_robot_10d",
}  # fmt: skip

# Settings that no file above sets this way: some draw random numbers, some decide who draws them and when.
CASES = {
    "everything that draws": (
        "policy.eval_fixed_crop=False",
        "+policy.color_jitter={brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.5, p: 0.8}",
        "policy.p_drop_emb=0.2",
        "policy.p_drop_attn=0.2",
        "observation_dropout.gripper=0.3",
        "+observation_dropout.low_dim.robot_eef_pose=0.5",
    ),
    "dropout by its older name, with workers": (
        "+task.dataset.obs_dropout={robot_gripper_state: 0.5, robot_eef_pose: 0.3}",
        "dataloader.num_workers=2",
    ),
    "two datasets by weight, with workers": (
        "task.dataset_path=[{data},{other}]",
        "+task.dataset.weights=[3,1]",
        "dataloader.num_workers=1",
        "val_dataloader.num_workers=1",
    ),
    "kept in memory, few episodes, tasks by weight, another seed": (
        "training.cache=memory",
        "+task.dataset.weights={lift the cup: 3, others: 1}",
        "task.dataset.max_train_episodes=3",
        "+task.dataset.exclude_episodes=[episode_0001]",
        "training.seed=7",
        "task.dataset.seed=3",
    ),
    "relative to the current pose, kept in memory": (
        "task.dataset.relative_actions=True",
        "training.cache=memory",
        "sampler.steps=1",
        "training.sample_every=1",
    ),
    "relative to the current pose, in six numbers, with workers": (
        "task=cogact_robot_10d",
        "task.dataset.relative_actions=True",
        "dataloader.num_workers=1",
    ),
    "kept on the device, in their order": (
        "training.cache=device",
        "dataloader.shuffle=False",
        "normalizer=refit",
    ),
    "kept by the dataset, features in the sequence, looked at rarely": (
        "+task.dataset.cache=memory",
        "obs_as_cond=False",
        "dataset_obs_steps=16",
        "training.log_every=4",
        "training.max_skipped_updates=1",
    ),
    "mapped by the dataset, workers started anew": (
        "+task.dataset.cache=mmap",
        "dataloader.num_workers=1",
        "dataloader.persistent_workers=False",
    ),
    "the machine's fast arithmetic, every batch an update": (
        "training.precision=auto",
        "training.gradient_accumulate_every=1",
    ),
    "bf16, three batches an update, no average": (
        "training.precision=bf16",
        "training.gradient_accumulate_every=3",
        "training.max_train_steps=4",
        "training.use_ema=False",
    ),
    "closed loop and sampled while it trains": (
        "env_runner@task.env_runner=tabletop",
        "task.env_runner.n_episodes=1",
        "+task.env_runner.max_steps=12",
        "task.env_runner.camera_size=[64,36]",
        "training.rollout_every=1",
        "training.sample_every=1",
        "checkpoint.topk.k=1",
        "sampler.steps=1",
    ),
}
FURTHER = (
    "dropout by its older name, with workers",
    "kept in memory, few episodes, tasks by weight, another seed",
    "relative to the current pose, kept in memory",
    "kept on the device, in their order",
    "kept by the dataset, features in the sequence, looked at rarely",
    "mapped by the dataset, workers started anew",
    "relative to the current pose, in six numbers, with workers",
    "the machine's fast arithmetic, every batch an update",
)
# Options and keys that neither draw nor affect drawing: what is computed, measured, kept and shown.
NO_DRAWS = {
    "policy": "_target_ shape_meta noise_scheduler horizon n_action_steps n_obs_steps num_inference_steps crop_shape "
    "obs_encoder_group_norm n_layer n_cond_layers n_head n_emb causal_attn time_as_cond obs_as_cond eta "
    "pred_action_steps_only encoder_width encoder_stride encoder_activation",
    "task.dataset": "_target_ shape_meta zarr_path horizon pad_before pad_after n_obs_steps n_latency_steps val_ratio "
    "device only_episodes gripper_scale rotation action_differences "
    "names_from_shape_meta",
    "training": "device debug resume lr_scheduler lr_warmup_steps num_epochs rollout_every checkpoint_every "
    "checkpoint_every_steps val_every max_val_steps tqdm_interval_sec threads compile",
    "dataloader": "batch_size pin_memory",
    "observation_dropout": "key",
}
# Whole sections of that kind; those of a group's files are covered by the files.
NO_DRAWS_BELOW = (
    "task", "shape_meta", "pretrained", "ema", "val_dataloader", "optimizer", "sampler", "logging", "checkpoint",
    "loss", "stages", "learning_rates",
)  # fmt: skip
NO_DRAWS_AT_TOP = (
    "name _target_ task_name exp_name horizon n_obs_steps n_action_steps n_latency_steps past_action_visible "
    "keypoint_visible_rate"
)


class Saved(TrainDiffusionTransformerHybridWorkspace):
    """A run whose folder is copied when update `at` is saved, as if stopped there."""

    def __init__(self, cfg, folder, name, copy_to):
        super().__init__(cfg, folder)
        self.name, self.copy_to = name, copy_to

    def _make_updates(self, initialization):
        """Chooses a different update for every case: at an epoch's end, before it, after it, in its middle."""
        super()._make_updates(initialization)
        self.at = 1 + sum(map(ord, self.name)) % (self._total_updates - 1)
        self.cfg.training.checkpoint_every_steps = self.at

    def _save(self, *arguments):
        super()._save(*arguments)
        self._checkpoints.wait()
        if self.progress.global_step == self.at and not self.copy_to.exists():
            shutil.copytree(self.output_dir, self.copy_to)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    other = tiny_run.write_dataset(folder / "other.zarr", lengths=(15, 12))
    data = tiny_run.write_dataset(folder / "set.zarr", lengths=(13, 12, 14, 12, 13))
    dataset_factory.tell(data, *({"tasks": ["lift the cup"] if i % 2 else []} for i in range(5)))
    return {"data": data, "other": other}


@pytest.fixture(scope="module")
def pose_checkpoint(datasets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pose")
    cfg = settings(datasets, "task=cogact_robot_7d", "training.max_train_steps=1", "training.num_epochs=1")
    TrainDiffusionTransformerHybridWorkspace(cfg, folder).run()
    return folder / "checkpoints" / LATEST


@pytest.fixture(scope="module")
def grown_checkpoint(pose_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("grown") / "grown.ckpt"
    grow_7d_to_8d(pose_checkpoint, path)
    return path


def settings(datasets, *overrides):
    filled = [override.replace("{data}", str(datasets["data"])) for override in overrides]
    filled = [override.replace("{other}", str(datasets["other"])) for override in filled]
    return tiny_run.settings(datasets["data"], *TINY, *filled)


def stages_in_reach(cfg):
    """Stages that change within this run's few updates."""
    for stage in cfg.stages:
        if "steps" in stage:
            stage.steps = 4
    return cfg


def assert_resumes(cfg, name, folder):
    """One uninterrupted run, and a second one from where the first was saved in between."""
    straight, stopped = folder / "straight", folder / "stopped"
    run = Saved(copy.deepcopy(cfg), straight, name, stopped)
    run.run()
    assert read_checkpoint(stopped / "checkpoints" / LATEST).run_state["progress"]["global_step"] == run.at
    torch.manual_seed(1)  # as if this process had drawn numbers in between
    TrainDiffusionTransformerHybridWorkspace(copy.deepcopy(cfg), stopped).run()
    assert assert_same_runs(stopped, straight).run_state["progress"]["epoch"] == cfg.training.num_epochs


@pytest.fixture(scope="module")
def shown():
    """Configs that were tested; a group's default, given by name, is the default again."""
    return []


def further(values, are_further):
    return [pytest.param(value, marks=[pytest.mark.exhaustive] * (value in are_further)) for value in values]


@pytest.mark.parametrize("choice", further(FILES, FURTHER_FILES))
def test_every_config_resumes_to_the_bit(choice, datasets, pose_checkpoint, grown_checkpoint, shown, tmp_path):
    cfg = stages_in_reach(settings(datasets, choice))
    width = cfg.task.shape_meta.action.shape[0]
    weights = {7: pose_checkpoint, 8: grown_checkpoint}.get(width)  # others start from scratch
    cfg.pretrained.path = None if weights is None else str(weights)
    cfg.exp_name = ""
    others = [] if weights is None else differences(read_checkpoint(weights).cfg, {}, cfg)  # tiny ones of no config
    cfg.pretrained.accept = [other.name for other in others if other.effect.scope is Scope.FUNCTION]
    if cfg not in shown:
        assert_resumes(cfg, choice, tmp_path)
        shown.append(cfg)


@pytest.mark.parametrize("case", further(CASES, FURTHER))
def test_every_setting_resumes_to_the_bit(case, datasets, tmp_path):
    assert_resumes(settings(datasets, *CASES[case]), case, tmp_path)


def settings_of_cases():
    """Returns every key that a case sets."""
    return {word.lstrip("+").split("=")[0] for case in CASES.values() for word in case}


def test_there_is_a_case_for_every_key_that_may_draw(datasets):
    known = settings_of_cases() | set(NO_DRAWS_AT_TOP.split()) | set(NO_DRAWS)
    known |= {f"{section}.{name}" for section, names in NO_DRAWS.items() for name in names.split()}
    below = tuple(f"{section}." for section in (*NO_DRAWS_BELOW, "policy.noise_scheduler"))
    for key in keys_of(settings(datasets)):
        elsewhere = key in NO_DRAWS_BELOW or (key.startswith(below) and not key.startswith("task.dataset."))
        held = any(name.startswith(f"{key}.") for name in known)
        assert elsewhere or held or key in known, (
            f"{key}: add it to CASES if it draws random numbers or decides who draws them, else to NO_DRAWS"
        )


@pytest.mark.parametrize(
    ("section", "kind"),
    [("policy", DiffusionTransformerHybridImagePolicy), ("task.dataset", CogActImageDataset)],
)
def test_there_is_a_case_for_every_option_that_may_draw(section, kind):
    covered = settings_of_cases()
    for name in list(inspect.signature(kind.__init__).parameters)[1:]:
        assert f"{section}.{name}" in covered or name in NO_DRAWS[section].split(), (
            f"{section}.{name}: add it to CASES if it draws random numbers or decides who draws them, else to NO_DRAWS"
        )
