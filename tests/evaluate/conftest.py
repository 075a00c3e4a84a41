"""A dataset and a checkpoint, made once for the tests of this package."""

from pathlib import Path

import pytest
from evaluation_factory import write_dataset, write_tiny_checkpoint


@pytest.fixture(scope="session")
def recorded_zarr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("recorded") / "set.zarr")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "latest.ckpt")
