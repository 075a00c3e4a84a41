"""A broken link (to a disk that is not mounted) is a bad episode like any other: an error, or in the ledger."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from trajectory_factory import write_trajectory

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.diagnose.inspection import inspect_recordings
from diffusion_policy.errors import WorkspaceError

STEPS, SIZE = 6, (64, 36)
NOWHERE = "/not-mounted/disk"


def to_nowhere(name: str) -> Callable[[Path], None]:
    """Replaces a file or folder of the episode ("" for the episode itself) with a link to a missing disk."""

    def damage(episode: Path) -> None:
        file = episode / name
        file.rename(episode.parent.parent / "aside")
        file.symlink_to(f"{NOWHERE}/{file.name}")

    return damage


def to_itself(episode: Path) -> None:
    episode.rename(episode.parent.parent / "aside")
    episode.symlink_to(episode)


def with_cameras(episode: Path) -> None:
    """One of its two cameras is on the disk."""
    (episode / "images").rename(episode / "front")
    (episode / "images").mkdir()
    (episode / "front").rename(episode / "images" / "front")
    (episode / "images" / "wrist").symlink_to(f"{NOWHERE}/wrist")


def frame_of_a_camera(episode: Path) -> None:
    (episode / "images").rename(episode / "front")
    (episode / "images").mkdir()
    (episode / "front").rename(episode / "images" / "front")
    to_nowhere("images/front/frame_0002.jpg")(episode)


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "the episode": (to_nowhere(""), "episode_0001: is a link to"),
    "a link to itself": (to_itself, r"episode_0001: is a link to .*Too many levels of symbolic links"),
    "data.pkl": (to_nowhere("data.pkl"), r"data\.pkl: is a link to"),
    "the images": (to_nowhere("images"), "images: is a link to"),
    "a frame": (to_nowhere("images/frame_0003.jpg"), r"frame_0003\.jpg: is a link to"),
    "a camera": (with_cameras, "wrist: is a link to"),
    "a frame of a camera": (frame_of_a_camera, r"frame_0002\.jpg: is a link to"),
    "a file": (
        lambda episode: (episode.rename(episode.parent.parent / "aside"), episode.write_text("x"))[1],
        "episode_0001: is a file; expected a folder",
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    damage, message = KINDS[request.param]
    for number in (0, 1, 2):
        write_trajectory(tmp_path / "in", number, n_steps=STEPS, size=SIZE)
    damage(tmp_path / "in" / "episode_0001")
    return tmp_path / "in", message


def test_it_ends_the_conversion_or_is_in_the_ledger(kind: tuple[Path, str], tmp_path: Path) -> None:
    source, message = kind
    with pytest.raises(WorkspaceError, match=message):
        convert(ConversionSettings(source, tmp_path / "out.zarr", (32, 18), workers=1))
    convert(ConversionSettings(source, tmp_path / "out.zarr", (32, 18), workers=1, on_error="skip"))
    ledger = json.loads((tmp_path / "out.zarr.conversion.json").read_text())
    assert [entry["reason"] is None for entry in ledger["episodes"]] == [True, False, True]
    with pytest.raises(WorkspaceError, match=message):
        raise WorkspaceError(ledger["episodes"][1]["reason"])
    assert ledger["totals"]["episodes"] == 3


def test_inspection_names_it(kind: tuple[Path, str]) -> None:
    source, message = kind
    found = {finding.code: finding for finding in inspect_recordings(source).findings}["recordings"]
    assert found.severity == "error"
    with pytest.raises(WorkspaceError, match=message):
        raise WorkspaceError(found.evidence)


def test_a_folder_of_another_name(tmp_path: Path) -> None:
    for name in ("demo_0000", "demo_0001", "demo_0002"):
        write_trajectory(tmp_path / "x", 0, n_steps=STEPS, size=SIZE).rename(tmp_path / name)
        (tmp_path / "x").rmdir()
    (tmp_path / "in").mkdir()
    for name in ("demo_0000", "demo_0002"):
        (tmp_path / name).rename(tmp_path / "in" / name)
    (tmp_path / "in" / "demo_0001").symlink_to(f"{NOWHERE}/demo_0001")
    (tmp_path / "in" / "latest").symlink_to("nothing")
    (tmp_path / "in" / "demo_0002" / "data.pkl").rename(tmp_path / "aside")
    (tmp_path / "in" / "demo_0002" / "data.pkl").symlink_to(f"{NOWHERE}/data.pkl")
    report = convert(ConversionSettings(tmp_path / "in", tmp_path / "out.zarr", (32, 18), workers=1, on_error="skip"))
    assert [entry.name for entry in report.kept] == ["demo_0000"]
    assert [entry.name for entry in report.dropped] == ["demo_0001", "demo_0002"]


def test_the_folder_of_recordings(tmp_path: Path) -> None:
    (tmp_path / "in").symlink_to(NOWHERE)
    with pytest.raises(WorkspaceError, match=r"in: is a link to /not-mounted/disk.*mount the disk"):
        convert(ConversionSettings(tmp_path / "in", tmp_path / "out.zarr", (32, 18), workers=1))


def test_when_all_are_left_out_the_reason_is_reported(tmp_path: Path) -> None:
    write_trajectory(tmp_path / "in", 1, n_steps=STEPS, size=SIZE)
    to_nowhere("data.pkl")(tmp_path / "in" / "episode_0001")
    settings = ConversionSettings(tmp_path / "in", tmp_path / "out.zarr", (32, 18), workers=1, on_error="skip")
    with pytest.raises(WorkspaceError, match=r"no episode is left to convert: 1 were left out, the first: .*data\.pkl"):
        convert(settings)


def test_the_links_of_the_trial(trial: Callable[..., Path], tmp_path: Path) -> None:
    source = trial("15") / "set"
    report = convert(ConversionSettings(source, tmp_path / "out.zarr", (32, 18), workers=1, on_error="skip"))
    assert [entry.name for entry in report.kept] == ["episode_0000", "episode_0001"]
    assert [entry.name for entry in report.dropped] == ["episode_0002", "episode_0003"]
