"""Configs of the public predecessor, which lack the settings that came later: they compose, start and train."""

import copy
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
import weight_readers
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf
from reference_config import REFERENCE_KEYS
from weight_readers import READERS, Reader, World

from diffusion_policy.adapt.pose_to_gripper import grow_7d_to_8d
from diffusion_policy.checkpoint import build_policy, load_policy, read_checkpoint, write_checkpoint
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.installation import CONFIG
from diffusion_policy.spec import read_shape_meta
from diffusion_policy.training_config import (
    DEFAULT,
    NEVER_FILLED,
    ConfigError,
    checked_arguments,
    complete,
    compose_arguments,
    compose_training,
    config_errors,
    defaults_of,
    keys_of,
)
from diffusion_policy.workspace.data import open_data
from diffusion_policy.workspace.processes import join_processes
from diffusion_policy.workspace.run_settings import settled
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1, "p": 0.8}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


@pytest.fixture(scope="module")
def full(dataset: Path) -> DictConfig:
    return tiny_run.settings(dataset, "training.num_epochs=1")


def without(cfg: DictConfig, key: str) -> DictConfig:
    """The same config without an entry."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    section: Any = plain
    *path, last = key.split(".")
    for part in path:
        section = section[part]
    del section[last]
    return OmegaConf.create(plain)


def predecessors(full: DictConfig) -> DictConfig:
    """The part of a config that the predecessor's config has, with the jitter of its newest one."""
    kept: Any = {}
    unresolved: Any = OmegaConf.to_container(full, resolve=False)
    for key in REFERENCE_KEYS:
        node, target = unresolved, kept
        *path, last = key.split(".")
        for part in path:
            node, target = node[part], target.setdefault(part, {})
        if not isinstance(node[last], dict) or last in ("shape_meta", "noise_scheduler"):
            target[last] = copy.deepcopy(node[last])
    kept = OmegaConf.create(kept)
    kept.task.shape_meta = copy.deepcopy(OmegaConf.to_container(full, resolve=True)["task"]["shape_meta"])  # type: ignore[index]
    kept.policy.color_jitter = JITTER
    return kept


def start(cfg: DictConfig) -> None:
    """All that a run needs of its config before it loads weights."""
    with config_errors(cfg), join_processes("cpu") as processes:
        cfg = settled(cfg)
        with torch.device("meta"):
            build_policy(cfg)
        open_data(cfg, processes)


def test_the_predecessors_config_trains_and_what_it_lacked_is_reported(
    full: DictConfig, tmp_path: Path, caplog
) -> None:
    cfg = predecessors(full)
    assert "pretrained" not in cfg
    with caplog.at_level(logging.INFO):
        summary = TrainDiffusionTransformerHybridWorkspace(cfg, tmp_path).run()
    assert summary is not None
    (lacks,) = [line for line in caplog.messages if line.startswith("the config lacks ")]
    assert {"pretrained", "normalizer", "sampler", "loss", "stages", "checkpoint.best"} <= set(
        lacks.partition("defaults: ")[2].split(", ")
    )
    (jitter,) = [line for line in caplog.messages if line.startswith("policy.color_jitter: ")]
    assert "never applied the jitter" in jitter
    assert "~policy.color_jitter trains as it did" in jitter
    written = read_checkpoint(tmp_path / "checkpoints" / "latest.ckpt")
    assert written.cfg.pretrained == full.pretrained
    assert written.cfg.policy.color_jitter.p == 0.8
    assert written.notes == (), "of our own runs the jitter did run"


OURS = compose_training()
# Sections that the predecessor has are not newer, whatever was added to them; what the policy observes is not a
# setting.
NEWER = [
    key
    for key in sorted(set(keys_of(OURS)) - set(REFERENCE_KEYS))
    if not any(known.startswith(f"{key}.") for known in REFERENCE_KEYS)
    and (not key.startswith("task.shape_meta") or key.endswith(".names"))
]
# Entries of shape_meta that refer to a newer entry, and are missing along with it.
REFERRED_TO = {
    "task.dataset.rotation": "task.shape_meta.action.rotation",
    "task.dataset.relative_actions": "task.shape_meta.action.relative",
}
FILLED = [key for key in NEWER if key.split(".")[0] not in NEVER_FILLED]


