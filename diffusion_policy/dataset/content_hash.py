"""What a dataset holds, as one number: equal hashes mean equal data, whatever the codec, chunks or zarr format.

Each episode has a hash of its rows, the dataset one of these: a damaged episode can be named, and episodes can be added
without reading the others again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def frame_digest(frame: NDArray[np.uint8]) -> bytes:
    """SHA-256 of one frame as a reader gets it."""
    return hashlib.sha256(np.ascontiguousarray(frame).data).digest()


def episode_sha256(rows: Mapping[str, NDArray[Any]], frame_digests: Mapping[str, Iterable[bytes]]) -> str:
    """Hash of an episode: its low-dimensional rows by key, and the digests of its frames by camera."""
    digest = hashlib.sha256()
    for key in sorted(rows):
        values = np.ascontiguousarray(rows[key])
        digest.update(f"{key} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.tobytes())
    for key in sorted(frame_digests):
        digest.update(f"{key} frames\n".encode())
        digest.update(b"".join(frame_digests[key]))
    return digest.hexdigest()


def content_sha256(episodes: Sequence[str]) -> str:
    """Hash of a dataset, from the hashes of its episodes in order."""
    return hashlib.sha256("\n".join(episodes).encode()).hexdigest()
