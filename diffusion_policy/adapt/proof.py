"""Proof that an adaptation preserves the function: both policies are run on the same noise and outputs are compared.

After a growth, dimensions that both policies have must be predicted the same for any values of the new ones. The new
slots of the noise take several values (closed, open, random), one per batch row; all inputs that both policies share
are equal in all rows. Where a change cannot preserve the function (another crop, another observation step), the same
run measures by how much outputs change.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from omegaconf import DictConfig, open_dict
from torch import Tensor
from torch.nn import functional

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.named_axes import policy_axes, policy_config
from diffusion_policy.adapt.slots import Names
from diffusion_policy.checkpoint import build_policy
from diffusion_policy.model.diffusion.noise_schedulers import DDIMScheduler, with_noise_levels_of
from diffusion_policy.policy.contract import DenoisingPolicy, PolicyModule
from diffusion_policy.shape_meta import step_spec_of
from diffusion_policy.spec import StepSpec

TOLERANCE = 1e-5
SAMPLING_STEPS = 4
# Values of the new slots of the initial noise, one per batch row; the last row is random.
NEW_SLOT_VALUES = (-1.0, 1.0)
SEED = 7


@dataclass(frozen=True)
class Proof:
    """The result of one comparison.

    Attributes:
        part: model or ema_model.
        preserved: largest difference <= tolerance, over all compared numbers.
        largest_difference: absolute, in the action's own units (meters, quaternion parts).
        typical_difference: median, absolute.
        tolerance: the limit.
        names: action dimensions that were compared.
        steps: number of steps of the horizon that were compared.
        new_names: action dimensions that only the adapted policy has.
        new_values: their values in the initial noise, one per batch row; those of the last row are random.
        sampling_steps: number of DDIM steps.
    """

    part: str
    preserved: bool
    largest_difference: float
    typical_difference: float
    tolerance: float
    names: Names
    steps: int
    new_names: Names
    new_values: tuple[float, ...] = NEW_SLOT_VALUES
    sampling_steps: int = SAMPLING_STEPS

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def describe(self) -> str:
        """One sentence."""
        what = f"{self.part}: {len(self.names)} shared action dimensions over {self.steps} steps"
        if self.preserved:
            return f"{what} agree within {self.tolerance:g} (largest difference {self.largest_difference:.1e})"
        return (
            f"{what} are not preserved: outputs change by {self.largest_difference:.2g} at most, "
            f"{self.typical_difference:.2g} in the median (action units)"
        )


def prove(
    part: str,
    before: tuple[DictConfig, Mapping[str, Tensor]],
    after: tuple[DictConfig, Mapping[str, Tensor]],
    tolerance: float = TOLERANCE,
    action_names: Names = (),
) -> Proof:
    """Compare the outputs of the source policy and the adapted policy.

    Args:
        part: part of the checkpoint, for the record.
        before: config and state dict of the source.
        after: config and state dict of the adapted policy.
        tolerance: largest allowed difference of outputs, in action units.
        action_names: the target's names of the source's action dimensions, where the rules give them; empty: the same.

    Raises:
        AdaptError: the two share no action dimension or observation key, so nothing can be compared.
    """
    old, new = _ComparedPolicy(*before, action_names), _ComparedPolicy(*after)
    shared = tuple(name for name in new.action_names if name in old.action_names)
    if not shared:
        raise AdaptError(f"{old.action_names} and {new.action_names} share no action dimension to compare")
    steps = min(old.length, new.length)
    rows = len(NEW_SLOT_VALUES) + 1
    generator = torch.Generator().manual_seed(SEED)
    noise = {name: torch.randn(1, max(old.length, new.length), generator=generator) for name in old.sample}
    new_observations = new.observations(rows, generator)
    old_observations = old.adopt(new_observations, rows, generator)
    outputs = [
        policy.run(observations, _noise(noise, policy, old.sample, rows, generator))
        for policy, observations in ((old, old_observations), (new, new_observations))
    ]
    columns = [[policy.action_names.index(name) for name in shared] for policy in (old, new)]
    compared = [output[:, :steps, picked] for output, picked in zip(outputs, columns, strict=True)]
    difference = (compared[0] - compared[1]).abs()
    largest = float(difference.max())
    new_names = tuple(name for name in new.action_names if name not in shared)
    return Proof(part, largest <= tolerance, largest, float(difference.median()), tolerance, shared, steps, new_names)


class _ComparedPolicy:
    """One of the two policies, built and ready to run."""

    def __init__(self, cfg: DictConfig, state: Mapping[str, Tensor], action_names: Names = ()) -> None:
        options = policy_config(cfg)
        self.spec: StepSpec = step_spec_of(cfg)
        self.action_names: Names = action_names or self.spec.action_names
        self.n_obs_steps: int = options["n_obs_steps"]
        renamed = dict(zip(self.spec.action_names, self.action_names, strict=True))
        self.sample = tuple(renamed.get(name, name) for name in policy_axes(cfg).slots["sample"])
        self.policy = _policy(cfg, state)
        self.length = self.policy.sequence_length
        self.statistics = {
            field.key: tuple(
                state[f"normalizer.params_dict.{field.key}.input_stats.{bound}"].float() for bound in ("min", "max")
            )
            for field in self.spec.low_dim
        }

    def observations(self, rows: int, generator: torch.Generator) -> dict[str, Tensor]:
        """A random observation, repeated for every row: images in [0, 1], states within the normalizer's range."""
        made = {}
        for field in self.spec.obs:
            drawn = torch.rand(1, self.n_obs_steps, *field.shape, generator=generator)
            if field.kind == "low_dim":
                low, high = self.statistics[field.key]
                drawn = low + drawn * (high - low)
            made[field.key] = drawn.expand(rows, *drawn.shape[1:])
        return made

    def adopt(self, other: Mapping[str, Tensor], rows: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Another policy's observations with this policy's keys, number of steps and image size."""
        own = self.observations(rows, generator)
        for field in self.spec.obs:
            given = other.get(field.key)
            if given is None or (field.kind == "low_dim" and given.shape[2:] != field.shape):
                continue
            steps = min(self.n_obs_steps, given.shape[1])
            given = given[:, :steps]
            if field.kind == "rgb" and tuple(given.shape[2:]) != field.shape:
                flat = functional.interpolate(given.flatten(0, 1), size=field.shape[1:], mode="area")
                given = flat.unflatten(0, given.shape[:2])
            own[field.key] = torch.cat([given, own[field.key][:, steps:]], dim=1)
        return own

    def run(self, observations: dict[str, Tensor], noise: Tensor) -> Tensor:
        """The predicted actions (rows, T, Da) in action units."""
        with torch.inference_mode():
            return self.policy.predict_action(observations, initial_noise=noise)["action_pred"]


def _noise(
    shared: Mapping[str, Tensor], policy: _ComparedPolicy, known: Names, rows: int, generator: torch.Generator
) -> Tensor:
    """Initial noise (rows, T, width): shared slots are equal in all rows, new slots have one value per row."""
    noise = torch.empty(rows, policy.length, len(policy.sample))
    for index, name in enumerate(policy.sample):
        if name in known:
            noise[:, :, index] = shared[name][:, : policy.length]
        else:
            noise[:-1, :, index] = torch.tensor(NEW_SLOT_VALUES)[:, None]
            noise[-1, :, index] = torch.randn(policy.length, generator=generator)
    return noise


def _policy(cfg: DictConfig, state: Mapping[str, Tensor]) -> PolicyModule:
    fixed = copy.deepcopy(cfg)
    with open_dict(fixed):
        fixed.policy.eval_fixed_crop = True  # random crops of the two policies would differ
    # Built without values, then given the memory-mapped tensors: no initialization, no second copy.
    policy = build_policy(fixed, values=False)
    policy.load_state_dict(dict(state), assign=True)
    assert not any(tensor.is_meta for tensor in (*policy.parameters(), *policy.buffers()))
    policy.eval()
    if not isinstance(policy, DenoisingPolicy):
        return policy
    policy.noise_scheduler = with_noise_levels_of(policy.noise_scheduler, DDIMScheduler)
    policy.num_inference_steps = SAMPLING_STEPS
    return policy
