"""Sends a finished dataset to an object store, where nothing can be renamed: what makes it a dataset is sent last.

    <out>.partial               present while a conversion is unfinished
    <out>/data/ <out>/meta/     chunks, then the metadata of the arrays
    <out>.conversion.json       the ledger
    <out>/.zattrs .zgroup       (zarr.json in format 3) last: without it there is no group, and every reader refuses

The dataset was assembled on this machine and stays there until all of it is sent; a conversion that was killed
continues with what is not yet sent. A dataset being replaced is withdrawn when the new one is complete on this
machine; a dataset being extended, only while its metadata is exchanged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_policy.convert.placement import PUBLICATION, SENT, remove_work
from diffusion_policy.convert.settings import ConversionError, ConversionSettings
from diffusion_policy.dataset.opening import is_dataset
from diffusion_policy.paths import file_system, reaching
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.storage import write_json

# Metadata files that make a group; they are sent last, in this order.
_ROOT_METADATA = (".zattrs", ".zgroup", "zarr.json")
_METADATA = {".zarray", *_ROOT_METADATA}
# Files sent between two notes of progress, and at the same time; shards of 25 MB must fit into memory.
_SENT_TOGETHER, _SENT_AT_A_TIME = 64, 8
"""Called with the number of frames (then of files to be sent) done, and the total."""


def announce(settings: ConversionSettings) -> None:
    """Marks, next to the output, that a conversion to it has begun; fails early without write permission.

    Raises:
        PathError: the store cannot be reached, lacks the bucket, or refuses.
    """
    with reaching(settings.output):
        _mark(settings).write_text(json.dumps({"unfinished": settings.as_json()}, indent=1) + "\n", encoding="utf-8")


def was_interrupted(settings: ConversionSettings) -> bool:
    """Whether the output is not yet a dataset but the part that an unfinished conversion has sent."""
    with reaching(settings.output):
        return _mark(settings).is_file()


def finish_publication(settings: ConversionSettings, on_progress: Progress = no_progress) -> None:
    """Sends the rest of a dataset that was complete when its conversion was interrupted, if there is one."""
    if _plan_file(settings).is_file():
        _publish(settings, on_progress)


def publish(settings: ConversionSettings, ledger: Any, on_progress: Progress = no_progress) -> None:
    """Sends the finished dataset in `partial/dataset`, with its ledger.

    Raises:
        PathError: the store cannot be reached, or refuses; the rest can be sent later.
    """
    write_json(settings.partial / "conversion.json", ledger)
    write_json(_plan_file(settings), {"adds": settings.append})
    _publish(settings, on_progress)


def _publish(settings: ConversionSettings, on_progress: Progress) -> None:
    whole = settings.partial / "dataset"
    names = sorted(str(file.relative_to(whole)) for file in whole.rglob("*") if file.is_file())
    root = [name for name in _ROOT_METADATA if name in names]
    metadata = [name for name in names if name not in root and Path(name).name in _METADATA]
    chunks = sorted(set(names).difference(root, metadata))
    adds = json.loads(_plan_file(settings).read_text(encoding="utf-8"))["adds"]
    with reaching(settings.output):
        if not adds:
            _withdraw(settings)
            _remove_strangers(settings, names)
        _send(settings, chunks, on_progress)
        _withdraw(settings)
        store, path = file_system(settings.output)
        store.put([str(whole / name) for name in metadata], [f"{path}/{name}" for name in metadata])
        ledger = (settings.partial / "conversion.json").read_bytes()
        settings.ledger_file.write_bytes(ledger)
        for name in root:
            store.put_file(str(whole / name), f"{path}/{name}")
        _mark(settings).unlink()
        store.invalidate_cache()
    remove_work(settings.partial)


def _withdraw(settings: ConversionSettings) -> None:
    """Deletes the metadata that make the output readable as a dataset."""
    store, path = file_system(settings.output)
    store.invalidate_cache()
    for name in reversed(_ROOT_METADATA):
        if store.exists(f"{path}/{name}"):
            store.rm_file(f"{path}/{name}")


def _remove_strangers(settings: ConversionSettings, names: Sequence[str]) -> None:
    """Removes files of the replaced dataset or an interrupted conversion that the new dataset does not have."""
    store, path = file_system(settings.output)
    mine = {f"{path}/{name}" for name in names}
    strangers = [path_in_store for path_in_store in store.find(path) if path_in_store not in mine]
    if strangers:
        store.rm(strangers)


def _send(settings: ConversionSettings, names: Sequence[str], on_progress: Progress) -> None:
    """Sends chunks, and records on this machine what was sent."""
    store, path = file_system(settings.output)
    journal = settings.partial / SENT
    sent = set(journal.read_text(encoding="utf-8").splitlines()) if journal.is_file() else set()
    waiting = [name for name in names if name not in sent]
    with journal.open("a", encoding="utf-8") as notes:
        for start in range(0, len(waiting), _SENT_TOGETHER):
            batch = waiting[start : start + _SENT_TOGETHER]
            files = [str(settings.partial / "dataset" / name) for name in batch]
            store.put(files, [f"{path}/{name}" for name in batch], batch_size=_SENT_AT_A_TIME)
            notes.write("".join(name + "\n" for name in batch))
            notes.flush()
            on_progress(len(names) - len(waiting) + start + len(batch), len(names))


def check_can_be_added_to(settings: ConversionSettings) -> None:
    """Refuses to add to a dataset if another machine was interrupted while exchanging its metadata.

    Raises:
        ConversionError: there is only an unfinished conversion.
    """
    if not is_dataset(settings.output) and was_interrupted(settings):
        raise ConversionError(
            f"{settings.output}: a conversion to it was interrupted on another machine or with another --scratch; "
            "continue it there, or convert everything again with --overwrite"
        )


def _mark(settings: ConversionSettings) -> Path:
    return settings.output.with_name(settings.output.name + ".partial")


def _plan_file(settings: ConversionSettings) -> Path:
    return settings.partial / PUBLICATION
