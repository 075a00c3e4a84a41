"""Fixtures of the adapter's tests."""

import pytest
from adapt_factory import policy_cfg, save_checkpoint

from diffusion_policy.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def pose_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small policy that predicts poses."""
    return save_checkpoint(tmp_path_factory.mktemp("adapt") / "pose.ckpt", policy_cfg())