def first_of_each_section(keys: Sequence[str]) -> list[Any]:
    """The rest of a section is filled in by the same few lines, so it is exhaustive."""
    sections = [key.split(".")[0] for key in keys]
    marks = [[pytest.mark.exhaustive] * (section in sections[:at]) for at, section in enumerate(sections)]
    return [pytest.param(key, marks=mark) for key, mark in zip(keys, marks, strict=True)]


@pytest.mark.parametrize("key", first_of_each_section(FILLED))
def test_a_newer_setting_that_is_absent_takes_its_default(key: str) -> None:
    completed, filled = complete(without(OURS, key))
    assert filled == (key,)
    assert OmegaConf.to_container(completed, resolve=False) == OmegaConf.to_container(OURS, resolve=False)


@pytest.mark.parametrize("key", [key for key in NEWER if key not in FILLED])
def test_a_newer_entry_of_what_is_built_is_optional(full: DictConfig, key: str) -> None:
    cfg = without(full, key)
    if key in REFERRED_TO:
        cfg = without(cfg, REFERRED_TO[key])
    start(cfg)
    assert read_shape_meta(cfg.task.shape_meta) == read_shape_meta(full.task.shape_meta)


@pytest.mark.parametrize(
    "key",
    [
        *first_of_each_section([key for key in REFERENCE_KEYS if key.split(".")[0] not in NEVER_FILLED]),
        *(key for key in REFERENCE_KEYS if key.split(".")[0] in NEVER_FILLED),
    ],
)
def test_an_entry_of_the_predecessors_that_is_absent_is_filled_or_named(full: DictConfig, key: str) -> None:
    """One sentence, never a stack trace of OmegaConf's."""
    try:
        start(without(full, key))
    except WorkspaceError as error:
        message = str(error)
    else:
        return
    assert key.split(".")[0] in NEVER_FILLED, message
    named = key == "task.dataset.pad_after" or key.rpartition(".")[2] in message or "shape_meta" in message
    assert named, message  # without padding at the end, episodes of 12 steps contain no window of 16
    assert "\n" not in message


def test_nothing_is_filled_where_nothing_is_absent(full: DictConfig) -> None:
    assert complete(full) == (full, ())


def shipped() -> list[tuple[str, ...]]:
    """Arguments of a command for every shipped config: those that train, and each experiment as in its header."""
    configs = sorted(path.stem for path in CONFIG.glob("train_*.yaml"))
    experiments = sorted((CONFIG / "experiment").glob("*.yaml"))
    trains = [re.search(r"--config-name=(\w+)", path.read_text()) for path in experiments]
    names = [DEFAULT if found is None else found[1] for found in trains]
    alone = [(f"--config-name={name}",) for name in configs]
    return alone + [
        (f"--config-name={name}", f"experiment={path.stem}") for name, path in zip(names, experiments, strict=True)
    ]


@pytest.mark.parametrize("words", shipped(), ids=" ".join)
def test_a_config_that_ships_lacks_nothing_and_gains_nothing(words: tuple[str, ...]) -> None:
    """As composed by a run: no default of another policy enters, and its command line is unchanged."""
    assert checked_arguments(words) == list(words)
    with initialize_config_dir(str(CONFIG), version_base="1.2"):
        cfg = compose(words[0].partition("=")[2], overrides=list(words[1:]))
    assert complete(cfg) == (cfg, ())


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIG.glob("train_*.yaml")))
def test_absent_sections_are_those_of_the_config_with_the_same_policy(name: str) -> None:
    cfg = compose_training(name)
    assert defaults_of(cfg) == name.removesuffix("_with_expert_warmstart")
    kept = {key: value for key, value in cfg.items() if key in NEVER_FILLED}
    completed, filled = complete(OmegaConf.create(kept))
    assert set(filled) == set(cfg) - set(kept)
    base = compose_training(defaults_of(cfg))
    for key in filled:
        assert OmegaConf.to_container(completed, resolve=False)[key] == OmegaConf.to_container(base, resolve=False)[key]  # type: ignore[index,call-overload]


