"""Checkpoints as written by other programs, tiny and newly made: one row of `MAKERS` for each format.

Each holds the same ResNet-18 of width 16, under its program's names; `trunk` gives the names in a Sequential.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import dill
import torch
from adapt_factory import policy_cfg
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from diffusion_policy.checkpoint import build_policy
from diffusion_policy.families import lerobot_diffusion
from diffusion_policy.families.image_encoders import PARTS

State = dict[str, Tensor]
OUR_TRUNK = "obs_encoder.obs_nets.image.backbone.nets."
UMI_META: dict[str, Any] = {
    "obs": {
        "camera0_rgb": {"shape": [3, 48, 64], "type": "rgb", "horizon": "${task.img_obs_horizon}"},
        "robot0_eef_pos": {"shape": [3], "type": "low_dim"},
        "robot0_eef_rot_axis_angle": {"shape": [6], "raw_shape": [3], "type": "low_dim", "rotation_rep": "rotation_6d"},
        "robot0_gripper_width": {"shape": [1], "type": "low_dim"},
    },
    "action": {"shape": [10], "rotation_rep": "rotation_6d"},
}  # fmt: skip
LEROBOT_CONFIG: dict[str, Any] = {
    "type": "diffusion", "n_obs_steps": 2, "horizon": 16, "n_action_steps": 8, "vision_backbone": "resnet18",
    "input_features": {
        "observation.state": {"type": "STATE", "shape": [7]},
        "observation.images.front": {"type": "VISUAL", "shape": [3, 48, 64]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [8]}}, "crop_shape": None, "use_group_norm": True,
    "use_separate_rgb_encoder_per_camera": False, "spatial_softmax_num_keypoints": 32, "down_dims": [16, 32],
    "kernel_size": 5, "diffusion_step_embed_dim": 16, "use_film_scale_modulation": True,
}  # fmt: skip
LOW = [0.3, -0.2, 0.1, 0.85, -0.53, -0.05, -0.17, 0.0]
MEAN = [0.5, 0.0, 0.3, 0.89, -0.43, 0.07, -0.06, 0.5]
HIGH = [0.7, 0.2, 0.6, 0.93, -0.32, 0.18, 0.05, 1.0]


@cache
def trunk(*, group_norm: bool = True, seed: int = 0) -> State:
    """A ResNet-18 of width 16 by its names in a Sequential."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = build_policy(policy_cfg(8, obs_encoder_group_norm=group_norm)).state_dict()
    return {key.removeprefix(OUR_TRUNK): tensor + 0.5 if tensor.is_floating_point() else tensor
            for key, tensor in state.items() if key.startswith(OUR_TRUNK)}  # fmt: skip


def torchvision(state: State) -> State:
    return {f"{PARTS[name.split('.')[0]]}.{name.split('.', 1)[1]}": tensor for name, tensor in state.items()}


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def network(prefix: str = "") -> State:
    """Another program's denoiser."""
    return under(prefix, {"denoiser.0.weight": torch.ones(4, 10), "denoiser.0.bias": torch.zeros(4)})


def saved(content: Any, name: str = "other.ckpt", **options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(content() if callable(content) else content, folder / name, **options)
        return folder / name

    return write


def optimizer() -> dict[str, Any]:
    return {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4, 10)}}, "param_groups": [{"lr": 1e-4}]}


def lerobot_folder(folder: Path, *, processors: bool) -> Path:
    policy = folder / "pretrained_model"
    policy.mkdir()
    (policy / "config.json").write_text(json.dumps(LEROBOT_CONFIG))
    shapes = lerobot_diffusion.shapes(LEROBOT_CONFIG)
    state = {name: torch.zeros(shape) for name, shape in shapes.items() if ".backbone." not in name}
    state |= under("diffusion.rgb_encoder.backbone.", trunk())
    ends = {"min": torch.tensor(LOW), "max": torch.tensor(HIGH)}
    if processors:
        name = "policy_preprocessor_step_3_normalizer_processor.safetensors"
        step = {"registry_name": "normalizer_processor", "config": {}, "state_file": name}
        (policy / "policy_preprocessor.json").write_text(json.dumps({"name": "policy_preprocessor", "steps": [step]}))
        whole = ends | {"mean": torch.tensor(MEAN), "std": torch.full((8,), 0.06)}
        state_of = {f"action.{kind}": tensor for kind, tensor in whole.items()}
        state_of |= {f"observation.state.{kind}": tensor[:7].clone() for kind, tensor in whole.items()}
        save_file(state_of, policy / name)
    else:
        state |= {f"normalize_targets.buffer_action.{kind}": tensor for kind, tensor in ends.items()}
        state |= {f"normalize_inputs.buffer_observation_state.{kind}": t[:7].clone() for kind, t in ends.items()}
    save_file(state, policy / "model.safetensors")
    return policy


