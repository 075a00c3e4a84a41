"""The instructions of pickles, and how their arguments are decoded.

The instructions that checkpoints consist of (a hundred thousand of a few kinds) are decoded directly from the bytes;
all others by `pickletools`, according to its table.
"""

from __future__ import annotations

import ast
import io
import pickletools
import struct
from collections.abc import Callable
from typing import Any

# (content, offset of the argument) to (argument, offset after it); broken or truncated: ValueError, IndexError or
# struct.error
Reader = Callable[[bytes, int], tuple[Any, int]]


def _byte(content: bytes, at: int) -> tuple[int, int]:
    return content[at], at + 1


def _number(layout: str) -> Reader:
    form = struct.Struct(layout)

    def read(content: bytes, at: int) -> tuple[Any, int]:
        return form.unpack_from(content, at)[0], at + form.size

    return read


def _text(layout: str) -> Reader:
    """UTF-8 preceded by its length in bytes."""
    form = struct.Struct(layout)

    def read(content: bytes, at: int) -> tuple[str, int]:
        (length,), begin = form.unpack_from(content, at), at + form.size
        if length > len(content) - begin:
            raise ValueError(f"a text of {length} bytes of which {len(content) - begin} remain")
        return content[begin : begin + length].decode("utf-8", "surrogatepass"), begin + length

    return read


def _line(decode: Callable[[bytes], Any]) -> Reader:
    """An argument that ends with its line."""

    def read(content: bytes, at: int) -> tuple[Any, int]:
        end = content.find(b"\n", at) + 1 or len(content)
        return decode(content[at:end]), end

    return read


def _long(content: bytes, at: int) -> tuple[int, int]:
    """An integer, little-endian with its sign, preceded by its length in a byte."""
    begin, end = at + 1, at + 1 + content[at]
    if end > len(content):
        raise ValueError(f"an integer of {content[at]} bytes of which {len(content) - begin} remain")
    return int.from_bytes(content[begin:end], "little", signed=True), end


def _text_of_python_2(line: bytes) -> str:
    """A quoted byte string in the form of Python 2's protocol 0, one character per byte."""
    try:
        found = ast.literal_eval("b" + line.decode("ascii").strip())
    except SyntaxError as error:
        raise ValueError(f"a text {line[:20]!r} without its quotes") from error
    if not isinstance(found, bytes):
        raise ValueError(f"a text {line[:20]!r} without its quotes")
    return found.decode("latin1")


def _by_table(described: pickletools.ArgumentDescriptor) -> Reader:
    def read(content: bytes, at: int) -> tuple[Any, int]:
        stream = io.BytesIO(content)  # shares the bytes
        stream.seek(at)
        return described.reader(stream), stream.tell()

    return read


_FREQUENT: dict[str, Reader] = {
    **dict.fromkeys(("BININT1", "BINPUT", "BINGET", "PROTO"), _byte),
    **dict.fromkeys(("LONG_BINPUT", "LONG_BINGET"), _number("<I")),
    "BININT": _number("<i"),
    "BININT2": _number("<H"),
    "BINFLOAT": _number(">d"),
    "BINUNICODE": _text("<I"),
    "SHORT_BINUNICODE": _text("<B"),
    "LONG1": _long,
    "STRING": _line(_text_of_python_2),
}


def _unknown(content: bytes, at: int) -> tuple[Any, int]:
    raise ValueError(f"opcode {content[at - 1 : at]!r} unknown")


# By opcode: the instruction's name, and what decodes its argument, if it has one. Strings are those of Python 2.
INSTRUCTIONS: list[tuple[str, Reader | None]] = [("", _unknown)] * 256
for _opcode in pickletools.opcodes:
    _reader = None if _opcode.arg is None else _FREQUENT.get(_opcode.name) or _by_table(_opcode.arg)
    INSTRUCTIONS[ord(_opcode.code)] = (_opcode.name, _reader)
