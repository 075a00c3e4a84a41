"""A dataset in one zip archive: its files as they are, stored and not compressed again, so that it is read in place."""

from __future__ import annotations

import zipfile
from pathlib import Path

from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.export.errors import ExportError
from diffusion_policy.paths import as_path, is_remote
from diffusion_policy.storage import atomic_file


def export_zarr_zip(dataset: Path, archive: Path) -> Path:
    """Pack a dataset; the archive appears under its name when it is complete.

    Args:
        dataset: its folder.
        archive: to be made.

    Raises:
        ExportError: the archive exists, or the dataset is no folder of this machine.
        DatasetError: it is no dataset, or a file of it is absent or damaged.
        StorageError: the disk refuses.
    """
    if archive.exists():
        raise ExportError(f"{archive} exists; it is not replaced, choose another name")
    folder = as_path(dataset)
    if is_remote(folder) or not folder.is_dir():
        raise ExportError(f"{dataset} is no folder of this machine; only those are packed")
    ReplayBuffer.open(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    with (
        atomic_file(archive) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as packed,
    ):
        for file in files:
            packed.write(file, str(file.relative_to(folder)))
    return archive
