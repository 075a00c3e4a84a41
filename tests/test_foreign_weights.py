"""Weights as saved by others: other precisions, wrapped names, old formats, and files that are not checkpoints."""

import bz2
import gzip
import io
import logging
import lzma
import os
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import dill
import numpy as np
import pytest
import tiny_run
import torch
import weight_readers
from safetensors.torch import save_file
from weight_readers import BY_NAME, READERS, Reader, World

from diffusion_policy.adapt.files import apply_file, open_target, rules_of
from diffusion_policy.adapt.inspection import inspect_file
from diffusion_policy.adapt.pose_to_gripper import grow_7d_to_8d
from diffusion_policy.checkpoint import CheckpointError, load_policy, read_checkpoint
from diffusion_policy.diagnose.doctor import examine
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.tensor_file import TensorFileError, open_tensor_file
from diffusion_policy.tensor_file.wrapped_names import WRAPPERS


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


@pytest.fixture(scope="module")
def states(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    world = World(dataset, tmp_path_factory.mktemp("world"))
    return {width: weight_readers.policy_states(world.config(width)) for width in (7, 8)}


def changed(states: dict, change: Callable, parts: tuple[str, ...] = ("model", "ema_model")) -> dict:
    """The same checkpoint with other names or tensors in some of its copies of the weights."""
    return {
        part: dict(change(key, tensor) for key, tensor in state.items()) if part in parts else state
        for part, state in states.items()
    }


# ---- precision ----


def in_type(dtype: torch.dtype) -> Callable:
    made: dict[int, torch.Tensor] = {}

    def convert(key: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        other = made.setdefault(tensor.data_ptr(), tensor.to(dtype)) if tensor.numel() else tensor
        return key, other if tensor.is_floating_point() else tensor

    return convert


def in_mixed_types(key: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Half precision for the encoder, double for the rest, as in a handmade export."""
    if not tensor.is_floating_point():
        return key, tensor
    return key, tensor.to(torch.float16 if key.startswith("obs_encoder") else torch.float64)


PRECISIONS = {"mixed": in_mixed_types, "bfloat16": in_type(torch.bfloat16)}
TYPES = [
    getattr(torch, name)
    for name in (
        "bfloat16",
        "float16",
        "float64",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
    )
]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_of_number_is_read_as_float32(dataset: Path, tmp_path: Path, dtype: torch.dtype, caplog) -> None:
    shared = torch.arange(6.0).reshape(2, 3).to(dtype)
    weights = {"a": shared, "twin": shared, "count": torch.tensor(3), "plain": torch.ones(2)}
    cfg = World(dataset, tmp_path).config(8)
    path = weight_readers.write(tmp_path / "a.ckpt", cfg, {"model": weights, "optimizer": {"moment": shared}})
    checkpoint = read_checkpoint(path)
    state = checkpoint.state_dict("model")
    assert (state["a"].dtype, state["count"].dtype, state["plain"].dtype) == (torch.float32, torch.int64, torch.float32)
    assert torch.equal(state["a"], torch.arange(6.0).reshape(2, 3))
    assert state["a"] is state["twin"]
    assert checkpoint.state_dicts["optimizer"]["moment"].dtype == dtype
    name = str(dtype).removeprefix("torch.")
    assert checkpoint.notes == (f"model holds 2 tensors of {name}; they are read as float32",)
    assert f"{path}: {checkpoint.notes[0]}" in caplog.text


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_7d_recipe_takes_every_precision_and_proves_in_float32(
    states, dataset: Path, tmp_path: Path, precision: str, caplog
) -> None:
    cfg = World(dataset, tmp_path).config(7)
    path = weight_readers.write(tmp_path / "old.ckpt", cfg, changed(states[7], PRECISIONS[precision]))
    with caplog.at_level(logging.WARNING):
        ledger = grow_7d_to_8d(path, tmp_path / "new.ckpt")
    kind = "float64" if precision == "mixed" else precision
    for part in ("model", "ema_model"):
        notes = [note for note in ledger.notes if note.startswith(f"{part} holds ")]
        assert len(notes) == 1, "said once, in the ledger"
        assert f"tensors of {kind}" in notes[0]
        assert notes[0].endswith("they are read as float32")
        assert notes[0] in caplog.text, "and by every other command"
    grown = read_checkpoint(tmp_path / "new.ckpt")
    assert grown.notes == ()
    assert {t.dtype for t in grown.state_dicts["model"].values() if t.is_floating_point()} == {torch.float32}
    assert all(proof["preserved"] for proof in grown.provenance["adaptation"]["proof"].values())


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_every_reader_takes_half_precision(states, dataset: Path, tmp_path: Path, reader: Reader, caplog) -> None:
    world = World(dataset, tmp_path)
    path = tmp_path / "half.ckpt"
    weight_readers.write(path, world.config(reader.width), changed(states[reader.width], in_type(torch.bfloat16)))
    if reader.name in ("train resume", "check parity"):  # not a run of ours; no server to ask
        with pytest.raises((WorkspaceError, KeyError, AttributeError)):
            reader.read(world, path)
        return
    found = reader.read(world, path)
    if reader.name == "adapt inspect":
        assert "bfloat16" in {dtype for group in found.groups for dtype in group.dtypes}, "what is in the file"
        return
    assert "read as float32" in caplog.text
    if reader.name == "load":
        assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}


def test_quantized_weights_are_refused_by_name(states, dataset: Path, tmp_path: Path) -> None:
    cfg = World(dataset, tmp_path).config(8)
    broken = changed(states[8], lambda key, t: (key, t.to(torch.int8) if key == "model.head.weight" else t))
    path = weight_readers.write(tmp_path / "int8.ckpt", cfg, broken)
    with pytest.raises(
        CheckpointError, match=r"model\.head\.weight holds torch\.int8 where torch\.float32 is expected"
    ):
        load_policy(path)


# ---- names ----


def prefixed(prefix: str) -> Callable:
    return lambda key, tensor: (prefix + key, tensor)


def inside(part: str) -> Callable:
    """Only one submodule was wrapped."""
    return lambda key, tensor: (key.replace("model.", f"model.{part}.", 1) if key.startswith("model.") else key, tensor)


def within_blocks(key: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Every layer was wrapped, deep inside."""
    return key.replace("decoder.layers.0.", "decoder.layers.0._checkpoint_wrapped_module."), tensor


WRAPPED: dict[str, tuple[Callable, tuple[str, ...]]] = {
    **{f"{part} whole": (prefixed(f"{part}."), ("model", "ema_model")) for part in WRAPPERS},
    **{f"{part} inside": (inside(part), ("model", "ema_model")) for part in WRAPPERS},
    "both": (prefixed("_orig_mod.module."), ("model", "ema_model")),
    "both, turned": (prefixed("module._orig_mod."), ("model", "ema_model")),
    "blocks": (within_blocks, ("model", "ema_model")),
    "only the average": (prefixed("module."), ("ema_model",)),
    "only the live ones": (inside("_orig_mod"), ("model",)),
    "another prefix": (prefixed("policy."), ("model", "ema_model")),
    "a prefix of two": (prefixed("agent.net."), ("model", "ema_model")),
    "a prefix and a wrapper": (prefixed("policy._orig_mod."), ("model", "ema_model")),
}


def printed_command(text: str) -> list[str]:
    """Returns the words of the command that a message ends with, as read by bash."""
    line = next(line for line in text.splitlines() if "adapt.py apply" in line)
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {line[line.index('apply ') :]}"], capture_output=True, text=True, check=True
    )
    return words.stdout.splitlines()


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_wrapped_names_are_diagnosed(states, dataset: Path, tmp_path: Path, wrapping: str) -> None:
    """Without the encoder, so that the files are small: names are looked at before anything else."""
    change, parts = WRAPPED[wrapping]
    small = changed(states[8], lambda key, tensor: (key, tensor))
    for part in ("model", "ema_model"):
        small[part] = {key: t for key, t in small[part].items() if not key.startswith("obs_encoder.")}
    cfg = World(dataset, tmp_path).config(8)
    path = weight_readers.write(tmp_path / "it's wrapped.ckpt", cfg, changed(small, change, parts))
    with pytest.raises(CheckpointError, match=r"names carry .*; the weights are intact") as caught:
        load_policy(path)
    first = next(key for key, _ in (change(key, None) for key in small["model"]) if key not in small["model"])
    assert repr(first) in str(caught.value), "an example"
    words = printed_command(str(caught.value))
    assert words[:2] == ["apply", str(path)]
    rules = rules_of(words[words.index("--rules") + 1 : words.index("--out")])
    for part in parts:
        assert [rules.renamed(change(key, None)[0]) for key in small[part]] == list(small[part])


@pytest.mark.parametrize("wrapping", ["both", "only the average", "a prefix and a wrapper"])
def test_the_printed_command_puts_names_right(states, dataset: Path, tmp_path: Path, wrapping: str) -> None:
    change, parts = WRAPPED[wrapping]
    path = tmp_path / "wrapped.ckpt"
    weight_readers.write(path, World(dataset, tmp_path).config(8), changed(states[8], change, parts))
    with pytest.raises(CheckpointError) as caught:
        load_policy(path)
    words = printed_command(str(caught.value))
    out, rules = Path(words[words.index("--out") + 1]), words[words.index("--rules") + 1 : words.index("--out")]
    ledger = apply_file(path, open_target(words[words.index("--target") + 1]), rules_of(rules), out)
    assert any("agree within" in note for note in ledger.notes)
    bare = read_checkpoint(out)
    for part in ("model", "ema_model"):
        assert all(torch.equal(bare.state_dicts[part][key], states[8][part][key]) for key in states[8][part])
    load_policy(out)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_every_reader_says_that_names_are_wrapped(states, dataset: Path, tmp_path: Path, reader: Reader) -> None:
    world = World(dataset, tmp_path)
    path = tmp_path / "wrapped.ckpt"
    wrapped = changed(states[reader.width], prefixed("_orig_mod."))
    weight_readers.write(path, world.config(reader.width), wrapped)
    if reader.name == "adapt inspect":
        assert "names carry '_orig_mod.' (left by torch.compile)" in str(reader.read(world, path).wrapping.describe())
        return
    if reader.name == "adapt target":
        assert next(iter(reader.read(world, path).infos)) in states[8]["model"], "it stands for its own names"
        return
    with pytest.raises(WorkspaceError, match=r"carry '_orig_mod\.' \(left by torch\.compile\)") as caught:
        reader.read(world, path)
    assert "--rules bare_weights" in str(caught.value)


def test_the_doctor_names_the_command(states, dataset: Path, tmp_path: Path) -> None:
    cfg = World(dataset, tmp_path).config(8)
    path = weight_readers.write(tmp_path / "wrapped.ckpt", cfg, changed(states[8], prefixed("module.")))
    examination = examine(checkpoint=path)
    assert "apply" in examination.next_command
    assert "bare_weights" in examination.next_command


# ---- formats ----


def test_files_from_before_1_6_are_read(states, dataset: Path, tmp_path: Path) -> None:
    world = World(dataset, tmp_path)
    whole = weight_readers.write(tmp_path / "whole.ckpt", world.config(8), states[8])
    content = torch.load(whole, pickle_module=dill, weights_only=False)
    path = tmp_path / "legacy.ckpt"
    torch.save(content, path, pickle_module=dill, _use_new_zipfile_serialization=False)
    old, new = read_checkpoint(path), read_checkpoint(whole)
    assert old.cfg == new.cfg
    for part in ("model", "ema_model"):
        assert list(old.state_dicts[part]) == list(new.state_dicts[part])
        assert all(torch.equal(old.state_dicts[part][key], new.state_dicts[part][key]) for key in new.state_dicts[part])
    twins = [f"obs_encoder.obs_nets.image.{name}.nets.0.weight" for name in ("backbone", "nets.0")]
    assert old.state_dict("model")[twins[0]] is old.state_dict("model")[twins[1]]
    assert inspect_file(path).format == "torch before 1.6"
    for name in ("load", "adapt apply", "serve", "doctor"):
        BY_NAME[name].read(World(dataset, tmp_path / name), path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool], ids=str)
def test_tensors_from_before_1_6(tmp_path: Path, dtype: torch.dtype) -> None:
    base = torch.arange(12).reshape(3, 4).to(dtype)
    content = {"w": base, "view": base[1:, ::2], "t": base.t(), "none": base[:0], "epoch": 3}
    path = tmp_path / "old.pt"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    file = open_tensor_file(path)
    assert file.tree["epoch"] == 3
    for name in ("w", "view", "t", "none"):
        assert torch.equal(file.load(name), content[name])
    assert file.load("w").data_ptr() == file.load("t").data_ptr()
    for size in range(0, path.stat().st_size - 1, 11):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(path.read_bytes()[:size])
        with pytest.raises(WorkspaceError):
            open_tensor_file(cut).load("w")


# ---- no weights at all ----


def packed_tar(*names: str, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    return buffer.getvalue()


def packed_zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"abc")
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
CONTENTS: dict[str, tuple[bytes, str]] = {
    "git-lfs": (LFS.encode(), r"a git-lfs pointer, .*&& git lfs pull -I 'the file\.ckpt'\)"),
    "git-lfs with a mark": (b"\xef\xbb\xbf" + LFS.encode(), "a git-lfs pointer"),
    "git-annex": (b"/annex/objects/SHA256E-s123--abc.ckpt\n", "a git-annex pointer, .*git annex get"),
    "dvc": (b"outs:\n- md5: abc\n  size: 3\n  path: latest.ckpt\n", "a DVC pointer, .*dvc pull"),
    "xet": (b"# xet version 0\nfilesize = 3\nhash = 'abc'\n", "a pointer into Xet storage"),
    "html": (b"<!DOCTYPE html><html><head><title>Sign in</title>", r"a web page \('Sign in'\), .*download it again"),
    "html with space before": (b"\r\n  <HTML><body>404", "a web page, "),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', r"an XML document \('AccessDenied'\)"),
    "json": (b'{"a": [1, 2]}', "a JSON document, "),
    "json of an error": (b'{"error": "Invalid credentials"}', r"a JSON document \('Invalid credentials'\)"),
    "yaml": (b"name: run\npolicy:\n  _target_: a.B\n", "a config in YAML"),
    "text": (b"loss 0.3\n" * 9, "a text that begins with 'loss 0.3"),
    "text in utf-16": ("a log of the run\r\n".encode("utf-16"), "a text that begins with 'a log of"),
    "empty": (b"", "an empty file"),
    "zeros": (bytes(9000), "only zeros where its content should begin"),
    "gzip": (
        gzip.compress(b"PK\3\4" + bytes(99)),
        r"compressed with gzip, .*gunzip -c < '.*ckpt' > '.*unpacked\.ckpt'",
    ),
    "tar.gz": (packed_tar("latest.ckpt", mode="w:gz"), "a tar archive compressed with gzip, .*tar -xf"),
    "bzip2": (bz2.compress(b"PK\3\4" + bytes(99)), "compressed with bzip2, .*bunzip2 -c"),
    "tar.bz2": (packed_tar("latest.ckpt", mode="w:bz2"), "compressed with bzip2|a tar archive compressed with bzip2"),
    "xz": (lzma.compress(b"PK\3\4" + bytes(99)), "compressed with xz, .*xz -d -c"),
    "tar.xz": (packed_tar("latest.ckpt", mode="w:xz"), "compressed with xz"),
    "lzma": (lzma.compress(b"PK\3\4" + bytes(99), lzma.FORMAT_ALONE), "compressed with lzma"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "compressed with zstd, .*zstd -dc"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(20), "compressed with lz4"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "a 7z archive, .*7z x"),
    "rar": (b"Rar!\x1a\x07\x01" + bytes(20), "a rar archive"),
    "tar": (packed_tar("latest.ckpt", "cfg.yaml"), r"a tar archive of latest\.ckpt, cfg\.yaml, .*tar -xf"),
    "very old torch": (packed_tar("sys_info", "pickle", "storages", "tensors"), r"PyTorch's format from before 0\.2"),
    "zip of a checkpoint": (packed_zip("a/latest.ckpt", "notes.txt"), r"a zip archive with 'a/latest\.ckpt' .*unzip '"),
    "npz": (npz(), r"an \.npz of NumPy arrays"),
    "npy": (npy(), "a NumPy array"),
    "zarr.zip": (packed_zip(".zgroup", "data/.zgroup"), "a zarr dataset in a zip archive"),
    "keras": (packed_zip("config.json", "model.weights.h5"), "a model of Keras"),
    "torch.export": (packed_zip("m/archive_format", "m/models/model.json"), r"a program of torch\.export"),
    "other zip": (packed_zip("notes.txt"), "a zip archive, but not one of PyTorch's"),
    "empty zip": (packed_zip(), "an empty zip archive"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "an HDF5 file"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(90), "a GGUF file"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(90), "a TensorFlow Lite model"),
    "parquet": (b"PAR1" + bytes(90) + b"PAR1", "a Parquet table"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(90), "a PNG picture"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(90), "a JPEG picture"),
    "video": (b"\x00\x00\x00\x18ftypmp42" + bytes(90), "a video"),
    "pdf": (b"%PDF-1.7\n\x80\x80" + bytes(90), "a PDF document"),
    "program": (b"\x7fELF\x02\x01" + bytes(90), "a program"),
    "noise": (bytes(range(200, 255)) * 20, r"not in a supported format: .*see what `file "),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_file_that_is_not_a_checkpoint_is_identified(tmp_path: Path, kind: str) -> None:
    content, message = CONTENTS[kind]
    path = tmp_path / "the file.ckpt"
    path.write_bytes(content)
    for opens, error in ((read_checkpoint, CheckpointError), (open_tensor_file, TensorFileError)):
        with pytest.raises(error, match=message) as caught:
            opens(path)
        assert str(path) in str(caught.value)
        assert "begins like a zip" not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(caught.value).isascii()


@pytest.mark.parametrize("name", ["a.pt", "b.safetensors", "no_suffix"])
@pytest.mark.parametrize("kind", ["git-lfs", "html", "empty", "gzip"])
def test_whatever_its_name_is(tmp_path: Path, kind: str, name: str) -> None:
    content, message = CONTENTS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TensorFileError, match=message.split(", ")[0]):
        open_tensor_file(tmp_path / name)


def test_weights_without_a_config_are_named(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="it is a safetensors file, which holds weights without the config"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert open_tensor_file(tmp_path / "a.ckpt").format == "safetensors"
    (tmp_path / "b.ckpt").write_bytes(dill.dumps({"w": 3}))
    with pytest.raises(CheckpointError, match=r"it is a plain pickle, not a checkpoint that torch\.save wrote"):
        read_checkpoint(tmp_path / "b.ckpt")
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.2.0"}, tmp_path / "c.ckpt")
    with pytest.raises(CheckpointError, match="it is a checkpoint of PyTorch Lightning"):
        read_checkpoint(tmp_path / "c.ckpt")
    torch.save([1, 2], tmp_path / "d.ckpt")
    with pytest.raises(CheckpointError, match=r"it is a list that torch\.save wrote"):
        read_checkpoint(tmp_path / "d.ckpt")


def run_folder(path: Path) -> None:
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "latest.ckpt").write_bytes(b"x")


def files(*names: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"{}")

    return write


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "run": (run_folder, r"the folder of a run, .*name one of its checkpoints, such as .*latest\.ckpt"),
    "checkpoints": (files("a.ckpt", "b.ckpt"), r"a folder, .*name one of its files: a\.ckpt, b\.ckpt"),
    "distributed": (files(".metadata", "__0_0.distcp"), r"a sharded checkpoint of torch\.distributed, .*dcp_to_torch"),
    "deepspeed": (files("latest", "zero_to_fp32.py"), "a checkpoint of DeepSpeed"),
    "zarr": (files(".zgroup"), "a zarr dataset"),
    "unpacked": (files("data.pkl", "data/0"), "an unpacked archive of PyTorch, .*zip -0 -r"),
    "empty": (files(), "an empty folder"),
    "others": (files("notes.md"), "a folder without weights in it"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_is_named_for_what_it_is(tmp_path: Path, kind: str) -> None:
    fill, message = FOLDERS[kind]
    folder = tmp_path / "a folder"
    folder.mkdir()
    fill(folder)
    for opens in (read_checkpoint, open_tensor_file):
        with pytest.raises(WorkspaceError, match=message):
            opens(folder)


def test_the_printed_packing_makes_a_file_that_opens(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(3.0)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        archive.extractall(tmp_path)
    with pytest.raises(TensorFileError) as caught:
        open_tensor_file(tmp_path / "w")
    command = str(caught.value).partition("without compression: ")[2].removesuffix(".")
    if subprocess.run(["bash", "-c", "command -v zip"], capture_output=True, check=False).returncode:
        pytest.skip("zip is not installed")
    subprocess.run(["bash", "-c", command], check=True, capture_output=True)
    assert torch.equal(open_tensor_file(tmp_path / "w.ckpt").load("w"), torch.arange(3.0))


def test_places_that_are_not_files(tmp_path: Path) -> None:
    (tmp_path / "link.ckpt").symlink_to("/mnt/disk/latest.ckpt")
    (tmp_path / "annex.ckpt").symlink_to(".git/annex/objects/ab/cd/latest.ckpt")
    os.mkfifo(tmp_path / "pipe.ckpt")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s.ckpt"))
    (tmp_path / "other.ckpt").write_bytes(b"x")
    cases = {
        "link.ckpt": r"a link to /mnt/disk/latest\.ckpt, which does not exist",
        "annex.ckpt": "a git-annex pointer, .*git annex get annex.ckpt",
        "pipe.ckpt": "a pipe",
        "s.ckpt": "a socket",
        "absent.ckpt": r"there is no such checkpoint file; its folder has .*other\.ckpt",
        "nowhere/a.ckpt": "there is no such checkpoint file, nor a folder",
    }
    for name, message in cases.items():
        with pytest.raises(WorkspaceError, match=message):
            read_checkpoint(tmp_path / name)
    server.close()
    with pytest.raises(WorkspaceError, match=r"an address, .*copy it first"):
        read_checkpoint("s3://bucket/latest.ckpt")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"x")

    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"it cannot be read \(Permission denied\)"):
        read_checkpoint(path)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_every_reader_names_what_is_not_a_checkpoint(dataset: Path, tmp_path: Path, reader: Reader) -> None:
    for kind in ("git-lfs", "html"):
        path = tmp_path / "the file.ckpt"
        path.write_bytes(CONTENTS[kind][0])
        with pytest.raises(WorkspaceError, match=CONTENTS[kind][1].split(", ")[0]):
            reader.read(World(dataset, tmp_path), path)


# ---- the reported ones ----


def write_trial(folder: Path, script: Path, *arguments: object) -> Path:
    subprocess.run([sys.executable, str(script), str(folder), *map(str, arguments)], check=True, capture_output=True)
    return folder


GROWN = {"same", "strided", "legacy", "fp64", "bf16", "fp16", "no_ema"}
REFUSED = {
    "orig_mod": "--rules bare_weights",
    "module": "--rules bare_weights",
    "orig_mod_module": "--rules bare_weights",
    "inner_orig_mod": "--rules bare_weights",
    "bare_state_dict": "a plain state_dict, weights without the config",
    "lightning": "a checkpoint of PyTorch Lightning",
    "nan_weight": r"model\.decoder\.layers\.0\.linear1\.weight holds 1 numbers that are NaN",
    "cut": "truncated",
    "zero_tail": "truncated",
    "rotten": "it is damaged: 1 of its",
    "model": "a safetensors file, which holds weights without the config",
}


@pytest.mark.slow
@pytest.mark.exhaustive  # the tests above at full size
def test_reported_checkpoints(shared_data: Path, reference_checkpoint: Path, tmp_path: Path) -> None:
    script = shared_data / "trials" / "50_checkpoint_variants.py"
    files = sorted(write_trial(tmp_path / "files", script, reference_checkpoint).iterdir())
    assert {path.stem for path in files} == GROWN | REFUSED.keys()
    for path in files:
        if path.stem in GROWN:
            ledger = grow_7d_to_8d(path, tmp_path / "new.ckpt", overwrite=True)
            message = "\n".join(ledger.notes)
            assert ("read as float32" in message) == (path.stem in ("fp64", "bf16", "fp16")), path
            assert ("holds no ema_model" in message) == (path.stem == "no_ema"), path
        else:
            with pytest.raises(WorkspaceError, match=REFUSED[path.stem]):
                grow_7d_to_8d(path, tmp_path / "new.ckpt", overwrite=True)


def test_reported_shards(shared_data: Path, tmp_path: Path) -> None:
    folder = write_trial(tmp_path, shared_data / "trials" / "52_sharded_safetensors.py")
    assert len(open_tensor_file(folder / "whole").tensors) == 3
    for name in ("missing", "cut", "lacks", "lfs"):
        with pytest.raises(TensorFileError, match=r"model-0000\d-of-00002\.safetensors"):
            open_tensor_file(folder / name)
    with pytest.raises(TensorFileError, match="outside its own folder"):
        open_tensor_file(folder / "outside")
    with pytest.raises(TensorFileError, match="a git-lfs pointer"):
        open_tensor_file(folder / "lfs")


def test_invalid_reported_files(shared_data: Path, tmp_path: Path) -> None:
    messages = {
        "lfs": "a git-lfs pointer",
        "html": "a web page",
        "empty": "an empty file",
        "gz": "compressed with gzip",
    }
    for path in write_trial(tmp_path / "files", shared_data / "trials" / "53_not_a_checkpoint.py").iterdir():
        with pytest.raises(CheckpointError, match=messages[path.stem]):
            read_checkpoint(path)
