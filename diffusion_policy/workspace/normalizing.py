"""Which statistics the policy normalizes with, and whether the data fits them.

A fine-tuned policy keeps the statistics its weights were trained with (`inherit`): other statistics would change every
number it sees. Data far outside their range is then far outside [-1, 1], which warrants a warning that names the
dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from diffusion_policy.model.normalizer import LinearNormalizer
from diffusion_policy.policy.contract import PolicyModule
from diffusion_policy.spec import StepSpec
from diffusion_policy.workspace import TrainingError

logger = logging.getLogger(__name__)

# Normalized values may exceed [-1, 1] by this much without a warning.
SLACK = 0.1
_ACTION = "action"


@dataclass(frozen=True)
class OutOfRange:
    """A dimension whose data leaves the range that its normalizer was fitted to.

    Attributes:
        key: of the observation, or "action".
        name: of the dimension.
        data: its lowest and highest value in the dataset.
        fitted: the lowest and highest that the normalizer knows.
        normalized: what `data` becomes; [-1, 1] is expected.
    """

    key: str
    name: str
    data: tuple[float, float]
    fitted: tuple[float, float]
    normalized: tuple[float, float]

    def __str__(self) -> str:
        return (
            f"{self.key}.{self.name} is {self.data[0]:.4g} to {self.data[1]:.4g} in the dataset, but "
            f"{self.fitted[0]:.4g} to {self.fitted[1]:.4g} in the inherited normalizer (normalized "
            f"{self.normalized[0]:.2f} to {self.normalized[1]:.2f} instead of -1 to 1)"
        )


def choose_normalizer(
    choice: Literal["inherit", "refit"],
    fitted: LinearNormalizer,
    spec: StepSpec,
    policies: list[PolicyModule],
    *,
    pretrained: bool,
) -> list[OutOfRange]:
    """Set the normalizer of the live and the averaged policy, and warn of data outside its range.

    Args:
        choice: `normalizer` of the config.
        fitted: fitted to the dataset.
        spec: names of the dimensions.
        policies: the live one, and the EMA copy if there is one.
        pretrained: whether their weights, normalizer included, come from a checkpoint.

    Returns:
        The dimensions with a warning.

    Raises:
        TrainingError: an unknown choice, or an inherited normalizer of another width.
    """
    if choice not in ("inherit", "refit"):
        raise TrainingError(f"normalizer is {choice!r}; expected inherit or refit")
    if not pretrained or choice == "refit":
        logger.info("normalizer: fitted to the dataset%s", "" if pretrained else " (training starts from scratch)")
        for policy in policies:
            policy.set_normalizer(fitted)
        return []
    for policy in policies:
        _complete(policy.normalizer, fitted)
    logger.info("normalizer: inherited from the pretrained checkpoint")
    found = list(out_of_range(policies[0].normalizer, fitted, spec))
    for dimension in found:
        logger.warning("data outside the inherited range: %s; if that is intended, set normalizer=refit", dimension)
    return found


def _complete(inherited: LinearNormalizer, fitted: LinearNormalizer) -> None:
    for key in fitted:
        if key not in inherited:
            logger.info("normalizer: %s is not in the checkpoint, so it is fitted to the dataset", key)
            inherited[key] = fitted[key]
        ours, theirs = _entry(inherited, key)["scale"], _entry(fitted, key)["scale"]
        if ours.shape != theirs.shape:
            raise TrainingError(
                f"the checkpoint normalizes {key} as {ours.numel()} numbers, the dataset has {theirs.numel()}; "
                "grow the checkpoint, or set normalizer=refit"
            )


def out_of_range(inherited: LinearNormalizer, fitted: LinearNormalizer, spec: StepSpec) -> Iterator[OutOfRange]:
    """Dimensions of the dataset whose normalized values leave [-1, 1] by more than SLACK."""
    names = {_ACTION: spec.action_names, **{field.key: field.names for field in spec.low_dim}}
    for key, dimensions in names.items():
        entry, data = _entry(inherited, key), _entry(fitted, key)["input_stats"]
        ends = torch.stack([data["min"], data["max"]])
        normalized = ends * entry["scale"] + entry["offset"]
        for i, name in enumerate(dimensions):
            if normalized[:, i].abs().max() > 1 + SLACK:
                known = entry["input_stats"]
                yield OutOfRange(
                    key,
                    name,
                    (float(ends[0, i]), float(ends[1, i])),
                    (float(known["min"][i]), float(known["max"][i])),
                    (float(normalized[0, i]), float(normalized[1, i])),
                )


def _entry(normalizer: LinearNormalizer, key: str) -> nn.ParameterDict:
    return normalizer[key].params_dict
