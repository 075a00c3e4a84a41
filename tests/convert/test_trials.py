"""Recordings of reported situations, written by the scripts in ../shared/data/trials, through the whole converter."""

from collections.abc import Callable
from pathlib import Path

import pytest
import warm_process

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.errors import WorkspaceError

Trial = Callable[[str], Path]


@pytest.fixture
def trial(shared_data: Path, tmp_path: Path) -> Trial:
    """Writes the inputs of a trial and returns their folder."""

    def write(name: str) -> Path:
        script = shared_data / "trials" / f"{name}.py"
        warm_process.run([script, tmp_path / "in"], tmp_path).check_returncode()
        return tmp_path / "in"

    return write


def entries(source: Path, output: Path) -> dict[str, dict]:
    settings = ConversionSettings(source, output, (32, 18), on_error="skip", workers=1)
    return {entry["name"]: entry for entry in convert(settings).as_json()["episodes"]}


@pytest.mark.parametrize("name", ["01_jpeg_trailing_zeros", "02_jpeg_extraneous_bytes", "03_mjpeg_without_tables"])
def test_whole_frames_are_converted(trial: Trial, tmp_path: Path, name: str) -> None:
    found = entries(trial(name), tmp_path / "out.zarr")
    assert [entry["reason"] for entry in found.values()] == [None, None]


def test_cut_pngs_are_refused_by_name(trial: Trial, tmp_path: Path) -> None:
    found = entries(trial("04_png_truncated"), tmp_path / "out.zarr")
    assert [entry["reason"] is None for entry in found.values()] == [False, False, False, True]
    for number in range(3):
        assert "frame_0020.png: " in found[f"episode_{number:04d}"]["reason"]


@pytest.mark.parametrize(("kind", "reason"), [("depth", "a 16-bit PNG"), ("gray", None), ("rgba", None)])
def test_odd_images(trial: Trial, tmp_path: Path, kind: str, reason: str | None) -> None:
    source = trial("06_cmyk_gray_16bit") / kind
    if reason is None:
        (entry,) = entries(source, tmp_path / "out.zarr").values()
        assert entry["reason"] is None
        return
    with pytest.raises(WorkspaceError, match=reason):
        convert(ConversionSettings(source, tmp_path / "out.zarr", (32, 18), workers=1))


@pytest.mark.parametrize("kind", ["zeroed", "lost"])
def test_damaged_frames_are_refused(trial: Trial, tmp_path: Path, kind: str) -> None:
    source = trial("62_damaged_jpeg_train_vs_serve") / kind
    with pytest.raises(WorkspaceError, match=r"frame_0003\.jpg: .* a damaged JPEG"):
        convert(ConversionSettings(source, tmp_path / "out.zarr", (32, 18), workers=1))
