"""Everything in config/ that trains: each file composes, states how it is run, and builds."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from reference_config import REFERENCE_KEYS

from diffusion_policy.checkpoint import build_policy
from diffusion_policy.resolvers import register_resolvers
from diffusion_policy.spec import read_shape_meta
from diffusion_policy.training_config import keys_of
from diffusion_policy.workspace.start import config_changes

CONFIG = Path(__file__).resolve().parents[1] / "config"
GROUPS = ("experiment", "learning_rates", "loss", "observation_dropout", "stages", "task")
CHOICES = sorted(f"{group}={path.stem}" for group in GROUPS for path in (CONFIG / group).glob("*.yaml"))


def composed(*overrides):
    register_resolvers()
    with initialize_config_dir(str(CONFIG), version_base="1.2"):
        return compose("train_cogact_robot", overrides=list(overrides))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_resolves(choice):
    config = composed(choice)
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert read_shape_meta(config.task.shape_meta) == read_shape_meta(config.task.dataset.shape_meta)


@pytest.mark.parametrize("path", sorted(CONFIG.glob("train_*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_has_the_last_word(path):
    assert OmegaConf.load(path).defaults[-1] == {"experiment": None}, "what follows it overrides its settings"


def test_the_experiment_of_reinforcement_learning_overrides_the_warm_start():
    with initialize_config_dir(str(CONFIG), version_base="1.2"):
        config = compose("train_ppo_from_vpt_with_expert_warmstart", overrides=["experiment=vpt_grove_ppo"])
    assert config.ppo.value_warmup_iterations == 5


@pytest.mark.parametrize("path", sorted(CONFIG.glob("task/*.yaml")) + sorted(CONFIG.glob("experiment/*.yaml")), ids=str)
def test_every_task_and_experiment_opens_with_its_command_and_what_to_expect(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"{path.parent.name}={path.stem}" in line for line in head), path
    assert any(line.startswith("# Expect:") for line in head), path


def test_the_recommended_recipe_says_how_many_hours_it_takes():
    head = [line for line in (CONFIG / "experiment" / "finetune_8d.yaml").read_text().splitlines() if line[:1] == "#"]
    assert any(line.startswith("# Hours: 200 epochs of 18,000 windows took ") for line in head)


@pytest.mark.parametrize("group", ["learning_rates", "loss", "observation_dropout", "stages"])
def test_every_setting_opens_with_its_reason(group):
    for path in (CONFIG / group).glob("*.yaml"):
        assert f"# {group}={path.stem}: " in path.read_text(), path


def test_the_sweep_is_made_of_settings_that_exist():
    with initialize_config_dir(str(CONFIG), version_base="1.2"):
        swept = compose("train_cogact_robot", overrides=["experiment=sweep_gripper"], return_hydra_config=True)
    axes = {key: values.split(",") for key, values in swept.hydra.sweeper.params.items()}
    assert {key: len(values) for key, values in axes.items()} == {
        "loss": 2,
        "observation_dropout": 2,
        "training.seed": 3,
    }
    for key, values in axes.items():
        for value in values:
            composed("experiment=sweep_gripper", f"{key}={value}")


def test_the_launcher_for_slurm_composes_where_its_plugin_is_installed():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install hydra-submitit-launcher")
    with initialize_config_dir(str(CONFIG), version_base="1.2"):
        cfg = compose("train_cogact_robot", overrides=["hydra/launcher=slurm"], return_hydra_config=True)
    assert (cfg.hydra.launcher.gpus_per_node, cfg.hydra.launcher.tasks_per_node) == (1, 1)


def test_all_keys_of_released_configs_are_there():
    assert set(REFERENCE_KEYS) <= set(keys_of(composed()))


def test_the_defaults_are_what_the_released_policies_were_trained_with():
    config = composed()
    assert (config.horizon, config.n_obs_steps, config.n_action_steps) == (16, 2, 8)
    assert config.policy.crop_shape == [162, 288]
    assert (config.policy.n_layer, config.policy.n_head, config.policy.n_emb) == (8, 4, 256)
    assert (config.ema.power, config.ema.max_value) == (0.75, 0.9999)
    assert (config.dataloader.batch_size, config.training.num_epochs, config.training.checkpoint_every) == (
        128,
        600,
        50,
    )
    assert (config.task.dataset.pad_before, config.task.dataset.pad_after) == (1, 7)
    assert (config.task.dataset.seed, config.task.dataset.val_ratio) == (42, 0.1)
    assert (config.training.lr_scheduler, config.training.lr_warmup_steps) == ("cosine", 500)
    assert composed("experiment=finetune_8d").training.num_epochs == 200


def test_both_names_of_the_dataset_path_work():
    assert composed("task.dataset_path=/one").task.dataset.zarr_path == "/one"
    assert composed("task.dataset.zarr_path=/two").task.dataset.zarr_path == "/two"


def test_the_color_jitter_of_its_experiment_is_in_the_policy():
    policy = build_policy(composed("experiment=color_jitter", "policy.n_layer=1"))
    assert policy.obs_encoder.color_jitter is not None
    assert build_policy(composed("policy.n_layer=1")).obs_encoder.color_jitter is None


def test_a_resumed_config_is_compared_entry_by_entry():
    changes = config_changes(composed(), composed("training.num_epochs=7", "training.device=cpu"))
    assert changes == ["training.num_epochs: 600 -> 7"]
