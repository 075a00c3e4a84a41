"""Policies that command a pose but no gripper, to which findings on grippers do not apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffusion_policy.diagnose.findings import Finding
from diffusion_policy.diagnose.gravest import OF_THE_GRIPPER
from diffusion_policy.spec import StepSpec
from diffusion_policy.spec.action_layout import is_gripper_name

# Gripper findings of a dataset, a run and logs. Numbers that cannot be read are an error for every policy.
ABOUT_GRIPPERS = (*OF_THE_GRIPPER, "copycat-delays", "gripper-verdict", "gripper-measured")
# Findings on the action's width, which is right if only a pose is wanted.
WIDTHS = ("action-shape", "log-action")
POSE_LAYOUT = "xyz_quat"


def is_pose_only(spec: StepSpec | None) -> bool:
    """Whether a policy is known to command no gripper."""
    return spec is not None and not any(map(is_gripper_name, spec.action_names))


def without_grippers(groups: Mapping[str, Sequence[Finding]], layouts: Sequence[str]) -> dict[str, list[Finding]]:
    """Returns the findings without those about grippers.

    Args:
        groups: findings by subject.
        layouts: layouts of the actions of datasets and logs; if all are poses, their width is right.
    """
    poses = all(layout == POSE_LAYOUT for layout in layouts)

    def concerns(finding: Finding) -> bool:
        if finding.code == "polarity" and finding.severity == "error":
            return True
        return finding.code not in ABOUT_GRIPPERS and not (poses and finding.code in WIDTHS)

    return {name: [finding for finding in findings if concerns(finding)] for name, findings in groups.items()}
