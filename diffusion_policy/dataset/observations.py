"""Observations of any steps, as policy input: prepared on demand, or once and cached.

All of them come from `spec.policy_observation`; a cache holds what that function returned:

    none      nowhere: frames are unpacked from disk each time; the least memory
    memory    in memory: 172 kB per step and camera at 320x180 (3.4 GB for 20,000 steps)
    mmap in a memory-mapped file next to the dataset: as fast once it is in the page cache, and shared by all processes;
    for a dataset at a URL, in the user's cache folder device on the GPU: batches are gathered there, and nothing is
    copied to it

Legend: N steps in all, S a shape of step numbers.
"""

from __future__ import annotations

import fcntl
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_policy.dataset.replay_buffer import DatasetError
from diffusion_policy.dataset.sources import Frames, Source
from diffusion_policy.dataset.windows import IndexArray
from diffusion_policy.paths import as_path, file_system, is_remote, reaching
from diffusion_policy.spec import StepSpec, policy_observation
from diffusion_policy.storage import atomic_file, local_cache, sha256

logger = logging.getLogger(__name__)

CACHES = ("none", "memory", "mmap", "device")
# Steps prepared at a time while a cache is filled: 22 MB of frames.
_STEPS_AT_ONCE = 128


class Observations(Protocol):
    """Prepared observations."""

    def at(self, steps: IndexArray) -> dict[str, Tensor]:
        """Per key (*S, ...) of the steps (*S)."""


class LiveObservations:
    """Read and prepared on demand."""

    def __init__(self, spec: StepSpec, sources: Sequence[Source]) -> None:
        self.spec = spec
        self._low_dim = {
            field.key: np.concatenate([source.low_dim[field.key] for source in sources]) for field in spec.low_dim
        }
        self._frames = {field.key: Frames(sources, field.key) for field in spec.rgb}

    def at(self, steps: IndexArray) -> dict[str, Tensor]:
        """Per key (*S, ...) of the steps (*S)."""
        raw: dict[str, NDArray[Any]] = {key: values[steps] for key, values in self._low_dim.items()}
        raw.update({key: frames.read(steps) for key, frames in self._frames.items()})
        return {key: torch.from_numpy(value) for key, value in policy_observation(self.spec, raw).items()}


class CachedObservations:
    """All steps prepared once, and kept in tensors (N, ...)."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def __getstate__(self) -> dict[str, Any]:
        if any(tensor.device.type != "cpu" for tensor in self.tensors.values()):
            raise DatasetError("cache: device lives in one process; set num_workers to 0, or use cache: mmap")
        return self.__dict__

    def at(self, steps: IndexArray) -> dict[str, Tensor]:
        """Per key (*S, ...) of the steps (*S), on the device of the cache."""
        return {key: gather(tensor, steps) for key, tensor in self.tensors.items()}


def gather(rows: Tensor, steps: IndexArray) -> Tensor:
    """Rows (*S, ...) of a tensor (N, ...), each copied whole."""
    index = torch.from_numpy(np.ascontiguousarray(steps).reshape(-1)).to(rows.device)
    return rows.index_select(0, index).reshape(*steps.shape, *rows.shape[1:])


def prepare(
    spec: StepSpec, sources: Sequence[Source], cache: str, device: str | torch.device = "cuda"
) -> LiveObservations | CachedObservations:
    """Observations of all steps of the sources, cached as requested.

    Raises:
        DatasetError: no such cache, or not enough memory or disk for it.
    """
    live = LiveObservations(spec, sources)
    if cache not in CACHES:
        raise DatasetError(f"cache is {cache!r}; expected one of {', '.join(CACHES)}")
    if cache == "none":
        return live
    if cache == "mmap":
        return CachedObservations(_mapped(live, sources))
    n_steps = sum(source.n_steps for source in sources)
    home = torch.device("cpu" if cache == "memory" else device)
    size = n_steps * sum(_bytes(live).values())
    _check_free_space(size, home, cache)
    example = live.at(np.arange(1))
    cached = {
        key: torch.empty((n_steps, *value.shape[1:]), dtype=value.dtype, device=home) for key, value in example.items()
    }
    for start in range(0, n_steps, _STEPS_AT_ONCE):
        steps = np.arange(start, min(start + _STEPS_AT_ONCE, n_steps))
        for key, value in live.at(steps).items():
            cached[key][start : start + len(steps)].copy_(value)
    logger.info("%d steps of observations, %.2f GB, are kept on %s", n_steps, size / 1e9, home)
    return CachedObservations(cached)


def _bytes(live: LiveObservations) -> dict[str, int]:
    """Bytes of one step, by key."""
    return {key: value.numel() * value.element_size() for key, value in live.at(np.arange(1)).items()}


def _check_free_space(size: int, home: torch.device, cache: str) -> None:
    """Refuse a cache that does not fit, since swapping, or a GPU that is full, would fail later and worse."""
    if home.type == "cuda":
        if not torch.cuda.is_available():
            raise DatasetError("cache: device needs a GPU and none is there; use cache: mmap")
        free = float(torch.cuda.mem_get_info(home)[0])
    else:
        free = _free_memory()
    if size > free:
        raise DatasetError(f"cache: {cache} needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; use cache: mmap")


def _free_memory() -> float:
    """Bytes that a process may still allocate, as Linux estimates it; unlimited where that is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)


