"""Bit rot: bytes that differ from what was written are found and named by every reader of weights."""

import ast
import hashlib
import json
import logging
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_run
import torch
import weight_readers
from omegaconf import OmegaConf
from safetensors.torch import save_file
from source_trees import walked
from weight_readers import READERS, Reader, World

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.tensor_file import TensorFileError, open_tensor_file
from diffusion_policy.tensor_file import integrity as integrity_module
from diffusion_policy.tensor_file.torch_zip import read_torch_zip
from diffusion_policy.workspace.train_vpt_ppo_workspace import TrainVPTPPOWorkspace
from diffusion_policy.workspace.vpt_start import open_pretrained

PACKAGE = Path(__file__).resolve().parents[1] / "diffusion_policy"
OPENERS = {"read_checkpoint", "load_policy", "open_tensor_file", "read_torch_zip", "read_torch"}


def flip(path: Path, at: int) -> None:
    """Flips one bit of one byte."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def place_of(path: Path, record: str) -> int:
    """Returns the position of a record's first byte."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(record)
        with path.open("rb") as file:
            file.seek(info.header_offset + 26)
            lengths = file.read(4)
        return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def records_of(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [info.filename for info in archive.infolist() if info.file_size]


# ---- an archive's records ----

CONTENT = {"a": torch.arange(5.0), "deep": {"b": torch.ones(3, 4), "same": torch.zeros(2)}, "epoch": 3, "text": "words"}
RECORDS = [
    "data.pkl",
    "data/0",
    "data/1",
    "data/2",
    "byteorder",
    "version",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save(CONTENT, path)
    return path


def test_the_records_are_all_those_that_pytorch_writes(archive: Path) -> None:
    assert {name.removeprefix("weights/") for name in records_of(archive)} <= set(RECORDS)


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("record", RECORDS)
def test_a_flipped_byte_in_any_record_is_named(archive: Path, record: str, where: str) -> None:
    name = f"weights/{record}"
    if name not in records_of(archive):
        pytest.skip(f"this version of PyTorch writes no {record}")
    with zipfile.ZipFile(archive) as file:
        size = file.getinfo(name).file_size
    flip(archive, place_of(archive, name) + (0 if where == "first" else size - 1))
    with pytest.raises(TensorFileError) as caught:
        read_torch_zip(archive)
    assert str(caught.value).startswith(f"{archive}: it is damaged: 1 of its {len(records_of(archive))} records is not")
    assert f"'{name}'" in str(caught.value)
    assert "has the CRC-32" in str(caught.value)
    assert integrity_module.REMEDY in str(caught.value)
    with pytest.raises(WorkspaceError):
        open_tensor_file(archive).integrity.check()


def test_a_storage_is_named_with_the_tensor_that_it_holds(archive: Path) -> None:
    flip(archive, place_of(archive, "weights/data/1"))
    with pytest.raises(TensorFileError, match=r"'weights/data/1' \(deep\.b\) has the CRC-32 [0-9a-f]{8}, written was"):
        read_torch_zip(archive)


def test_tensors_are_checked_one_by_one_when_they_are_asked_for(archive: Path) -> None:
    flip(archive, place_of(archive, "weights/data/1"))
    file = open_tensor_file(archive)
    assert torch.equal(file.load("a"), CONTENT["a"])
    with pytest.raises(TensorFileError, match=r"deep\.b"):
        file.load("deep.b")
    assert file.integrity.describe() == "6 of 9 records were not compared with their CRC-32"


def test_many_faults_are_counted_and_some_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save([torch.full((4,), float(i)) for i in range(9)], path)
    for i in range(5):
        flip(path, place_of(path, f"weights/data/{i}"))
    with pytest.raises(TensorFileError, match=r"5 of its \d+ records are not what was written: .*; and 2 more\."):
        read_torch_zip(path)


def is_refused(path: Path, content: bytes) -> bool:
    """Whether a file of these bytes is refused; if it is not, it holds what was written."""
    path.write_bytes(content)
    try:
        found = read_torch_zip(path).content
    except WorkspaceError:
        return True
    assert found["n"] == 3
    assert torch.equal(found["a"], torch.arange(3.0))
    return False


@pytest.fixture
def small(tmp_path: Path) -> bytes:
    torch.save({"a": torch.arange(3.0), "n": 3}, tmp_path / "w.pt")
    return (tmp_path / "w.pt").read_bytes()


def test_whatever_byte_rots_the_content_is_the_same_or_it_is_refused(tmp_path: Path, small: bytes) -> None:
    """Headers, directory and padding too: bytes that no checksum covers must not change what is read."""
    rotten = (small[:at] + bytes([small[at] ^ 0x10]) + small[at + 1 :] for at in range(len(small)))
    assert sum(is_refused(tmp_path / "w.pt", content) for content in rotten) > 500


def test_wherever_it_is_cut_the_content_is_the_same_or_it_is_refused(tmp_path: Path, small: bytes) -> None:
    """The rest missing, or zeros, as after an aborted download."""
    for size in range(0, len(small), 7):
        assert is_refused(tmp_path / "w.pt", small[:size])
        assert is_refused(tmp_path / "w.pt", small[:size] + bytes(len(small) - size)) or size > len(small) - 22


def test_nothing_but_the_packing_differs_and_rot_is_found(archive: Path, tmp_path: Path) -> None:
    """Archives that another program packed: stored with 64-bit sizes are read, compressed ones never."""
    with zipfile.ZipFile(archive) as source:
        contents = {info.filename: source.read(info) for info in source.infolist()}
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = tmp_path / f"packed{compression}.pt"
        with zipfile.ZipFile(path, "w", compression) as target:
            for name, data in contents.items():
                with target.open(zipfile.ZipInfo(name) if compression == 0 else name, "w", force_zip64=True) as record:
                    record.write(data)
        if compression == zipfile.ZIP_STORED:
            assert torch.equal(read_torch_zip(path).content["a"], CONTENT["a"])
        flip(path, place_of(path, "weights/data/1"))
        with pytest.raises(TensorFileError, match=r"weights/data/1|compressed.*pack it without compression"):
            read_torch_zip(path)


def test_an_archive_without_checksums_is_read_and_reported(tmp_path: Path, caplog) -> None:
    path = tmp_path / "weights.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENT, path)
    finally:
        torch.serialization.set_crc32_options(True)
    with caplog.at_level(logging.WARNING):
        read_torch_zip(path)
    assert f"{path}: written without checksums" in caplog.text
    file = open_tensor_file(path)
    assert torch.equal(file.load("a"), CONTENT["a"])
    assert file.integrity.describe().startswith("written without checksums")


def test_a_sector_that_cannot_be_read_is_an_error_with_a_name(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at, pread = place_of(archive, "weights/data/1"), os.pread

    def broken(descriptor: int, size: int, offset: int) -> bytes:
        if offset == at:
            raise OSError(5, "Input/output error")
        return pread(descriptor, size, offset)

    monkeypatch.setattr(integrity_module.os, "pread", broken)
    with pytest.raises(TensorFileError, match=r"'weights/data/1' \(deep\.b\) cannot be read \(Input/output error\)"):
        read_torch_zip(archive)


def test_a_checkpoint_that_is_replaced_meanwhile_is_read_whole(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training replaces latest.ckpt; the mapping and the checks must use the same file."""
    from diffusion_policy.tensor_file import torch_zip

    newer = tmp_path / "newer.pt"
    torch.save({**CONTENT, "a": torch.arange(7.0)}, newer)
    locate, replaced = torch_zip._read_directory, []

    def replacing(file, where):
        entries = locate(file, where)
        if not replaced:
            replaced.append(os.replace(newer, archive))
        return entries

    monkeypatch.setattr(torch_zip, "_read_directory", replacing)
    assert len(read_torch_zip(archive).content["a"]) == 7


# ---- files without checksums of their own ----


def by_sum(folder: Path, name: str, digest: str) -> None:
    (folder / f"{name}.sha256").write_text(f"{digest}  {name}\n")


def by_bare_sum(folder: Path, name: str, digest: str) -> None:
    (folder / f"{name}.sha256").write_text(f"{digest.upper()}\n")


def by_list(folder: Path, name: str, digest: str) -> None:
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  other\n{digest} *./{name}\n")


def by_ledger(folder: Path, name: str, digest: str) -> None:
    (folder / "a.ledger.json").write_text(json.dumps({"source": {"name": "other", "sha256": "1" * 64}}))
    (folder / "b.ledger.json").write_text(json.dumps({"source": {"name": name, "sha256": digest}}))
    (folder / "c.ledger.json").write_text("[")


def by_download(folder: Path, name: str, digest: str) -> None:
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / f"{name}.metadata").write_text(f"{'a' * 40}\n{digest}\n1700000000.0\n")


def by_blob(folder: Path, name: str, digest: str) -> None:
    blobs = folder / "blobs"
    blobs.mkdir()
    (folder / name).rename(blobs / digest)
    (folder / name).symlink_to(blobs / digest)


SIDECARS = [by_sum, by_bare_sum, by_list, by_ledger, by_download, by_blob]


@pytest.mark.parametrize("record", SIDECARS, ids=lambda record: record.__name__)
def test_a_recorded_hash_is_compared_when_tensors_are_read(tmp_path: Path, record) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.arange(4.0)}, path)
    record(tmp_path, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    file = open_tensor_file(path)
    assert "compared when its tensors are read" in file.integrity.describe()
    assert torch.equal(file.load("w"), torch.arange(4.0))
    assert file.integrity.describe().startswith("has the SHA-256 recorded by ")
    flip(path, path.stat().st_size - 1)
    rotten = open_tensor_file(path)
    assert list(rotten.tensors) == ["w"], "names and shapes come from the header"
    for read in (lambda: rotten.load("w"), rotten.integrity.check):
        with pytest.raises(
            TensorFileError, match=r"it is not what .* recorded: its SHA-256 is .*damaged or was replaced"
        ):
            read()


def test_a_missing_recorded_hash_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.arange(4.0)}, path)
    (tmp_path / "other.safetensors.sha256").write_text("0" * 64)
    assert open_tensor_file(path).integrity.describe().startswith("no checksum")
    open_tensor_file(path).load("w")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in (1, 2):
        save_file({f"w{number}": torch.full((3,), float(number))}, folder / f"model-{number}.safetensors")
    weight_map = {f"w{number}": f"model-{number}.safetensors" for number in (1, 2)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_each_shard_has_its_own_hash(shards: Path) -> None:
    for number in (1, 2):
        path = shards / f"model-{number}.safetensors"
        by_sum(shards, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    flip(shards / "model-2.safetensors", (shards / "model-2.safetensors").stat().st_size - 1)
    file = open_tensor_file(shards)
    assert file.load("w1")[0] == 1
    with pytest.raises(TensorFileError, match=r"model-2\.safetensors: it is not what .*model-2\.safetensors\.sha256"):
        file.load("w2")


@pytest.mark.parametrize("opened", ["", "model.safetensors.index.json"])
def test_shards_have_the_hash_that_a_ledger_recorded_for_all_of_them(shards: Path, opened: str) -> None:
    path = shards / opened if opened else shards
    by_ledger(path.parent, path.name, open_tensor_file(path).sha256())
    assert open_tensor_file(path).load("w1")[0] == 1
    flip(shards / "model-2.safetensors", (shards / "model-2.safetensors").stat().st_size - 1)
    with pytest.raises(TensorFileError, match=r"it is not what .* recorded"):
        open_tensor_file(path).load("w1")


# ---- every reader ----


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


@pytest.fixture(scope="module")
def files(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("whole")
    world = World(dataset, folder)
    made = {}
    for width in (7, 8):
        cfg = world.config(width)
        made[width] = weight_readers.write(folder / f"whole{width}.ckpt", cfg, weight_readers.policy_states(cfg))
    return made


def rotten_optimizer(path: Path) -> None:
    """The last tensor of the file, which few readers use; a damaged file must not be trusted."""
    storages = [name for name in records_of(path) if "/data/" in name]
    flip(path, place_of(path, max(storages, key=lambda name: int(name.rpartition("/")[2]))))


def rotten_average(path: Path) -> None:
    flip(path, place_of(path, next(name for name in records_of(path) if name.endswith("/data/7"))))


def rotten_pickle(path: Path) -> None:
    """A character inside the config's text, which would silently change a setting."""
    with path.open("r+b") as file:
        content = file.read()
        file.seek(content.index(b"squaredcos_cap_v2"))
        file.write(b"t")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def zeros_at_the_end(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, size * 2 // 3)
    os.truncate(path, size)


DAMAGES = [rotten_optimizer, rotten_average, rotten_pickle, cut, zeros_at_the_end]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_every_reader_refuses_a_damaged_file(
    reader: Reader, dataset: Path, files: dict[int, Path], tmp_path: Path
) -> None:
    world, whole = World(dataset, tmp_path), files[reader.width].read_bytes()
    for damage in DAMAGES:
        path = tmp_path / "damaged.ckpt"
        path.write_bytes(whole)
        damage(path)
        with pytest.raises(WorkspaceError, match=r"it is damaged|truncated") as caught:
            reader.read(world, path)
        assert str(path) in str(caught.value), damage
        assert integrity_module.REMEDY in str(caught.value), damage
        written = sorted(file.name for file in tmp_path.rglob("*") if file.suffix in (".ckpt", ".json", ".html"))
        assert written == ["damaged.ckpt"], damage


@pytest.mark.parametrize("damage", DAMAGES)
def test_reinforcement_learning_refuses_a_damaged_file(damage: Any, files: dict[int, Path], tmp_path: Path) -> None:
    """Both at the start and when resuming."""
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(files[8].read_bytes())
    damage(path)
    resumed = SimpleNamespace(cfg=OmegaConf.create({"training": {"resume": str(path)}}), output_dir=tmp_path)
    for read in (
        lambda: open_pretrained(OmegaConf.create({"path": str(path), "which": None})),
        lambda: TrainVPTPPOWorkspace._resumed_checkpoint(resumed),  # type: ignore[arg-type]
    ):
        with pytest.raises(WorkspaceError, match=r"it is damaged|truncated"):
            read()


def test_every_module_that_opens_weights_is_among_the_readers() -> None:
    covered = {module for reader in READERS for module in reader.modules}
    # Weights of other policies: tests/policy/test_vpt_policy.py, tests/hostile/foreign.py.
    covered |= {"policy.vpt_policy", "policy.vpt_weights", "families.lerobot_statistics"}
    covered |= {"workspace.vpt_start", "workspace.train_vpt_ppo_workspace"}  # the test above
    opening = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        names = {
            node.func.id for node in walked(path) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        if names & OPENERS and not module.startswith("tensor_file."):
            opening.add(module)
    assert opening <= covered, f"add to tests/weight_readers.py: {sorted(opening - covered)}"
