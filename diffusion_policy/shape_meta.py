"""Which ``shape_meta`` of a config applies to its policy: there are up to three of them, and they must agree.

    policy.shape_meta          what the weights read and predict
    shape_meta
    task.shape_meta            where the configs of this project write it; the others refer to it

The first that exists applies. Its ``names`` take precedence over the defaults for its width (``spec.default_names``).

``task.dataset.shape_meta`` is what is read from a dataset: it must agree when a run opens the dataset, but says nothing
about a checkpoint's weights; the predecessor's files hold a different one there. A dataset's own attributes say which
column has which name, but never what a policy reads.
"""

from __future__ import annotations

import itertools
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_policy.resolvers import register_resolvers
from diffusion_policy.spec import SpecError, StepSpec, read_shape_meta

# In order of precedence; in this project's configs each refers to the next one.
KEYS = ("policy.shape_meta", "shape_meta", "task.shape_meta")
DATASET_KEY = "task.dataset.shape_meta"


def step_spec_of(cfg: DictConfig) -> StepSpec:
    """What the policy of a config reads and predicts.

    Raises:
        SpecError: the config does not say it, says it in two places differently, or in a form that ``read_shape_meta``
            refuses.
    """
    spec = find_step_spec(cfg)
    if spec is None:
        raise SpecError(f"the config has no shape_meta; expected one of {', '.join(KEYS)}")
    return spec


def find_step_spec(cfg: DictConfig) -> StepSpec | None:
    """Like :func:`step_spec_of`; None for a config that does not say it."""
    specs = _read(cfg, KEYS)
    for key, other in itertools.pairwise(specs):
        _check_agreement(key, specs[key], other, specs[other], "they must say the same")
    return next(iter(specs.values()), None)


def trained_spec_of(cfg: DictConfig) -> StepSpec:
    """Like :func:`step_spec_of`, for a run, whose dataset must supply what its policy reads and predicts.

    Raises:
        SpecError: as there; or the dataset's shape_meta differs.
    """
    spec = step_spec_of(cfg)
    for key, asked in _read(cfg, (DATASET_KEY,)).items():
        _check_agreement(key, asked, list(_read(cfg, KEYS))[-1], spec, "the dataset must read what the policy predicts")
    return spec


def _read(cfg: DictConfig, keys: tuple[str, ...]) -> dict[str, StepSpec]:
    """The specs in those places that the config has, in order.

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