def _mapped(live: LiveObservations, sources: Sequence[Source]) -> dict[str, Tensor]:
    """Images in memory-mapped files next to the first dataset; low-dimensional keys, which are small, in memory."""
    n_steps = sum(source.n_steps for source in sources)
    every = np.arange(n_steps)
    folder = _cache_folder(as_path(sources[0].path))
    folder.mkdir(parents=True, exist_ok=True)
    low_dim = {key: torch.from_numpy(values[every]) for key, values in live._low_dim.items()}
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be writing the same file
        images = {
            field.key: _mapped_images(live, field.key, (n_steps, *field.shape), folder, sources)
            for field in live.spec.rgb
        }
    return {field.key: {**low_dim, **images}[field.key] for field in live.spec.obs}


def _cache_folder(dataset: Path) -> Path:
    if not is_remote(dataset):
        return dataset.with_name(dataset.name + ".cache")
    key = sha256(str(dataset).encode()).hex()[:12]
    return local_cache() / "images" / f"{dataset.name}-{key}"


def _mapped_images(
    live: LiveObservations, key: str, shape: tuple[int, ...], folder: Path, sources: Sequence[Source]
) -> Tensor:
    identity = sha256(repr([_identity(source) for source in sources]).encode()).hex()[:16]
    file = folder / f"{key}-{identity}.npy"
    if not file.is_file():
        size, free = int(np.prod(shape)), shutil.disk_usage(folder).free
        if size > free:
            raise DatasetError(f"cache: mmap needs {size / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free")
        logger.info("writing %s, %.2f GB", file, size / 1e9)
        with atomic_file(file, shared=False) as temporary:
            images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            for start in range(0, shape[0], _STEPS_AT_ONCE):
                steps = np.arange(start, min(start + _STEPS_AT_ONCE, shape[0]))
                images[start : start + len(steps)] = live.at(steps)[key].numpy()
            images.flush()
    # Copy-on-write, since a tensor cannot be read-only; nothing writes to it.
    return torch.from_numpy(np.load(file, mmap_mode="c"))


def _identity(source: Source) -> tuple[Any, ...]:
    """Changes when the dataset does: its content hash or, without one, when its files were written."""
    if source.content:
        return (source.content, source.n_steps)
    path = as_path(source.path)
    if not is_remote(path):
        path = path.resolve()
        if path.is_file():  # an archive
            return ((str(path), path.stat().st_mtime_ns, path.stat().st_size), source.n_steps)
        return ((str(path), (path / "meta" / "episode_ends").stat().st_mtime_ns), source.n_steps)
    store, root = file_system(path)
    with reaching(path):
        return (str(path), repr(store.find(f"{root}/meta/episode_ends", detail=True)), source.n_steps)