def test_a_foreign_policy_takes_its_workspaces_settings_and_its_own_optimizer(
    full: DictConfig,
) -> None:
    cfg = without(without(full, "optimizer.learning_rate"), "training.cache")
    cfg.policy._target_ = "elsewhere.Policy"
    completed, filled = complete(cfg)
    assert filled == ("training.cache",)
    assert "learning_rate" not in completed.optimizer


def test_a_missing_entry_is_looked_up_in_the_config_of_its_policy() -> None:
    cfg = compose_training("train_vpt_bc")
    with pytest.raises(ConfigError, match=r"no policy\.window; config/train_vpt_bc\.yaml shows"), config_errors(cfg):
        _ = without(cfg, "policy.window").policy["window"]


# ---- the command line ----


@pytest.fixture
def theirs(full: DictConfig, tmp_path: Path) -> Path:
    """A folder of configs like the predecessor's: one file, and a task next to it."""
    folder = tmp_path / "their configs"
    (folder / "task").mkdir(parents=True)
    plain: Any = OmegaConf.to_container(predecessors(full), resolve=False)
    (folder / "task" / "robot.yaml").write_text(yaml.safe_dump(plain.pop("task")))
    (folder / "train_theirs.yaml").write_text(yaml.safe_dump({"defaults": ["_self_", {"task": "robot"}], **plain}))
    return folder


def further(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.exhaustive)


OVERRIDES: list[Any] = [
    ((), {"normalizer": "inherit", "loss.gripper_weight": 1.0, "training.num_epochs": 1}),
    further(("pretrained.path=/a b/c.ckpt",), {"pretrained.path": "/a b/c.ckpt", "pretrained.which": "same"}),
    further(("training.num_epochs=7", "training.cache=memory"), {"training.num_epochs": 7, "training.cache": "memory"}),
    further(("loss=gripper_events",), {"loss.gripper_weight": 2.0}),
    (("loss=gripper_events", "loss.gripper_weight=3"), {"loss.gripper_weight": 3, "loss.event_weight": 4.0}),
    further(("stages=new_first",), {"stages.0.steps": 500}),
    further(
        ("experiment=finetune_8d",),
        {"loss.gripper_weight": 2.0, "observation_dropout.gripper": 0.3, "exp_name": "finetune_8d"},
    ),
    (
        ("experiment=finetune_8d", "stages=new_first", "training.num_epochs=3"),
        {"stages.0.steps": 500, "training.num_epochs": 3},
    ),
    (("++pretrained.path=/x", "+note=mine", "~policy.color_jitter"), {"pretrained.path": "/x", "note": "mine"}),
    further(("sampler.steps=4",), {"sampler.steps": 4, "sampler.scheduler": "ddim"}),
]


@pytest.mark.parametrize(("overrides", "expected"), OVERRIDES, ids=lambda value: " ".join(value) or "none")
def test_settings_that_their_config_lacks_are_taken_all_the_same(
    theirs: Path, overrides: Sequence[str], expected: dict[str, Any]
) -> None:
    cfg = compose_training(str(theirs / "train_theirs.yaml"), overrides)
    assert {key: OmegaConf.select(cfg, key) for key in expected} == expected
    words = [f"--config-path={theirs}", "--config-name", "train_theirs", "hydra.run.dir=/x", *overrides]
    assert compose_arguments(words) == cfg
    parsed = get_args_parser().parse_args(checked_arguments(words))
    assert (parsed.config_path, parsed.config_name) == (str(theirs), "train_theirs")
    assert "hydra.run.dir=/x" in parsed.overrides


