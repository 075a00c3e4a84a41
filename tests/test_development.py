"""docs/development.md agrees with the code: its picture, its stops, its counts, and examples that run."""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import sys
import textwrap
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import house_numbers
import numpy as np
import pytest
import test_house as house
import yaml
from adapt_factory import policy_cfg, save_checkpoint
from examples.npz_recordings import NpzRecordings
from examples.reach_env import ReachEnv
from examples.repeated_answers import look_at_repeats, repeats
from hydra.utils import get_class
from log_factory import chunk, document
from omegaconf import DictConfig, OmegaConf, open_dict
from serve_factory import ServerThread, observation_message
from serve_factory import settings as serve_settings
from tiny_run import HEIGHT, WIDTH, episode, settings, write_dataset

from diffusion_policy.adapt.apply import adapt_checkpoint
from diffusion_policy.adapt.pose_to_gripper import grow_7d_to_8d
from diffusion_policy.adapt.rules import read_rules
from diffusion_policy.adapt.target import target_from_config
from diffusion_policy.checkpoint import load_policy, read_checkpoint
from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.dataset.replay_buffer import ArrayLayout, ReplayBuffer, image_layout, low_dim_layout
from diffusion_policy.diagnose.findings import run_checks
from diffusion_policy.diagnose.sources import Sources
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.evaluate.gripper import GripperReport, judge_file
from diffusion_policy.evaluate.open_loop_report import evaluate_open_loop
from diffusion_policy.evaluate.recorded_inference import Sampling, run_recorded_inference
from diffusion_policy.policy import registry
from diffusion_policy.report.report_page import make_report
from diffusion_policy.run_log import read_log
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.spec import GRIPPER, POSE_GRIPPER, ActionLayout, read_shape_meta
from diffusion_policy.spec.rotations import ROTATIONS
from diffusion_policy.trajectory import TrajectoryError

EXAMPLES = Path(__file__).parent / "examples"
BLOCK = re.compile(r"^`(tests/examples/[\w./]+)`[^\n]*\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
UNSHOWN = ("__init__.py", "franka_pose_interface.py", "regression_policy.yaml", "regression_growth.yaml")
TARGET = "examples.regression_policy.RegressionPolicy"
# How far the document may lag behind in figures that every change of the code affects.
DRIFT = 0.1
SIX_D = (*POSE_GRIPPER[:3], *ROTATIONS["rotation_6d_rows"], GRIPPER)


# ---- what a run passes ----


def resolved(module: str, name: str) -> Any:
    """The function of that name."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


class Passed:
    """Records which stops of a journey a run passes."""

    def __init__(self, title: str) -> None:
        self.missing = {resolved(*stop).__code__: stop for stop in house_numbers.journeys()[title]}

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        self.missing.pop(frame.f_code, None)

    def __enter__(self) -> Passed:
        threading.setprofile(self)
        sys.setprofile(self)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)


# ---- a policy ----


def config(dataset: Path, *overrides: str) -> DictConfig:
    """The config of a small run with the example's policy and optimizer in place of the shipped ones."""
    cfg = settings(
        dataset, "training.num_epochs=1", "training.max_train_steps=2", "training.sample_every=1", *overrides
    )
    with open_dict(cfg):
        for section, content in OmegaConf.load(EXAMPLES / "regression_policy.yaml").items():
            cfg[section] = content
    return cfg


@pytest.fixture(scope="module")
def registered() -> Any:
    """The registry with one more line."""
    with pytest.MonkeyPatch.context() as patch:
        targets = (*registry.POLICY_TARGETS, TARGET)
        for module in ("diffusion_policy.policy.registry", "diffusion_policy.checkpoint"):
            patch.setattr(f"{module}.POLICY_TARGETS", targets)
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("development") / "set.zarr")


@pytest.fixture(scope="module")
def trained(registered: None, dataset: Path) -> Path:
    """The checkpoint of two updates."""
    cfg = config(dataset)
    folder = dataset.with_name("run")
    get_class(cfg._target_)(cfg, folder).run()
    return folder / "checkpoints" / "latest.ckpt"


