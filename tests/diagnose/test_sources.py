"""Report and doctor open each given file once, and report their progress."""

import importlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from log_factory import write_log
from report_factory import checkpoint_with_ledger, closed_loop, open_loop, write_run
from tiny_run import write_dataset

from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.diagnose.doctor import examine
from diffusion_policy.report.report_page import Sources, make_report

# Every reader of files, where it is called.
READERS = (
    "checkpoint.read_torch",
    "run_folder.reading._read_metrics",
    "run_folder.reading.read_config",
    "diagnose.log_evidence.read_log",
    "diagnose.sources.read_open_loop",
    "env_runner.document.read_document",
)


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each reader was asked for a file."""
    counts: Counter[str] = Counter()

    def counted(name: str, reader: Callable[..., Any]) -> Callable[..., Any]:
        def read(path: Any, *arguments: Any, **options: Any) -> Any:
            counts[f"{name} {Path(path).name}"] += 1
            return reader(path, *arguments, **options)

        return read

    for reader in READERS:
        module, _, name = f"diffusion_policy.{reader}".rpartition(".")
        found = getattr(importlib.import_module(module), name)
        monkeypatch.setattr(f"{module}.{name}", counted(name, found))
    opened, read = ReplayBuffer.open.__func__, ReplayBuffer.read  # type: ignore[attr-defined]

    def open_counted(cls: Any, path: Any, **options: Any) -> Any:
        counts[f"dataset {Path(path).name}"] += 1
        return opened(cls, path, **options)

    def read_counted(self: ReplayBuffer, key: str) -> Any:
        counts[f"{Path(self.where).name}/{key}"] += 1
        return read(self, key)

    monkeypatch.setattr(ReplayBuffer, "open", classmethod(open_counted))
    monkeypatch.setattr(ReplayBuffer, "read", read_counted)
    return counts


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """Everything: a run that names a dataset in another scale, two logs, a checkpoint, errors, two rollouts."""
    dataset = write_dataset(tmp_path / "set.zarr")
    run = write_run(tmp_path / "some_run", checkpoint=False)
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("nowhere.zarr", str(dataset)) + "  gripper_scale: open1\n")
    checkpoint_with_ledger(run / "checkpoints" / "best.ckpt")
    (run / "logs").mkdir()
    for number in range(2):
        write_log(run / "logs" / f"inference_log_2026010{number}_101112.json", [1.0] * 20 + [0.02] * 15 + [0.97] * 10)
    for name in ("closed_loop_a.json", "closed_loop_b.json"):
        closed_loop(run / name, "1c")
    return Sources(run=run, open_loop=(open_loop(tmp_path / "errors.json"),))


def test_the_report_opens_each_file_once(sources: Sources, opens: Counter[str]) -> None:
    make_report(sources)
    expected = {
        "read_torch best.ckpt", "_read_metrics logs.json.txt", "read_config config.yaml", "read_open_loop errors.json",
        "read_log inference_log_20260100_101112.json", "read_log inference_log_20260101_101112.json",
        "read_document closed_loop_a.json", "read_document closed_loop_b.json", "dataset set.zarr",
    }  # fmt: skip
    assert expected <= opens.keys()
    assert {name: count for name, count in opens.items() if count > 1} == {}


def test_the_doctor_opens_each_file_once(sources: Sources, opens: Counter[str]) -> None:
    assert sources.run is not None
    logs = sorted((sources.run / "logs").iterdir())
    examine(run=sources.run, logs=logs)
    assert opens["dataset set.zarr"] == opens["read_torch best.ckpt"] == opens[f"read_log {logs[0].name}"] == 1
    assert {name: count for name, count in opens.items() if count > 1} == {}


def test_progress_counts_the_files(sources: Sources) -> None:
    reported: list[tuple[int, int]] = []
    make_report(sources, lambda done, total: reported.append((done, total)))
    assert [done for done, _ in reported] == [1, 2, 3, 4, 5], "two logs, a dataset, a checkpoint, closed loop"
    assert {total for _, total in reported} == {5}


def test_lost_frames_are_left_out_of_the_page(tmp_path: Path) -> None:
    """A missing frame is not drawn as a black one, and its loss is the finding."""
    dataset = write_dataset(tmp_path / "set.zarr")
    (dataset / "data" / "image" / "0.0.0.0").unlink()
    verdict, page = make_report(Sources((dataset,)))
    assert verdict.level == "bad"
    assert "camera frame of step 0" not in page
    assert page.count("camera frame of step ") >= 7
