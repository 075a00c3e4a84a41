"""Every known trouble, planted in otherwise sound files; the doctor must name it and what to do next."""

import importlib.metadata
import json
import runpy
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_factory import tiny_config
from log_factory import write_log
from omegaconf import DictConfig, OmegaConf
from report_factory import metrics, write_run
from tiny_run import episode

from diffusion_policy.checkpoint import build_policy, write_checkpoint
from diffusion_policy.dataset.replay_buffer import ArrayLayout, ReplayBuffer, image_layout, low_dim_layout
from diffusion_policy.diagnose import environment
from diffusion_policy.model.normalizer import LinearNormalizer, get_image_range_normalizer
from diffusion_policy.spec import POSE, POSE_GRIPPER, action_semantics
from diffusion_policy.training_config import compose_training

GRASP = [1.0] * 20 + [0.02] * 15 + [0.97] * 10
EPISODES, STEPS = 24, 15
Rows = dict[str, np.ndarray]


def write_set(path: Path, plant: Callable[[Rows], object] = lambda rows: None, width: int = 8) -> Path:
    """A dataset without any trouble except what `plant` does to the rows of each episode."""
    layouts = {
        "image": image_layout(40, 36),
        "robot_eef_pose": low_dim_layout(POSE),
        "robot_gripper_state": low_dim_layout(("gripper",)),
        "action": low_dim_layout(POSE_GRIPPER[:width]),
        "timestamp": ArrayLayout((), np.float64),
    }
    buffer = ReplayBuffer.create(path, layouts)
    buffer.root.attrs["action_semantics"] = action_semantics(POSE_GRIPPER[:width])
    for seed in range(EPISODES):
        rows = episode(STEPS, seed)
        plant(rows)
        buffer.append({**rows, "action": rows["action"][:, :width]})
    return path


def write_policy(path: Path, low: Sequence[float] = (), changes: Callable[[dict], object] = lambda p: None) -> Path:
    """A policy whose normalizer was fitted on the dataset; `changes` edits the parts that are written."""
    cfg = OmegaConf.create(tiny_config())
    torch.manual_seed(0)
    policy = build_policy(cfg)
    action = np.concatenate([episode(STEPS, seed)["action"] for seed in range(EPISODES)])
    if low:
        action = np.clip(action, low, None)
    normalizer = LinearNormalizer()
    gripper = torch.tensor([[0.0], [1.0]])
    normalizer.fit(
        {"robot_eef_pose": torch.tensor(action[:, :7]), "robot_gripper_state": gripper, "action": torch.tensor(action)}
    )
    normalizer["image"] = get_image_range_normalizer()
    policy.set_normalizer(normalizer)
    state = policy.state_dict()
    parts = {
        "cfg": cfg,
        "state_dicts": {"model": state, "ema_model": dict(state)},
        "pickles": {"_output_dir": None, "global_step": 900, "epoch": 9},
        "provenance": {"action_semantics": action_semantics(), "start": {"origin": "pretrained"}},
    }
    changes(parts)
    write_checkpoint(path, **parts)
    return path


@dataclass
class Sound:
    """Files without trouble, made once."""

    dataset: Path
    checkpoint: Path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    folder = tmp_path_factory.mktemp("sound")
    return Sound(write_set(folder / "set.zarr"), write_policy(folder / "sound.ckpt"))


@dataclass
class Doctor:
    main: Callable[[Sequence[str]], int]
    out: Path

    def __call__(self, *arguments: object) -> dict:
        """Runs it; returns its JSON, with its exit status as "status"."""
        status = self.main([*map(str, arguments), "--json", str(self.out)])
        report = json.loads(self.out.read_text())
        assert status == (report["worst"] == "error"), "warnings forbid nothing: as inspect and verify say"
        return {**report, "status": status}


@pytest.fixture
def doctor(repository: Path, tmp_path: Path) -> Doctor:
    return Doctor(runpy.run_path(str(repository / "scripts" / "doctor.py"))["main"], tmp_path / "doctor.json")


def troubles(report: dict) -> list[str]:
    found = [finding for group in report["groups"].values() for finding in group]
    return [finding["code"] for finding in found if finding["severity"] in ("warning", "error")]


