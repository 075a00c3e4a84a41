"""Determines the kind of a file by its first bytes: the reader that opens it, or what it is instead, with the remedy.

Most files that "do not load" are not checkpoints: the pointer file of a version control system, the sign-in page of a
server, an archive inside an archive, a folder.
"""

from __future__ import annotations

import bz2
import json
import lzma
import re
import shlex
import stat
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from diffusion_policy.commands import command
from diffusion_policy.tensor_file.integrity import REMEDY
from diffusion_policy.tensor_file.opened import TensorFileError

Kind = Literal["torch zip", "torch legacy", "safetensors", "pickle", "shards"]

HEAD_BYTES = 4096
ZIP_START = b"PK\x03\x04"
# The first pickle of a file from torch.save before PyTorch 1.6: a number, written as LONG1 after the protocol.
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
WEIGHT_SUFFIXES = (".ckpt", ".pt", ".pth", ".weights", ".safetensors", ".bin")

_Kind = tuple[str, str]  # what it is, what to do


def kind_of(path: Path) -> Kind:
    """The kind of a file, which determines its reader.

    Raises:
        TensorFileError: absent, not readable, or another kind of file; the message states its kind and the remedy.
    """
    fault = _path_fault(path)
    if fault is None and path.is_dir():
        fault = _folder(path)
        if fault is None:
            return "shards"
    if fault is not None:
        raise TensorFileError(_sentence(path, *fault))
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise TensorFileError(f"{path}: it cannot be read ({error.strerror}).") from error
    if head.startswith(ZIP_START):
        return "torch zip"
    if head[:1] == b"\x80" and head[2:].startswith(LEGACY_MAGIC):
        return "torch legacy"
    fault = _content(path, head)
    if path.suffix == ".json" and (fault is None or head.lstrip()[:1] in (b"{", b"[")):
        return "shards"
    has_header = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40
    if fault is None and (has_header or path.suffix == ".safetensors"):
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "pickle"
    if fault is not None:
        raise TensorFileError(_sentence(path, *fault))
    raise TensorFileError(
        f"{path}: it is not in a supported format: PyTorch's, safetensors, or a pickle of settings (it begins "
        f"with {head[:4]!r}); see what `file {shlex.quote(str(path))}` says about it, or {REMEDY}."
    )


def _sentence(path: Path | str, what: str, remedy: str) -> str:
    return f"{path}: it is {what}, not a weights file; {remedy}."


def foreign_zip(path: str, names: list[str]) -> str | None:
    """A sentence on the kind of a zip archive that PyTorch did not write; None if it is not recognized.

    Args:
        path: path of the archive.
        names: names of its entries.
    """
    kind = _zip(path, names)
    return None if kind is None else _sentence(path, *kind)


# ---- before a byte is read ----


def _path_fault(path: Path) -> _Kind | None:
    """Why a path cannot be opened (a URL, a broken link, a device); None for a file or a folder."""
    text = str(path)
    if re.match(r"[a-z0-9]{2,}:/", text):
        return "an address", f"weights are read from a disk: copy it first (aws s3 cp {shlex.quote(text)} .)"
    if path.is_symlink() and not path.exists():
        target = str(path.readlink())
        if ".git/annex/" in target:
            return "a git-annex pointer", f"fetch its content: {_in_folder(path, 'git annex get')}"
        return f"a link to {target}, which does not exist", "is the disk mounted? copy the file itself"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        what = "checkpoint file" if path.suffix == ".ckpt" else "file"
        raise TensorFileError(f"{path}: there is no such {what}{_nearest(path)}.") from error
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "not a regular file"), "write it into a file first"


