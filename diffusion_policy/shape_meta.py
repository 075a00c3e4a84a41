"""Which ``shape_meta`` of a config counts for its policy: there are up to three of them, and they must agree.

    policy.shape_meta          what the weights read and predict
    shape_meta
    task.shape_meta            where the configs of this project write it; the others refer to it

The first that exists counts. Its ``names`` take precedence over the defaults for its width (``spec.default_names``).

``task.dataset.shape_meta`` is what a dataset is asked for: it must agree where a run opens the dataset, and says
nothing of a checkpoint's weights; files of the predecessor hold another one there. A dataset's own attributes say
which of its columns bears which name, and never what a policy reads.
"""

from __future__ import annotations

import itertools
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_policy.resolvers import register_resolvers
from diffusion_policy.spec import SpecError, StepSpec, read_shape_meta

# In the order in which they count; each refers to the next one in the configs of this project.
KEYS = ("policy.shape_meta", "shape_meta", "task.shape_meta")
DATASET_KEY = "task.dataset.shape_meta"


def step_spec_of(cfg: DictConfig) -> StepSpec:
    """What the policy of a config reads and predicts.

    Raises:
        SpecError: the config says it nowhere, in two places differently, or not as ``read_shape_meta`` reads it.
    """
    spec = find_step_spec(cfg)
    if spec is None:
        raise SpecError(f"the config has no shape_meta; expected one of {', '.join(KEYS)}")
    return spec


def find_step_spec(cfg: DictConfig) -> StepSpec | None:
    """As :func:`step_spec_of`; None for a config that says it nowhere."""
    specs = _read(cfg, KEYS)
    for key, other in itertools.pairwise(specs):
        _check_agreement(key, specs[key], other, specs[other], "they must say the same")
    return next(iter(specs.values()), None)


def trained_spec_of(cfg: DictConfig) -> StepSpec:
    """As :func:`step_spec_of`, of a run whose dataset gives what its policy reads and predicts.

    Raises:
        SpecError: as there; or the dataset is asked for something else.
    """
    spec = step_spec_of(cfg)
    for key, asked in _read(cfg, (DATASET_KEY,)).items():
        _check_agreement(key, asked, list(_read(cfg, KEYS))[-1], spec, "the dataset must read what the policy predicts")
    return spec


def _read(cfg: DictConfig, keys: tuple[str, ...]) -> dict[str, StepSpec]:
    """Of the places that the config has, in order.

    Raises:
        SpecError: one cannot be resolved or read.
    """
    register_resolvers()
    result = {}
    for key in keys:
        try:
            entry = OmegaConf.select(cfg, key)
            meta: Any = None if entry is None else OmegaConf.to_container(entry, resolve=True)
        except OmegaConfBaseException as error:
            raise SpecError(f"the config's {key} cannot be resolved: {str(error).splitlines()[0]}") from error
        if meta is not None:
            result[key] = read_shape_meta(meta)
    return result


def _check_agreement(key: str, spec: StepSpec, other: str, others: StepSpec, why: str) -> None:
    if spec == others:
        return
    if spec.action_names != others.action_names:
        difference = f"actions {list(spec.action_names)} and {list(others.action_names)}"
    else:
        difference = f"observations {_observed(spec)} and {_observed(others)}"
    raise SpecError(f"{key} and {other} differ ({difference}); {why}: leave {key} at ${{{other}}}")


def _observed(spec: StepSpec) -> list[str]:
    return [f"{field.key} {list(field.names or field.shape)}" for field in spec.obs]
