"""The checks before training: trouble planted in recordings and datasets, found by name; pictures that are drawn."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from report_factory import CHECKPOINT, DATASET, STATISTICS, only, troubled
from trajectory_factory import recorded_arrays, write_trajectory

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.diagnose.checkpoint_findings import together_findings
from diffusion_policy.diagnose.inspection import Inspection, inspect_dataset, inspect_recordings
from diffusion_policy.report.inspection_pictures import PICTURES, draw_pictures
from diffusion_policy.storage import StorageError
from diffusion_policy.trajectory import TrajectoryError

SIZE = (160, 90)
Arrays = dict[str, Any]


def plant(change: Callable[[Arrays], None], n_steps: int = 30, seed: int = 0) -> Arrays:
    arrays = recorded_arrays(n_steps, seed)
    change(arrays)
    return arrays


def record(folder: Path, change: Callable[[Arrays], None] | None = None, n_episodes: int = 3) -> Path:
    """Recordings, the last one with a change."""
    for number in range(n_episodes):
        planted = plant(change, seed=number) if change and number == n_episodes - 1 else None
        write_trajectory(folder, number, n_steps=30, size=SIZE, arrays=planted)
    return folder


def copied(arrays: Arrays) -> None:
    arrays["robot_gripper"] = arrays["action_gripper"].copy()


def jumping(arrays: Arrays) -> None:
    arrays["robot_eef_pose"][12:, 0] += 0.4


def turning(arrays: Arrays) -> None:
    arrays["action"][12:, 3:7] = arrays["action"][12:, [4, 3, 6, 5]]


def pausing(arrays: Arrays) -> None:
    arrays["timestamp"][20:] += 5.0


def rewinding(arrays: Arrays) -> None:
    arrays["timestamp"][20:] -= 5.0


def idling(arrays: Arrays) -> None:
    for key in ("robot_eef_pose", "action"):
        arrays[key][2:29] = arrays[key][2]
    arrays["action_gripper"][:] = 1


def never_closing(arrays: Arrays) -> None:
    arrays["action_gripper"][:] = 1
    arrays["robot_gripper"][:] = 1


PLANTED = [
    (jumping, "jumps", "warning", "1 jumps of the pose: robot_eef_pose of episode_0002 after step 11 .38. mm"),
    (turning, "jumps", "warning", "action of episode_0002 after step 11"),
    (pausing, "gaps", "warning", r"1 gaps: episode_0002 after step 19 \(5.1 s\)"),
    (rewinding, "gaps", "error", "time stops or runs backwards at 1 steps"),
    (idling, "idle", "note", "1 idle stretches, 27 of 60 steps, the longest 27 steps"),
]


@pytest.mark.parametrize(("change", "code", "severity", "says"), PLANTED, ids=[p[0].__name__ for p in PLANTED])
def test_planted_trouble(tmp_path: Path, change: Callable[[Arrays], None], code: str, severity: str, says: str) -> None:
    sound = inspect_recordings(record(tmp_path / "sound"))
    assert only(sound.findings, code).severity == "ok"
    found = only(inspect_recordings(record(tmp_path / "in", change, 2 if code == "idle" else 3)).findings, code)
    assert found.severity == severity
    assert found.remedy
    assert re.search(says, found.evidence), found.evidence


def test_sound_recordings_have_no_error(tmp_path: Path) -> None:
    inspection = inspect_recordings(record(tmp_path))
    assert set(troubled(inspection.findings)) == {"size", "closings"}
    assert (inspection.is_advisable, inspection.exit_status) == (True, 0)
    assert inspection.verdict().startswith("No error was found: 2 warnings. The gravest: the gripper closes 3 times")
    assert [len(episode.events) for episode in inspection.details.episodes] == [2, 2, 2]
    copying = inspection.details.copying
    assert copying is not None
    assert (copying.transitions, copying.equal_transitions, copying.first_measured) == (6, 0, (2,) * 6)
    assert inspection.details.times is not None
    assert inspection.details.times.median_s == pytest.approx(0.1, abs=1e-6)
    constant = only(inspection.findings, "constant-dimensions")
    assert "action.qw = 0" in constant.evidence


def test_copycat(tmp_path: Path) -> None:
    for number in range(2):
        write_trajectory(tmp_path, number, n_steps=30, size=SIZE, arrays=plant(copied, seed=number))
    inspection = inspect_recordings(tmp_path)
    finding = only(inspection.findings, "copycat-delays")
    assert "at 60 of 60 steps and at 4 of 4 transitions" in finding.evidence
    assert "--gripper-lead" in finding.remedy
    assert "observation_dropout=gripper" in finding.remedy
    settings = ConversionSettings(tmp_path, tmp_path.parent / "out.zarr", resolution=(32, 18))
    convert(replace(settings, gripper_command="next-measured"))
    repaired = inspect_dataset(tmp_path.parent / "out.zarr")
    assert only(repaired.findings, "copycat-delays").severity == "ok"
    shutil.rmtree(tmp_path.parent / "out.zarr")


def test_class_balance_and_episodes_without_events(tmp_path: Path) -> None:
    for number in range(2):
        write_trajectory(tmp_path, number, n_steps=30, size=SIZE, arrays=plant(never_closing, seed=number))
    inspection = inspect_recordings(tmp_path)
    finding = only(inspection.findings, "class-balance")
    assert finding.severity == "warning"
    assert "open at 100% of the steps; 2 of 2 episodes have no event (episode_0000, episode_0001)" in finding.evidence
    assert not inspection.is_advisable
    dimension = next(d for d in inspection.details.dimensions if (d.key, d.name) == ("action", "gripper"))
    assert dimension.is_constant


def test_nearly_constant_dimensions(tmp_path: Path) -> None:
    def barely(arrays: Arrays) -> None:
        arrays["action"][:, 2] = 0.3 + 0.001 * np.arange(30) / 30

    write_trajectory(tmp_path, n_steps=30, size=SIZE, arrays=plant(barely))
    finding = only(inspect_recordings(tmp_path).findings, "constant-dimensions")
    assert "nearly constant: action.z (0.00097 wide, multiplied by 20" in finding.evidence


def test_bad_recordings_are_named(tmp_path: Path) -> None:
    record(tmp_path)
    (tmp_path / "episode_0001" / "data.pkl").unlink()
    finding = only(inspect_recordings(tmp_path).findings, "recordings")
    assert finding.severity == "error"
    assert "1 of 3 recordings cannot be opened: episode_0001" in finding.evidence
    for number in (0, 2):
        (tmp_path / f"episode_000{number}" / "data.pkl").unlink()
    with pytest.raises(TrajectoryError, match="none of the 3 recordings can be opened; the first"):
        inspect_recordings(tmp_path)


def test_odd_recordings_are_noted(tmp_path: Path) -> None:
    write_trajectory(tmp_path, n_steps=30, n_images=33, size=SIZE)
    finding = only(inspect_recordings(tmp_path).findings, "recordings")
    assert (finding.severity, "3 frames of camera 'image' are not shown at any step" in finding.evidence) == (
        "note",
        True,
    )


def spoil(folder: Path, trouble: str) -> None:
    images = sorted((folder / "episode_0001" / "images").iterdir())
    if trouble == "cut":
        images[7].write_bytes(images[7].read_bytes()[:300])
    if trouble == "black":
        for image in images:
            cv2.imwrite(str(image), np.zeros((90, 160, 3), dtype=np.uint8))
    if trouble == "frozen":
        for image in images[9:20]:
            shutil.copyfile(images[8], image)
    if trouble == "twice":
        for image in images:
            shutil.copyfile(folder / "episode_0000" / "images" / image.name, image)
    if trouble == "size":
        cv2.imwrite(str(images[3]), np.full((100, 160, 3), 90, dtype=np.uint8))


@pytest.mark.parametrize(
    ("trouble", "code", "severity", "says"),
    [
        ("cut", "undecodable", "error", "1 of 90 frames do not decode: .*frame_0007.jpg: the JPEG is cut off"),
        ("black", "black-frames", "error", "camera image is black at 30 of 90 steps"),
        ("frozen", "frozen-camera", "error", "for 12 steps in which the arm moves; .* steps 38 to 49"),
        ("twice", "repeated-frames", "warning", "30 are copies of frames elsewhere: does an episode occur twice"),
        ("size", "frame-sizes", "error", "160x90"),
    ],
)
def test_spoiled_frames(tmp_path: Path, trouble: str, code: str, severity: str, says: str) -> None:
    spoil(record(tmp_path), trouble)
    finding = only(inspect_recordings(tmp_path).findings, code)
    assert finding.severity == severity
    assert re.search(says, finding.evidence), finding.evidence


def converted(tmp_path: Path) -> Path:
    output = tmp_path / "out.zarr"
    convert(ConversionSettings(record(tmp_path / "in"), output, resolution=(80, 45), workers=1))
    return output


def test_a_dataset_is_seen_as_its_recordings(tmp_path: Path) -> None:
    result, source = inspect_dataset(converted(tmp_path)), inspect_recordings(tmp_path / "in")
    assert result.details.dimensions == source.details.dimensions
    assert result.details.episodes == source.details.episodes
    assert result.summary.gripper == source.summary.gripper
    assert result.details.cameras[0].sizes == ((80, 45),)
    assert set(troubled(result.findings)) == {"size", "closings"}


def test_a_damaged_dataset(tmp_path: Path) -> None:
    path = converted(tmp_path)
    (path / "data" / "image" / "31.0.0.0").write_bytes(b"nothing that blosc knows")
    (path / "data" / "image" / "60.0.0.0").unlink()
    buffer = ReplayBuffer.open(path, mode="r+")
    buffer["action"][3, 0] = np.nan
    inspection = inspect_dataset(path)
    assert not inspection.is_advisable
    assert "data/image/31.0.0.0 has 24 bytes" in only(inspection.findings, "undecodable").evidence
    assert "2 frame files are missing or truncated: " in only(inspection.findings, "images").evidence
    assert only(inspection.findings, "not-finite").severity == "error"
    json.dumps(inspection.to_json(), allow_nan=False)
    draw_pictures(inspection, tmp_path / "pictures")


def drawn(inspection: Inspection, folder: Path) -> dict[str, tuple[int, ...]]:
    return {path.name: cv2.imread(str(path)).shape for path in draw_pictures(inspection, folder)}


def test_pictures(tmp_path: Path) -> None:
    shapes = drawn(inspect_recordings(record(tmp_path / "in")), tmp_path / "pictures")
    assert list(shapes) == list(PICTURES) == [
        "sample_images.png", "action_trajectory.png", "workspace.png", "episode_timeline.png"
    ]  # fmt: skip
    assert all(height > 100 and width > 800 for height, width, _ in shapes.values())
    assert not list((tmp_path / "pictures").glob(".*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"sample_images.png: cannot be written"):
        draw_pictures(inspect_recordings(tmp_path / "in"), tmp_path / "file")


def test_a_checkpoint_of_the_other_quaternion_sign() -> None:
    low, high = list(STATISTICS.low), list(STATISTICS.high)
    low[3:7], high[3:7] = [-value for value in STATISTICS.high[3:7]], [-value for value in STATISTICS.low[3:7]]
    turned = replace(STATISTICS, low=tuple(low), high=tuple(high))
    other = replace(CHECKPOINT, statistics={"action": turned})
    finding = only(together_findings(other, DATASET), "quaternion-sign")
    assert finding.severity == "warning"
    assert "fitted on the other quaternion sign" in finding.evidence
    assert only(together_findings(CHECKPOINT, DATASET), "quaternion-sign").severity == "ok"
    both_signs = replace(STATISTICS, low=(*low[:3], -1, -1, -1, -1, 0), high=(*high[:3], 1, 1, 1, 1, 1))
    undecided = together_findings(replace(CHECKPOINT, statistics={"action": both_signs}), DATASET)
    assert "quaternion-sign" not in {finding.code for finding in undecided}
    without = together_findings(replace(CHECKPOINT, statistics={}), DATASET)
    assert "quaternion-sign" not in {finding.code for finding in without}