def test_the_example_policy_is_trained_and_judged(trained: Path, dataset: Path) -> None:
    lines = [json.loads(line) for line in (trained.parents[1] / "logs.json.txt").read_text().splitlines()]
    assert lines[-1]["global_step"] == 2
    assert lines[-1]["val_position_error_mm"] > 0
    assert lines[-1]["val_image_features"] > 0
    moments = read_checkpoint(trained).state_dicts["optimizer"]["state"]
    policy = load_policy(trained)
    assert len(moments) == sum(parameter.requires_grad for parameter in policy.parameters())
    assert {float(entry["step"]) for entry in moments.values()} == {2.0}
    report = evaluate_open_loop(trained, dataset, "all", samples=1)
    assert len(report.episodes) == 4


def test_the_example_policy_is_grown(registered: None, tmp_path: Path) -> None:
    configs = [policy_cfg(width) for width in (7, 8)]
    for cfg in configs:
        cfg.policy = {
            "_target_": TARGET, "shape_meta": "${task.shape_meta}", "horizon": 8, "n_action_steps": 4,
            "n_obs_steps": 2, "crop_shape": [40, 56], "hidden": 16,
        }  # fmt: skip
    source = save_checkpoint(tmp_path / "pose.ckpt", configs[0])
    rules = read_rules(EXAMPLES / "regression_growth.yaml")
    target = target_from_config(configs[1], "pose and gripper")
    ledger = adapt_checkpoint(source, target, rules, tmp_path / "grown.ckpt", must_preserve=True)
    assert any("7 shared action dimensions over 8 steps agree" in note for note in ledger.notes)
    old, new = (load_policy(tmp_path / name).state_dict() for name in ("pose.ckpt", "grown.ckpt"))
    np.testing.assert_array_equal(new["model.head.weight"][:7], old["model.head.weight"])
    assert new["model.head.weight"][7].any()


def test_the_example_policy_acts_in_the_example_s_simulator(trained: Path, repository: Path, tmp_path: Path) -> None:
    script = runpy.run_path(str(repository / "scripts" / "evaluate_closed_loop.py"))
    words = [str(trained), "--simulator", str(EXAMPLES / "reach_simulator.yaml"), "--scenes", "3"]
    assert script["main"]([*words, "--json", str(tmp_path / "closed_loop.json")]) == 0
    found = json.loads((tmp_path / "closed_loop.json").read_text())
    assert found["success"]["of"] == 3, found


# ---- a robot ----


def write_six_d_dataset(path: Path) -> Path:
    """The small dataset with its rotations as six numbers."""
    ours, theirs = ActionLayout.of(SIX_D), ActionLayout.of(POSE_GRIPPER)
    layouts = {
        "image": image_layout(WIDTH, HEIGHT),
        "robot_eef_pose": low_dim_layout(SIX_D[:-1]),
        "robot_gripper_state": low_dim_layout(SIX_D[-1:]),
        "action": low_dim_layout(SIX_D),
        "timestamp": ArrayLayout((), np.float64),
    }
    buffer = ReplayBuffer.create(path, layouts)
    for seed, length in enumerate((13, 12, 14, 12)):
        arrays = episode(length, seed)
        action = ours.replaced(
            np.zeros((length, len(SIX_D))),
            positions=theirs.positions(arrays["action"]),
            rotations=theirs.rotations(arrays["action"]),
            grippers=theirs.grippers(arrays["action"]),
        ).astype(np.float32)
        buffer.append({**arrays, "action": action, "robot_eef_pose": action[:, :-1]})
    return path


def test_the_example_robot_is_trained(tmp_path: Path) -> None:
    dataset = write_six_d_dataset(tmp_path / "set.zarr")
    words = (f"hydra.searchpath=[file://{EXAMPLES}]", "task=six_d_robot", "training.num_epochs=1")
    cfg = settings(dataset, *words, "training.max_train_steps=2", "training.sample_every=1")
    with Passed("A batch from zarr to loss") as passed:
        get_class(cfg._target_)(cfg, tmp_path / "run").run()
    assert not passed.missing
    last = json.loads((tmp_path / "run" / "logs.json.txt").read_text().splitlines()[-1])
    assert last["global_step"] == 2
    assert last["val_gripper_events_recorded"] == 2
    assert last["val_rotation_error_deg"] > 0
    checkpoint = tmp_path / "run" / "checkpoints" / "latest.ckpt"
    assert load_policy(checkpoint).spec.action_names == SIX_D
    ours = evaluate_open_loop(checkpoint, dataset, "all", Sampling(steps=1), samples=1).to_json()["scores"]["policy"]
    assert min(ours[name] for name in ("position_mm", "rotation_deg")) > 0
    (log,) = run_recorded_inference(checkpoint, dataset, tmp_path, steps=1, stride=4)
    assert isinstance(judge_file(log), GripperReport)


