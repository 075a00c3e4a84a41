"""Reports on disk: written beside, then renamed. And the error of this room."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from diffusion_policy.spec import WorkspaceError


class EvaluateError(WorkspaceError, ValueError):
    """An evaluation cannot be made or saved as asked for."""


def write_report(path: Path, text: str) -> None:
    """Replace ``path`` as a whole; its folder is made. EvaluateError if the disk refuses."""
    beside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        raise EvaluateError(f"{path}: cannot be written ({error.strerror})") from error


def write_json(path: Path, content: Any) -> None:
    """Write plain finite JSON, indented."""
    write_report(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
