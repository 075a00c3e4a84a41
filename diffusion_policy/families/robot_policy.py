"""The families of this project's policy classes. `whatif.project_config` builds them from a config of the project."""

from __future__ import annotations

from diffusion_policy.families.family import Family
from diffusion_policy.policy.registry import policy_classes

PREFIXES = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile", "policy.": "a wrapping module"}

FAMILIES = tuple(
    Family(
        name=tensors.name,
        title=tensors.title,
        marker=tensors.marker,
        part="model.",
        inside=tensors.inside,
        prefixes=PREFIXES,
        settings=tensors.settings,
    )
    for tensors in (kind.tensors for kind in policy_classes())
    if tensors.marker.startswith("model.")  # VPT's names are upstream's: `families.vpt`
)