def _nearest(path: Path) -> str:
    """Weights files in the same folder, for the message."""
    if not path.parent.is_dir():
        return f", nor a folder {path.parent}"
    others = sorted(file.name for file in path.parent.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    return f"; its folder has {', '.join(others[:4])}{' ...' if len(others) > 4 else ''}" if others else ""


def _in_folder(path: Path, tool: str) -> str:
    """The command of a version control system, run in the file's folder."""
    return f"(cd {shlex.quote(str(path.absolute().parent))} && {tool} {shlex.quote(path.name)})"


def _folder(path: Path) -> _Kind | None:
    """The kind of a folder; None if it may contain shards of safetensors."""
    names = {entry.name for entry in path.iterdir()}
    latest = path / "checkpoints" / "latest.ckpt"
    if latest.is_file():
        return "the folder of a run", f"name one of its checkpoints, such as {shlex.quote(str(latest))}"
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        convert = (
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {shlex.quote(str(path))} WEIGHTS.pt"
        )
        return "a sharded checkpoint of torch.distributed", f"make one file of it: {convert}"
    if "zero_to_fp32.py" in names:
        return (
            "a checkpoint of DeepSpeed",
            f"make one file of it: {_in_folder(path / 'zero_to_fp32.py', 'python')} . OUT",
        )
    if names & {".zgroup", "zarr.json", ".zmetadata"}:
        return "a zarr dataset", "name a checkpoint"
    if "data.pkl" in names and (path / "data").is_dir():
        home, name, packed = map(shlex.quote, (str(path.absolute().parent), path.name, f"{path.name}.ckpt"))
        packed = f"(cd {home} && zip -0 -r {packed} {name})"
        return "an unpacked archive of PyTorch", f"pack it again without compression: {packed}"
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        return None
    files = sorted(name for name in names if Path(name).suffix in WEIGHT_SUFFIXES)
    if files:
        return "a folder", f"name one of its files: {', '.join(files[:4])}{' ...' if len(files) > 4 else ''}"
    return ("an empty folder" if not names else "a folder without weights in it"), "name the file"


# ---- by the first bytes ----

_DOWNLOAD = "download it again with what the server requires (an account, a token, the address of the raw file)"
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, robomimic)", "name a checkpoint that PyTorch wrote"),
    (0, b"\x93NUMPY", "a NumPy array", "name a checkpoint"),
    (0, b"GGUF", "a GGUF file of a language model", "name a checkpoint that PyTorch wrote"),
    (4, b"TFL3", "a TensorFlow Lite model", "name a checkpoint that PyTorch wrote"),
    (0, b"PAR1", "a Parquet table", "name a checkpoint"),
    (0, b"ARROW1", "an Arrow table", "name a checkpoint"),
    (0, b"SQLite format 3\x00", "an SQLite database", "name a checkpoint"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture", "name a checkpoint"),
    (0, b"\xff\xd8\xff", "a JPEG picture", "name a checkpoint"),
    (4, b"ftyp", "a video", "name a checkpoint"),
    (0, b"%PDF", "a PDF document", "name a checkpoint"),
    (0, b"\x7fELF", "a program", "name a checkpoint"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it: 7z x {path}"),
    (0, b"Rar!\x1a\x07", "a rar archive", "unpack it: unrar x {path}"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it: zstd -dc {path} > {unpacked}"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it: lz4 -dc {path} > {unpacked}"),
    (0, b"PK\x05\x06", "an empty zip archive", REMEDY),
    (0, b"PK\x01\x02", "the end of a zip archive, whose beginning is missing", REMEDY),
)
_PACKERS: tuple[tuple[bytes, str, str, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", "gzip", "gunzip", lambda head: zlib.decompressobj(31).decompress(head, 1024)),
    (b"BZh", "bzip2", "bunzip2", lambda head: bz2.BZ2Decompressor().decompress(head, 1024)),
    (b"\xfd7zXZ\x00", "xz", "xz -d", lambda head: lzma.LZMADecompressor().decompress(head, 1024)),
    (b"]\x00\x00", "lzma", "xz -d", lambda head: lzma.LZMADecompressor().decompress(head, 1024)),
)


def _content(path: Path, head: bytes) -> _Kind | None:
    """The kind of an unsupported file by its first bytes; None if it is not recognized."""
    if not head:
        return "an empty file", REMEDY
    if not any(head):
        return "only zeros where its content should begin, as left by an aborted copy", REMEDY
    name, unpacked = shlex.quote(str(path)), shlex.quote(str(_unpacked(path)))
    for magic, what, tool, unpack in _PACKERS:
        if head.startswith(magic):
            try:
                inside = unpack(head)
            except (OSError, EOFError, zlib.error, lzma.LZMAError):
                inside = b""
            if _is_tar(inside):
                return f"a tar archive compressed with {what}", f"unpack it: tar -xf {name}"
            return f"compressed with {what}", f"unpack it: {tool} -c < {name} > {unpacked}"
    for at, magic, what, remedy in _MAGIC:
        if head[at : at + len(magic)] == magic:
            return what, remedy.format(path=name, unpacked=unpacked)
    if _is_tar(head):
        return _tar(path)
    return _text(path, head)


def _unpacked(path: Path) -> Path:
    """A path for the content of a compressed file."""
    if path.suffix in (".gz", ".bz2", ".xz", ".lzma", ".zst", ".lz4"):
        return path.with_suffix("")
    return path.with_name(f"{path.stem}.unpacked{path.suffix}")


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _tar(path: Path) -> _Kind:
    try:
        with tarfile.open(path, "r:") as archive:
            names = [member.name for _, member in zip(range(20), archive, strict=False)]
    except (tarfile.TarError, OSError, EOFError):
        names = []
    if {"sys_info", "pickle", "storages"} <= set(names):
        return "in PyTorch's format from before 0.2", "open it with the PyTorch that wrote it and save it again"
    return f"a tar archive of {', '.join(names[:3]) or 'nothing'}", f"unpack it: tar -xf {shlex.quote(str(path))}"


def _text(path: Path, head: bytes) -> _Kind | None:
    """The kind of a text file; None if it is not a text."""
    text = _decoded(head)
    if text is None:
        return None
    start = text.lstrip("\ufeff \t\r\n")
    low = start[:200].lower()
    if low.startswith("version https://git-lfs"):
        return "a git-lfs pointer", f"fetch its content: {_in_folder(path, 'git lfs pull -I')}"
    if low.startswith("# xet version"):
        return "a pointer into Xet storage", "download the file itself (hf download REPOSITORY FILE)"
    if start.startswith("/annex/objects/"):
        return "a git-annex pointer", f"fetch its content: {_in_folder(path, 'git annex get')}"
    if low.startswith("outs:") and ("md5:" in low or "hash:" in low):
        return "a DVC pointer", f"fetch its content: {_in_folder(path, 'dvc pull')}"
    if low.startswith(("<!doctype html", "<html", "<head", "<body")):
        return f"a web page{_quoted(_title(text))}", _DOWNLOAD
    if low.startswith(("<?xml", "<error")):
        code = re.search(r"<Code>([\w.-]{1,60})</Code>", text)
        return f"an XML document{_quoted(code[1] if code else '')}, the form in which stores report errors", _DOWNLOAD
    if start[:1] in "{[" and start:
        return f"a JSON document{_quoted(_message(text))}", "name the weights file itself"
    if re.search(r"^\s*_target_:|^defaults:", text, re.MULTILINE):
        return "a config in YAML", "name the checkpoint that was trained with it"
    return f"a text that begins with {start[:40]!a}", _DOWNLOAD


def _decoded(head: bytes) -> str | None:
    """The first bytes decoded as text; None if they are not text."""
    for encoding in ("utf-16",) if head[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8",):
        try:
            text = head.decode(encoding)
        except UnicodeDecodeError as error:
            if error.start < len(head) - 4 or len(head) < HEAD_BYTES:  # not merely a character cut at the end
                return None
            text = head[: error.start].decode(encoding)
        if all(character.isprintable() or character in "\r\n\t\f\ufeff" for character in text):
            return text
    return None


def _title(text: str) -> str:
    title = re.search(r"<title[^>]*>\s*([^<]{1,60})", text, re.IGNORECASE)
    return title[1].strip() if title else ""


def _message(text: str) -> str:
    """The error message in a server's JSON response; empty if there is none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    named_errors = next((content[key] for key in ("message", "error", "detail") if content.get(key)), "") \
        if isinstance(content, dict) else ""  # fmt: skip
    return str(named_errors)[:60] if isinstance(named_errors, str) else ""


def _quoted(text: str) -> str:
    plain = "".join(character for character in text if character.isprintable())
    return f" ({plain!a})" if plain else ""


def _zip(path: str, names: list[str]) -> _Kind | None:
    """The kind of a zip archive that PyTorch did not write; None if it is not recognized."""
    weights = [name for name in names if Path(name).suffix in WEIGHT_SUFFIXES]
    quoted = shlex.quote(path)
    if weights:
        return f"a zip archive with {weights[0]!r} in it", f"unpack it: unzip {quoted} {shlex.quote(weights[0])}"
    if names and all(name.endswith(".npy") for name in names):
        return "an .npz of NumPy arrays", "name a checkpoint that PyTorch wrote"
    if any(Path(name).name in (".zgroup", "zarr.json") for name in names):
        return "a zarr dataset in a zip archive", "name a checkpoint"
    if "model.weights.h5" in names:
        return "a model of Keras", "name a checkpoint that PyTorch wrote"
    if any(name.endswith(("models/model.json", "archive_format")) for name in names):
        return "a program of torch.export", "save its state_dict with torch.save instead"
    return None


def of_weights_only(path: Path, kind: Kind) -> str:
    """A sentence on why a file with weights only is not a checkpoint of the policy."""
    what = {
        "safetensors": "a safetensors file, which holds weights without the config that describes them",
        "pickle": "a plain pickle, not a checkpoint that torch.save wrote",
        "shards": "an index of shards, which hold weights without the config that describes them",
    }[kind]
    return f"{path}: it is {what}; see what is in it: {command('adapt', 'inspect', path)}."
