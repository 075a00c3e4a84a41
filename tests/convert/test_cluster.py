"""Conversion on a Dask cluster of two local processes, one of which is killed midway."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from trajectory_factory import write_trajectory

from diffusion_policy.convert import ConversionError, ConversionSettings, convert
from diffusion_policy.convert.cluster import cluster
from diffusion_policy.dataset.replay_buffer import ReplayBuffer


def test_without_an_address_there_is_no_cluster() -> None:
    with cluster(None) as executor:
        assert executor is None


def test_dask_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConversionError, match=r"python -m pip install 'distributed>="), cluster("tcp://nowhere:1"):
        pass


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask (the extra 'cluster') is not installed")
    for number in range(8):
        write_trajectory(tmp_path / "in", number, n_steps=60, size=(320, 180))
    settings = ConversionSettings(tmp_path / "in", tmp_path / "out.zarr", resolution=(64, 36), workers=2)
    killed: list[int] = []

    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, worker_dashboard_address=None
    ) as local:
        victim = next(iter(local.workers.values())).pid

        def kill(done: int, total: int) -> None:
            if done > total / 4 and not killed:
                killed.append(victim)
                os.kill(victim, signal.SIGKILL)

        with cluster(local.scheduler_address) as executor:
            report = convert(settings, executor=executor, on_progress=kill)
    assert killed
    alone = convert(ConversionSettings(tmp_path / "in", tmp_path / "alone.zarr", resolution=(64, 36), workers=1))
    assert report.n_steps == 480
    assert report.content_sha256 == alone.content_sha256
    found, expected = (ReplayBuffer.open(tmp_path / name)["image"][:] for name in ("out.zarr", "alone.zarr"))
    np.testing.assert_array_equal(found, expected)


def test_no_scheduler_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="Dask (the extra 'cluster') is not installed")
    monkeypatch.setattr("diffusion_policy.convert.cluster._CONNECT_SECONDS", 1)
    with pytest.raises(ConversionError, match="no Dask scheduler answers"), cluster("tcp://127.0.0.1:9"):
        pass