def workspace(state: State, average: State | None = None, policy: str = "diffusion_unet_timm_policy.X") -> Any:
    """What a workspace of diffusion_policy or UMI saves, through dill."""
    cfg = OmegaConf.create({
        "policy": {"_target_": f"diffusion_policy.policy.{policy}", "shape_meta": "${shape_meta}"},
        "shape_meta": "${task.shape_meta}", "horizon": "${eval:'8+8'}", "run_dir": "data/${now:%Y.%m.%d}",
        "task": {"shape_meta": UMI_META, "img_obs_horizon": 2, "pose_repr": {"action_pose_repr": "relative"}},
    })  # fmt: skip
    states = {"model": state, **({"ema_model": average} if average else {}), "optimizer": optimizer()}
    counters = {name: dill.dumps(value) for name, value in (("_output_dir", None), ("global_step", 9), ("epoch", 1))}
    return {"cfg": cfg, "state_dicts": states, "pickles": counters}


def image_policy(encoder: State) -> State:
    """The names of a UNet image policy: dummies, encoder, and a denoiser named as this project's."""
    return {
        "_dummy_variable": torch.zeros(0), "obs_encoder._dummy_variable": torch.zeros(0), **encoder,
        "model.final_conv.1.weight": torch.ones(10, 16, 1), "model.final_conv.1.bias": torch.ones(10),
        "normalizer.params_dict.action.scale": torch.ones(10), "normalizer.params_dict.action.offset": torch.zeros(10),
    }  # fmt: skip


def lightning(state: State, **entries: Any) -> dict[str, Any]:
    return {
        "epoch": 3, "global_step": 1200, "pytorch-lightning_version": "2.4.0", "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.1), "dirpath": "x"}},
        "optimizer_states": [optimizer()], "lr_schedulers": [], "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-4, "shape_meta": UMI_META}, **entries,
    }  # fmt: skip


@contextmanager
def other_program() -> Iterator[ModuleType]:
    """A program that can be imported while a file is written: a settings class, and Lightning's dictionary."""
    module = ModuleType("other_program")
    kinds: dict[str, Any] = {
        "ModelConfig": type("ModelConfig", (), {"__module__": module.__name__}),
        "Box": type("Box", (dict,), {"__module__": module.__name__}),
        "Stages": type("Stages", (list,), {"__module__": module.__name__}),
    }
    parsing = ModuleType("lightning.fabric.utilities.data")
    parsing.AttributeDict = type("AttributeDict", (dict,), {"__module__": parsing.__name__})  # type: ignore[attr-defined]
    for name, kind in kinds.items():
        setattr(module, name, kind)
    packages = [ModuleType(name) for name in ("lightning", "lightning.fabric", "lightning.fabric.utilities")]
    with mock.patch.dict(sys.modules, {each.__name__: each for each in (module, parsing, *packages)}):
        yield module


def with_classes(folder: Path, **options: Any) -> Path:
    """A Lightning file of a program that keeps settings in its own and its libraries' classes."""
    state = {**under("model.encoder.", torchvision(trunk())), **network("model.")}
    with other_program() as program:
        model = program.ModelConfig()
        model.width, model.weight = 64, torch.ones(2)
        attributes = sys.modules["lightning.fabric.utilities.data"].AttributeDict
        parameters = attributes(
            shape_meta=UMI_META, model=model, kind=program.ModelConfig, box=program.Box(a=1),
            stages=program.Stages([1, 2]),
            args=argparse.Namespace(lr=1e-4, device=torch.device("cuda:0")), where=Path("/data/runs"),
            typed=OmegaConf.structured(Typed), more=OmegaConf.create({"a": [1, "${more.b}"], "b": 2}),
        )  # fmt: skip
        torch.save(lightning(state, hyper_parameters=parameters), folder / "classes.ckpt", **options)
    return folder / "classes.ckpt"


@dataclass
class Typed:
    """A structured config, as declared by users of Hydra."""

    lr: float = 0.1
    name: str = "a"


@dataclass(frozen=True)
class Maker:
    """One format.

    Attributes:
        write: makes the file or folder in a folder, and returns it.
        family: part of its family name in `inspect`.
        container: part of its writer's name.
        live, averaged: number of weights found.
        camera: which encoder to use, if there are several.
        refused: part of the reason why a policy with GroupNorm cannot use the encoder; "" if it can.
        changes: changes to the target's config with which it can use it.
    """

    write: Callable[[Path], Path]
    family: str
    container: str
    live: int
    averaged: int = 0
    camera: str = ""
    refused: str = ""
    changes: tuple[str, ...] = ()


UMI = "An image policy of diffusion_policy or UMI"
VIT = {"cls_token": torch.ones(1, 1, 8), "patch_embed.proj.weight": torch.ones(8, 3, 16, 16),
       "blocks.0.attn.qkv.weight": torch.ones(24, 8)}  # fmt: skip
DEEPER = {**{f"4.{block}.conv1.weight": torch.ones(16, 16, 3, 3) for block in range(3)}}
NO_FAMILY = "no known family"

