"""A dataset in one zip archive: its files are stored as they are, not compressed again, so it can be read in place."""

from __future__ import annotations

import zipfile
from pathlib import Path

from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.export.errors import ExportError
from diffusion_policy.paths import as_path, is_remote
from diffusion_policy.storage import atomic_file


def export_zarr_zip(dataset: Path, archive: Path) -> Path:
    """Packs a dataset; the archive appears under its name when it is complete.

    Args:
        dataset: the dataset's folder.
        archive: the archive to create.

    Raises:
        ExportError: the archive exists, or the dataset is not a local folder.
        DatasetError: it is not a dataset, or one of its files is missing or damaged.
        StorageError: the disk refuses.
    """
    if archive.exists():
        raise ExportError(f"{archive} exists; it is not replaced: choose another name")
    folder = as_path(dataset)
    if is_remote(folder) or not folder.is_dir():
        raise ExportError(f"{dataset} is not a local folder; only local folders can be packed")
    ReplayBuffer.open(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    with (
        atomic_file(archive) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as packed,
    ):
        for file in files:
            packed.write(file, str(file.relative_to(folder)))
    return archive
