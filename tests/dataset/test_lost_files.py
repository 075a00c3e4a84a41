"""No file of a dataset may be missing or truncated: opening it fails with the file's name.

Each way in which a file is lost, in each array, in each form that a dataset has.
"""

import ast
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from dataset_factory import FORMS, SHAPE_META, pack, write
from report_factory import look_at_dataset
from source_trees import walked

from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.image_codecs import LEVELS, image_codec
from diffusion_policy.dataset.joined_datasets import JoinedDatasets
from diffusion_policy.dataset.replay_buffer import ReplayBuffer, image_layout, low_dim_layout
from diffusion_policy.diagnose.inspection import inspect_dataset
from diffusion_policy.spec import POSE_GRIPPER

REPOSITORY = Path(__file__).resolve().parents[2]
ARRAYS = ("image", "wrist", "action", "robot_eef_pose", "robot_gripper_state", "timestamp", "episode_ends")


@pytest.fixture(scope="module", params=FORMS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, write(tmp_path_factory.mktemp("whole") / "set.zarr", request.param)


def a_file_of(path: Path, array: str) -> Path:
    """A file with an array's numbers, not the first one if there are several."""
    folder = path / ("meta" if array == "episode_ends" else "data") / array
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith((".z", "zarr")))
    return files[len(files) // 2]


def linked_nowhere(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.parent / "unmounted")


def made_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


LOSSES: dict[str, Callable[[Path], Any]] = {
    "absent": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "a link that leads nowhere": linked_nowhere,
    "a folder": made_a_folder,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_lost_file_is_refused_by_name(whole: tuple[str, Path], tmp_path: Path, loss: str) -> None:
    path = shutil.copytree(whole[1], tmp_path / "set.zarr")
    for array in ARRAYS:
        file = a_file_of(path, array)
        content = file.read_bytes()
        LOSSES[loss](file)
        what = "is empty" if loss == "empty" else "does not exist"
        with pytest.raises(DatasetError, match=rf"{file}.* {what}.*: nothing is read in its place"):
            ReplayBuffer.open(path)
        file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
        file.write_bytes(content)
    ReplayBuffer.open(path)


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("share", [0.5, pytest.param(0.95, marks=pytest.mark.exhaustive)])
def test_a_cut_file_is_refused_by_name(whole: tuple[str, Path], tmp_path: Path, array: str, share: float) -> None:
    form, path = whole[0], shutil.copytree(whole[1], tmp_path / "set.zarr")
    file = a_file_of(path, array)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    if form == "of another writer" and array in ("image", "wrist"):  # whose frames do not store their length
        buffer = ReplayBuffer.open(path)
        codes = [finding.code for finding in inspect_dataset(path).findings if finding.severity == "error"]
        assert "undecodable" in codes
        assert array in buffer.cameras
        return
    with pytest.raises(DatasetError, match=rf"{file}.*(does not unpack|has \d+ bytes|is truncated|lacks)"):
        ReplayBuffer.open(path).read(array)


@pytest.mark.parametrize("array", ["image", "action", "episode_ends"])
def test_a_file_that_grew_is_refused(whole: tuple[str, Path], tmp_path: Path, array: str) -> None:
    path = shutil.copytree(whole[1], tmp_path / "set.zarr")
    file = a_file_of(path, array)
    with file.open("ab") as appended:
        appended.truncate(2**22)
    with pytest.raises(DatasetError, match=rf"{file}"):
        ReplayBuffer.open(path).read(array)


@pytest.mark.parametrize("array", ["action", "robot_eef_pose", "robot_gripper_state", "timestamp", "episode_ends"])
def test_numbers_that_do_not_unpack_are_named(whole: tuple[str, Path], tmp_path: Path, array: str) -> None:
    path = shutil.copytree(whole[1], tmp_path / "set.zarr")
    file = a_file_of(path, array)
    content = file.read_bytes()
    kept = min(16, len(content) // 2)
    file.write_bytes(content[:kept] + b"\xff" * (len(content) - kept))
    with pytest.raises(DatasetError, match=rf"{file}.* does not unpack|does not increase|has \d+ bytes"):
        ReplayBuffer.open(path).read(array)


@pytest.mark.parametrize("form", ["shards", "jpeg shards"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_a_rotten_index_of_a_shard_is_refused_when_opened(tmp_path: Path, form: str, packed: bool) -> None:
    """Wherever the bit is: in an offset, a length, the entries of rows not yet written, or the checksum."""
    path = write(tmp_path / "set.zarr", form)
    file = path / "data" / "wrist" / "c" / "2" / "0" / "0" / "0"
    content = file.read_bytes()
    for back in (1, 5, 12, 65, 8 * 16 + 4):
        file.write_bytes(content[:-back] + bytes([content[-back] ^ 1]) + content[len(content) - back + 1 :])
        place = pack(path, tmp_path / "set.zarr.zip") if packed else path
        with pytest.raises(DatasetError, match=r"data/wrist/c/2/0/0/0 .*its index is damaged: it fails its CRC-32C"):
            ReplayBuffer.open(place)
    file.write_bytes(content)
    ReplayBuffer.open(path)


@pytest.mark.parametrize("location", ["start", "end"])
def test_the_index_of_a_shard_is_looked_at_where_it_lies(tmp_path: Path, location: str) -> None:
    """Other writers may put it first."""
    path = write(tmp_path / "set.zarr", "format 3")
    options: dict[str, Any] = {"shards": {"shape": (10, 7), "index_location": location}, "chunks": (5, 7)}
    data = zarr.open_group(str(path / "data"))
    rows = np.array(ReplayBuffer.open(path)["robot_eef_pose"][:])
    array = data.create_array("robot_eef_pose", shape=rows.shape, dtype=rows.dtype, overwrite=True, **options)
    array[:] = rows
    np.testing.assert_array_equal(ReplayBuffer.open(path).read("robot_eef_pose"), rows)
    file = path / "data" / "robot_eef_pose" / "c" / "1" / "0"
    content = bytearray(file.read_bytes())
    content[9 if location == "start" else -12] ^= 2
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"robot_eef_pose/c/1/0 \(rows 10 to 19\) .*CRC-32C"):
        ReplayBuffer.open(path)


READERS: dict[str, Callable[[Path], Any]] = {
    "training": lambda path: CogActImageDataset(SHAPE_META, str(path), 4, 1, 3, 2),
    "open loop": JoinedDatasets,
    "a window of it": lambda path: ReplayBuffer.open(path)["image"],
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("array", ARRAYS)
def test_no_reader_continues(tmp_path: Path, reader: str, array: str) -> None:
    path = write(tmp_path / "set.zarr", "format 2")
    READERS[reader](path)
    file = a_file_of(path, array)
    file.unlink()
    with pytest.raises(DatasetError, match=rf"{file}.* does not exist"):
        READERS[reader](path)


@pytest.mark.parametrize("array", ["image", "wrist"])
def test_the_checks_list_lost_frames_and_continue(tmp_path: Path, array: str) -> None:
    path = write(tmp_path / "set.zarr", "format 2")
    for row in (3, 11):
        (path / "data" / array / f"{row}.0.0.0").unlink()
    evidence = look_at_dataset(path)
    assert evidence.missing_frames == 2
    inspection = inspect_dataset(path)
    assert inspection.exit_status == 1
    (found,) = [finding for finding in inspection.findings if finding.code == "images"]
    assert f"2 frame files are missing or truncated: data/{array}/3.0.0.0 does not exist" in found.evidence
    assert all(not camera.black for camera in inspection.details.cameras), "a lost frame is no black one"


@pytest.mark.parametrize("array", ["action", "timestamp"])
def test_the_checks_refuse_lost_numbers(tmp_path: Path, array: str) -> None:
    path = write(tmp_path / "set.zarr", "format 2")
    a_file_of(path, array).unlink()
    with pytest.raises(DatasetError, match=f"data/{array}/.* does not exist"):
        inspect_dataset(path)


def metadata_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name.startswith((".z", "zarr")))


UNRECOGNIZED = (b"{}", b"null")


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"null", b"\xff\xfe", b'{"zarr_format": 9}'])
@pytest.mark.parametrize("form", ["format 2", "format 3"])
def test_damaged_metadata_is_one_error(tmp_path: Path, form: str, content: bytes) -> None:
    whole = write(tmp_path / "whole.zarr", form)
    for file in metadata_of(whole):
        if file.name == ".zattrs" and content in (b"{}", b"null", b'{"zarr_format": 9}'):
            continue  # other attributes, or none
        if file.parent.name in ("timestamp", "wrist", "whole.zarr") and content in UNRECOGNIZED:
            continue  # zarr does not recognize it as an array, and training does not need this one
        undamaged = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(DatasetError) as caught:
            CogActImageDataset(SHAPE_META, str(whole), 4, 1, 3, 2)
        assert "\n" not in str(caught.value), file
        file.write_bytes(undamaged)
    CogActImageDataset(SHAPE_META, str(whole), 4, 1, 3, 2)


def test_lost_attributes_of_a_converted_dataset_are_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "set.zarr", "format 2")
    (tmp_path / "set.zarr.conversion.json").write_text(json.dumps({"content_sha256": "x"}))
    ReplayBuffer.open(path)
    (path / ".zattrs").unlink()
    with pytest.raises(DatasetError, match=r"set\.zarr/\.zattrs is missing or empty"):
        ReplayBuffer.open(path)


def test_the_way_out_for_chunks_that_were_zeros_runs_as_printed(tmp_path: Path) -> None:
    """zarr 3 omits chunks of zeros by default, which the public code did not have to consider."""
    path = write(tmp_path / "it's a set.zarr", "of another writer")
    a_file_of(path, "robot_gripper_state").unlink()
    with pytest.raises(DatasetError, match="Only if it was all zeros when it was written") as caught:
        ReplayBuffer.open(path)
    command = str(caught.value).rsplit("write the zeros: ", 1)[1]
    subprocess.run(["bash", "-c", command], check=True, cwd=REPOSITORY)
    assert shlex.split(command)[1] == "-c"
    buffer = ReplayBuffer.open(path)
    assert not buffer.read("robot_gripper_state")[10:15].any()
    assert buffer.read("robot_gripper_state")[:5].any()


def test_the_way_out_is_not_offered_for_our_own_datasets(tmp_path: Path) -> None:
    path = write(tmp_path / "set.zarr", "format 2")
    a_file_of(path, "action").unlink()
    with pytest.raises(DatasetError) as caught:
        ReplayBuffer.open(path)
    assert "zeros" not in str(caught.value)


# jpeg2k turns black into gray level 14, at any quality.
@pytest.mark.parametrize("codec", sorted(set(LEVELS) - {"jpeg2k"}))
@pytest.mark.parametrize("form", [(2, None), (3, None), (3, 8)])
def test_frames_of_zeros_are_stored_and_read(tmp_path: Path, codec: str, form: tuple[int, int | None]) -> None:
    layout = {"image": image_layout(32, 18, image_codec(codec), form[1]), "action": low_dim_layout(POSE_GRIPPER)}
    buffer = ReplayBuffer.create(tmp_path / "a.zarr", layout, zarr_format=form[0])
    buffer.append({"image": np.zeros((10, 18, 32, 3), np.uint8), "action": np.zeros((10, 8), np.float32)})
    assert not ReplayBuffer.open(tmp_path / "a.zarr").read("image").any()


OPENERS = {"zarr.open_group", "zarr.open", "zarr.load", "zarr.open_array"}


def test_datasets_are_opened_in_one_way() -> None:
    """All readers of datasets use `ReplayBuffer.open`, which looks for lost files."""
    allowed = {"dataset/opening.py", "dataset/replay_buffer.py"}
    for file in (REPOSITORY / "diffusion_policy").rglob("*.py"):
        name = str(file.relative_to(REPOSITORY / "diffusion_policy"))
        calls = [node for node in walked(file) if isinstance(node, ast.Call)]
        opens = {ast.unparse(call.func) for call in calls} & OPENERS
        # The converter's staged frames are not yet a dataset.
        assert not opens or name in allowed or name.startswith("convert/"), f"{name} calls {opens}"
