"""The doctor on datasets and logs in every scale: an error that names the flag, and none with the flag."""

from pathlib import Path

import pytest
import tiny_run
from gripper_scales import FOREIGN, GRASP, rewrite_gripper, written
from log_factory import write_log
from report_factory import look_at_dataset, only

from diffusion_policy.diagnose.doctor import examine
from diffusion_policy.diagnose.findings import Finding
from diffusion_policy.diagnose.log_evidence import look_at_log
from diffusion_policy.diagnose.playback import playbacks_of_log


def of_dataset(path: Path, scale: str | None = None) -> Finding:
    return only(examine([path], gripper_scale=scale).groups["dataset"], "polarity")


@pytest.mark.parametrize("name", FOREIGN)
def test_datasets(tmp_path: Path, name: str) -> None:
    path = rewrite_gripper(tiny_run.write_dataset(tmp_path / "set.zarr"), name)
    found = of_dataset(path)
    assert (found.severity, found.about) == ("error", str(path))
    assert "--gripper-scale" in found.remedy
    assert "task.dataset.gripper_scale=" in found.remedy
    assert "--gripper-scale" in found.command
    examination = examine([path])
    assert examination.exit_status == 1
    assert not {"closings", "dead-band", "copycat-labels"} & {f.code for f in examination.findings}, "not on a guess"
    finding = of_dataset(path, name)
    assert finding.severity == "ok"
    assert f"stored as {name}" in finding.evidence
    gripper = look_at_dataset(path).gripper
    assert gripper is None, "nothing is counted in an unknown scale"


@pytest.mark.parametrize("name", FOREIGN)
def test_logs(tmp_path: Path, name: str) -> None:
    command = written(name)
    log = write_log(tmp_path / "log.json", command, measured=[command[0], command[0], *command[:-2]])
    found = only(examine(logs=[log]).groups["log"], "gripper-verdict")
    assert found.severity == "error"
    assert found.evidence.startswith("unknown scale: commands are ")
    assert "--gripper-scale" in found.evidence
    finding = only(examine(logs=[log], gripper_scale=name).groups["log"], "gripper-verdict")
    assert (finding.severity, finding.evidence[:16]) == ("ok", "opens and closes")


@pytest.mark.parametrize("name", FOREIGN)
def test_pages_draw_what_is_known(tmp_path: Path, name: str) -> None:
    from diffusion_policy.gripper_scale import parse_scales

    command = written(name)
    log = write_log(tmp_path / "log.json", command, measured=[command[0], command[0], *command[:-2]])
    unknown = playbacks_of_log(look_at_log(log).log)[0]
    assert unknown is not None
    assert unknown.commands is None
    known = playbacks_of_log(look_at_log(log, parse_scales(name)).log)[0]
    assert known is not None
    assert known.commands is not None
    assert known.commands.tolist() == pytest.approx(GRASP)


def test_a_dataset_says_of_each_column(tmp_path: Path) -> None:
    path = rewrite_gripper(tiny_run.write_dataset(tmp_path / "set.zarr"), "open1", "meters:0.08")
    found = of_dataset(path)
    assert "the measured gripper is 0 to 0.08" in found.evidence
    assert "--gripper-scale open1/meters:0.08" in found.remedy
    assert of_dataset(path, "open1/meters:0.08").severity == "ok"
