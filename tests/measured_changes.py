"""Config changes whose effect was measured on built models, translated to this project's terms and spelling."""

from __future__ import annotations

import json
from typing import Any

from diffusion_policy.families.family import Impact

DELETED = "__DELETED_KEY__"
OURS = {
    "all load, output identical": {Impact.SAFE},
    "all load, OUTPUT CHANGES": {Impact.DIFFERS},
    "new parameters or buffers": {Impact.PARTLY},
    "pretrained tensors dropped": {Impact.PARTLY},
    "shape mismatch": {Impact.BREAKING},
    "shape mismatch; forward fails": {Impact.CANNOT_RUN},
    "all load but forward fails": {Impact.CANNOT_RUN},
    "does not construct": {Impact.NOT_CONSTRUCTED},
}


def changes_of(change: dict[str, Any]) -> list[str]:
    """Returns a measured change in the form for `what_if`."""
    return [f"~{key}" if value == DELETED else f"{key}={json.dumps(value)}" for key, value in change.items()]
