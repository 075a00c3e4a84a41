"""Recognizes, by their first bytes, files that are not pickles, and gives the remedy."""

from __future__ import annotations

import shlex
from pathlib import Path

from diffusion_policy.commands import python_code

_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gzip"),
    (b"BZh", "bzip2", "bzip2"),
    (b"\xfd7zXZ\0", "xz", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4"),
)
_RECORD_AGAIN = "let the recorder write one"
_OTHERS = (
    (b"\x93NUMPY", "a NumPy array (npy)", _RECORD_AGAIN),
    (b"\x89HDF", "an HDF5 file", _RECORD_AGAIN),
    (b"SQLite format 3", "an SQLite database", _RECORD_AGAIN),
    (b"#ROSBAG", "a ROS bag", _RECORD_AGAIN),
    (b"PAR1", "a Parquet file", _RECORD_AGAIN),
    (b"version https://git-lfs", "a git-lfs pointer, not the recording", "git lfs pull"),
    (b"<", "an HTML or XML page", "download the file itself"),
    (b'{"', "a JSON document", _RECORD_AGAIN),
    (b"{\n", "a JSON document", _RECORD_AGAIN),
)
# A zlib stream, by its level.
_ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_UNPACK_ZLIB = "import pathlib, zlib; f = pathlib.Path({!r}); f.write_bytes(zlib.decompress(f.read_bytes()))"
_UNPACK_NPZ = "import numpy, pickle; d = dict(numpy.load({!r})); pickle.dump(d, open({!r}, 'wb'))"


def what_it_is(content: bytes, file: Path) -> tuple[str, str] | None:
    """(kind, remedy) of a data.pkl that is not a pickle; None if it may be one."""
    if not content.strip(b"\0"):
        return f"{len(content)} bytes, all zero" if content else "an empty file", "copy it again from the recorder"
    for magic, name, tool in _COMPRESSED:
        if content.startswith(magic):
            packed, unpacked = shlex.quote(str(file)), shlex.quote(f"{file}.unpacked")
            return f"compressed with {name}", f"{tool} -dc < {packed} > {unpacked} && mv {unpacked} {packed}"
    if content.startswith(_ZLIB):
        return "compressed with zlib", python_code(_UNPACK_ZLIB.format(str(file)))
    if content.startswith(b"PK\x03\x04"):
        if b".npy" in content[:200]:
            return "a NumPy archive (npz)", python_code(_UNPACK_NPZ.format(str(file), str(file)))
        return "a zip archive", _RECORD_AGAIN
    return next(((name, remedy) for magic, name, remedy in _OTHERS if content.startswith(magic)), None)
