"""MineStudio's VPT, in its own environment, compared with ours: same weights and frames, same joint actions.

python3.11 -m venv ENV && ENV/bin/pip install --no-deps minestudio==1.1.6 gym==0.26.2 gym-notices cloudpickle
ENV/bin/pip install torch "numpy<2" gymnasium gym3 einops omegaconf rich attrs huggingface_hub
MINESTUDIO_PYTHON=ENV/bin/python python -m pytest tests/policy/test_minestudio_peer.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_policy.minecraft.actions import (
    BUTTONS,
    INVENTORY,
    N_BUTTONS,
    N_CAMERA,
    Factored,
    degrees_of,
    quantize,
    to_factored,
    to_joint,
)
from diffusion_policy.model.vpt.network import VPTSettings
from diffusion_policy.policy.vpt_policy import MinecraftAgentPolicy

PROGRAM = Path(__file__).with_name("minestudio_peer.py")
SETTINGS = VPTSettings(
    hidsize=32, impala_width=1, impala_chans=(4, 8, 8), n_recurrence_layers=2, attention_heads=2,
    attention_memory_size=16, timesteps=8, img_shape=(32, 32, 3),
)  # fmt: skip
KEPT = (
    "hidsize", "impala_width", "impala_chans", "n_recurrence_layers", "attention_heads", "attention_memory_size",
    "timesteps", "img_shape", "pointwise_ratio",
)  # fmt: skip
Answer = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def python() -> str:
    found = os.environ.get("MINESTUDIO_PYTHON")
    if not found:
        pytest.skip("MINESTUDIO_PYTHON names no interpreter (one with minestudio 1.1.6, of another environment)")
    return found


@pytest.fixture(scope="module")
def policy() -> MinecraftAgentPolicy:
    torch.manual_seed(0)
    made = MinecraftAgentPolicy(SETTINGS).eval()
    for parameter in made.parameters():  # including norms and biases, which are 1 and 0 in a fresh policy
        parameter.data += 0.2 * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def asked() -> Answer:
    rng = np.random.default_rng(0)
    frames = {f"frames/{n}": rng.integers(0, 256, (2, 6, *SETTINGS.img_shape), dtype=np.uint8) for n in range(2)}
    first = {f"first/{n}": np.zeros((2, 6), bool) for n in range(2)}
    first["first/1"][1, 0] = True  # an episode that starts with the second chunk
    numbers = np.arange(N_BUTTONS)
    buttons, camera = rng.integers(0, 2, (500, len(BUTTONS))), rng.integers(0, 11, (500, 2))
    return {
        **frames,
        **first,
        "settings": np.array(json.dumps({name: getattr(SETTINGS, name) for name in KEPT})),
        "joint/buttons": numbers,
        "joint/camera": numbers % N_CAMERA,
        "factored/buttons": buttons,
        "factored/camera": camera,
        "degrees": rng.uniform(-12, 12, (400, 2)),
    }


@pytest.fixture(scope="module")
def answer(python: str, policy: Any, asked: Answer, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    folder = tmp_path_factory.mktemp("peer")
    np.savez(folder / "question.npz", **asked)
    torch.save(policy.state_dict(), folder / "ours.weights")
    files = [str(folder / name) for name in ("question.npz", "ours.weights", "answer.npz")]
    run = subprocess.run([python, str(PROGRAM), *files], capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    with np.load(folder / "answer.npz") as found:
        return {name: found[name] for name in found.files}


@torch.no_grad()
def test_latents_and_memories_are_equal(policy: MinecraftAgentPolicy, asked: Answer, answer: Answer) -> None:
    state = policy.initial_state(2)
    for number in range(2):
        frames, first = (torch.from_numpy(asked[f"{part}/{number}"]) for part in ("frames", "first"))
        latent, state = policy.net(frames, first, state)
        np.testing.assert_allclose(latent.numpy(), answer[f"latent/{number}"], atol=1e-4, rtol=0)
        for block, memory in enumerate(state):
            assert memory.mask is not None
            np.testing.assert_array_equal(memory.mask.numpy(), answer[f"mask/{number}/{block}"])
            for name in ("keys", "values"):
                ours = getattr(memory, name).numpy()
                np.testing.assert_allclose(ours, answer[f"{name}/{number}/{block}"], atol=1e-4, rtol=0)


def test_all_joint_actions_are_equal(asked: Answer, answer: Answer) -> None:
    ours = to_factored({"buttons": asked["joint/buttons"], "camera": asked["joint/camera"]})
    np.testing.assert_array_equal(ours.buttons, answer["factored/buttons"].reshape(-1, len(BUTTONS)))
    np.testing.assert_array_equal(ours.camera, answer["factored/camera"].reshape(-1, 2))
    joint = to_joint(Factored(asked["factored/buttons"], asked["factored/camera"]))
    for name, values in joint.items():
        np.testing.assert_array_equal(values.ravel(), answer[f"joint/{name}"].ravel())
    assert (joint["buttons"] == INVENTORY).any()


def test_camera_bins_are_equal(asked: Answer, answer: Answer) -> None:
    np.testing.assert_array_equal(quantize(asked["degrees"]), answer["bins"])
    np.testing.assert_allclose(degrees_of(np.arange(11)), answer["degrees"], atol=1e-12)
