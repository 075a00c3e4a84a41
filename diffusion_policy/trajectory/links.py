"""Detects broken links, such as those to a disk that is not mounted, so that they are not treated as missing files."""

from __future__ import annotations

import os
from pathlib import Path

from diffusion_policy.paths import is_remote
from diffusion_policy.trajectory.errors import TrajectoryError


def is_broken(path: Path) -> bool:
    """Whether a directory entry exists but cannot be reached: a broken link, or a disconnected network disk."""
    if is_remote(path) or not os.path.lexists(path):
        return False
    return _reason(path) is not None


def refuse_broken(path: Path) -> None:
    """Raises TrajectoryError: there is an entry with that name, but it cannot be reached."""
    if is_remote(path) or not os.path.lexists(path):
        return
    reason = _reason(path)
    if reason is None:
        return
    if path.is_symlink():
        target = os.readlink(path)
        raise TrajectoryError(
            f"{path}: is a link to {target}, which cannot be reached ({reason}); mount the disk that it is on, "
            "or replace the link with a copy"
        )
    raise TrajectoryError(f"{path}: cannot be reached ({reason}); mount its disk again, or copy it from elsewhere")


def _reason(path: Path) -> str | None:
    try:
        path.stat()
    except OSError as error:
        return error.strerror or str(error)
    return None