MAKERS: dict[str, Maker] = {
    "lerobot": Maker(lambda folder: lerobot_folder(folder, processors=True), "LeRobot's diffusion policy", "LeRobot",
                     165),
    "lerobot of 0.3": Maker(lambda folder: lerobot_folder(folder, processors=False), "LeRobot's diffusion policy",
                            "LeRobot", 169),
    "umi, timm resnet": Maker(
        saved(lambda: workspace(*(image_policy(under("obs_encoder.key_model_map.camera0_rgb.", trunk(seed=seed)))
                                  for seed in (1, 0))), pickle_module=dill),
        UMI, "a workspace", 66, 66,
    ),
    "umi, timm vit": Maker(
        saved(lambda: workspace(image_policy(under("obs_encoder.key_model_map.camera0_rgb.model.", VIT)))),
        UMI, "a workspace", 9, refused="a vision transformer",
    ),
    "image policy, torchvision": Maker(
        saved(lambda: workspace(image_policy(under("obs_encoder.key_model_map.rgb.", torchvision(trunk()))))),
        UMI, "a workspace", 66,
    ),
    "image policy, two cameras": Maker(
        saved(lambda: workspace(image_policy(
            under("obs_encoder.key_model_map.camera_1.", torchvision(trunk()))
            | under("obs_encoder.key_model_map.camera_3.", torchvision(trunk(seed=1)))
        ))),
        UMI, "a workspace", 126, camera="camera_1", refused="2 encoders|no camera|choose one for image",
    ),
    "batch norm": Maker(
        saved(lambda: workspace(image_policy(
            under("obs_encoder.key_model_map.camera0_rgb.", torchvision(trunk(group_norm=False)))))),
        UMI, "a workspace", 126, refused="it has BatchNorm, but the policy here has GroupNorm",
        changes=("policy.obs_encoder_group_norm=false",),
    ),
    "resnet34": Maker(
        saved(lambda: workspace(image_policy(under("obs_encoder.key_model_map.camera0_rgb.", trunk() | DEEPER)))),
        UMI, "a workspace", 67, refused="a ResNet of basic blocks",
    ),
    "lightning, twins": Maker(
        saved(lambda: lightning({**under("model.encoder.", torchvision(trunk(seed=1))), **network("model."),
                                 **under("ema_model.encoder.", torchvision(trunk())), **network("ema_model.")})),
        NO_FAMILY, "PyTorch Lightning 2.4.0, epoch 3, global_step 1200", 62, 62,
    ),
    "lightning, classes": Maker(with_classes, NO_FAMILY, "PyTorch Lightning 2.4.0", 62),
    "lightning, classes, before 1.6": Maker(
        lambda folder: with_classes(folder, _use_new_zipfile_serialization=False), NO_FAMILY, "PyTorch Lightning", 62,
    ),
    "lightning, callback": Maker(
        saved(lambda: lightning(
            under("policy.vision.", trunk(seed=1)) | network("policy."),
            callbacks={"EMA": {"ema_state_dict": under("policy.vision.", trunk()) | network("policy.")}},
        )),
        NO_FAMILY, "PyTorch Lightning", 62, 62,
    ),
    "pth, nested": Maker(
        saved(lambda: {"model": {"state_dict": under("encoder.", torchvision(trunk())) | network()}, "epoch": 4,
                       "optimizer": optimizer(), "args": {"lr": 0.1}}, "other.pth"),
        NO_FAMILY, "an unknown program, with the entries model, epoch, optimizer, args", 62,
    ),
    "pth, ema": Maker(
        saved(lambda: {"model": under("backbone.", trunk(seed=1)), "model_ema": {"module": under("backbone.", trunk())},
                       "scaler": {"scale": torch.ones(1)}}, "other.pth"),
        NO_FAMILY, "an unknown program", 60, 60,
    ),
    "data parallel": Maker(
        saved(lambda: under("module.encoder.", torchvision(trunk())) | network("module."), "other.pth"),
        NO_FAMILY, "nothing but weights", 62,
    ),
    "shadow parameters": Maker(
        saved(lambda: {"net": under("trunk.", trunk()),
                       "ema": {"decay": 0.99, "shadow_params": list(trunk().values())}}, "other.pt"),
        NO_FAMILY, "an unknown program", 60,
    ),
    "before 1.6": Maker(
        saved(lambda: {"state_dict": torchvision(trunk()) | {"fc.weight": torch.ones(2, 128)}}, "other.pth.tar",
              _use_new_zipfile_serialization=False),
        NO_FAMILY, "an unknown program", 61,
    ),
    "robomimic": Maker(
        saved(lambda: {
            "algo_name": "diffusion_policy", "config": "{}", "shape_metadata": {"ac_dim": 7},
            "model": {"nets": under("policy.obs_encoder.module.nets.obs.obs_nets.agentview_image.backbone.nets.",
                                    trunk()) | network("policy.noise_pred_net.")}}, "model.pth"),
        NO_FAMILY, "robomimic, algorithm diffusion_policy", 62,
    ),
}  # fmt: skip
"""By name. `write` gives live weights seed 0, or 1 where there is an average, whose encoder then has seed 0."""
