"""MineStudio's VPT, queried in its own environment: python minestudio_peer.py QUESTION.npz WEIGHTS ANSWER.npz.

Run by test_minestudio_peer.py with the interpreter that MINESTUDIO_PYTHON names. Only the network, the coding of
actions and the quantizer are loaded, without the packages around them: which require a simulator, Ray and Lightning.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

PACKAGES = ("", ".models", ".models.vpt", ".utils", ".utils.vpt_lib", ".online")
SETTINGS = {
    "init_norm_kwargs": {"batch_norm": False, "group_norm_groups": 1}, "impala_kwargs": {"post_pool_groups": 1},
    "recurrence_type": "transformer", "attention_mask_style": "clipped_causal", "use_pointwise_layer": True,
    "pointwise_use_activation": False, "recurrence_is_residual": True, "use_pre_lstm_ln": False,
}  # fmt: skip


def bare_packages() -> None:
    """Packages of MineStudio without what their __init__ imports, and stand-ins for its registry and collating."""
    found = importlib.util.find_spec("minestudio")
    assert found is not None
    assert found.submodule_search_locations is not None
    root = Path(next(iter(found.submodule_search_locations)))
    for name in PACKAGES:
        package = types.ModuleType(f"minestudio{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[package.__name__] = package

    class Registry:
        def __getattr__(self, name: str) -> "Registry":
            return self

        def register(self, kind: type) -> type:
            return kind

        def register_module(self, name: str):
            return self.register

    for name, content in {
        "minestudio.utils.register": {"Registers": Registry()},
        "minestudio.online.utils": {"auto_stack": torch.stack, "auto_to_torch": torch.as_tensor},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module


@torch.no_grad()
def network(asked: dict[str, np.ndarray], weights: str) -> dict[str, np.ndarray]:
    """Latents and memories of two chunks of frames, the second after the first."""
    from minestudio.models.vpt.body import MinecraftPolicy

    net = MinecraftPolicy(**json.loads(str(asked["settings"])), **SETTINGS).eval()
    tensors = torch.load(weights, weights_only=True)
    net.load_state_dict({name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")})
    state, found = net.initial_state(len(asked["frames/0"])), {}
    for number in range(2):
        frames, first = (torch.from_numpy(asked[f"{part}/{number}"]) for part in ("frames", "first"))
        (latent, _), state = net({"image": frames}, state, {"first": first})
        found[f"latent/{number}"] = latent.numpy()
        for place, part in enumerate(state):  # mask, keys and values, block after block
            found[f"{('mask', 'keys', 'values')[place % 3]}/{number}/{place // 3}"] = part.numpy()
    return found


def actions(asked: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All joint buttons as factored ones, factored actions as joint ones, and camera bins."""
    from minestudio.utils.vpt_lib.action_mapping import CameraHierarchicalMapping
    from minestudio.utils.vpt_lib.actions import CameraQuantizer

    mapping = CameraHierarchicalMapping(n_camera_bins=11)
    joint = {"buttons": asked["joint/buttons"][:, None], "camera": asked["joint/camera"][:, None]}
    factored = {name: asked[f"factored/{name}"] for name in ("buttons", "camera")}
    quantizer = CameraQuantizer(camera_maxval=10, camera_binsize=2, quantization_scheme="mu_law", mu=10)
    found = {f"factored/{name}": part for name, part in mapping.to_factored(joint).items()}
    found |= {f"joint/{name}": part for name, part in mapping.from_factored(factored).items()}
    return {**found, "bins": quantizer.discretize(asked["degrees"]), "degrees": quantizer.undiscretize(np.arange(11))}


def main(question: str, weights: str, answer: str) -> None:
    bare_packages()
    with np.load(question) as opened:
        asked = {name: opened[name] for name in opened.files}
    np.savez(answer, **network(asked, weights), **actions(asked))


if __name__ == "__main__":
    main(*sys.argv[1:])
