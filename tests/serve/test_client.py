"""diffusion_policy.serve.client: what runs on the robot's machine."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_policy.serve.client import Chunk


def test_a_robot_s_machine_needs_no_torch(repository: Path) -> None:
    program = (
        "import sys; from diffusion_policy.serve.client import LineClient, WebSocketClient; "
        "print(sorted({'torch', 'diffusers', 'torchvision', 'zarr'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("now", "first"), [(0.9, 0), (1.0, 0), (1.04, 0), (1.06, 1), (1.31, 3), (2.0, 4)])
def test_a_late_chunk_skips_what_is_over(now: float, first: int) -> None:
    actions = np.arange(32.0).reshape(4, 8)
    due = Chunk(actions, 1.0 + np.arange(4) / 10).due(now)
    np.testing.assert_array_equal(due, actions[first:])
