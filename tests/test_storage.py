"""Files and folders appear complete or not at all, and have one name while unfinished."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffusion_policy import storage
from diffusion_policy.storage import StorageError


def refuse(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def in_folder(path: Path) -> None:
    with storage.atomic_folder(path) as folder:
        (folder / "content").write_text("new")


def linked(path: Path) -> None:
    source = path.with_name("source")
    source.write_text("new")
    storage.link(source, path)
    source.unlink()


WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: storage.write_text(path, "new"),
    "bytes": lambda path: storage.write_bytes(path, b"new"),
    "json": lambda path: storage.write_json(path, ["new"]),
    "folder": in_folder,
    "link": linked,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_what_cannot_get_its_name_leaves_nothing(
    write: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(StorageError, match=r"out: cannot be written \(No space left on device\)"):
            write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name != "source"] == []
    write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("shared", [True, False])
def test_an_interrupted_file_keeps_the_former_one(shared: bool, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.npy"
    with storage.atomic_file(path, shared=shared) as beside:
        assert beside.suffix == ".npy"
        beside.write_bytes(b"former")

    def interrupted() -> None:
        with storage.atomic_file(path, shared=shared) as beside:
            assert beside == storage.unfinished(path, shared=shared)
            beside.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(found.name, found.read_bytes()) for found in path.parent.iterdir()] == [("file.npy", b"former")]


def test_a_file_is_on_the_disk_before_it_replaces_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_text(tmp_path / "file", "former")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match="No space left"):
        storage.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "former"


def test_a_new_file_takes_the_first_free_name(tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("a", "b")]
    assert [storage.write_new(names, text) for text in ("1", "2")] == names
    with pytest.raises(StorageError, match=r"b: cannot be written .File exists"):
        storage.write_new(names, "3")
    assert [(path.name, path.read_text()) for path in sorted(tmp_path.iterdir())] == [("a", "1"), ("b", "2")]


def test_a_folder_that_its_block_removed_does_not_come_to_be(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / ".part.run").mkdir(parents=True)
    (tmp_path / "elsewhere" / ".part.run" / "left").write_text("by a kill")
    with storage.atomic_folder(tmp_path / "project" / "run", within=tmp_path / "elsewhere") as folder:
        assert list(folder.iterdir()) == []
        folder.rmdir()
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


@pytest.mark.parametrize("links", [True, False], ids=["linked", "copied"])
def test_a_second_name_replaces_what_had_it(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_text("new")
    (tmp_path / "kept").write_text("former")
    os.link(tmp_path / "kept", tmp_path / "other")
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    storage.link(tmp_path / "source", tmp_path / "other")
    assert (tmp_path / "other").read_text() == "new"
    assert (tmp_path / "kept").read_text() == "former", "the former file is not written through its other name"
    assert (tmp_path / "other").samefile(tmp_path / "source") == links


def test_hashes_are_those_of_the_bytes_in_order(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"ab")
    expected = hashlib.sha256(b"ab").hexdigest()
    assert storage.file_sha256(tmp_path / "file") == storage.sha256(b"a", b"b").hex() == expected
    keys = {storage.content_key(b"ab"), storage.content_key(b"ab", b"(2,)"), storage.content_key(b"ba")}
    assert len(keys) == 3
    with pytest.raises(StorageError, match="cannot be read"):
        storage.file_sha256(tmp_path / "absent")


def test_json_is_plain_and_finite(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "file.json", {"a": [1.5]})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": [1.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(tmp_path / "file.json", float("nan"))
