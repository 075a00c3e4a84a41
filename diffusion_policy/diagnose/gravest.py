"""The gravest findings about data, in one line: shown at the end of a check and at the start of training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.commands import command
from diffusion_policy.dataset.gripper_columns import scale_of_each
from diffusion_policy.dataset.joined_datasets import dataset_paths
from diffusion_policy.diagnose.dataset_evidence import look_at_numbers
from diffusion_policy.diagnose.dataset_findings import number_findings
from diffusion_policy.diagnose.findings import Finding
from diffusion_policy.gripper_scale import CONFIG_KEY, DeclaredScales
from diffusion_policy.shape_meta import step_spec_of
from diffusion_policy.spec.action_layout import is_gripper_name

# Order of warnings by their cost on the robot: first what changes the motion, then what changes the gripper.
GRAVITY = (
    "step-spacing",
    "command-is-absolute",
    "quaternion-order",
    "frame-sizes",
    "polarity",
    "copycat-labels",
    "copycat-delays",
    "closings",
    "quaternions",
    "jumps",
    "gaps",
)
OF_THE_GRIPPER = ("polarity", "closings", "copycat-labels", "dead-band")
MOST = 4


def by_gravity(findings: Iterable[Finding]) -> list[Finding]:
    """Returns errors and warnings, the gravest first."""
    trouble = [finding for finding in findings if finding.trouble]
    return sorted(trouble, key=lambda finding: (finding.severity != "error", _rank(finding)))


def _rank(finding: Finding) -> int:
    return GRAVITY.index(finding.code) if finding.code in GRAVITY else len(GRAVITY)


def verdict_of(findings: Sequence[Finding]) -> str:
    """Returns how many errors and warnings were found, and the gravest of them."""
    trouble = by_gravity(findings)
    errors = sum(finding.severity == "error" for finding in trouble)
    warnings = len(trouble) - errors
    if not trouble:
        return "Nothing was found that argues against training on it."
    counted = ", ".join(_count(n, word) for n, word in ((errors, "error"), (warnings, "warning")) if n)
    lead = "Do not train on it yet" if errors else "No error was found"
    return f"{lead}: {counted}. The gravest: {trouble[0].evidence}."


def _count(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "s")


def gravest_of_dataset(path: str | Path, declared: DeclaredScales | None = None, *, gripper: bool = True) -> list[str]:
    """Returns the gravest findings about a dataset's numbers, one line each; empty if training refuses it anyway.

    Frames are not inspected.

    Args:
        path: path of the dataset.
        declared: the scale of its gripper.
        gripper: whether the policy commands one; otherwise it is not checked.

    Raises:
        DatasetError, SpecError, ReportError: it cannot be read, or its gripper contradicts the declaration.
    """
    evidence = look_at_numbers(path, declared)
    if evidence.faults or (gripper and evidence.scales is not None and evidence.scales.unknown):
        return []
    findings = by_gravity(number_findings(evidence))
    chosen = [finding for finding in findings if gripper or finding.code not in OF_THE_GRIPPER]
    lines = [finding.evidence + (f"; {finding.remedy}" if finding.remedy else "") for finding in chosen[:MOST]]
    return lines + ([f"and {_count(len(chosen) - MOST, 'more warning')}"] if len(chosen) > MOST else [])


def gravest_before_training(cfg: DictConfig) -> list[str]:
    """Returns the gravest findings about a config's datasets, and the command that shows all; empty if there are none.

    Raises:
        WorkspaceError: a dataset cannot be read, or its numbers are invalid.
    """
    zarr_path = OmegaConf.select(cfg, "task.dataset.zarr_path", default=None)
    if zarr_path is None:
        return []
    paths = dataset_paths(zarr_path)
    scales = scale_of_each(OmegaConf.select(cfg, CONFIG_KEY, default=None), len(paths))
    gripper = any(map(is_gripper_name, step_spec_of(cfg).action_names))
    lines = []
    for path, declared in zip(paths, scales, strict=True):
        gravest = gravest_of_dataset(path, declared, gripper=gripper)
        flag = [] if declared is None else ["--gripper-scale", declared.name]
        lines += [f"{path}: {line}" for line in gravest]
        lines += [f"all findings: {command('verify_converted_data', '--zarr-path', path, *flag)}"] if gravest else []
    return lines
