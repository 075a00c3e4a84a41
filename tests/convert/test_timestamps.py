"""Time stamps that are not seconds are named, and converted by declaration; episodes are split at gaps."""

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trajectory_factory import write_trajectory

from diffusion_policy.convert import ConversionError, ConversionReport, ConversionSettings, convert
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.diagnose.findings import Finding
from diffusion_policy.diagnose.inspection import Inspection, inspect_dataset, inspect_recordings
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.spec import SpecError
from diffusion_policy.timestamps import parse_timestamps, timestamp_fault

STEPS, SIZE = 8, (64, 36)
SINCE_1970 = 1_700_000_000.0 + 0.1 * np.arange(STEPS)
SINCE_START = 0.1 * np.arange(STEPS)

# What is recorded, its name, and the seconds that it stands for.
OTHER_UNITS: dict[str, tuple[np.ndarray, str, np.ndarray]] = {
    "nanoseconds": (SINCE_1970 * 1e9, "nanoseconds since 1970", SINCE_1970),
    "nanoseconds, integers": ((SINCE_1970 * 1e9).astype(np.int64), "nanoseconds since 1970", SINCE_1970),
    "microseconds, integers": (np.round(SINCE_1970 * 1e6).astype(np.int64), "microseconds since 1970", SINCE_1970),
    "milliseconds": (SINCE_1970 * 1e3, "milliseconds since 1970", SINCE_1970),
    "milliseconds from 0": (SINCE_START * 1e3, "milliseconds", SINCE_START),
    "milliseconds at 30 Hz": (np.arange(STEPS) / 30 * 1e3, "milliseconds", np.arange(STEPS) / 30),
    "milliseconds from 0 in float32": ((SINCE_START * 1e3).astype(np.float32), "milliseconds", SINCE_START),
    "microseconds from 0": (SINCE_START * 1e6, "microseconds", SINCE_START),
    "nanoseconds from 0, integers": (np.round(SINCE_START * 1e9).astype(np.int64), "nanoseconds", SINCE_START),
}
SECONDS = {
    "since 1970": SINCE_1970,
    "since the start": SINCE_START,
    "in float32 since the start": SINCE_START.astype(np.float32),
    "in float32 since the robot was switched on": (5000 + SINCE_START).astype(np.float32),
    "at 1.25 Hz": 0.8 * np.arange(STEPS),
    "at 1 Hz, whole": np.arange(float(STEPS)),
    "at 1000 Hz": 1e-3 * np.arange(STEPS),
    "with a long pause": SINCE_START + np.where(np.arange(STEPS) > 4, 3600, 0),
}


def run(source: Path, output: Path, **settings: Any) -> ConversionReport:
    return convert(ConversionSettings(source, output, (32, 18), workers=1, **settings))


def found(inspection: Inspection, code: str) -> Finding:
    return {finding.code: finding for finding in inspection.findings}[code]


def record(source: Path, stamps: np.ndarray, number: int = 0) -> Path:
    write_trajectory(source, number, n_steps=len(stamps), size=SIZE, arrays={"timestamp": stamps})
    return source


@pytest.mark.parametrize("name", OTHER_UNITS)
def test_another_unit_is_named_and_converted(tmp_path: Path, name: str) -> None:
    stamps, called, seconds = OTHER_UNITS[name]
    source = record(tmp_path / "in", stamps)
    unit = called.split()[0]
    message = rf"look like {called} \(.*expected seconds: say so with --timestamps {unit}"
    with pytest.raises(WorkspaceError, match=message):
        run(source, tmp_path / "out.zarr")
    with pytest.raises(WorkspaceError, match=message):
        inspect_recordings(source)
    run(source, tmp_path / "out.zarr", timestamps=unit)
    read = ReplayBuffer.open(tmp_path / "out.zarr").read("timestamp")
    np.testing.assert_allclose(read, seconds, atol=1e-6, rtol=0)
    assert found(inspect_recordings(source, timestamps=unit), "step-spacing").severity != "error"


@pytest.mark.parametrize("name", SECONDS)
def test_seconds_are_seconds(name: str) -> None:
    assert timestamp_fault(SECONDS[name], "here") is None


@pytest.mark.parametrize("kept_as", [np.float32, np.float64])
def test_rounded_stamps_are_named_and_counted_by_declaration(tmp_path: Path, kept_as: Any) -> None:
    source = record(tmp_path / "in", SINCE_1970.astype(np.float32).astype(kept_as))
    with pytest.raises(
        WorkspaceError, match=r"rounded to float32, .*to 128 s; expected float64: .*--timestamps rate:10"
    ):
        run(source, tmp_path / "out.zarr")
    run(source, tmp_path / "out.zarr", timestamps="rate:5")
    np.testing.assert_allclose(ReplayBuffer.open(tmp_path / "out.zarr").read("timestamp"), np.arange(STEPS) / 5)


