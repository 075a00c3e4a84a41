"""The runner of real-robot tasks: there is no environment to roll out in, so it measures nothing.

Configs and checkpoints of real-robot tasks name this class; what such a policy has learned is measured on held-out
episodes instead.
"""

from __future__ import annotations

import os

from torch import nn


class RealPushTImageRunner:
    """Runs nothing; see the module's docstring."""

    def __init__(self, output_dir: str | os.PathLike[str]):
        self.output_dir = output_dir

    def run(self, policy: nn.Module) -> dict[str, float]:
        """Returns no metrics."""
        return {}
