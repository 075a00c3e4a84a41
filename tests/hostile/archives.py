"""Damaged, lying and exploding files around the pickles."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile.assembling import (
    Case,
    archive,
    assemble,
    call,
    checkpoint_with,
    entering,
    named,
    plain_file,
    saved,
    text,
)

CASES: list[Case] = []
case = entering(CASES)

# Archives.

EMPTY = assemble(b"}")


def honest(folder: Path) -> Path:
    return saved(folder, checkpoint_with(state_dicts={"model": {"w": torch.zeros(10_000)}, "ema_model": {}}))


@case("truncated")
def cut_in_half(folder: Path, command: str) -> Path:
    path = honest(folder)
    os.truncate(path, path.stat().st_size // 2)
    return path


@case("damaged or truncated|has no end")
def cut_by_ten_bytes(folder: Path, command: str) -> Path:
    path = honest(folder)
    os.truncate(path, path.stat().st_size - 10)
    return path


@case("damaged or truncated|not where the directory says")
def with_its_head_cut_off(folder: Path, command: str) -> Path:
    path = honest(folder)
    path.write_bytes(b"PK\x03\x04" + path.read_bytes()[5000:])
    return path


@case("compressed or encrypted")
def bomb_in_the_pickle(folder: Path, command: str) -> Path:
    program = assemble(text("x" * 2**26))
    return archive(folder, program, compression=zipfile.ZIP_DEFLATED)


@case("compressed or encrypted")
def bomb_in_a_storage(folder: Path, command: str) -> Path:
    path = archive(folder, EMPTY)
    with zipfile.ZipFile(path, "a", compression=zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/0", bytes(2**26))
    return path


def _patched_end(folder: Path, position: int, value: int) -> Path:
    """An honest archive with one number of its end record changed."""
    path = archive(folder, EMPTY)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rfind(b"PK\x05\x06") + position, value)
    path.write_bytes(content)
    return path


@case("its zip directory claims 4294967294 bytes")
def directory_of_4_gigabytes(folder: Path, command: str) -> Path:
    return _patched_end(folder, 12, 2**32 - 2)


@case("damaged or truncated|not where the directory says")
def directory_somewhere_else(folder: Path, command: str) -> Path:
    return _patched_end(folder, 16, 2**31)


def _patched_entry(folder: Path, position: int, value: int) -> Path:
    """An honest archive with one number of its only directory entry changed."""
    path = archive(folder, EMPTY)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rfind(b"PK\x01\x02") + position, value)
    path.write_bytes(content)
    return path


@case("compressed or encrypted")
def entry_that_unpacks_to_4_gigabytes(folder: Path, command: str) -> Path:
    return _patched_entry(folder, 24, 2**32 - 2)


@case("not where the directory says|damaged or truncated")
def entry_that_begins_elsewhere(folder: Path, command: str) -> Path:
    return _patched_entry(folder, 42, 2**30)


def _two_entries(folder: Path, *, one_place: bool, claimed: int) -> Path:
    """An archive with two entries of 4096 bytes that claim another size."""
    path = archive(folder, EMPTY, {"archive/data/0": bytes(4096), "archive/data/1": bytes(4096)})
    content = bytearray(path.read_bytes())
    last = content.rfind(b"PK\x01\x02")
    first = content.rfind(b"PK\x01\x02", 0, last)
    if one_place:
        content[last + 42 : last + 46] = content[first + 42 : first + 46]
    struct.pack_into("<II", content, last + 20, *[claimed] * 2)
    struct.pack_into("<II", content, first + 20, *[claimed] * 2)
    path.write_bytes(content)
    return path


@case("'archive/data/1' is called b'archive/data/0' in its local header")
def entries_on_top_of_each_other(folder: Path, command: str) -> Path:
    return _two_entries(folder, one_place=True, claimed=8192)


@case("claim .* bytes, but the file has|beyond the file's end")
def entries_that_overlap(folder: Path, command: str) -> Path:
    return _two_entries(folder, one_place=False, claimed=4400)


@case("'archive/../../../escaped' points outside the archive")
def entry_that_climbs(folder: Path, command: str) -> Path:
    return archive(folder, EMPTY, {"archive/../../../escaped": b"x"})


@case("'/etc/cron.d/job' points outside the archive")
def entry_with_an_absolute_path(folder: Path, command: str) -> Path:
    return archive(folder, EMPTY, {"/etc/cron.d/job": b"x"})


@case("points outside the archive")
def entry_with_a_drive(folder: Path, command: str) -> Path:
    return archive(folder, EMPTY, {"C:\\windows\\x": b"x"})


@case("occurs twice")
def entry_that_is_there_twice(folder: Path, command: str) -> Path:
    path = archive(folder, EMPTY, {"archive/data/0": bytes(32), "archive/data/1": bytes(32)})
    path.write_bytes(path.read_bytes().replace(b"archive/data/1", b"archive/data/0"))
    return path


@case("it has 2 data.pkl, expected one")
def two_programs(folder: Path, command: str) -> Path:
    return archive(folder, EMPTY, {"other/data.pkl": assemble(call("os.system", text(command)))})


@case("an .npz of NumPy arrays, not a weights file")
def archive_of_something_else(folder: Path, command: str) -> Path:
    path = folder / "hostile.ckpt"
    np.savez(folder / "arrays.npz", a=np.zeros(3))
    (folder / "arrays.npz").rename(path)
    return path


@case("TorchScript program")
def torchscript(folder: Path, command: str) -> Path:
    return archive(folder, EMPTY, {"archive/constants.pkl": EMPTY, "archive/code/__torch__.py": b"import os"})


@case("big-endian")
def bytes_in_the_other_order(folder: Path, command: str) -> Path:
    return archive(folder, EMPTY, {"archive/byteorder": b"big"})


@case("an empty folder, not a weights file")
def folder_instead_of_a_file(folder: Path, command: str) -> Path:
    return folder


@case("a pipe, not a weights file")
def pipe_that_never_answers(folder: Path, command: str) -> Path:
    path = folder / "hostile.ckpt"
    os.mkfifo(path)
    return path


@case("an empty file", reader="tensors")
def empty_file(folder: Path, command: str) -> Path:
    return plain_file(folder, "hostile.pt", b"")


@case("a web page", reader="tensors")
def page_of_text(folder: Path, command: str) -> Path:
    return plain_file(folder, "hostile.pt", b"<html>404 not found</html>")


@case("a text that begins with", reader="checkpoint")
def checkpoint_that_is_text(folder: Path, command: str) -> Path:
    return plain_file(folder, "hostile.ckpt", f"#!/bin/sh\n{command}\n".encode())


# PyTorch's format before 1.6.


def legacy(folder: Path, *parts: bytes, data: bytes = b"", facts: bytes | None = None) -> Path:
    """Such a file with handmade content; `parts` are its program and its list of storages."""
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001)]
    system = facts or pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)
    return plain_file(folder, "hostile.ckpt", b"".join([*head, system, *parts]) + data)


def storage_of(numel: int, shape: int) -> bytes:
    """A program of one tensor over one storage."""
    count, side = (b"\x8a\x08" + struct.pack("<q", number) for number in (numel, shape))
    reference = b"(" + text("storage") + named("torch.FloatStorage") + text("0") + text("cpu") + count + b"NtQ"
    shaped = b"K\x00" + b"(" + side + b"t" + b"(K\x01t" + b"\x89N"
    return assemble(named("torch._utils._rebuild_tensor_v2") + b"(" + reference + shaped + b"tR")


KEYS = pickle.dumps(["0"], 2)


@case(r"asks for os\.system")
def legacy_that_calls(folder: Path, command: str) -> Path:
    return legacy(folder, assemble(call("os.system", text(command))), pickle.dumps([], 2))


@case(r"asks for os\.system")
def legacy_that_calls_in_its_facts(folder: Path, command: str) -> Path:
    return legacy(folder, EMPTY, facts=assemble(call("os.system", text(command))))


@case(r"asks for os\.system")
def legacy_that_calls_in_its_list(folder: Path, command: str) -> Path:
    return legacy(folder, EMPTY, assemble(call("os.system", text(command))))


@case("should hold 1099511627776 numbers; the file has 4, or ends")
def legacy_storage_of_4_terabytes(folder: Path, command: str) -> Path:
    return legacy(folder, storage_of(2**40, 2**40), KEYS, data=struct.pack("<q", 4) + bytes(16))


@case("should hold 1099511627776 numbers; the file has 1099511627776, or ends")
def legacy_storage_beyond_the_end(folder: Path, command: str) -> Path:
    return legacy(folder, storage_of(2**40, 2**40), KEYS, data=struct.pack("<q", 2**40) + bytes(16))


@case("does not fit into the storage '0' of 4 numbers")
def legacy_tensor_beyond_its_storage(folder: Path, command: str) -> Path:
    return legacy(folder, storage_of(4, 2**40), KEYS, data=struct.pack("<q", 4) + bytes(16))


@case("the storage '0' is missing")
def legacy_storage_that_is_not_listed(folder: Path, command: str) -> Path:
    return legacy(folder, storage_of(4, 4), pickle.dumps([], 2), data=struct.pack("<q", 4) + bytes(16))


@case("'1', which nothing in it refers to")
def legacy_storage_that_nothing_uses(folder: Path, command: str) -> Path:
    return legacy(folder, EMPTY, pickle.dumps(["1"], 2), data=struct.pack("<q", 4) + bytes(16))


@case("list of storages is invalid")
def legacy_list_that_is_a_number(folder: Path, command: str) -> Path:
    return legacy(folder, EMPTY, pickle.dumps(7, 2))


@case("or from a big-endian machine")
def legacy_of_a_big_endian_machine(folder: Path, command: str) -> Path:
    return legacy(folder, EMPTY, facts=pickle.dumps({"little_endian": False}, 2))


@case("truncated or damaged")
def legacy_cut_in_its_pickle(folder: Path, command: str) -> Path:
    path = legacy(folder, storage_of(4, 4), KEYS, data=struct.pack("<q", 4) + bytes(16))
    os.truncate(path, 120)
    return path


# safetensors.


def safetensors(folder: Path, header: Any, claimed: int | None = None, content: bytes = b"") -> Path:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(data) if claimed is None else claimed
    return plain_file(folder, "hostile.safetensors", struct.pack("<Q", length) + data + content)


@case("claims a header of 2147483648 bytes", reader="tensors")
def header_of_2_gigabytes(folder: Path, command: str) -> Path:
    path = safetensors(folder, b"{", claimed=2**31)
    os.truncate(path, 2**31 + 16)
    return path


@case("claims a header of 18446744073709551615 bytes", reader="tensors")
def header_of_16_exabytes(folder: Path, command: str) -> Path:
    return safetensors(folder, b"{}", claimed=2**64 - 1)


HEADERS: dict[str, tuple[Any, str]] = {
    "data_beyond_the_end": ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "header is not valid"),
    "shape_unlike_its_bytes": ({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}, "not valid"),
    "shape_that_overflows": ({"w": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}, "not valid"),
    "offsets_reversed": ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, "not valid"),
    "type_unheard_of": ({"w": {"dtype": "OBJECT", "shape": [2], "data_offsets": [0, 8]}}, "not valid"),
    "header_that_is_a_list": ([1, 2], "not valid"),
    "header_that_is_not_json": (b"{]]]]]]]]]", "not valid"),
    "header_nested_deeply": (b'{"a":' * 5000 + b"1" + b"}" * 5000, "not valid"),
}
CASES.extend(
    Case(name, lambda folder, _, header=header: safetensors(folder, header, content=bytes(8)), refusal, "tensors")
    for name, (header, refusal) in HEADERS.items()
)

INDEXES: dict[str, tuple[bytes, str]] = {
    "shard_that_climbs": (b'{"weight_map": {"w": "../../secret.safetensors"}}', "outside its own folder"),
    "shard_with_an_absolute_path": (b'{"weight_map": {"w": "/etc/passwd"}}', "outside its own folder"),
    "shard_that_is_the_parent": (b'{"weight_map": {"w": ".."}}', "is not next to it"),
    "shard_that_is_missing": (b'{"weight_map": {"w": "model-1.safetensors"}}', "is not next to it"),
    "shard_that_is_a_number": (b'{"weight_map": {"w": 1}}', "no weight_map"),
    "index_without_a_map": (b"[]", "no weight_map"),
    "index_that_is_not_json": (b'{"weight_map": {"w": ', "not valid JSON"),
    "index_nested_deeply": (b'{"a":' * 100_000, "not valid JSON"),
}
CASES.extend(
    Case(
        name, lambda folder, _, data=data: plain_file(folder, "model.safetensors.index.json", data), refusal, "tensors"
    )
    for name, (data, refusal) in INDEXES.items()
)
