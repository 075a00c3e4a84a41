"""Frames of several sizes, aspect ratios or EXIF orientations in one set: refused with their names, or accepted."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from printed import printed
from trajectory_factory import draw_frame, write_trajectory

from diffusion_policy.convert import ConversionReport, ConversionSettings, convert
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.sources import recorded_sizes
from diffusion_policy.diagnose.findings import Finding
from diffusion_policy.diagnose.gravest import gravest_of_dataset
from diffusion_policy.diagnose.inspection import Inspection, inspect_dataset, inspect_recordings
from diffusion_policy.errors import WorkspaceError

STEPS, SIZE = 6, (64, 36)
Change = Callable[[bytes], bytes]


def turned(orientation: int) -> Change:
    """The same pixels with an EXIF orientation."""
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    segment = b"Exif\0\0" + tiff
    return lambda data: data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def sized(width: int, height: int) -> Change:
    return lambda data: cv2.imencode(".jpg", draw_frame(1, STEPS, (width, height)))[1].tobytes()


CHANGES: dict[str, tuple[Change, str]] = {
    "twice the size": (sized(128, 72), "differ in size: 64x36 .*128x72"),
    "4:3": (sized(48, 36), "differ in aspect ratio: 64x36 .*48x36"),
    "upright": (sized(36, 64), "differ in aspect ratio: 64x36 .*36x64"),
    "turned by 90 degrees": (
        turned(6),
        "aspect ratio and EXIF orientation: 64x36 .*36x64 turned by EXIF orientation 6",
    ),
    "turned by 180 degrees": (turned(3), "differ in EXIF orientation: 64x36 .*64x36 turned by EXIF orientation 3"),
    "mirrored": (turned(2), "differ in EXIF orientation: 64x36 .*turned by EXIF orientation 2"),
}


@pytest.fixture(params=CHANGES)
def kind(request: pytest.FixtureRequest) -> tuple[Change, str]:
    return CHANGES[request.param]


def recordings(source: Path, change: Change, episode: int = 1, frames: range = range(STEPS)) -> Path:
    """Three episodes, in one of which some frames are changed."""
    for number in (0, 1, 2):
        write_trajectory(source, number, n_steps=STEPS, size=SIZE)
    for number in frames:
        file = source / f"episode_{episode:04d}" / "images" / f"frame_{number:04d}.jpg"
        file.write_bytes(change(file.read_bytes()))
    return source


def run(source: Path, output: Path, **settings: Any) -> ConversionReport:
    return convert(ConversionSettings(source, output, (32, 18), workers=1, **settings))


def frame_sizes(inspection: Inspection) -> Finding | None:
    return next((found for found in inspection.findings if found.code == "frame-sizes"), None)


def says(message: str, text: str) -> None:
    with pytest.raises(WorkspaceError, match=message):
        raise WorkspaceError(text)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_an_episode_of_another_kind(kind: tuple[Change, str], tmp_path: Path, on_error: Any) -> None:
    change, message = kind
    source = recordings(tmp_path / "in", change)
    with pytest.raises(WorkspaceError, match=message + r".*episode_0001/images/frame_0000\.jpg.*--mixed-frames accept"):
        run(source, tmp_path / "out.zarr", on_error=on_error)
    assert not (tmp_path / "out.zarr").exists()


def test_frames_of_another_kind_amid_others(kind: tuple[Change, str], tmp_path: Path) -> None:
    change, message = kind
    source = recordings(tmp_path / "in", change, frames=range(3, 5))
    named = message + r" \(2, the first episode_0001/images/frame_0003\.jpg\).*--mixed-frames accept"
    with pytest.raises(WorkspaceError, match=named):
        run(source, tmp_path / "out.zarr")
    report = run(source, tmp_path / "out.zarr", on_error="skip")
    assert [entry.name for entry in report.kept] == ["episode_0000", "episode_0002"]
    says(named, str(report.dropped[0].reason))


def test_accepted(kind: tuple[Change, str], tmp_path: Path) -> None:
    change, message = kind
    source = recordings(tmp_path / "in", change, frames=range(3, 5))
    run(source, tmp_path / "out.zarr", mixed_frames="accept")
    ledger = json.loads((tmp_path / "out.zarr.conversion.json").read_text())
    says(message, ledger["episodes"][1]["notes"][-1])
    assert [kind["count"] for kind in ledger["episodes"][1]["frame_kinds"]["image"]] == [4, 2]
    assert ledger["episodes"][1]["frame_size"]["image"] == list(SIZE)
    found = frame_sizes(inspect_dataset(tmp_path / "out.zarr"))
    assert found is not None
    assert found.severity == "warning"
    says(message, found.evidence)
    assert any("before the conversion, frames" in line for line in gravest_of_dataset(tmp_path / "out.zarr"))


def test_inspection_finds_what_the_converter_refuses(kind: tuple[Change, str], tmp_path: Path) -> None:
    change, message = kind
    found = frame_sizes(inspect_recordings(recordings(tmp_path / "in", change, frames=range(3, 5))))
    assert found is not None
    assert found.severity == "error"
    says(message + r" \(2, the first .*episode_0001/images/frame_0003\.jpg\)", found.evidence)
    assert "--mixed-frames accept" in found.remedy


def test_a_dataset_from_before_there_was_a_choice(tmp_path: Path) -> None:
    run(recordings(tmp_path / "in", sized(48, 36)), tmp_path / "out.zarr", mixed_frames="accept")
    root = ReplayBuffer.open(tmp_path / "out.zarr", mode="r+").root
    conversion: Any = root.attrs["conversion"]
    del conversion["settings"]["mixed_frames"]
    for entry in conversion["episodes"]:
        del entry["frame_kinds"], entry["frame_notes"]
    root.attrs["conversion"] = conversion
    found = frame_sizes(inspect_dataset(tmp_path / "out.zarr"))
    assert found is not None
    assert found.severity == "error"
    says("aspect ratio: 64x36 .*48x36 .*episode_0001", found.evidence)


@pytest.mark.parametrize("change", [turned(3), turned(6), sized(48, 36)])
def test_equal_ones_are_not_a_mixture(tmp_path: Path, change: Change) -> None:
    source = tmp_path / "in"
    for number in (0, 1, 2):
        write_trajectory(source, number, n_steps=STEPS, size=SIZE)
        for file in (source / f"episode_{number:04d}" / "images").iterdir():
            file.write_bytes(change(file.read_bytes()))
    assert len(run(source, tmp_path / "out.zarr").kept) == 3
    assert frame_sizes(inspect_recordings(source)) is None
    assert frame_sizes(inspect_dataset(tmp_path / "out.zarr")) is None


def test_appending_another_kind(tmp_path: Path) -> None:
    write_trajectory(tmp_path / "first", 0, n_steps=STEPS, size=SIZE)
    write_trajectory(tmp_path / "second", 1, n_steps=STEPS, size=(48, 36))
    run(tmp_path / "first", tmp_path / "out.zarr")
    with pytest.raises(WorkspaceError, match=r"aspect ratio: 64x36 .*48x36"):
        run(tmp_path / "second", tmp_path / "out.zarr", append=True)
    report = run(tmp_path / "second", tmp_path / "out.zarr", append=True, mixed_frames="accept")
    assert len(report.kept) == 2
    buffer = ReplayBuffer.open(tmp_path / "out.zarr")
    assert recorded_sizes(buffer, ["image"]) == {"image": ((48, 36), (64, 36))}


def test_depth_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    folder = write_trajectory(tmp_path / "in", 0, n_steps=STEPS, size=SIZE, cameras=("color", "depth"))
    for file in (folder / "images" / "depth").iterdir():
        cv2.imwrite(str(file.with_suffix(".png")), np.full((36, 64), 900, np.uint16))
        file.unlink()
    with pytest.raises(WorkspaceError, match=r"depth/frame_0000\.png: a 16-bit PNG \(gray, as depth cameras write\)"):
        run(tmp_path / "in", tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr.partial").exists()


NOTED: dict[str, tuple[Change, str]] = {
    "padding": (lambda data: data + bytes(512), "bytes after the end marker"),
    "stray bytes": (lambda data: data[:-2] + b"\x12\x34\x56" * 9 + data[-2:], "stray bytes before a marker"),
    "no end marker": (lambda data: data[:-2], "no end marker"),
    "gray": (
        lambda data: cv2.imencode(".jpg", cv2.cvtColor(draw_frame(2, STEPS, SIZE), cv2.COLOR_BGR2GRAY))[1].tobytes(),
        "gray",
    ),
}


@pytest.mark.parametrize("name", NOTED)
def test_odd_frames_are_counted(tmp_path: Path, name: str) -> None:
    change, note = NOTED[name]
    source = recordings(tmp_path / "in", change, frames=range(2, 5))
    report = run(source, tmp_path / "out.zarr")
    ledger = json.loads((tmp_path / "out.zarr.conversion.json").read_text())
    assert [entry["frame_notes"] for entry in ledger["episodes"]] == [{}, {"image": {note: 3}}, {}]
    assert ledger["totals"]["frames_noted"] == {note: 3}
    assert f"frames accepted with a note: 3 with {note}" in printed(report.table())
    found = {finding.code: finding for finding in inspect_recordings(source).findings}["odd-frames"]
    assert (found.severity, found.evidence) == ("note", f"frames accepted with a note: 3 with {note}")


def test_a_frame_that_two_steps_show_is_counted_once(tmp_path: Path) -> None:
    index = np.asarray([0, 1, 1, 0, 1, 2], np.int64)
    folder = write_trajectory(tmp_path / "in", 0, n_steps=STEPS, size=SIZE, arrays={"image_index": index})
    for file in (folder / "images").iterdir():
        file.write_bytes(file.read_bytes() + bytes(100))
    run(tmp_path / "in", tmp_path / "out.zarr")
    ledger = json.loads((tmp_path / "out.zarr.conversion.json").read_text())
    assert ledger["totals"]["frames_noted"] == {"bytes after the end marker": 3}