def test_their_config_may_be_in_our_folder(theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied next to ours, so that --config-name finds it."""
    words = [f"--config-path={theirs}", "--config-name=train_theirs", "loss=gripper_events"]
    assert "+loss=gripper_events" in checked_arguments(words)
    ours = ["--config-name=train_cogact_robot", "loss=gripper_events", "training.seed=1"]
    assert checked_arguments(ours) == ours, "ours lacks nothing"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tranining.num_epochs=1",), "no such setting; did you mean training.num_epochs"),
        (("pretrained.pth=1",), "no such setting; did you mean pretrained.path"),
        (("training.num_epochs=many",), "expected a whole number"),
        (("training.checkpoint_every_steps",), "cannot be read"),
        (("loss=nothing",), "no such choice; .*there are loss=gripper_events, loss=plain"),
        (("experiment=nothing",), "no such choice; .*there are experiment="),
    ],
)
def test_a_misspelled_override_of_theirs_is_one_sentence(theirs: Path, words: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        compose_training(str(theirs / "train_theirs.yaml"), words)
    assert "\n" not in str(caught.value)


def test_configs_that_are_missing_or_do_not_compose(theirs: Path) -> None:
    with pytest.raises(ConfigError, match=r"there are train_cogact_robot, .*train_unet_cogact_robot, train_vpt"):
        compose_training("train_theirs")
    with pytest.raises(ConfigError, match="no such config; there are train_theirs in"):
        compose_arguments([f"--config-path={theirs}", "--config-name=other"])
    (theirs / "broken.yaml").write_text("defaults: [{task: nothing}]\n")
    with pytest.raises(ConfigError, match=r"broken.*nothing"):
        compose_training(str(theirs / "broken.yaml"))


# ---- their jitter ----


def test_their_jitter_is_counted_as_never_run(full: DictConfig, tmp_path: Path) -> None:
    full = full.copy()
    OmegaConf.update(full, "policy.encoder_width", 64)  # as the predecessor's always is
    states = weight_readers.policy_states(full)
    path = tmp_path / "theirs.ckpt"
    write_checkpoint(path, cfg=predecessors(full), state_dicts=states, pickles={"_output_dir": None})
    (note,) = read_checkpoint(path).notes
    assert note.startswith("its config has policy.color_jitter: the public predecessor reads this setting but never")
    assert load_policy(path).obs_encoder.color_jitter.p == 0.8
    write_checkpoint(path, cfg=full, state_dicts=states, pickles={"_output_dir": None})
    assert read_checkpoint(path).notes == ()


def test_it_is_a_note_of_the_ledger(dataset: Path, tmp_path: Path) -> None:
    cfg = predecessors(tiny_run.settings(dataset, "task=cogact_robot_7d"))
    path = tmp_path / "theirs.ckpt"
    write_checkpoint(path, cfg=cfg, state_dicts=weight_readers.policy_states(cfg), pickles={"_output_dir": None})
    ledger = grow_7d_to_8d(path, tmp_path / "grown.ckpt")
    assert any("never applied the jitter" in note for note in ledger.notes)


# Readers in different packages; the rest is exhaustive here; files of other programs: test_foreign_weights.py.
OPENING = ("load", "adapt apply", "train pretrained.path", "train resume", "serve", "doctor")


@pytest.mark.parametrize(
    "reader",
    [reader if reader.name in OPENING else further(reader) for reader in READERS],
    ids=lambda reader: reader.name,
)
def test_every_reader_opens_their_newest_checkpoints(dataset: Path, tmp_path: Path, reader: Reader) -> None:
    world = World(dataset, tmp_path, encoder_width=64)  # as the predecessor's always is
    path = tmp_path / "theirs.ckpt"
    cfg = predecessors(world.config(reader.width))
    write_checkpoint(path, cfg=cfg, state_dicts=weight_readers.policy_states(cfg), pickles={"_output_dir": None})
    if reader.name in ("train resume", "check parity"):  # not a run of ours; no server to ask
        with pytest.raises((WorkspaceError, KeyError)):
            reader.read(world, path)
        return
    reader.read(world, path)
