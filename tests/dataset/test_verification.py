"""A dataset is compared with the hashes that its conversion wrote: what differs is named by episode and array."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_factory import pack, write
from trajectory_factory import write_trajectory

from diffusion_policy.convert import ConversionError, ConversionSettings, convert
from diffusion_policy.convert.frames import Block
from diffusion_policy.dataset import verification
from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.image_codecs import LEVELS, image_codec
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.verification import Verification, verify_content

STEPS = 5
FORMS: dict[str, dict[str, Any]] = {
    f"{codec}, {name}": {"codec": image_codec(codec), **form}
    for codec in LEVELS
    for name, form in (
        ("format 2", {"zarr_format": 2}),
        ("format 3", {"zarr_format": 3}),
        ("shards", {"zarr_format": 3, "shard": 4}),
    )
    if name != "format 3" or codec in ("blosc", "jpeg")
}
ARRAYS = ("front", "wrist", "action", "robot_eef_pose", "robot_gripper_state", "timestamp")
NAMES = tuple(f"data/{key}" for key in sorted(ARRAYS))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    for number in range(3):
        write_trajectory(folder, number, n_steps=STEPS, size=(32, 18), cameras=("front", "wrist"))
    return folder


def run(source: Path, output: Path, **options: Any) -> Path:
    convert(ConversionSettings(source, output, **{"resolution": (32, 18), "workers": 1, **options}))
    return output


def verify(path: Path) -> Verification:
    return verify_content(ReplayBuffer.open(path))


def whole(n_episodes: int) -> Verification:
    frames = 2 * STEPS * n_episodes
    return Verification(n_episodes, n_episodes, frames, NAMES, cameras=("data/front", "data/wrist"))


@pytest.mark.parametrize("form", FORMS)
def test_hashes_are_of_what_a_reader_gets(source: Path, tmp_path: Path, form: str) -> None:
    """Including those of appended episodes, whose first shard holds frames of earlier ones."""
    options = FORMS[form]
    path = run(source, tmp_path / "a.zarr", max_episodes=2, **options)
    assert verify(path) == whole(2)
    run(source, path, append=True, **options)
    assert verify(path) == whole(3)
    assert verify(pack(path, tmp_path / "a.zarr.zip")) == whole(3)
    conversion: Any = ReplayBuffer.open(path).root.attrs["conversion"]
    measured = [bool(entry["psnr_db"]) for entry in conversion["episodes"] if entry["reason"] is None]
    assert measured == [not options["codec"].lossless] * 3, "what a codec loses is measured, in shards too"


@pytest.mark.parametrize("form", ["blosc, format 2", "jpeg, shards"])
def test_a_resumed_conversion_is_whole(
    source: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_policy.convert import run as run_module

    written = run_module.write_block

    def failing(block: Block) -> Any:
        if block.array.parent.parent.name == "episode_0002":
            raise OSError(28, "No space left on device")
        return written(block)

    monkeypatch.setattr(run_module, "write_block", failing)
    with pytest.raises(ConversionError, match="--resume"):
        run(source, tmp_path / "a.zarr", **FORMS[form])
    monkeypatch.setattr(run_module, "write_block", written)
    assert verify(run(source, tmp_path / "a.zarr", resume=True, **FORMS[form])) == whole(3)


# ---- rot ----

FLIPPED = ("blosc, format 2", "none, format 2", "jpeg, format 2", "jpeg, shards")


@pytest.fixture(scope="module")
def sets(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("whole")

    def made(form: str) -> Path:
        path = folder / f"{form}.zarr"
        return path if path.exists() else run(source, path, **FORMS[form])

    return made


def file_of_row(path: Path, key: str, row: int) -> Path:
    array = ReplayBuffer.open(path)[key]
    per_file = (array.shards or array.chunks)[0]
    return path / array.path / array.metadata.encode_chunk_key((row // per_file, *[0] * (array.ndim - 1)))


@pytest.mark.parametrize("form", FLIPPED)
@pytest.mark.parametrize("key", ["front", "action", "timestamp"])
def test_no_flipped_bit_passes(sets: Callable[[str], Path], tmp_path: Path, form: str, key: str) -> None:
    """Wherever it is, the dataset is refused, or the array is named, or the bit changes nothing that is read."""
    path = shutil.copytree(sets(form), tmp_path / "a.zarr")
    sound, file = ReplayBuffer.open(path).read(key), file_of_row(path, key, 6)
    packed = file.read_bytes()
    found = 0
    for at in np.linspace(0, len(packed) - 1, 5).astype(int):
        file.write_bytes(packed[:at] + bytes([packed[at] ^ 0x04]) + packed[at + 1 :])
        try:
            faults = verify(path).faults
        except DatasetError:
            continue
        if faults:
            assert {fault.array for fault in faults} == {f"data/{key}"}
            found += 1
        else:
            np.testing.assert_array_equal(ReplayBuffer.open(path).read(key), sound)
    file.write_bytes(packed)
    assert verify(path) == whole(3)
    if form == "none, format 2" and key == "front":
        assert found == 5


@pytest.mark.parametrize("form", FLIPPED)
@pytest.mark.parametrize("key", ["wrist", "robot_eef_pose", "timestamp"])
def test_the_episode_and_the_array_are_named(sets: Callable[[str], Path], tmp_path: Path, form: str, key: str) -> None:
    path = shutil.copytree(sets(form), tmp_path / "a.zarr")
    array = ReplayBuffer.open(path, mode="r+")[key]
    changed = np.array(array[6:7])
    changed.view(np.uint8)[..., -1] ^= 0x80
    array[6:7] = changed
    assert [str(fault) for fault in verify(path).faults] == [f"data/{key} of episode_0001 is not what was written"]


def test_a_frame_that_does_not_unpack_is_named(sets: Callable[[str], Path], tmp_path: Path) -> None:
    path = shutil.copytree(sets("blosc, format 2"), tmp_path / "a.zarr")
    for row in (6, 8):
        file = file_of_row(path, "wrist", row)
        file.write_bytes(file.read_bytes()[:16] + b"\xff" * (file.stat().st_size - 16))
    (fault,) = verify(path).faults
    assert str(fault) == "data/wrist of episode_0001 has frames that cannot be read: row 6, and 1 others"


def test_known_losses_are_not_read_as_zeros(sets: Callable[[str], Path], tmp_path: Path) -> None:
    path = shutil.copytree(sets("jpeg, shards"), tmp_path / "a.zarr")
    file_of_row(path, "front", 4).unlink()
    buffer = ReplayBuffer.open(path, check_files=False)
    messages = [str(fault) for fault in verify_content(buffer, buffer.file_faults()).faults]
    assert messages == [
        "data/front of episode_0000 has frames that cannot be read: row 4",
        "data/front of episode_0001 has frames that cannot be read: row 5, and 2 others",
    ]


def test_where_episodes_end_is_compared(sets: Callable[[str], Path], tmp_path: Path) -> None:
    path = shutil.copytree(sets("none, format 2"), tmp_path / "a.zarr")
    ReplayBuffer.open(path, mode="r+").set_episode_ends(np.asarray([4, 10, 15]))
    messages = [str(fault) for fault in verify(path).faults]
    assert messages == ["meta/episode_ends of episode_0000 is 4, 5 was written"]
    ReplayBuffer.open(path, mode="r+").set_episode_ends(np.asarray([5, 15]))
    assert "meta/episode_ends has 2 episodes, 3 were written" in [str(fault) for fault in verify(path).faults]


def test_rows_that_another_program_added_are_found(sets: Callable[[str], Path], tmp_path: Path) -> None:
    path = shutil.copytree(sets("none, format 2"), tmp_path / "a.zarr")
    buffer = ReplayBuffer.open(path, mode="r+")
    buffer.append({key: np.array(buffer[key][:5]) for key in buffer.keys})
    assert [str(fault) for fault in verify(path).faults] == ["meta/episode_ends has 4 episodes, 3 were written"]


@pytest.mark.parametrize("form", ["blosc, shards", "jpeg, shards"])
def test_episodes_that_were_added_have_the_hashes_that_they_would_have_had_at_once(
    sets: Callable[[str], Path], source: Path, tmp_path: Path, form: str
) -> None:
    path = run(source, tmp_path / "a.zarr", max_episodes=1, **FORMS[form])
    run(source, path, append=True, **FORMS[form])
    entries = [ReplayBuffer.open(one).root.attrs["episodes"] for one in (path, sets(form))]
    assert entries[0] == entries[1]


def edit_episodes(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    root = ReplayBuffer.open(path, mode="r+").root
    episodes: Any = root.attrs["episodes"]
    change(episodes)
    root.attrs["episodes"] = episodes


def test_rot_in_the_record_itself(sets: Callable[[str], Path], tmp_path: Path) -> None:
    path = shutil.copytree(sets("none, format 2"), tmp_path / "a.zarr")
    edit_episodes(path, lambda episodes: episodes[1].update(sha256="0" * 64))
    assert [str(fault) for fault in verify(path).faults] == [
        "the attribute content_sha256 does not follow from the hashes of the episodes",
        "the recorded hash of episode_0001 is not what was written",
    ]


def test_an_array_that_is_gone_is_named(sets: Callable[[str], Path], tmp_path: Path) -> None:
    path = shutil.copytree(sets("none, format 2"), tmp_path / "a.zarr")
    shutil.rmtree(path / "data" / "wrist")
    assert [str(fault) for fault in verify(path).faults] == [
        f"data/wrist of episode_000{number} does not exist" for number in range(3)
    ]


# ---- datasets with fewer hashes, or none ----


def without_arrays(path: Path) -> Path:
    """As recorded by earlier versions of the converter."""
    edit_episodes(path, lambda episodes: [episode.pop("arrays") for episode in episodes])
    return path


def test_one_hash_an_episode_names_the_episode(sets: Callable[[str], Path], tmp_path: Path) -> None:
    path = without_arrays(shutil.copytree(sets("jpeg, format 2"), tmp_path / "a.zarr"))
    assert verify(path) == whole(3)
    ReplayBuffer.open(path, mode="r+")["action"][6, 0] = 0.25
    assert [str(fault) for fault in verify(path).faults] == ["episode_0001 is not what was written"]


def test_hashes_from_before_the_loss_are_not_taken_for_rot(sets: Callable[[str], Path], tmp_path: Path) -> None:
    path = without_arrays(shutil.copytree(sets("jpeg, shards"), tmp_path / "a.zarr"))
    found = verify(path)
    assert (found.compared, found.faults, found.is_complete) == (0, (), False)
    assert found.not_compared == verification.BEFORE_THE_CODEC
    path = shutil.copytree(sets("jpeg, shards"), tmp_path / "b.zarr")
    edit_episodes(path, lambda episodes: episodes[0].pop("arrays"))
    found = verify(path)
    assert (found.compared, found.n_episodes, found.faults) == (2, 3, ())
    assert not found.is_complete


@pytest.mark.parametrize("form", ["format 2", "shards", "of another writer"])
def test_without_hashes_nothing_is_verified(tmp_path: Path, form: str) -> None:
    found = verify(write(tmp_path / "a.zarr", form))
    assert found == Verification(2, not_compared=verification.NO_HASHES)
    assert not found.is_complete


@pytest.mark.parametrize("entry", [None, {}, {"sha256": 3}, {"sha256": "0" * 64, "steps": [4]}, "x"])
def test_an_invalid_record_verifies_nothing(sets: Callable[[str], Path], tmp_path: Path, entry: Any) -> None:
    path = shutil.copytree(sets("none, format 2"), tmp_path / "a.zarr")
    edit_episodes(path, lambda episodes: episodes.__setitem__(1, entry))
    assert json.loads((path / ".zattrs").read_text())["episodes"][1] == entry
    assert verify(path).compared == 0


def test_another_decoder_is_distinguished_from_rot(
    sets: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only if all frames differ and other code unpacks them; not if some frames or numbers do."""
    path = shutil.copytree(sets("jpeg, format 2"), tmp_path / "a.zarr")
    monkeypatch.setattr(verification, "DECODER", "another")
    assert verify(path).is_complete
    frames = ReplayBuffer.open(path, mode="r+")["wrist"]
    frames[3] = 255 - frames[3]
    assert not verify(path).may_be_the_decoder
    for row in (6, 12):
        frames[row] = 255 - frames[row]
    assert verify(path).may_be_the_decoder
    ReplayBuffer.open(path, mode="r+")["action"][6, 0] = 0.25
    assert not verify(path).may_be_the_decoder
