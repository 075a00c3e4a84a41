"""Honest-looking checkpoints with harm inside: in an entry, in the config, in place of a tensor."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dill
import torch
from hostile.assembling import Calls, Case, assemble, call, checkpoint_with, entering, saved, text

from diffusion_policy.policy.registry import POLICY_TARGETS

CASES: list[Case] = []
case = entering(CASES)

# Programs, where they would be overlooked.


@case("asks for posix.system")
def deep_inside_the_optimizer(folder: Path, command: str) -> Path:
    content = checkpoint_with()
    content["state_dicts"]["optimizer"] = {"state": {0: {"step": [Calls(os.system, command)]}}}
    return saved(folder, content)


@case("entry 'epoch': the pickle asks for posix.system")
def in_the_pickles_entry(folder: Path, command: str) -> Path:
    return saved(folder, checkpoint_with(pickles={"epoch": pickle.dumps(Calls(os.system, command))}))


@case(r"entry 'epoch': the pickle asks for dill\._dill\._create_function")
def function_in_the_pickles_entry(folder: Path, command: str) -> Path:
    return saved(folder, checkpoint_with(pickles={"epoch": dill.dumps(lambda: os.system(command))}))


@case("asks for")
def object_with_setstate(folder: Path, command: str) -> Path:
    class Waits:
        def __getstate__(self) -> dict[str, str]:
            return {"command": command}

        def __setstate__(self, state: dict[str, str]) -> None:
            os.system(state["command"])

    return saved(folder, checkpoint_with(run_state={"waits": Waits()}))


@case("hostile.model: the pickle asks for posix.system", reader="tensors")
def vpt_settings_that_call(folder: Path, command: str) -> Path:
    path = folder / "hostile.model"
    path.write_bytes(pickle.dumps({"model": {"args": Calls(os.system, command)}}))
    return path


@case("asks for gym3.types.Wrapper", reader="tensors")
def vpt_settings_of_another_class(folder: Path, command: str) -> Path:
    path = folder / "hostile.model"
    path.write_bytes(assemble(call("gym3.types.Wrapper", text(command))))
    return path


# Configs.


def with_cfg(folder: Path, cfg: Any) -> Path:
    return saved(folder, checkpoint_with(cfg=cfg))


POLICY = {
    "_target_": POLICY_TARGETS[0],
    "shape_meta": {
        "obs": {"image": {"shape": [3, 32, 32], "type": "rgb"}, "pose": {"shape": [7], "type": "low_dim"}},
        "action": {"shape": [7]},
    },
    "noise_scheduler": {
        "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
        "num_train_timesteps": 10,
    },
    "horizon": 4,
    "n_action_steps": 2,
    "n_obs_steps": 2,
    "crop_shape": None,
    "n_layer": 1,
    "n_emb": 32,
}

CONFIGS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "reads_the_environment": (lambda c: {"a": "${oc.env:HOME}"}, "'a' asks for the resolver 'oc.env'", "checkpoint"),
    "reads_it_inside_a_sum": (lambda c: {"a": "${eval:'${oc.env:HOME}'}"}, "the resolver 'oc.env'", "checkpoint"),
    "computes_a_resolver": (lambda c: {"b": "oc.env", "a": "${${b}:HOME}"}, "asks for the resolver", "checkpoint"),
    "refers_in_a_circle": (lambda c: {"a": "${b}", "b": "${a}"}, "refers to itself", "checkpoint"),
    "tower_of_references": (
        lambda c: {f"a{n}": "boom" if n == 0 else f"${{a{n - 1}}}${{a{n - 1}}}" for n in range(64)},
        "unfolds to more than 1000000 characters",
        "checkpoint",
    ),
    "sum_that_imports": (
        lambda c: {"policy": POLICY | {"horizon": "${eval:\"__import__('os').system('" + c + "')\"}"}},
        "cfg.policy cannot be resolved",
        "policy",
    ),
    "sum_that_never_ends": (lambda c: {"policy": POLICY | {"horizon": "${eval:'9**9**9**9'}"}}, "exponent", "policy"),
    "target_os_system": (
        lambda c: {"policy": {**POLICY, "_target_": "os.system", "command": c}},
        "_target_ is 'os.system'; a checkpoint may only name",
        "policy",
    ),
    "sampler_popen": (
        lambda c: {"policy": {**POLICY, "noise_scheduler": {"_target_": "subprocess.Popen", "args": c}}},
        "noise_scheduler._target_ is 'subprocess.Popen'",
        "policy",
    ),
    "target_is_a_list": (lambda c: {"policy": {**POLICY, "_target_": ["os.system"]}}, "may only name", "policy"),
    "width_of_a_billion": (
        lambda c: {"policy": {**POLICY, "n_emb": 2**30}},
        "cannot be built from its options",
        "policy",
    ),
    "width_of_a_million": (lambda c: {"policy": {**POLICY, "n_emb": 2**20}}, "do not fit", "policy"),
    "layers_of_a_billion": (lambda c: {"policy": {**POLICY, "n_layer": 10**9}}, "beyond 1000", "policy"),
    "horizon_of_10_to_30": (lambda c: {"policy": {**POLICY, "horizon": 10**30}}, "beyond 2147483648", "policy"),
    "sampler_of_a_trillion_steps": (
        lambda c: {
            "policy": {**POLICY, "noise_scheduler": {**POLICY["noise_scheduler"], "num_train_timesteps": 10**12}}
        },
        "num_train_timesteps is 1000000000000, beyond 100000",
        "policy",
    ),
    "width_that_is_text": (lambda c: {"policy": {**POLICY, "n_emb": c}}, "cannot be built|n_emb", "policy"),
    "no_policy": (lambda c: {"horizon": 4}, "no section 'policy'", "policy"),
    "config_that_is_a_list": (lambda c: [1, 2], "its cfg is a list", "checkpoint"),
}


def _config_case(name: str, make: Callable[[str], Any], refusal: str, reader: str) -> Case:
    return Case(name, lambda folder, command: with_cfg(folder, make(command)), refusal, reader)


CASES.extend(_config_case(name, *entry) for name, entry in CONFIGS.items())


# Wrong types where tensors should be.

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "weights_that_are_numbers": ({"state_dicts": {"model": {"head.weight": 1}}}, "is a int, not a tensor"),
    "weights_that_are_lists": ({"state_dicts": {"model": {"head.weight": [[0.0]]}}}, "is a list, not a tensor"),
    "weights_by_number": ({"state_dicts": {"model": {0: torch.zeros(1)}}}, "not a tensor"),
    "state_dicts_in_a_list": ({"state_dicts": [{}]}, "its state_dicts are not dictionaries"),
    "model_that_is_text": ({"state_dicts": {"model": "weights"}}, "its state_dicts are not dictionaries"),
    "pickles_that_are_numbers": ({"pickles": {"epoch": 3}}, "entry 'epoch' is a int, not bytes"),
    "run_state_in_a_list": ({"run_state": [1]}, "its run_state is a list"),
}
CASES.extend(
    Case(name, lambda folder, _, parts=parts: saved(folder, checkpoint_with(**parts)), refusal)
    for name, (parts, refusal) in WRONG.items()
)


@case("expected cfg, state_dicts and pickles at its top level, found model, ema_model, optimizer")
def weights_one_level_too_high(folder: Path, command: str) -> Path:
    return saved(folder, {"model": {}, "ema_model": {}, "optimizer": {}})
