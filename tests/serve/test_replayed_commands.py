"""A recorded episode as the arm, under a virtual clock: commands are compared with recorded ones."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from loop_factory import LAYOUT, N_STEPS, form, make_loop, run_for
from scipy.spatial.transform import Rotation
from trajectory_factory import write_trajectory

from diffusion_policy.recording.contract import ArrayNames
from diffusion_policy.serve.client import Chunk, ChunkRequest
from diffusion_policy.serve.client.arm_log import ArmLogContent
from diffusion_policy.serve.recorded_arm import RecordedArm, open_recorded_arm
from diffusion_policy.serve.replayed_commands import CommandComparison, RecordedCommands
from diffusion_policy.spec import ActionLayout


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trajectory(tmp_path_factory.mktemp("replayed") / "raw", 0, 40, (64, 36))


def replayed(episode: Path, hz: float, change: Callable[[np.ndarray], np.ndarray]) -> CommandComparison:
    """Runs a policy that answers with changed recorded commands, and compares."""
    arms: list[RecordedArm] = []

    def arm(clock: Any) -> RecordedArm:
        arms.append(open_recorded_arm(episode, form(), clock))
        return arms[0]

    def ask(query: ChunkRequest) -> Chunk:
        times = query.observation.observed_at + np.arange(N_STEPS) / 10
        steps = np.clip(np.round((times - arms[0].start) * 10).astype(int), 0, 39)
        return Chunk(change(arms[0].commands.actions[steps].copy()), times)

    loop, made, clock, log = make_loop("skip", 4, ask=ask, arm=arm, control_hz=hz)
    run_for(loop, clock, 3.5)
    content = ArmLogContent(log.lines[0], log.lines[1:])
    return CommandComparison.of(content, made.commands, made.start)


def moved(actions: np.ndarray) -> np.ndarray:
    actions[:, 1] += 0.01
    return actions


def turned(actions: np.ndarray) -> np.ndarray:
    actions[:, 3:7] = (Rotation.from_quat(actions[:, 3:7]) * Rotation.from_rotvec([0, 0, np.radians(5)])).as_quat()
    return actions


def opposite(actions: np.ndarray) -> np.ndarray:
    actions[:, 7] = 1 - actions[:, 7]
    return actions


@pytest.mark.parametrize(
    ("change", "millimeters", "degrees", "agreement"),
    [
        (lambda actions: actions, 0.0, 0.0, 1.0),
        (moved, 10.0, 0.0, 1.0),
        (turned, 0.0, 5.0, 1.0),
        (opposite, 0.0, 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("hz", [10.0, 50.0])
def test_what_differs_is_measured(
    episode: Path,
    hz: float,
    change: Callable[[np.ndarray], np.ndarray],
    millimeters: float,
    degrees: float,
    agreement: float,
) -> None:
    found = replayed(episode, hz, change)
    assert found.commands > 3 * hz
    assert found.position_mm is not None
    assert found.rotation_deg is not None
    assert found.position_mm == pytest.approx((millimeters, millimeters), abs=0.01)
    assert found.rotation_deg == pytest.approx((degrees, degrees), abs=0.01)
    assert found.gripper_agreement == agreement
    assert (found.joints, found.joint_unit) == (None, None)


def recording(names: tuple[str, ...]) -> Any:
    return SimpleNamespace(names=ArrayNames({}, names), action=np.full((5, len(names)), 0.5))


def test_only_what_both_command_is_compared() -> None:
    times = np.arange(5) / 10
    pose = RecordedCommands.of(recording(LAYOUT.names[:7]), LAYOUT, times)
    assert pose.layout.names == LAYOUT.names[:7]
    log = ArmLogContent(
        {"control_hz": 10.0}, [{"event": "move", "time": 7.1, "action": [0.5, 0.5, 0.5, 1, 1, 1, 1, 0]}]
    )
    found = CommandComparison.of(log, pose, 7.0)
    assert (found.commands, found.gripper_agreement) == (1, None)
    assert "nothing to compare" in dict(found.rows())["  gripper"]
    joints = ActionLayout.of(("joint_1", "joint_2"))
    nothing = RecordedCommands.of(recording(LAYOUT.names), joints, times)
    assert nothing.columns == ()
    empty = CommandComparison.of(log, nothing, 7.0)
    assert (empty.position_mm, empty.rotation_deg, empty.joints, empty.gripper_agreement) == (None,) * 4
    none = CommandComparison.of(ArmLogContent({"control_hz": 10.0}, []), pose, 7.0)
    assert (none.commands, none.position_mm) == (0, None)
