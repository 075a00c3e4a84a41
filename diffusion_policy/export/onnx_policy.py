"""A policy as one ONNX graph, from observations to actions, for robot computers without torch.

The denoising loop is unrolled into the graph, with the scheduler's own steps. The sampler is DDIM without noise: what
is random is the graph's input ``noise``, so the output is a function of the inputs.

Legend of shapes: To observation steps, T steps of a sample, S its width, Da action width.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_policy.commands import install_extra
from diffusion_policy.export.errors import ExportError
from diffusion_policy.model.diffusion.noise_schedulers import DDIMScheduler
from diffusion_policy.policy.contract import DenoisingPolicy, PolicyModule
from diffusion_policy.policy.diffusion_image_policy import DiffusionImagePolicy
from diffusion_policy.storage import atomic_file, write_json

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
NOISE, ACTIONS = "noise", "actions"
# How far the graph's actions may be from the policy's, in normalized units, since sums differ in order.
TOLERANCE = 1e-4
_PROBES = 3


class UnrolledPolicy(nn.Module):
    """Maps noise (1, T, S) and observations (1, To, ...), in the order of ``keys``, to actions (1, T, Da).

    Images are floats in [0, 1] (C, H, W); states and actions are in the dataset's units.

    Args:
        policy: the policy, in eval mode and with its sampler set.

    Raises:
        ExportError: the policy cannot be a graph; the message says why.
    """

    def __init__(self, policy: PolicyModule) -> None:
        super().__init__()
        if not isinstance(policy, DiffusionImagePolicy):
            raise ExportError(f"{type(policy).__name__} does not denoise; expected a diffusion policy on images")
        why_not = policy.lacks("fast_engine")
        if why_not is not None:
            raise ExportError(
                f"a graph needs features that depend on the frame alone, which this policy lacks: {why_not}"
            )
        if not isinstance(policy.noise_scheduler, DDIMScheduler) or policy.eta:
            raise ExportError(
                f"the sampler is {type(policy.noise_scheduler).__name__} with eta {policy.eta}; expected DDIM without "
                "noise, whose steps depend on nothing but their input"
            )
        self.policy = policy
        policy.noise_scheduler.set_timesteps(policy.num_inference_steps)
        self._timesteps = [int(timestep) for timestep in policy.noise_scheduler.timesteps]
        self.keys = tuple(field.key for field in policy.spec.obs)

    def forward(self, noise: Tensor, *obs: Tensor) -> Tensor:
        """Actions (1, T, Da)."""
        policy, scheduler = self.policy, self.policy.noise_scheduler
        normalized = policy.normalizer.normalize(dict(zip(self.keys, obs, strict=True)))
        frames = {key: value.flatten(0, 1) for key, value in normalized.items()}
        cond = policy.obs_encoder(frames, None).unflatten(0, (-1, policy.n_obs_steps))
        sample = noise
        for timestep in self._timesteps:
            prediction = policy.model(sample, torch.tensor(timestep), cond)
            sample = scheduler.step(prediction, timestep, sample).prev_sample
        actions: Tensor = policy.normalizer["action"].unnormalize(sample)
        return actions

    def inputs(self, seed: int) -> dict[str, Tensor]:
        """Returns random inputs within the training range."""
        generator, policy = torch.Generator().manual_seed(seed), self.policy
        result = {NOISE: torch.randn((1, *policy.sample_shape), generator=generator)}
        for field in policy.spec.obs:
            share = torch.rand((1, policy.n_obs_steps, *field.shape), generator=generator)
            if field.kind != "rgb":
                seen = policy.normalizer[field.key].get_input_stats()
                share = seen["min"] + share * (seen["max"] - seen["min"])
            result[field.key] = share
        return result


@dataclass(frozen=True)
class ExportedPolicy:
    """An exported policy.

    Attributes:
        path: path of the graph.
        difference: largest difference from the policy's own actions, in normalized units, with ONNX Runtime on this
            machine.
    """

    path: Path
    difference: float


def export_onnx(policy: PolicyModule, path: Path, about: Mapping[str, Any]) -> ExportedPolicy:
    """Writes a policy as an ONNX graph, and FILE.json, which describes its inputs and outputs.

    Args:
        policy: the policy, on the CPU, in eval mode and with its sampler set.
        path: file to create.
        about: also written into FILE.json: the graph's checkpoint and sampler.

    Raises:
        ExportError: the policy cannot be exported, FILE exists, the packages are missing, or ONNX Runtime gives
            other actions than the policy.
        StorageError: the disk refuses.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"{', '.join(missing)} not installed: {install_extra('onnx')}")
    if path.exists():
        raise ExportError(f"{path} exists; name another file, or delete it")
    unrolled = UnrolledPolicy(policy).eval()
    example = unrolled.inputs(0)
    with atomic_file(path) as unfinished, torch.no_grad():
        program = torch.export.export(unrolled, tuple(example.values()), strict=False)
        graph = torch.onnx.export(
            program, tuple(example.values()), input_names=list(example), output_names=[ACTIONS], dynamo=True,
            verbose=False,
        )  # fmt: skip
        assert graph is not None
        graph.save(str(unfinished))
        difference = largest_difference(unrolled, unfinished)
        if not difference <= TOLERANCE:
            raise ExportError(
                f"the graph's actions are {difference:.1e} from the policy's; at most {TOLERANCE} is explained by sums"
            )
    shapes = {name: list(value.shape) for name, value in example.items()}
    write_json(path.with_name(f"{path.name}.json"), {**about, **_meaning(unrolled, shapes), "difference": difference})
    return ExportedPolicy(path, difference)


def largest_difference(unrolled: UnrolledPolicy, path: Path) -> float:
    """Returns how far ONNX Runtime's actions are from the policy's, in normalized units; see ``TOLERANCE``."""
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    normalizer, largest = unrolled.policy.normalizer["action"], 0.0
    for seed in range(1, 1 + _PROBES):
        inputs = unrolled.inputs(seed)
        (actions,) = session.run([ACTIONS], {name: value.numpy() for name, value in inputs.items()})
        ours = normalizer.normalize(unrolled(*inputs.values()))
        largest = max(largest, float((normalizer.normalize(torch.from_numpy(np.array(actions))) - ours).abs().max()))
    return largest


def _meaning(unrolled: UnrolledPolicy, shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    policy = unrolled.policy
    assert isinstance(policy, DenoisingPolicy)
    rows = {field.key: list(field.names) or "RGB (C, H, W), floats in [0, 1]" for field in policy.spec.obs}
    return {
        "inputs": {name: {"shape": shape, "holds": rows.get(name, "normal noise")} for name, shape in shapes.items()},
        "actions": list(policy.spec.action_names),
        "first_executed": policy.first_executed,
        "n_action_steps": policy.n_action_steps,
        "relative": policy.spec.relative,
    }
