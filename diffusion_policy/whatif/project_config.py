"""A config of the project as a model for `whatif`: the effect of a changed value on the policy trained with it.

Names and shapes come from the policy class, built on torch's meta device without values or memory. The settings are
those in the config and the omitted arguments of the policy's constructor; one that is passed neither to the policy nor
to its scheduler has no effect on the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_policy.adapt.policy_settings import POLICY, Scope
from diffusion_policy.adapt.target import ENTRIES, NORMALIZER
from diffusion_policy.checkpoint import build_policy
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.families.family import (
    ABSENT,
    REQUIRED,
    Config,
    Conflict,
    ConstructionError,
    Effect,
    FamilyError,
    Setting,
    Shape,
    closest,
    lookup,
)
from diffusion_policy.installation import CONFIG
from diffusion_policy.policy.registry import class_of_options
from diffusion_policy.resolvers import register_resolvers
from diffusion_policy.spec import StepSpec
from diffusion_policy.training_config import ConfigError, compose_config_file

# Effects of arguments that are sections.
_SECTIONS = {
    "noise_scheduler": "another noise schedule than the one the weights were trained on",
    "shape_meta": "the same inputs have another meaning",
}


@dataclass(frozen=True)
class PolicyDefinition:
    """A config of the project, with the interface `family.ModelUnderChange`.

    `config` is the composed config as plain data with unresolved interpolations, so that a change of `horizon` applies
    to everything that refers to it.
    """

    name: str
    config: Config

    @property
    def title(self) -> str:
        """The name of the config."""
        return f"the policy of {self.name}"

    @cached_property
    def settings(self) -> dict[str, Setting]:
        """Every leaf of the config, and the policy's arguments that are not in it."""
        result = {path: Setting("any", ABSENT) for path, _ in _leaves(self.config)}
        kind = class_of_options(lookup(self.config, "policy"))
        for argument in inspect.signature(kind).parameters.values():
            path = f"policy.{argument.name}"
            if not isinstance(lookup(self.config, path), Mapping):
                result[path] = Setting("any", REQUIRED if argument.default is argument.empty else argument.default)
        return result

    def locate(self, key: str) -> str:
        """`key` itself if it is a setting, else FamilyError with the closest one."""
        if key in self.settings:
            return key
        if isinstance(lookup(self.config, key), Mapping):
            raise FamilyError(f"{key!r} of {self.name} is a group; set one of its values")
        nearest = closest(key, list(self.settings))
        raise FamilyError(f"{self.name} has no setting {key!r} (no code of the policy reads it); {nearest}")

    def spelling(self, path: str) -> str:
        """The path itself."""
        return path

    def parts(self, paths: Sequence[str]) -> list[str]:
        """One part, the policy."""
        return ["model"]

    def shapes(self, config: Config, parts: Sequence[str]) -> dict[str, Shape]:
        """Names and shapes of the policy's state_dict; ConstructionError with the constructor's message."""
        try:
            cfg = _resolved(config)
            policy = build_policy(cfg, values=False)
        except (WorkspaceError, TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ConstructionError(f"the policy refuses this config: {error}", "") from error
        return {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()} | _normalizer(policy.spec)

    def conflicts(self, config: Config) -> list[Conflict]:
        """Too many inference steps; all other conflicts are refused by the policy's constructor."""
        policy = _policy_section(config)
        trained = policy["noise_scheduler"]["num_train_timesteps"]
        steps = policy.get("num_inference_steps") or trained
        if steps <= trained:
            return []
        keys = ("policy.num_inference_steps", "policy.noise_scheduler.num_train_timesteps")
        return [
            Conflict(keys, f"num_inference_steps {steps} is more than the {trained} that the scheduler trains with")
        ]

    def effect(self, path: str, before: Config, after: Config) -> tuple[Effect, str]:
        """The effect of a change when no shape changes: none, unless it changes the policy's arguments."""
        old, new = dict(_leaves(_policy_section(before))), dict(_leaves(_policy_section(after)))
        changed = [key for key in {**old, **new} if old.get(key, ABSENT) != new.get(key, ABSENT)]
        changed_arguments = sorted({key.partition(".")[0] for key in changed})
        if not changed_arguments:
            return Effect.UNUSED, ""
        acting = [
            argument
            for argument in changed_arguments
            if argument not in POLICY or POLICY[argument].scope is not Scope.TRAINING
        ]
        if not acting:
            return Effect.TRAINING, ""
        known = POLICY[acting[0]].note if acting[0] in POLICY else _SECTIONS.get(acting[0])
        return Effect.FUNCTION, known or f"the policy's {acting[0]} changes how the same tensors are used"


def open_project_config(path: Path) -> PolicyDefinition | None:
    """The config of that name in config/, or at that path, composed by Hydra; None if there is no such file."""
    try:
        cfg = compose_config_file(path)
    except ConfigError as error:
        raise FamilyError(str(error)) from error
    if cfg is None:
        return None
    config = OmegaConf.to_container(cfg)
    assert isinstance(config, dict)
    return PolicyDefinition(path.stem, {str(key): value for key, value in config.items()})


def project_configs() -> list[str]:
    """Names of the training configs of the project."""
    return sorted(path.stem for path in CONFIG.glob("*.yaml"))


def _leaves(node: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _normalizer(spec: StepSpec) -> dict[str, Shape]:
    """Names and shapes of the normalizer's tensors, which a policy has once the normalizer is fitted."""
    widths = {"action": spec.action_dim, **{low_dim.key: len(low_dim.names) for low_dim in spec.low_dim}}
    widths |= {image.key: 1 for image in spec.rgb}
    return {f"{NORMALIZER}{key}.{entry}": (width,) for key, width in widths.items() for entry in ENTRIES}


def _resolved(config: Config) -> DictConfig:
    register_resolvers()
    cfg = OmegaConf.create(dict(config))
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise FamilyError(f"the changed config cannot be resolved: {error}") from error
    return cfg


def _policy_section(config: Config) -> dict[str, Any]:
    section = OmegaConf.to_container(_resolved(config).policy)
    assert isinstance(section, dict)
    return {str(key): value for key, value in section.items()}
