"""Datasets of VPT's actions are judged as such, and not as a robot's poses."""

from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from diffusion_policy.diagnose.dataset_evidence import DatasetEvidence
from diffusion_policy.diagnose.dataset_findings import dataset_findings, number_findings
from diffusion_policy.diagnose.minecraft_findings import UNIFORM_LOSS
from diffusion_policy.diagnose.step_evidence import Dimension, StepEvidence
from diffusion_policy.diagnose.step_findings import step_findings
from diffusion_policy.diagnose.training_evidence import look_at_config
from diffusion_policy.diagnose.training_findings import Planned, config_action, loss_before_first_update
from diffusion_policy.minecraft.actions import VPT_ACTION
from diffusion_policy.run_folder.reading import RunFolder
from diffusion_policy.spec import POSE_GRIPPER
from diffusion_policy.training_config import compose_training

PLAYED = DatasetEvidence(
    path="log.zarr",
    keys=("pov", "action", "timestamp"),
    lengths=(80,) * 30,
    action_names=VPT_ACTION,
    low=(0.0,) * 20 + (-10.0,) * 2,
    high=(1.0,) * 20 + (10.0,) * 2,
    semantics=None,
    layout="named",
    image_size=(128, 128),
    step_seconds=0.05,
)


def codes(severity: str, evidence: DatasetEvidence) -> list[str]:
    return [finding.code for finding in dataset_findings(evidence) if finding.severity == severity]


def test_what_was_played_well_gives_no_trouble_and_no_word_of_a_robot() -> None:
    assert codes("warning", PLAYED) == codes("error", PLAYED) == []
    text = " ".join(finding.evidence for finding in [*dataset_findings(PLAYED), *number_findings(PLAYED)])
    assert not any(word in text for word in ("robot", "gripper", "pose", "joint"))


@pytest.mark.parametrize(
    ("change", "severity", "code"),
    [
        ({"step_seconds": 0.1}, "warning", "step-spacing"),
        ({"high": (3.0,) + (1.0,) * 19 + (10.0,) * 2}, "error", "action-shape"),
        ({"low": (0.0,) * 20 + (-10.0, -360.0)}, "error", "action-shape"),
        ({"not_finite": 3}, "error", "not-finite"),
        ({"lengths": (80,) * 3}, "warning", "size"),
    ],
)
def test_what_is_wrong_is_reported(change: dict[str, object], severity: str, code: str) -> None:
    assert codes(severity, replace(PLAYED, **change)) == [code]


def test_a_clone_is_not_measured_by_a_denoisers_loss_nor_sent_to_a_robots_task(tmp_path: Path) -> None:
    def run_of(loss: float) -> RunFolder:
        first = {"global_step": 0, "train_loss_before_first_update": loss, "start": "pretrained"}
        return RunFolder(tmp_path, OmegaConf.create({"shape_meta": {"action": {"names": list(VPT_ACTION)}}}), (first,))

    assert pytest.approx(13.86, abs=0.01) == UNIFORM_LOSS
    for loss, severity in ((2.4, "ok"), (13.0, "warning")):
        found = loss_before_first_update(run_of(loss))
        assert found is not None
        assert found.severity == severity


@pytest.mark.parametrize(("config", "names", "other"), [
    ("train_vpt_bc", POSE_GRIPPER, "train_cogact_robot"), ("train_cogact_robot", VPT_ACTION, "train_vpt_bc"),
])  # fmt: skip
def test_a_config_of_the_other_kind_is_replaced_by_the_one_that_fits(
    config: str, names: tuple[str, ...], other: str
) -> None:
    ends = {"low": (0.0,) * len(names), "high": (1.0,) * len(names)}
    evidence = look_at_config(compose_training(config), config)
    found = config_action(Planned(evidence, replace(PLAYED, action_names=names, **ends)))
    assert found is not None
    assert found.severity == "error"
    assert f"--config-name={other} task.dataset_path=log.zarr" in found.command


def test_steps_are_not_judged_as_a_robots() -> None:
    dimensions = tuple(
        Dimension("action", name, 0.0, 1.0, 0.5, 0.5, is_constant=False, scale=1.0) for name in VPT_ACTION
    )
    played = StepEvidence("log.zarr", dimensions, (), {}, {}, None, None, (), None, ())
    assert not {"idle", "jumps", "frozen-camera"} & {finding.code for finding in step_findings(played)}
    others = replace(played, dimensions=dimensions[:8])
    assert "idle" in {finding.code for finding in step_findings(others)}
