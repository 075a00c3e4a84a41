"""The predecessor's eight configs run as they are by --config-dir and --config-name."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import predecessor_configs
import pytest
import tiny_run
import zarr_factory
from dataset_factory import pack
from hydra._internal.utils import get_args_parser
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from predecessor_configs import CONFIGS, OLDER_LAYOUT

from diffusion_policy.checkpoint import load_policy
from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.errors import SpecError, WorkspaceError
from diffusion_policy.evaluate.recorded_inference import open_recorded
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.settings import EngineSettings, ServeError
from diffusion_policy.training_config import checked_arguments, compose_arguments, compose_training
from diffusion_policy.workspace.older_settings import OLDER_DIFFERENCES, OLDER_POSE
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


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the older layout after a first run of the predecessor: the frames are in an archive in it."""
    folder = tmp_path_factory.mktemp("older")
    lengths = (13, 12)
    pose = np.concatenate(zarr_factory.paths(lengths), axis=1)
    arrays = {
        "camera_0": zarr_factory.pictures(sum(lengths), (tiny_run.WIDTH, tiny_run.HEIGHT)),
        "robot_eef_pose": pose,
        "action": pose + np.eye(7)[0] / 100,
        "timestamp": np.arange(sum(lengths)) / 10,
    }
    pack(zarr_factory.write(folder.parent / "unpacked.zarr", arrays, lengths), folder / f"{'5e' * 16}.zarr.zip")
    return folder


def words_of(folder: Path, name: str, *overrides: str) -> list[str]:
    return [f"--config-dir={folder}", "--config-name", name, *overrides]


def trained() -> list[Any]:
    """Configs that train: the first one by default, the others exhaustively."""
    first, *rest = (name for name in CONFIGS if name != OLDER_LAYOUT)
    return [first, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in rest)]


@pytest.mark.parametrize("name", trained())
def test_each_trains_two_updates(
    folder: Path, dataset: Path, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = compose_arguments(words_of(folder, name, *SMALL, f"task.dataset_path={dataset}"))
    assert cfg.task_name == CONFIGS[name][0], "theirs, not the one of the same name in config/"
    assert cfg.pretrained == compose_training().pretrained
    with caplog.at_level(logging.INFO):
        summary = get_class(cfg._target_)(cfg, tmp_path).run()
    assert summary is not None
    assert (tmp_path / "checkpoints" / "latest.ckpt").is_file()
    assert len((tmp_path / "logs.json.txt").read_text().splitlines()) >= 2
    messages = [line for line in caplog.messages if "it was per GPU" in line]
    assert len(messages) == ("ddp" in name)


def older_run(folder: Path, cached: Path, target: Path, *overrides: str) -> Any:
    words = words_of(folder, OLDER_LAYOUT, *SMALL, f"task.dataset_path={cached}", *overrides)
    cfg = compose_arguments(words)
    workspace = get_class(cfg._target_)(cfg, target)
    assert workspace.run() is not None
    return workspace


def test_the_older_layout_trains_on_its_own_differences(
    folder: Path, cached: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = older_run(folder, cached, tmp_path)
    assert workspace.global_step == 2
    assert "val_loss" in (tmp_path / "logs.json.txt").read_text()
    assert "actions are dx dy dz drx dry drz dwidth; its policy can be trained, but not served" in caplog.text
    path = tmp_path / "checkpoints" / "latest.ckpt"
    spec = load_policy(path).spec
    assert (spec.action_names, spec.low_dim[0].names) == (OLDER_DIFFERENCES, OLDER_POSE)
    commands = ReplayBuffer.open(next(cached.iterdir())).read("action").astype(np.float32)
    wanted = np.diff(commands, axis=0, prepend=commands[:1])
    wanted[13] = 0
    dataset = instantiate(workspace.cfg.task.dataset)
    np.testing.assert_array_equal(dataset._all_actions().numpy(), wanted)
    with pytest.raises(ServeError, match="the policy's action is"):
        PolicyEngine.open(path, EngineSettings())
    with pytest.raises(WorkspaceError, match="expected names of positions, rotations, joints or grippers"):
        open_recorded(path, next(cached.iterdir()))


def test_differences_are_never_called_a_pose(folder: Path, cached: Path, tmp_path: Path) -> None:
    words = words_of(folder, OLDER_LAYOUT, *SMALL, f"task.dataset_path={cached}")
    cfg = compose_arguments([*words, f"+task.shape_meta.action.names={list(OLDER_POSE)}".replace("'", "")])
    with pytest.raises(SpecError, match="differences are not poses"):
        get_class(cfg._target_)(cfg, tmp_path).run()


@pytest.mark.parametrize(("name", "n", "message"), [
    ("train_assembly_bun_ddp", 8, "on 8 GPUs dataloader.batch_size=128 trains as it did"),
    ("train_assembly_bun_ddp", 1, "on N GPUs corresponds to dataloader.batch_size=N*16"),
    ("train_assembly_bun", 8, None),
])  # fmt: skip
def test_a_batch_size_per_gpu_is_reported_with_the_equivalent_number(
    folder: Path, name: str, n: int, message: str | None
) -> None:
    note = batch_size_note(compose_arguments(words_of(folder, name)), n)
    assert (note is None) == (message is None)
    assert message is None or message in str(note)


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


@pytest.mark.parametrize("delta", [True, False])
def test_poses_and_videos_without_a_cache_are_refused_with_what_to_do(
    folder: Path, cached: Path, tmp_path: Path, delta: bool
) -> None:
    """After conversion they are poses with quaternions and grippers, which a server can execute."""
    tmp_path = tmp_path if delta else cached
    words = (f"task.dataset_path={tmp_path}", f"task.dataset.delta_action={delta}")
    cfg = compose_arguments(words_of(folder, OLDER_LAYOUT, *SMALL, *words))
    with pytest.raises(DatasetError) as caught:
        get_class(cfg._target_)(cfg, tmp_path / "run").run()
    message = re.sub(r"\s+", " ", str(caught.value))
    assert f"--input {tmp_path} --output" in message
    assert "--mapping rotation_vector_width" in message
    assert "train.py --config-name=train_cogact_robot" in message
    assert OmegaConf.select(cfg, "task.dataset.delta_action") == delta
