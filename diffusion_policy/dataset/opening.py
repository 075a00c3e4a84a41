"""Opens a dataset as a zarr group, from a folder, a URL or a zip archive, and checks its files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr
import zarr.errors

from diffusion_policy.commands import command, python_code
from diffusion_policy.dataset import bounded_codecs  # noqa: F401 (registers them)
from diffusion_policy.dataset.archive import ROOT_METADATA, Archive, ArchiveStore
from diffusion_policy.dataset.chunk_files import (
    ArchiveFiles,
    ChunkFault,
    Files,
    LocalFiles,
    RemoteFiles,
    chunk_faults,
)
from diffusion_policy.dataset.content_hash import CONTENT_HASH, CONVERSION
from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.limits import refuse_absurd
from diffusion_policy.moved import former_names
from diffusion_policy.paths import PathError, as_path, is_remote, reaching, read_bytes

# What zarr raises for metadata that is truncated, not JSON, or incomplete.
_BAD_METADATA = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Opened:
    """A zarr group, and the files behind it.

    Attributes:
        root: the group.
        arrays: of its groups "data" and "meta" at the time of opening, by name; their metadata is read once.
        files: its files.
        where: its path or URL.
        archive: zip archive that holds it; None for a folder or a URL.
    """

    root: zarr.Group
    arrays: Mapping[str, Mapping[str, zarr.Array[Any]]]
    files: Files
    where: str
    archive: Archive | None = None

    def faults(self, group: str) -> list[ChunkFault]:
        """Faults in the files of all arrays of a group, "data" or "meta"."""
        return [fault for array in self.arrays[group].values() for fault in chunk_faults(array, self.files)]

    def refuse(self, faults: Sequence[ChunkFault]) -> None:
        """Raise an error for the faults; does nothing if there are none.

        Raises:
            DatasetError: names the first file, and how many there are.
        """
        if not faults:
            return
        first = faults[0]
        rows = f" (rows {first.rows[0]} to {first.rows[1] - 1})" if first.rows[1] - first.rows[0] > 1 else ""
        others = f"; {len(faults)} of its files are missing or damaged" if len(faults) > 1 else ""
        raise DatasetError(
            f"{self.where}/{first.file}{rows} {first.what}{others}: nothing is read in its place. "
            f"Copy the dataset again from an intact source, or convert again{self._zeros(faults)}"
        )

    def _zeros(self, faults: Sequence[ChunkFault]) -> str:
        """The remedy for a file by another writer, which may have left out chunks of zeros on purpose."""
        if self.archive is not None or CONVERSION in self.root.attrs or not all(fault.is_absent for fault in faults):
            return ""
        array = f"{self.where}/{faults[0].array}"
        code = (
            f'import zarr; a = zarr.open_array({json.dumps(array)}, mode="r+")'
            '.with_config({"write_empty_chunks": True}); a[:] = a[:]'
        )
        return (
            ". Only if it was all zeros when it was written (some writers leave such chunks out), write the zeros: "
            f"{python_code(code)}"
        )


def open_dataset(path: Path, mode: str) -> Opened:
    """Open the zarr group of a dataset.

    Raises:
        DatasetError: there is none, its metadata is damaged, or it is a zip that cannot be read in place.
        OSError: it cannot be reached.
    """
    archive = _archive(path, mode)
    store: Any = str(path) if archive is None else ArchiveStore(archive)
    try:
        root = zarr.open_group(store, path=archive.root() if archive else None, mode=mode)  # type: ignore[arg-type]
    except (FileNotFoundError, zarr.errors.GroupNotFoundError) as error:
        raise DatasetError(f"{path}: no zarr dataset there; {_todo(path)}") from error
    except _BAD_METADATA as error:
        raise _damaged_metadata(str(path), error) from error
    arrays = {group: _arrays(root, group, str(path)) for group in ("data", "meta")}
    files: Files = RemoteFiles(path) if is_remote(path) else LocalFiles(path)
    return Opened(root, arrays, ArchiveFiles(archive) if archive else files, str(path), archive)


def is_dataset(path: Path) -> bool:
    """Whether there is a complete dataset, or at least a zarr group, in a folder or at a URL."""
    with reaching(path):
        return any((path / name).is_file() for name in ROOT_METADATA)


def dataset_exists(path: str | Path) -> bool:
    """Whether anything exists where a run or a log names a dataset: a folder, an archive, a group at a URL.

    A store that cannot be reached counts as empty.
    """
    try:
        location = as_path(path)
        return is_dataset(location) if is_remote(location) else location.exists()
    except PathError:
        return False


def check_attributes(opened: Opened, path: Path) -> None:
    """Refuse a dataset of ours that has lost the attributes of its root; the ledger next to it still lists them.

    Raises:
        DatasetError: it has lost them.
    """
    ledger = path.with_name(f"{path.name}.conversion.json")
    if not opened.root.attrs.asdict() and ledger.is_file() and f'"{CONTENT_HASH}"'.encode() in read_bytes(ledger):
        name = ".zattrs" if opened.root.metadata.zarr_format == 2 else "zarr.json"
        raise DatasetError(
            f"{path}/{name} is missing or empty: what its numbers mean is lost, and it carries no record of its "
            f"conversion ({ledger.name} says it had one); copy it again from an intact source, or convert again"
        )


def _arrays(root: zarr.Group, group: str, where: str) -> dict[str, zarr.Array[Any]]:
    """The arrays of a group by name; empty if there is no such group.

    Raises:
        DatasetError: metadata of the group or of an array in it is damaged.
    """
    try:
        node = root.get(group)
        arrays = dict(node.arrays()) if isinstance(node, zarr.Group) else {}
        if not all(isinstance(array.metadata.attributes, dict) for array in arrays.values()):
            raise TypeError("attributes that are not an object")
        for array in arrays.values():
            refuse_absurd(array, f"{where}/{array.path}")
    except _BAD_METADATA as error:
        raise _damaged_metadata(f"{where}/{group}", error) from error
    return arrays


def _archive(path: Path, mode: str) -> Archive | None:
    """The archive at a path; None if it is not an archive."""
    if is_remote(path):
        if path.suffix == ".zip":
            raise DatasetError(f"{path}: zip archives are read in place from a disk only; copy it to this machine")
        return None
    if not path.is_file():
        return None
    if not zipfile.is_zipfile(path) and path.suffix != ".zip":
        raise DatasetError(f"{path}: a file, but not a zip archive; expected the folder of a zarr dataset, or its .zip")
    if mode != "r":
        raise DatasetError(f"{path}: an archive is only read; unpack it to change it")
    return Archive(path)


def _todo(path: Path) -> str:
    if path.with_name(path.name + ".partial").exists():
        return "a conversion to it is unfinished; run its command again with --resume"
    convert = command("convert_cogact_to_zarr", "--input", "TRAJECTORIES", "--output", path)
    return f"convert recordings to one first: {convert}"


def _damaged_metadata(where: str, error: Exception) -> DatasetError:
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DatasetError(f"{where}: its zarr metadata is damaged ({cause}); copy it again, or convert again")


__getattr__ = former_names(__name__, {"lies_there": "dataset_exists"})
