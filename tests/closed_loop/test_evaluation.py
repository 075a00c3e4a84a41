"""A checkpoint in closed loop, in process and through the real server: equal, interruptible, comparable."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closed_loop_factory import SEED, tabletop
from evaluation_factory import write_tiny_checkpoint

from diffusion_policy.closed_loop.evaluation import ClosedLoop, Evaluation, check_same, evaluate, read_document
from diffusion_policy.closed_loop.server_actor import serve_settings
from diffusion_policy.env_runner.results import ResultError
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.spec import SpecError

# A guard that lets everything from a policy with random weights through.
LOOSE = (
    "guard.max_step_m=10", "guard.max_step_rad=10", "guard.max_chunk_m=10", "guard.max_chunk_rad=10",
    "guard.quaternion_tolerance=0.99", "guard.workspace_low=[-9,-9,-9]", "guard.workspace_high=[9,9,9]",
    "guard.gripper_open=0.5001", "guard.gripper_closed=0.4999", "guard.gripper_min_dwell=0", "deadline_s=60",
    "engine.steps=2", "engine.fast=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("closed_loop") / "latest.ckpt")


def evaluation(**changes: Any) -> Evaluation:
    usual = Evaluation(tabletop(max_steps=16), n_scenes=3, steps=2, threads=1)
    return replace(usual, **changes)


@pytest.fixture(scope="module")
def in_process(checkpoint: Path) -> ClosedLoop:
    return evaluate(checkpoint, evaluation())


def test_every_result_names_its_conditions(in_process: ClosedLoop, checkpoint: Path) -> None:
    document = in_process.to_json()
    assert json.loads(json.dumps(document, allow_nan=False))["format"] == "closed_loop"
    assert (document["referee"], document["task"], document["n_action_steps"]) == ("kinematic", "pick_and_place", 4)
    assert (document["scheduler"], document["steps"], document["weights"]) == ("ddim", 2, "ema_model")
    assert (document["through_server"], document["interrupted"], document["seed"]) == (False, False, SEED)
    assert document["checkpoint"] == str(checkpoint)
    assert len(document["checkpoint_sha256"]) == 64
    assert [scene["seed"] for scene in document["scenes"]] == [SEED, SEED + 1, SEED + 2]
    assert document["success"]["of"] == 3
    assert sum(document["reasons"].values()) == 3


def test_the_server_moves_the_arm_as_the_policy_in_process_does(in_process: ClosedLoop, checkpoint: Path) -> None:
    poses: dict[bool, list[np.ndarray]] = {}

    class Track:
        def __init__(self, through: bool) -> None:
            self.frames = poses.setdefault(through, [])

        def add(self, frame: np.ndarray, caption: str) -> None:
            self.frames.append(frame.copy())

        def finish(self, result: object) -> None: ...

    shown: list[tuple[int, int]] = []
    for through in (False, True):
        found = evaluate(
            checkpoint,
            evaluation(through_server=through, serve_words=LOOSE if through else ()),
            recorder=lambda scene, through=through: Track(through) if scene == 0 else None,  # type: ignore[misc]
            show=lambda done, total: shown.append((done, total)),
        )
    assert shown[-1] == (3, 3)
    np.testing.assert_array_equal(poses[True], poses[False])
    served, plain = found.to_json(), in_process.to_json()
    assert served["through_server"]
    assert served["reasons"] == plain["reasons"]
    assert [scene["steps"] for scene in served["scenes"]] == [16, 16, 16]
    assert served["latency_ms"]["answers"] == 12
    assert served["latency_ms"]["p50"] > 0
    assert served["limited"] == served["refusals"] == {}
    assert plain["latency_ms"] is None


def test_the_guard_limits_and_refuses(checkpoint: Path) -> None:
    found = evaluate(checkpoint, evaluation(n_scenes=1, through_server=True, serve_words=("engine.steps=2",)))
    document = found.to_json()
    assert document["refusals"]["refused"] > 8, "quaternions of random weights have no unit norm"
    assert document["reasons"] == {"refused by guard": 1}


class Stop:
    """Ctrl-C once this many scenes have ended."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, done: int, total: int) -> None:
        if done == self.after:
            raise KeyboardInterrupt


@pytest.fixture
def interrupted(checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "kept.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            checkpoint,
            evaluation(),
            show=Stop(1),
            kept=lambda found: path.write_text(json.dumps(found.to_json())) and None,
        )
    return path


def test_an_interruption_keeps_scenes_and_continues_to_the_same_result(
    interrupted: Path, checkpoint: Path, in_process: ClosedLoop
) -> None:
    earlier, done = read_document(interrupted)
    assert (earlier["interrupted"], len(done)) == (True, 1)
    ran: list[int] = []
    found = evaluate(checkpoint, evaluation(), earlier=earlier, done=done, recorder=lambda scene: ran.append(scene))  # type: ignore[func-returns-value]
    assert ran == [1, 2]
    assert found.to_json() == in_process.to_json()


def test_only_comparable_results_are_combined(interrupted: Path, checkpoint: Path) -> None:
    earlier, done = read_document(interrupted)
    for change, what in (
        ({"seed": 5}, "seed"),
        ({"n_action_steps": 2}, "n_action_steps"),
        ({"steps": 3}, "steps"),
        ({"simulator": tabletop("physics", max_steps=16)}, "simulator"),
    ):
        with pytest.raises(ResultError, match=f"made with another {what}"):
            evaluate(checkpoint, evaluation(**change), earlier=earlier, done=done)
    check_same(earlier, {**earlier, "n_action_steps": 2}, "other.json", scenes_only=True)
    with pytest.raises(ResultError, match=r"other.json was made with another seed: 7; here it is 100000"):
        check_same(earlier, {**earlier, "seed": 7}, "other.json", scenes_only=True)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "closed_loop", "version": 99, "scenes": []}'])
def test_what_is_not_a_result_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(ResultError, match=r"odd\.json"):
        read_document(path)


def test_a_pose_policy_runs_with_an_open_hand(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "pose.ckpt", width=7)
    document = evaluate(path, evaluation(n_scenes=1)).to_json()
    assert document["notes"] == ["the policy commands no gripper: held at 1"]
    assert set(document["reasons"]) <= {"never closed", "timeout"}
    with pytest.raises(WorkspaceError, match="grows a gripper"):
        evaluate(path, evaluation(through_server=True))


def test_what_does_not_fit_is_refused_before_anything_runs(checkpoint: Path) -> None:
    with pytest.raises(WorkspaceError, match="n_action_steps is 9; expected 1 to the 4"):
        evaluate(checkpoint, evaluation(n_action_steps=9))
    with pytest.raises(WorkspaceError, match=r"guard\.max_step"):
        serve_settings(checkpoint, None, ["guard.max_step=1"])
    with pytest.raises(SpecError, match=r"simulator\.observations offers"):
        evaluate(checkpoint, evaluation(simulator=tabletop().with_camera("front")))