def test_without_a_plant_there_is_no_trouble(sound: Sound, doctor: Doctor, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.json", GRASP)
    run = write_run(tmp_path / "sound_run", checkpoint=False)
    shutil.copy(sound.checkpoint, run / "checkpoints" / "best.ckpt")
    report = doctor("--dataset", sound.dataset, "--checkpoint", sound.checkpoint, "--run", run, "--log", log)
    assert troubles(report) == []
    assert (report["status"], report["cause"], report["next_command"]) == (0, None, "")


def closed_is_one(rows: Rows) -> None:
    rows["action"][:, 7] = 1 - rows["action"][:, 7]
    rows["robot_gripper_state"] = 1 - rows["robot_gripper_state"]


def never_closing(rows: Rows) -> None:
    rows["action"][:, 7] = rows["robot_gripper_state"][:] = 1


def copied(rows: Rows) -> None:
    rows["robot_gripper_state"] = rows["action"][:, 7:].copy()


def half_open(rows: Rows) -> None:
    rows["action"][:3, 7] = 0.5


def slow(rows: Rows) -> None:
    rows["timestamp"] = rows["timestamp"] * 8


def elsewhere(rows: Rows) -> None:
    rows["action"][:, 0] += 1
    rows["robot_eef_pose"][:, 0] += 1


DATASETS = [
    ("polarity", closed_is_one, "24 closed: is the gripper recorded as 1 = closed?"),
    ("closings", never_closing, "the gripper closes 0 times"),
    ("copycat-labels", copied, "a policy can copy its input and never decide to close"),
    ("dead-band", half_open, "of the commands are neither open (>= 0.7) nor closed (<= 0.3)"),
    ("step-spacing", slow, "steps are 0.8 s apart, the robot executes one every 0.1 s"),
]


@pytest.mark.parametrize(("code", "plant", "says"), DATASETS, ids=[entry[0] for entry in DATASETS])
def test_why_the_gripper_is_always_open(
    tmp_path: Path, doctor: Doctor, code: str, plant: Callable[[Rows], object], says: str
) -> None:
    """The symptom is in the log, the cause in the dataset."""
    dataset = write_set(tmp_path / "set.zarr", plant)
    log = write_log(tmp_path / "log.json", [0.99] * 30)
    report = doctor("--dataset", dataset, "--log", log)
    assert report["cause"]["code"] == code
    assert says in report["cause"]["evidence"]
    assert report["diagnosis"].endswith("why the gripper is not commanded to close and open")
    assert report["next_command"].startswith("python scripts/")


def test_actions_that_are_not_n_by_8(tmp_path: Path, doctor: Doctor) -> None:
    report = doctor(
        "--dataset", write_set(tmp_path / "poses.zarr", width=7), "--log", write_log(tmp_path / "l", GRASP[:9])
    )
    assert report["cause"]["code"] == "action-shape"
    assert "actions are (N, 7)" in report["cause"]["evidence"]
    assert "convert_cogact_to_zarr.py" in report["next_command"]


def test_the_wrong_dataset(tmp_path: Path, sound: Sound, doctor: Doctor) -> None:
    """The same robot in another frame: every size fits, no number does."""
    report = doctor("--checkpoint", sound.checkpoint, "--dataset", write_set(tmp_path / "far.zarr", elsewhere))
    assert (report["cause"]["code"], report["cause"]["severity"]) == ("normaliser-range", "error")
    assert "x is 1.4 to 1.5 in the dataset, 0.4 to 0.5 in the checkpoint's normalizer" in report["cause"]["evidence"]
    assert report["next_command"].startswith("python scripts/report.py --out report.html --dataset")


def test_a_normalizer_that_never_saw_the_gripper_move(tmp_path: Path, sound: Sound, doctor: Doctor) -> None:
    path = write_policy(tmp_path / "constant.ckpt", low=[-9] * 7 + [1.0])
    report = doctor("--checkpoint", path, "--dataset", sound.dataset, "--log", write_log(tmp_path / "log", [0.99] * 30))
    assert report["cause"]["code"] == "gripper-statistics"
    assert "the gripper never moved there" in report["diagnosis"]
    assert report["diagnosis"].endswith("it is why the gripper is not commanded to close and open")


def from_scratch(parts: dict) -> None:
    parts["provenance"]["start"]["origin"] = "scratch"


def untrained_row(parts: dict) -> None:
    for state in parts["state_dicts"].values():
        state["model.head.weight"] = torch.cat([state["model.head.weight"][:7], torch.zeros(1, 16)])


def fresh_average(parts: dict) -> None:
    state = parts["state_dicts"]["ema_model"]
    for key in [key for key in state if key.startswith("model.") and state[key].dim() > 1]:
        state[key] = torch.randn_like(state[key])


def no_average(parts: dict) -> None:
    del parts["state_dicts"]["ema_model"]


def seven_wide(parts: dict) -> None:
    for state in parts["state_dicts"].values():
        state["model.input_emb.weight"] = state["model.input_emb.weight"][:, :7].clone()
        state["model.head.weight"] = state["model.head.weight"][:7].clone()


def not_a_number(parts: dict) -> None:
    parts["state_dicts"]["model"]["model.head.bias"] = torch.full((8,), float("nan"))


CHECKPOINTS = [
    ("start", from_scratch, "no pretrained weights were loaded", "pretrained.path=GROWN.ckpt"),
    ("gripper-row", untrained_row, "still zero after 900 updates", "adapt.py inspect"),
    ("ema-weights", fresh_average, "the pretrained weights were not loaded into it", "adapt.py inspect"),
    ("ema-weights", no_average, "it holds no ema_model", "adapt.py inspect"),
    ("projection", seven_wide, "the projection was not adapted", "finetune_from_7d_to_8d.py"),
    ("weights-finite", not_a_number, "hold NaN or infinity", "adapt.py inspect"),
]


@pytest.mark.parametrize(
    ("code", "plant", "says", "following"), CHECKPOINTS, ids=[entry[1].__name__ for entry in CHECKPOINTS]
)
def test_a_checkpoint_with_a_trouble(
    tmp_path: Path, doctor: Doctor, code: str, plant: Callable[[dict], object], says: str, following: str
) -> None:
    report = doctor("--checkpoint", write_policy(tmp_path / "planted.ckpt", changes=plant))
    assert troubles(report)[0] == code
    assert says in report["diagnosis"]
    assert following in report["next_command"]


def test_the_live_weights_were_served(tmp_path: Path, doctor: Doctor) -> None:
    log = write_log(tmp_path / "log.json", GRASP, 3)
    document = json.loads(log.read_text())
    document["meta"]["weights"] = "model"
    log.write_text(json.dumps(document))
    (finding,) = [f for f in doctor("--log", log)["groups"]["log"] if f["code"] == "log-weights"]
    assert finding["severity"] == "note"
    assert "the weights model were used, not the averaged ones" in finding["evidence"]


def overrides(dataset: Path) -> list[str]:
    return [f"task.dataset_path={dataset}", "training.device=cpu", "task.image_shape=[3,36,40]"]


CONFIGS = [
    ("learning-rate", ["optimizer.learning_rate=0.5"], "the learning rate is 0.5", "optimizer.learning_rate=1e-4"),
    (
        "warm-up",
        ["training.lr_warmup_steps=100000"],
        "the learning rate is hardly reached",
        "training.lr_warmup_steps=",
    ),
    (
        "few-updates",
        ["training.num_epochs=1", "training.lr_warmup_steps=1"],
        "too few to learn from",
        "training.num_epochs=200",
    ),
    ("held-out", ["task.dataset.val_ratio=0"], "no episode is held out", "task.dataset.val_ratio=0.1"),
    ("paths", ["pretrained.path=nowhere.ckpt"], "no checkpoint at nowhere.ckpt", "doctor.py"),
    ("config-action", ["task=cogact_robot_7d"], "without a gripper the client keeps it open", "task=cogact_robot_8d"),
]


@pytest.mark.parametrize(("code", "planted", "says", "following"), CONFIGS, ids=[entry[0] for entry in CONFIGS])
def test_a_config_before_it_is_run(
    repository: Path, sound: Sound, doctor: Doctor, code: str, planted: list[str], says: str, following: str
) -> None:
    healthy = [*overrides(sound.dataset), "training.num_epochs=200", "training.lr_warmup_steps=50"]
    changed = {word.partition("=")[0] for word in planted}
    healthy = [word for word in healthy if word.partition("=")[0] not in changed]
    report = doctor("--dataset", sound.dataset, "--config", "train_cogact_robot", *healthy, *planted)
    assert troubles(report) == [code]
    assert says in report["diagnosis"]
    assert following in report["next_command"]
    assert_composes(repository, report["next_command"])


def assert_composes(repository: Path, command: str) -> DictConfig | None:
    """A next command that trains must be accepted by Hydra as printed."""
    words = shlex.split(command)
    if words[1] != "train.py":
        return None
    (name,) = [word.removeprefix("--config-name=") for word in words if word.startswith("--config-name=")]
    settings = [word for word in words[2:] if not word.startswith(("--", "hydra."))]
    return compose_training(name, settings)


def hydra_of(run: Path, dataset: Path) -> None:
    """Writes what Hydra keeps of the command line."""
    (run / ".hydra" / "hydra.yaml").write_text("hydra:\n  job:\n    config_name: train_cogact_robot\n")
    kept = [f"task.dataset_path={dataset}", "training.num_epochs=2", f"hydra.run.dir={run}"]
    (run / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in kept))


