"""Tools for the corpus of hostile files: pickles assembled by hand, and archives around them.

`assemble` and its opcodes can express what no honest pickler would.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dill
import torch


@dataclass(frozen=True)
class Case:
    """One hostile file: how it is written, what the refusal must contain, and which reader opens it."""

    name: str
    write: Callable[[Path, str], Path]  # (folder, shell command that creates the canary) -> the file
    refusal: str
    reader: str = "checkpoint"  # "checkpoint", "policy" or "tensors"


Writer = Callable[[Path, str], Path]


def entering(cases: list[Case]) -> Callable[..., Callable[[Writer], Writer]]:
    """A decorator that adds a function to a part of the corpus under its own name."""

    def case(refusal: str, reader: str = "checkpoint") -> Callable[[Writer], Writer]:
        def enter(write: Writer) -> Writer:
            cases.append(Case(write.__name__, write, refusal, reader))
            return write

        return enter

    return case


# Pickles by hand.


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def call(name: str, *arguments: bytes) -> bytes:
    return named(name) + b"(" + b"".join(arguments) + b"tR"


def assemble(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def archive(folder: Path, program: bytes, entries: Mapping[str, bytes] | None = None, **options: Any) -> Path:
    """A file like PyTorch's, with this pickle."""
    path = folder / "hostile.ckpt"
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", program)
        for name, content in (entries or {}).items():
            file.writestr(name, content)
    return path


def saved(folder: Path, content: Any) -> Path:
    """The same through torch.save and dill, as the users' code base would write it."""
    path = folder / "hostile.ckpt"
    torch.save(content, path, pickle_module=dill)
    return path


def checkpoint_with(cfg: Any = None, **parts: Any) -> dict[str, Any]:
    return {"cfg": cfg or {}, "state_dicts": {"model": {}, "ema_model": {}, "optimizer": {}}, "pickles": {}, **parts}


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.reduced


def plain_file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path
