"""The predecessor's eight configs run as they are by --config-dir and --config-name; one is refused with what to do."""

import logging
import re
from pathlib import Path

import predecessor_configs
import pytest
import tiny_run
from hydra._internal.utils import get_args_parser
from hydra.utils import get_class
from omegaconf import OmegaConf
from predecessor_configs import CONFIGS, OLDER_LAYOUT

from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.training_config import checked_arguments, compose_arguments, default_config
from diffusion_policy.workspace.run_settings import batch_size_note

# Sizes, and a machine without GPU and wandb; nothing else.
SMALL = (
    f"task.image_shape=[3,{tiny_run.HEIGHT},{tiny_run.WIDTH}]",
    "policy.crop_shape=[32,36]",
    "++policy.encoder_width=16",
    "policy.n_layer=1",
    "policy.n_emb=32",
    "policy.n_head=2",
    "training.device=cpu",
    "logging.mode=disabled",
    "training.num_epochs=1",
    "training.max_train_steps=2",
    "training.max_val_steps=1",
    "training.sample_every=2",
    "training.precision=float32",
    *(f"{loader}.{key}" for loader in ("dataloader", "val_dataloader") for key in ("batch_size=4", "num_workers=0")),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predecessor_configs.write_configs(tmp_path_factory.mktemp("their") / "config")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr", (13, 12))


def words_of(folder: Path, name: str, *overrides: str) -> list[str]:
    return [f"--config-dir={folder}", "--config-name", name, *overrides]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != OLDER_LAYOUT])
def test_each_trains_two_updates(
    folder: Path, dataset: Path, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = compose_arguments(words_of(folder, name, *SMALL, f"task.dataset_path={dataset}"))
    assert cfg.task_name == CONFIGS[name][0], "theirs, not the one of the same name in config/"
    assert cfg.pretrained == default_config().pretrained
    with caplog.at_level(logging.INFO):
        summary = get_class(cfg._target_)(cfg, tmp_path).run()
    assert summary is not None
    assert (tmp_path / "checkpoints" / "latest.ckpt").is_file()
    assert len((tmp_path / "logs.json.txt").read_text().splitlines()) >= 2
    said = [line for line in caplog.messages if "it was per GPU" in line]
    assert len(said) == ("ddp" in name)


@pytest.mark.parametrize(("name", "n", "said"), [
    ("train_assembly_bun_ddp", 8, "on 8 GPUs dataloader.batch_size=128 trains as it did"),
    ("train_assembly_bun_ddp", 1, "on N GPUs is dataloader.batch_size=N*16"),
    ("train_assembly_bun", 8, None),
])  # fmt: skip
def test_a_batch_size_per_gpu_is_said_with_the_number_that_equals_it(
    folder: Path, name: str, n: int, said: str | None
) -> None:
    note = batch_size_note(compose_arguments(words_of(folder, name)), n)
    assert (note is None) == (said is None)
    assert said is None or said in str(note)


@pytest.mark.parametrize("form", [["--config-dir", "{}"], ["--config-dir={}"], ["-cd", "{}"]], ids=" ".join)
def test_hydra_gets_their_config_and_the_choices_of_this_version(folder: Path, form: list[str]) -> None:
    words = [*(word.format(folder) for word in form), "--config-name=train_cogact_robot", "loss=gripper_events"]
    completed = checked_arguments(words)
    parsed = get_args_parser().parse_args(completed)
    assert (parsed.config_path, parsed.config_dir) == (str(folder), None)
    assert "+loss=gripper_events" in parsed.overrides
    assert compose_arguments(words).task.name == "cogact_robot_7d"


def test_a_folder_without_that_config_only_adds_to_ours(folder: Path, tmp_path: Path) -> None:
    words = [f"--config-dir={tmp_path}", "--config-name=train_cogact_robot"]
    assert checked_arguments(words) == words


def test_the_older_layout_is_refused_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    """Its seven numbers are rotation vector and width, and its actions differences, which no server here executes."""
    cfg = compose_arguments(words_of(folder, OLDER_LAYOUT, *SMALL, f"task.dataset_path={tmp_path}"))
    with pytest.raises(DatasetError) as caught:
        get_class(cfg._target_)(cfg, tmp_path / "run").run()
    said = re.sub(r"\s+", " ", str(caught.value))
    assert f"--input {tmp_path} --output" in said
    assert "--mapping rotation_vector_width" in said
    assert "train.py --config-name=train_cogact_robot" in said
    assert OmegaConf.select(cfg, "task.dataset.delta_action")
