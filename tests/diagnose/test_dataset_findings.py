"""Every trouble of data, planted in numbers and on disk."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_factory import DATASET, GRIPPER, look_at_dataset, only, troubled
from tiny_run import episode, write_dataset

from diffusion_policy.dataset.replay_buffer import ArrayLayout, DatasetError, ReplayBuffer, image_layout, low_dim_layout
from diffusion_policy.dataset.split import EpisodeIdentity
from diffusion_policy.dataset.verification import DIFFERS, ContentFault, Verification
from diffusion_policy.diagnose.dataset_findings import dataset_findings
from diffusion_policy.gripper_scale import find_scales
from diffusion_policy.pose_check import FaultCode, PoseFault
from diffusion_policy.report import ReportError
from diffusion_policy.spec import POSE, POSE_GRIPPER, action_semantics

WIDTHS = find_scales([0.08, 0.0, 0.08])


def fault(code: FaultCode) -> PoseFault:
    return PoseFault(code, f"planted {code}", "cut it")


def compared(**found: Any) -> dict[str, Any]:
    """Evidence of a dataset of 40 episodes that was compared with its hashes."""
    content = Verification(**{"n_episodes": 40, "compared": 40, "cameras": ("data/image",), **found})
    return {"identities": IDENTITIES, "content": content}


IDENTITIES = (EpisodeIdentity("episode_0000", "0" * 64),) * 40
ROTTEN = tuple(ContentFault(f"episode_{number:04d}", "data/image", DIFFERS) for number in range(40))

PLANTED: list[tuple[str, str, dict[str, Any], str]] = [
    ("size", "warning", {"lengths": (100,) * 5}, "5 episodes, 500 steps"),
    ("arrays", "error", {"keys": ("action", "image")}, "no data/robot_eef_pose, data/robot_gripper_state"),
    ("action-shape", "warning", {"action_names": POSE, "layout": "xyz_quat"}, "a pose without a gripper"),
    ("action-shape", "error", {"action_names": POSE, "layout": "xyz_rotvec_width"}, "gripper width, not a quaternion"),
    ("action-shape", "error", {"action_names": POSE[:6], "layout": "unknown"}, r"\(N, 6\).*expected \(N, 8\)"),
    ("action-shape", "error", {"layout": "unknown"}, "not those of meters, a unit quaternion"),
    ("semantics", "note", {"semantics": None}, "its numbers are not labeled"),
    ("semantics", "error", {"semantics": {**action_semantics(), "quaternion_order": "wxyz"}}, "quaternion_order"),
    ("semantics", "error", {"semantics": {**action_semantics(), "gripper": {"open": 0.0, "closed": 1.0}}}, "gripper"),
    ("not-finite", "error", {"not_finite": 3}, "3 numbers are NaN"),
    ("action-shape", "error", {"faults": (fault("rotation"),)}, "planted rotation"),
    ("quaternions", "error", {"faults": (fault("zero-quaternion"),)}, "planted zero-quaternion"),
    ("quaternions", "error", {"faults": (fault("quaternion-norm"),)}, "planted quaternion-norm"),
    ("position-unit", "error", {"faults": (fault("position-unit"),)}, "planted position-unit"),
    ("quaternion-order", "error", {"faults": (fault("quaternion-order"),)}, "planted quaternion-order"),
    ("quaternion-order", "warning", {"tool_tilt": (80.0, 5.0)}, "80 degrees .* read as w x y z 5: .* scalar-first"),
    ("quaternions", "warning", {"sign_flips": 4}, "from q to -q at 4 steps"),
    ("command-is-absolute", "error", {"command_distance_m": 0.5}, "500 mm .* relative actions"),
    ("polarity", "error", {"gripper": None, "scales": WIDTHS}, "0 to 0.08: .*; expected 0 .closed. to 1"),
    ("polarity", "warning", {"gripper": replace(GRIPPER, starting_open=3, starting_closed=37)}, "1 = closed"),
    ("closings", "error", {"gripper": replace(GRIPPER, closings=0)}, "closes 0 times"),
    ("closings", "warning", {"gripper": replace(GRIPPER, closings=7)}, "closes 7 times .* few to learn from"),
    ("closings", "note", {"gripper": replace(GRIPPER, without_closing=tuple(range(20)))}, "20 of 40 episodes never"),
    ("copycat-labels", "warning", {"gripper": replace(GRIPPER, equals_measured=1.0, leading=0)}, "copy its input"),
    ("dead-band", "warning", {"gripper": replace(GRIPPER, undecided=0.2)}, "20.0% of the commands are neither"),
    ("step-spacing", "warning", {"step_seconds": 0.8}, "8.0 times as fast as the demonstration"),
    ("step-spacing", "warning", {"step_seconds": 0.05}, "at 50% of the speed"),
    ("step-spacing", "warning", {"uneven": 0.2}, "20% of them are off"),
    ("step-spacing", "error", {"step_seconds": 0.0}, "time does not advance"),
    ("content", "note", {"identities": IDENTITIES}, "24 of its frames were inspected, and nothing was compared"),
    (
        "content",
        "note",
        compared(compared=0, not_compared="for a reason"),
        "not verified: for a reason; all that is known is that its files exist",
    ),
    (
        "content",
        "note",
        compared(compared=30, not_compared="for a reason"),
        "30 episodes are .*; 10 .* not verified: for",
    ),
    ("content", "error", compared(faults=ROTTEN[7:8]), "wrote: data/image of episode_0007 is not what was written$"),
    ("content", "error", compared(faults=ROTTEN), "episode_0003 is not what was written; and 36 more$"),
    ("content", "error", compared(faults=ROTTEN[1:], other_decoder="older"), "episode_0001.*; and 35 more$"),
    ("content", "warning", compared(faults=ROTTEN, other_decoder="older"), "unpacked by older at the time"),
    ("images", "error", {"missing_frames": 2}, "2 frame files are missing"),
    ("images", "warning", {"black_frames": 3}, "3 of the 24 inspected frames are black"),
    ("standing-still", "note", {"still": 0.7}, "stands still in 70%"),
    ("left-out", "note", {"dropped": (2, 250)}, "2 episodes, 250 steps"),
]


def test_a_dataset_equal_to_what_was_written_is_confirmed() -> None:
    found = only(dataset_findings(replace(DATASET, **compared())), "content")
    assert (found.severity, found.evidence.startswith("all frames and numbers of 40 episodes are what")) == ("ok", True)
    assert "content" not in {one.code for one in dataset_findings(DATASET)}, "recordings are not converted yet"


def test_a_sound_dataset_has_no_trouble() -> None:
    found = dataset_findings(DATASET)
    assert {finding.severity for finding in found} == {"ok"}
    assert len(found) == 17


@pytest.mark.parametrize(("code", "severity", "changes", "says"), PLANTED, ids=[f"{p[0]}-{p[3][:20]}" for p in PLANTED])
def test_planted_trouble_is_found(code: str, severity: str, changes: dict[str, Any], says: str) -> None:
    found = dataset_findings(replace(DATASET, **changes))
    finding = only(found, code)
    assert finding.severity == severity
    assert re.search(says, finding.evidence)
    assert finding.remedy
    assert set(troubled(found)) <= {code}


def test_without_a_gripper_nothing_is_reported_about_it() -> None:
    codes = {finding.code for finding in dataset_findings(replace(DATASET, gripper=None))}
    assert not codes & {"polarity", "closings", "copycat-labels", "dead-band"}


def test_evidence_of_a_dataset_on_disk(tmp_path: Path) -> None:
    data = look_at_dataset(write_dataset(tmp_path / "set.zarr"))
    assert data.lengths == (13, 12, 14, 12)
    assert data.layout == "xyz_quat_gripper"
    assert data.image_size == (40, 36)
    assert data.step_seconds == pytest.approx(0.1)
    assert data.semantics is None
    assert data.gripper is not None
    assert (data.gripper.closings, data.gripper.openings) == (4, 4)
    assert data.gripper.leading == 8
    assert data.gripper.starting_open == 4
    assert data.command_distance_m == 0.0
    assert data.dropped is None


def planted(path: Path, change: str) -> Path:
    layouts = {
        "image": image_layout(40, 36),
        "robot_eef_pose": low_dim_layout(POSE),
        "robot_gripper_state": low_dim_layout(("gripper",)),
        "action": low_dim_layout(POSE_GRIPPER),
        "timestamp": ArrayLayout((), np.float64),
    }
    buffer = ReplayBuffer.create(path, layouts)
    for seed in range(2):
        rows = episode(12, seed)
        if change == "copied":
            rows["robot_gripper_state"] = rows["action"][:, 7:]
        if change == "nan":
            rows["action"][3, 0] = np.nan
        if change == "black":
            rows["image"][:] = 0
        if change == "zero":
            rows["action"][3:5, 3:7] = 0
        if change == "mm":
            rows["action"][:, :3] *= 1000
            rows["robot_eef_pose"][:, :3] *= 1000
        if change == "percent":
            rows["action"][:, 7] *= 100
        if change == "flip":
            rows["robot_eef_pose"][5:, 3:7] *= -1
        buffer.append(rows)
    return path


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("copied", "copycat-labels"),
        ("nan", "not-finite"),
        ("black", "images"),
        ("flip", "quaternions"),
        ("zero", "quaternions"),
        ("mm", "position-unit"),
        ("percent", "polarity"),
    ],
)
def test_trouble_on_disk_is_found(tmp_path: Path, change: str, code: str) -> None:
    sound = troubled(dataset_findings(look_at_dataset(planted(tmp_path / "sound.zarr", ""))))
    found = troubled(dataset_findings(look_at_dataset(planted(tmp_path / "planted.zarr", change))))
    assert code not in sound
    assert code in found


def test_the_ledger_of_the_conversion_is_read(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set.zarr")
    totals = {"episodes_dropped": 1, "steps_recorded": 60, "steps_kept": 51}
    ledger = tmp_path / "set.zarr.conversion.json"
    ledger.write_text(json.dumps({"totals": totals, "settings": {"gripper_lead": 2}}))
    data = look_at_dataset(path)
    assert data.dropped == (1, 9)
    assert data.settings == {"gripper_lead": 2}
    ledger.write_text("{}")
    with pytest.raises(ReportError, match="not a conversion ledger"):
        look_at_dataset(path)


def test_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no zarr dataset there"):
        look_at_dataset(tmp_path / "nothing.zarr")
    empty = ReplayBuffer.create(tmp_path / "empty.zarr", {"action": low_dim_layout(POSE_GRIPPER)})
    assert empty.n_steps == 0
    with pytest.raises(ReportError, match="expected actions"):
        look_at_dataset(tmp_path / "empty.zarr")
