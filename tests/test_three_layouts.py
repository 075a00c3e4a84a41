"""Three layouts of actions take the same path: a dataset, two updates, open-loop errors, a log, a verdict."""

import json
from pathlib import Path
from typing import Any

import layout_factory
import numpy as np
import pytest
import tiny_run
from layout_factory import NAMES
from omegaconf import OmegaConf, open_dict
from printed import printed

from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.diagnose.doctor import examine_sources
from diffusion_policy.diagnose.playback import playbacks_of_log
from diffusion_policy.diagnose.sources import Sources, open_sources
from diffusion_policy.evaluate.gripper import GripperReport, judge, judge_file
from diffusion_policy.evaluate.open_loop_report import OpenLoopReport, evaluate_open_loop
from diffusion_policy.evaluate.open_loop_table import open_loop_table
from diffusion_policy.evaluate.recorded_inference import Sampling, run_recorded_inference
from diffusion_policy.report.report_page import make_report
from diffusion_policy.report.sections_of_errors import guarded, motion_of
from diffusion_policy.run_log import read_log
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

POSE_METRICS = {"val_position_error_mm", "val_rotation_error_deg"}
MOTION_METRICS = {
    "one arm": POSE_METRICS,
    "two arms": POSE_METRICS,
    "joints": {"val_joint_error_rad"},
}
ERRORS = {"position_mm", "rotation_deg", "joint_rad"}
NO_POSE = "no pose in this layout (7 joints, gripper); joint errors in rad"


class Way:
    """The results of one layout: a run, its metrics, open-loop errors and a log."""

    def __init__(self, name: str, folder: Path) -> None:
        keys, stored = layout_factory.low_dim_keys(name), {"gripper": 100.0} if name == "joints" else {}
        dataset = layout_factory.write(folder / "set.zarr", name, lengths=(9, 8), **stored)
        if stored:
            label = ReplayBuffer.open(dataset, mode="r+").root.attrs
            label["action_semantics"] = {**dict(label["action_semantics"]), "gripper": {"open": 100, "closed": 0}}
        cfg = tiny_run.settings(
            dataset, "training.num_epochs=1", "training.max_train_steps=2", "training.sample_every=1",
            "training.use_ema=false", "horizon=8", "n_action_steps=4", "task.dataset.val_ratio=0.5",
            "dataloader.batch_size=4", "loss=gripper_events", "observation_dropout=gripper",
            f"observation_dropout.key={list(keys)[-1]}",
        )  # fmt: skip
        with open_dict(cfg):
            cfg.task.shape_meta = OmegaConf.create(layout_factory.shape_meta(name))
        TrainDiffusionTransformerHybridWorkspace(cfg, folder / "run").run()
        lines = (folder / "run" / "logs.json.txt").read_text().splitlines()
        self.metrics: dict[str, Any] = json.loads(lines[-1])
        checkpoint = folder / "run" / "checkpoints" / "latest.ckpt"
        self.dataset, self.checkpoint, self.open_loop = dataset, checkpoint, folder / "open_loop.json"
        sampling = Sampling(steps=1)
        self.report: OpenLoopReport = evaluate_open_loop(
            checkpoint, dataset, sampling=sampling, samples=2, which="model"
        )
        self.open_loop.write_text(json.dumps({"reports": [self.report.to_json()]}))
        (self.log,) = run_recorded_inference(checkpoint, dataset, folder / "logs", steps=1, which="model")


@pytest.fixture(scope="module", params=NAMES)
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Way]:
    name = request.param
    return name, Way(name, tmp_path_factory.mktemp("way"))


def test_training_measures_what_the_layout_has(way: tuple[str, Way]) -> None:
    name, made = way
    assert made.metrics["global_step"] == 2
    measured = {key for key in made.metrics if "_error_" in key and "_step_" not in key}
    assert measured == MOTION_METRICS[name]
    assert all(np.isfinite(made.metrics[key]) for key in measured)
    assert made.metrics["val_gripper_events_recorded"] == (4 if name == "two arms" else 2)


def test_open_loop_errors_are_of_what_the_layout_has(way: tuple[str, Way]) -> None:
    name, made = way
    document = json.loads(json.dumps(made.report.to_json()))
    ours = document["scores"]["policy"]
    assert {key for key in ERRORS if ours.get(key) is not None} == {
        {"val_position_error_mm": "position_mm", "val_rotation_error_deg": "rotation_deg"}.get(key, "joint_rad")
        for key in MOTION_METRICS[name]
    }
    assert document["scores"]["hold pose"]["events"] is None
    held = document["scores"]["hold pose"]
    assert all(held[key] is not None for key in ERRORS if ours.get(key) is not None), "the dataset measures all of it"
    assert sorted(ours.get("per_arm", ())) == (["left", "right"] if name == "two arms" else [])
    assert (NO_POSE in document["unmeasured"]) == (name == "joints")
    assert document["scores"]["copy the measured gripper"]["gripper_at_transitions"] > 0


