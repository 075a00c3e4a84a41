"""A dataset in a zip archive, or at a URL, is found wherever a run or a log names it, and reported like its folder."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from dataset_factory import pack
from object_store import environment, s3_server
from omegaconf import OmegaConf
from report_factory import look_at_dataset, write_run
from trajectory_factory import write_trajectory

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.dataset.opening import dataset_exists
from diffusion_policy.diagnose.doctor import examine
from diffusion_policy.diagnose.playback import dataset_of_log
from diffusion_policy.paths import as_path, file_system
from diffusion_policy.report.report_page import Sources, make_report
from diffusion_policy.run_folder.reading import open_run
from diffusion_policy.run_log import LogStep, read_log, write_inference_log


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset whose conversion left something out: its folder, an archive, and one with a top-level folder."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(3):
        write_trajectory(folder / "in", number, n_steps=12, size=(32, 18))
    (folder / "in" / "episode_0001" / "data.pkl").write_bytes(b"x")
    made = folder / "set.zarr"
    convert(ConversionSettings(folder / "in", made, (32, 18), workers=1, on_error="skip"))
    top = pack(made, folder / "top.zarr.zip", top="set.zarr")
    return {"folder": made, "archive": pack(made, folder / "set.zarr.zip"), "archive with a folder": top}


@pytest.mark.parametrize("form", ["archive", "archive with a folder"])
def test_evidence_and_findings_are_those_of_the_folder(datasets: dict[str, Path], form: str) -> None:
    here, there = (examine(datasets=[datasets[name]]).groups["dataset"] for name in ("folder", form))
    findings = [(finding.code, finding.severity, finding.evidence) for finding in here]
    assert [(finding.code, finding.severity, finding.evidence) for finding in there] == findings
    assert ("left-out", "note", "the conversion left out 1 episodes, 0 steps in all") in findings
    assert look_at_dataset(datasets[form]).settings == look_at_dataset(datasets["folder"]).settings


def run_on(path: Path, dataset: str) -> Path:
    folder = write_run(path, checkpoint=False)
    config = folder / ".hydra" / "config.yaml"
    cfg = OmegaConf.load(config)
    OmegaConf.update(cfg, "task.dataset.zarr_path", dataset)
    OmegaConf.save(cfg, config)
    return folder


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_a_run_brings_it_along(datasets: dict[str, Path], tmp_path: Path, form: str) -> None:
    run = open_run(run_on(tmp_path / "run", str(datasets[form])))
    assert run.datasets == (datasets[form],)
    assert "dataset" in {group for group, found in examine(run=run.path).groups.items() if found}
    _, page = make_report(Sources(run=run.path))
    assert 'id="data"' in page


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_a_log_leads_to_it(datasets: dict[str, Path], tmp_path: Path, form: str) -> None:
    jpeg = cv2.imencode(".jpg", np.zeros((18, 32, 3), np.uint8))[1].tobytes()
    pose = np.asarray([0.4, 0, 0.3, 1, 0, 0, 0, 1.0])
    steps = [
        LogStep(i, pose, np.repeat(pose[None], 4, axis=0), {"timestamp": 0.1 * i}, {"image": jpeg}) for i in range(3)
    ]
    log = write_inference_log(tmp_path, steps, {"dataset": str(datasets[form]), "episode": 0, "weights": "ema_model"})
    assert dataset_of_log(read_log(log)) == datasets[form]


def test_what_is_not_there_is_not_found(
    datasets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    assert not dataset_exists(tmp_path / "gone.zarr.zip")
    assert not dataset_exists("nothing://nowhere/set.zarr")
    assert not dataset_exists("s3://robot/set.zarr"), "no store can be reached there"
    assert dataset_exists(datasets["archive"])


def test_a_dataset_at_a_url_is_found(datasets: dict[str, Path], tmp_path: Path) -> None:
    with s3_server() as bucket:
        url = f"s3://{bucket}/set.zarr"
        assert not dataset_exists(url)
        file_system(as_path(url))[0].put(str(datasets["folder"]), f"{bucket}/set.zarr", recursive=True)
        assert dataset_exists(url)
        assert [str(path) for path in open_run(run_on(tmp_path / "run", url)).datasets] == ["s3:/robot/set.zarr"]
        assert look_at_dataset(url).dropped == (1, 0)