RUNS = [
    ("loss-does-not-fall", "warm-up", {"lr": 0.0}, {}, "it is probably why the loss does not fall"),
    ("loss-does-not-fall", "loss-before-first-update", {}, {"train_loss_before_first_update": 1.1}, "know nothing"),
    ("sight", "sight", {"val_image_features": 0}, {}, "the policy sees nothing"),
    ("not-finite", "not-finite", {"train_loss": None}, {}, "training losses are not finite"),
]


@pytest.mark.parametrize(("symptom", "cause", "each", "first", "says"), RUNS, ids=[entry[1] for entry in RUNS])
def test_why_the_loss_does_not_fall(
    tmp_path: Path, sound: Sound, doctor: Doctor, symptom: str, cause: str, each: dict, first: dict, says: str
) -> None:
    head, *lines = metrics(last_loss=0.41)
    run = write_run(tmp_path / "planted_run", [{**head, **first}, *({**line, **each} for line in lines)])
    hydra_of(run, sound.dataset)
    shutil.copy(sound.checkpoint, run / "checkpoints" / "best.ckpt")
    report = doctor("--run", run)
    assert symptom in troubles(report)
    assert report["cause"]["code"] == cause
    assert says in report["diagnosis"]


def test_a_run_is_gone_on_with_by_the_command_that_made_it(
    repository: Path, tmp_path: Path, sound: Sound, doctor: Doctor
) -> None:
    run = write_run(tmp_path / "short_run", metrics(updates=100))
    hydra_of(run, sound.dataset)
    shutil.copy(sound.checkpoint, run / "checkpoints" / "best.ckpt")
    report = doctor("--run", run)
    assert report["cause"]["code"] == "few-updates"
    assert f"--config-name=train_cogact_robot task.dataset_path={sound.dataset}" in report["next_command"]
    assert report["next_command"].count("training.num_epochs") == report["next_command"].count("hydra.run.dir") == 1
    composed = assert_composes(repository, report["next_command"])
    assert composed is not None
    assert composed.training.num_epochs == 500  # 100 epochs made 100 updates