def test_the_table_shows_what_the_layout_has(way: tuple[str, Way]) -> None:
    name, made = way
    text = printed(open_loop_table(made.report), width=200)
    joints = name == "joints"
    assert ("position mm" in text, "joints rad" in text, NO_POSE in text) == (not joints, joints, joints)
    assert ("left" in text) == (name == "two arms")


def test_a_log_of_recorded_episodes_is_read_by_its_names_and_judged(way: tuple[str, Way]) -> None:
    name, made = way
    log = read_log(made.log)
    assert log.action_layout is not None
    assert log.state_layout is not None
    assert (log.action_layout.names, log.state_layout.names) == (NAMES[name], NAMES[name])
    assert log.action_layout.joint_unit == ("rad" if name == "joints" else "unknown")
    assert log.layout == ("xyz_quat_gripper" if name == "one arm" else "named")
    assert np.isin(log.state_layout.grippers(log.states), (0.0, 1.0)).all(), "percent are converted"
    found = judge_file(made.log)
    assert isinstance(found, GripperReport)
    assert list(found.to_json().get("arms", ())) == (["left", "right"] if name == "two arms" else [])


def test_a_page_and_the_checks_say_what_the_layout_has(way: tuple[str, Way]) -> None:
    name, made = way
    sources = Sources((made.dataset,), made.checkpoint, None, (made.log,), (made.open_loop,))
    opened = open_sources(sources)
    groups = examine_sources(opened).groups
    findings = {finding.code: finding for group in groups.values() for finding in group}
    assert (findings["action-shape"].severity, findings["log-action"].severity) == ("ok", "ok")
    assert findings["checkpoint-fits-dataset"].severity == "ok"
    assert findings["arrays"].severity == "ok"
    (evidence,) = opened.logs
    gripper = opened.datasets[0].evidence.gripper
    assert gripper is not None
    assert (gripper.closings, gripper.openings) == ((4, 4) if name == "two arms" else (2, 2))
    joints = name == "joints"
    assert (evidence.command_distance_m is None, "no pose in this layout" in findings["semantics"].evidence) == (
        joints,
        joints,
    )
    _, page = make_report(sources)
    assert (NO_POSE in page, "joints (rad)" in page, "position (mm)" in page) == (joints, joints, not joints)
    assert ("These actions have no position" in page) == joints
    assert ("errors of each arm" in page, "right gripper (orange: closed)" in page) == (name == "two arms",) * 2


def test_a_log_lies_beside_its_recording(way: tuple[str, Way]) -> None:
    name, made = way
    found = playbacks_of_log(read_log(made.log), ReplayBuffer.open(made.dataset))
    assert len(found) == (2 if name == "two arms" else 1)
    assert all(playback.recorded is not None for playback in found), "the recorded gripper"
    assert all((playback.positions is None) == (name == "joints") for playback in found)
    cameras = list(layout_factory.CAMERAS[name])
    assert all(list(playback.frames(0)) == cameras for playback in found), "every camera of the policy"


def test_the_guard_judges_logs_of_every_layout(way: tuple[str, Way]) -> None:
    name, made = way
    motion = motion_of(read_log(made.log))
    assert motion is not None
    assert len(motion.layout.names) == {"one arm": 8, "two arms": 16, "joints": 8}[name], "rotations are quaternions"
    interventions = guarded(motion)
    assert interventions.total() > 0, "a policy after two updates wants to jump"
    if name == "two arms":
        assert {limit.split()[0] for limit in interventions if limit.endswith("step distance")} <= {"left", "right"}


def test_the_verdict_on_several_grippers_is_the_worst_and_names_the_arm(tmp_path: Path) -> None:
    names = NAMES["two arms"]
    recorded = layout_factory.episode("two arms", 24, 0)
    actions, states = recorded["action"], recorded["state"]
    actions[:, names.index("right.gripper")], states[:, names.index("right.gripper")] = 1.0, 0.9
    steps = [
        {"step": number, "input": {"state": state.tolist()}, "action": {"values": [action.tolist()] * 2}}
        for number, (state, action) in enumerate(zip(states, actions, strict=True))
    ]
    meta = {"action_semantics": {"names": list(names), "gripper": {"open": 1.0, "closed": 0.0}}}
    path = tmp_path / "log.json"
    path.write_text(json.dumps({"meta": meta, "steps": steps}))
    found = judge(read_log(path))
    assert found.verdict == "never closes"
    assert found.arms == {"left": "opens and closes", "right": "never closes"}
    assert found.reason.startswith("right: commands stay in")
    assert found.reason.endswith("; left: opens and closes")