def test_the_wrong_unit_is_not_believed(tmp_path: Path) -> None:
    source = record(tmp_path / "in", SINCE_1970 * 1e9)
    with pytest.raises(WorkspaceError, match=r"look like nanoseconds since 1970 .*--timestamps nanoseconds"):
        run(source, tmp_path / "out.zarr", timestamps="milliseconds")


@pytest.mark.parametrize("name", ["hours", "rate:", "rate:0", "rate:nan", "rate:-10", ""])
def test_no_such_unit(name: str) -> None:
    with pytest.raises(SpecError, match=r"expected seconds, milliseconds, .*rate:HZ"):
        parse_timestamps(name)


def test_integers_that_may_be_seconds_are_asked_for(tmp_path: Path) -> None:
    source = record(tmp_path / "in", np.arange(STEPS))
    with pytest.raises(WorkspaceError, match=r"timestamp has dtype int64; .*--timestamps UNIT"):
        run(source, tmp_path / "out.zarr")


@pytest.mark.parametrize("scale", [1e3, 1e9])
def test_a_dataset_in_another_unit(tmp_path: Path, scale: float) -> None:
    for number in (0, 1):
        record(tmp_path / "in", SINCE_1970 + 60 * number, number)
    run(tmp_path / "in", tmp_path / "out.zarr")
    buffer = ReplayBuffer.open(tmp_path / "out.zarr", mode="r+")
    buffer["timestamp"][:] = buffer.read("timestamp") * scale
    inspection = inspect_dataset(tmp_path / "out.zarr")
    spacing = found(inspection, "step-spacing")
    assert spacing.severity == "error"
    assert "seconds since 1970" in spacing.evidence
    assert "--timestamps" in spacing.command
    assert "gaps" not in {finding.code for finding in inspection.findings}


def test_the_stamps_of_the_trial(trial: Callable[..., Path], tmp_path: Path) -> None:
    for kind in ("float", "int"):
        with pytest.raises(WorkspaceError, match="look like nanoseconds since 1970"):
            run(trial("08") / kind, tmp_path / "out.zarr")


def with_gaps(source: Path) -> Path:
    """Two episodes; the first has holes of 2 s after step 2 and of 1 s after step 5."""
    step = np.arange(STEPS)
    record(source, SINCE_1970 + np.where(step > 2, 2.0, 0) + np.where(step > 5, 1.0, 0))
    return record(source, SINCE_1970 + 60, 1)


@pytest.mark.parametrize(("limit", "kept"), [(0.3, [[0, 3], [3, 6], [6, 8]]), (1.5, [[0, 3], [3, 8]]), (5, [[0, 8]])])
def test_an_episode_is_split_at_its_gaps(tmp_path: Path, limit: float, kept: list[list[int]]) -> None:
    run(with_gaps(tmp_path / "in"), tmp_path / "out.zarr", split_at_gap=limit)
    ledger = json.loads((tmp_path / "out.zarr.conversion.json").read_text())
    assert [entry["kept"] for entry in ledger["episodes"]] == [kept, [[0, STEPS]]]
    assert ledger["totals"]["gaps_split"] == len(kept) - 1
    assert [step for step, _ in ledger["episodes"][0]["split_at"]] == [end - 1 for _, end in kept[:-1]]
    assert sum("split after step" in note for note in ledger["episodes"][0]["notes"]) == len(kept) - 1
    ends = np.cumsum([end - start for start, end in [*kept, [0, STEPS]]]).tolist()
    assert ReplayBuffer.open(tmp_path / "out.zarr").episode_ends.tolist() == ends


def test_a_command_from_beyond_a_gap_does_not_count(tmp_path: Path) -> None:
    run(with_gaps(tmp_path / "in"), tmp_path / "out.zarr", split_at_gap=0.3, gripper_lead=1)
    ledger = json.loads((tmp_path / "out.zarr.conversion.json").read_text())
    assert ledger["episodes"][0]["kept"] == [[0, 2], [3, 5], [6, 7]]
    assert [run["start"] for run in ledger["episodes"][0]["dropped_steps"]] == [2, 5, 7]


def test_the_advice_is_a_command_that_splits_at_every_gap(tmp_path: Path) -> None:
    source = with_gaps(tmp_path / "in folder")
    gaps = found(inspect_recordings(source), "gaps")
    assert "--split-at-gap 0.3" in gaps.remedy
    words = shlex.split(gaps.command)
    assert words[words.index("--input") + 1] == str(source)
    limit = float(words[words.index("--split-at-gap") + 1])
    report = run(source, tmp_path / "out.zarr", split_at_gap=limit)
    assert report.totals()["gaps_split"] == 2
    assert found(inspect_dataset(tmp_path / "out.zarr"), "gaps").severity == "ok"


@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf])
def test_an_invalid_limit(tmp_path: Path, limit: float) -> None:
    with pytest.raises(ConversionError, match="expected more than 0 seconds"):
        ConversionSettings(tmp_path / "in", tmp_path / "out.zarr", split_at_gap=limit)