def test_weights_that_were_asked_for_and_not_loaded(tmp_path: Path, sound: Sound, doctor: Doctor) -> None:
    lines = metrics(start="scratch", val_gripper_f1=0.0)
    run = write_run(tmp_path / "scratch_run", lines, "pretrained:\n  path: grown.ckpt\n")
    shutil.copy(sound.checkpoint, run / "checkpoints" / "best.ckpt")
    report = doctor("--run", run)
    assert report["cause"]["code"] == "start"
    assert "it started from scratch, although pretrained.path is grown.ckpt" in report["diagnosis"]


MACHINES = ["packages", "gpu", "memory", "disk"]


@pytest.mark.parametrize("code", MACHINES)
def test_a_machine_that_cannot_train(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    if code == "packages":
        real = importlib.metadata.version
        old = {"torch": "1.12.1"}
        monkeypatch.setattr(environment, "version", lambda name: old.get(name) or real(name))
    if code == "gpu":
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "a small GPU")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (1 << 30, 8 << 30))
    if code == "memory":
        monkeypatch.setattr(environment, "_free_memory", lambda: 1 << 30)
    if code == "disk":
        monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 1 << 20))
    report = doctor()
    assert troubles(report) == [code]
    assert report["cause"]["remedy"]
    assert report["next_command"].startswith(("python", "pip"))
