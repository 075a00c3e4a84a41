"""Statistics of other programs' policies as entries of this project's normalizer, for rules to copy.

They are called ``statistics.FEATURE.scale`` and so on, never like the target's entries: nothing in a policy's files
says which of an action's numbers is which, so the author of the rule must state it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_policy.families import lerobot_diffusion, recognize
from diffusion_policy.families.lerobot_statistics import read_statistics
from diffusion_policy.model.normalizer import SingleFieldLinearNormalizer
from diffusion_policy.tensor_file import TensorFile

PREFIX = "statistics."


@dataclass(frozen=True)
class SourceStatistics:
    """Entries for the normalizer.

    Attributes:
        tensors: (W,) float32 by name, ``statistics.FEATURE.{offset,scale,input_stats.*}``.
        notes: where they come from, and which could not be made, for the ledger.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def statistics_of(file: TensorFile) -> SourceStatistics:
    """The statistics of a LeRobot policy; empty for other files.

    `min` and `max` are mapped to -1..1, as in every policy here, whatever the other policy did with them.

    Raises:
        FamilyError, TensorFileError: their file is not valid.
    """
    recognized = recognize({name: info.shape for name, info in file.tensors.items()})
    if recognized is None or recognized.family is not lerobot_diffusion.FAMILY:
        return SourceStatistics()
    statistics = read_statistics(file)
    tensors: dict[str, Tensor] = {}
    notes = []
    for feature, numbers in statistics.features.items():
        if not {"min", "max"} <= numbers.keys():
            notes.append(
                f"the statistics of {feature} have no min and max ({', '.join(numbers)}), so no range is known"
            )
            continue
        tensors |= {f"{PREFIX}{feature}.{name}": tensor for name, tensor in _entries(numbers).items()}
    if tensors:
        features = ", ".join(dict.fromkeys(name.removeprefix(PREFIX).partition(".scale")[0] for name in tensors
                                           if name.endswith(".scale")))  # fmt: skip
        notes.insert(
            0, f"{PREFIX}* ({features}) are computed from {statistics.origin}: its min and max, mapped to -1..1"
        )
    return SourceStatistics(tensors, tuple(notes))


def _entries(numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The normalizer's entries for one vector; without mean and deviation, those of the two ends."""
    fitted = SingleFieldLinearNormalizer.create_fit(torch.stack([numbers["min"], numbers["max"]]))
    stats = {f"input_stats.{name}": tensor.detach() for name, tensor in fitted.get_input_stats().items()}
    stats |= {f"input_stats.{name}": numbers[name] for name in ("mean", "std") if name in numbers}
    return {**{name: fitted.params_dict[name].detach() for name in ("offset", "scale")}, **stats}
