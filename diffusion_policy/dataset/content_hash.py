"""A dataset's content as one hash: equal hashes mean equal data, regardless of the codec, chunks or zarr format.

Each episode has a hash of its rows, and the dataset a hash of these: a damaged episode can be named, and episodes can
be added without rereading the others. Each array of an episode has a hash, too, so that a damaged array can be named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.storage import sha256

# Attributes of a dataset's root: the hash of everything, the hashes of episodes, and how it was made.
CONTENT_HASH, EPISODES, CONVERSION = "content_sha256", "episodes", "conversion"
# Entries of an episode's description: its hash, and its arrays' hashes by key.
EPISODE_HASH, ARRAY_HASHES = "sha256", "arrays"


def frame_digest(frame: NDArray[np.uint8]) -> bytes:
    """SHA-256 of one frame as a reader gets it."""
    return sha256(np.ascontiguousarray(frame).data)


def episode_sha256(rows: Mapping[str, NDArray[Any]], frame_digests: Mapping[str, Iterable[bytes]]) -> str:
    """Hash of an episode: its low-dimensional rows by key, and the digests of its frames by camera."""
    of_rows = (part for key in sorted(rows) for part in _of_rows(key, rows[key]))
    of_frames = (part for key in sorted(frame_digests) for part in _of_frames(key, frame_digests[key]))
    return sha256(*of_rows, *of_frames).hex()


def array_sha256(rows: Mapping[str, NDArray[Any]], frame_digests: Mapping[str, Iterable[bytes]]) -> dict[str, str]:
    """Hash of each array of an episode by key: of what the array contributes to `episode_sha256`."""
    parts = {key: _of_rows(key, values) for key, values in rows.items()}
    parts |= {key: _of_frames(key, digests) for key, digests in frame_digests.items()}
    return {key: sha256(*part).hex() for key, part in sorted(parts.items())}


def content_sha256(episodes: Sequence[str]) -> str:
    """Hash of a dataset, from the hashes of its episodes in order."""
    return sha256("\n".join(episodes).encode()).hex()


def _of_rows(key: str, rows: NDArray[Any]) -> tuple[bytes, bytes]:
    values = np.ascontiguousarray(rows)
    return f"{key} {values.dtype.str} {values.shape}\n".encode(), values.tobytes()


def _of_frames(key: str, digests: Iterable[bytes]) -> tuple[bytes, bytes]:
    return f"{key} frames\n".encode(), b"".join(digests)