# ---- a recording format ----


def write_archives(folder: Path, lengths: tuple[int, ...]) -> Path:
    """Episodes of these lengths, as the example's recorder leaves them."""
    folder.mkdir()
    for number, length in enumerate(lengths):
        arrays = episode(length, number)
        np.savez(
            folder / f"episode_{number:04d}.npz",
            pose=arrays["robot_eef_pose"], gripper=arrays["robot_gripper_state"][:, 0], command=arrays["action"],
            time=arrays["timestamp"], frames=arrays["image"],
        )  # fmt: skip
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter's inputs, all of the example's format."""

    def open_recordings(source: Path, **options: object) -> NpzRecordings:
        return NpzRecordings(source)

    monkeypatch.setattr("diffusion_policy.convert.settings.open_recordings", open_recordings)


def test_the_example_recordings_are_converted(opened: None, tmp_path: Path) -> None:
    source = write_archives(tmp_path / "recorded", (13, 12))
    size = {"resolution": (WIDTH, HEIGHT), "quaternion_sign": "keep"}
    report = convert(ConversionSettings(source, tmp_path / "set.zarr", **size))
    assert [entry.name for entry in report.episodes] == ["episode_0000", "episode_0001"]
    buffer = ReplayBuffer.open(tmp_path / "set.zarr")
    for key in ("image", "action", "robot_eef_pose", "timestamp"):
        recorded = np.concatenate([episode(length, number)[key] for number, length in enumerate((13, 12))])
        np.testing.assert_array_equal(buffer.root["data"][key][:], recorded)


def test_a_bad_one_is_left_out_and_named(opened: None, tmp_path: Path) -> None:
    source = write_archives(tmp_path / "recorded", (13, 12))
    np.savez(source / "episode_0001.npz", pose=np.zeros((3, 7)))
    with pytest.raises(TrajectoryError, match=r"episode_0001\.npz: lacks \['command'"):
        convert(ConversionSettings(source, tmp_path / "set.zarr", resolution=(WIDTH, HEIGHT)))
    settings = ConversionSettings(source, tmp_path / "set.zarr", resolution=(WIDTH, HEIGHT), on_error="skip")
    (entry,) = [entry for entry in convert(settings).episodes if entry.reason]
    assert "lacks ['command'" in entry.reason


# ---- a simulator ----


def test_the_example_simulator_tells_success() -> None:
    simulator = Simulator.load(EXAMPLES / "reach_simulator.yaml")
    env = simulator.make()
    assert isinstance(env, ReachEnv)
    observation, info = env.reset(seed=3)
    assert not simulator.succeeded(info, 0.0, terminated=False)
    action = np.array([*env.target, 1, 0, 0, 0, 1.0])
    steps = 0
    done = False
    while not done:
        observation, reward, done, truncated, info = env.step(action)
        steps += 1
        assert not truncated
    assert steps > 2
    assert simulator.succeeded(info, reward, terminated=done)
    spec = read_shape_meta(config(Path("none")).shape_meta)
    assert simulator.read_step(observation, spec)["image"].any()
    with pytest.raises(ValueError, match=r"action"):
        simulator.check_policy(
            read_shape_meta(
                {
                    "obs": {"image": {"shape": [3, 36, 40], "type": "rgb"}},
                    "action": {"shape": [2], "names": ["joint_1", "joint_2"]},
                }
            )
        )


# ---- a check ----


@pytest.mark.parametrize(("equal", "severity"), [(1, "ok"), (4, "ok"), (5, "warning")])
def test_the_example_check_finds_equal_answers(tmp_path: Path, equal: int, severity: str) -> None:
    content = document([1.0] * 10)
    for number in range(equal):
        content["steps"][number]["action"]["values"] = chunk(0, 1.0)
    path = tmp_path / "log.json"
    path.write_text(json.dumps(content))
    (finding,) = run_checks((repeats,), look_at_repeats(read_log(path)))
    assert (finding.severity, finding.about) == (severity, "log.json")
    assert f"at most {equal} of 10" in finding.evidence


def test_one_answer_shows_nothing_about_repeats(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(document([1.0])))
    assert run_checks((repeats,), look_at_repeats(read_log(path))) == []


# ---- the document ----


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "development.md").read_text()


def test_the_picture_is_the_house(page: str) -> None:
    picture = page.partition("\nlayer  package")[2].partition("```")[0]
    layers = {name: int(number) for number, name in re.findall(r"^(\d) +(\w+) ", picture, re.MULTILINE)}
    assert layers == house.LAYERS


def test_blocks_are_parts_of_the_examples(page: str, repository: Path) -> None:
    blocks = BLOCK.findall(page)
    assert {name for name, _ in blocks} == {
        str(path.relative_to(repository))
        for path in EXAMPLES.rglob("*.*")
        if path.suffix in (".py", ".yaml") and path.name not in UNSHOWN
    }
    strangers = [name for name, block in blocks if not is_part(block, (repository / name).read_text())]
    assert not strangers, f"blocks of docs/development.md are no longer in {strangers}"


def is_part(block: str, text: str) -> bool:
    """Whether a text holds these lines in a row, as they are or as methods, ignoring blank lines."""
    block, text = (re.sub(r"\n\s*\n", "\n", part) for part in (block, text))
    return any(textwrap.indent(block, indent) in text for indent in ("", "    "))


def test_stops_exist_and_are_few() -> None:
    journeys = house_numbers.journeys()
    assert len(journeys) == 4
    for title, stops in journeys.items():
        assert 0 < len(stops) <= 8, title
        for module, name in stops:
            assert callable(resolved(module, name)), f"{module}:{name}"


def test_an_observation_passes_its_stops(trained: Path, tmp_path: Path) -> None:
    """From a client's socket to a served policy, which is the example's, and to the log."""
    serving = serve_settings(tmp_path, "engine.steps=1")
    engine = PolicyEngine.open(trained, serving.engine)
    passed = Passed("An observation from socket to action and log")
    with passed, ServerThread(engine, serving) as server, server.client() as client:
        assert client.ask(observation_message())["type"] in ("action", "error")
    assert not passed.missing
    (log,) = tmp_path.glob("run_*/steps.jsonl")
    assert log.read_text().strip()


def test_a_tensor_passes_its_stops(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "pose.ckpt", policy_cfg(7))
    with Passed("A tensor from old to grown checkpoint") as passed:
        grow_7d_to_8d(tmp_path / "pose.ckpt", tmp_path / "grown.ckpt")
    assert not passed.missing


def test_a_log_passes_its_stops(tmp_path: Path) -> None:
    path = tmp_path / "inference_log_20260101_120000.json"
    path.write_text(json.dumps(document([1.0] * 9 + [0.0] * 9)))
    with Passed("A log to a verdict on the page") as passed:
        make_report(Sources(logs=(path,)))
    assert not passed.missing


def test_counts_are_those_of_the_code() -> None:
    written, counted = house_numbers.written(), house_numbers.numbers()
    assert written.keys() == counted.keys()
    behind = [name for name in counted if not alike(name, written[name], counted[name])]
    assert not behind, f"{behind}: write them with `python tests/house_numbers.py --write`"


def alike(name: str, written: str, counted: str) -> bool:
    """Whether a row of the document is still right: exactly, within the drift, or not much lower."""
    if name in house_numbers.LAWS:
        return written == counted
    falling = name.startswith(house_numbers.FALLING)
    pairs = zip(*(map(float, re.findall(r"[\d.]+", text)) for text in (written, counted)), strict=True)
    return all((falling and b < a) or abs(a - b) <= max(1, DRIFT * a) for a, b in pairs)


def test_the_workflow_runs_what_a_clone_runs(repository: Path) -> None:
    workflow = yaml.safe_load((repository / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (repository / "pyproject.toml").read_text())
    assert oldest is not None
    assert job["strategy"]["matrix"]["python"][0] == oldest[1]
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert os.access(repository / ".ci" / "run", os.X_OK)
