"""Datasets of three layouts of an action: one arm with a quaternion, two arms with a 6-D rotation, seven joints."""

from pathlib import Path
from typing import Any

import numpy as np
from made_once import made_once
from scipy.spatial.transform import Rotation

from diffusion_policy.dataset.replay_buffer import ReplayBuffer, image_layout, low_dim_layout
from diffusion_policy.spec import POSE, POSE_GRIPPER, ActionLayout, StepTransform, action_semantics, read_shape_meta
from diffusion_policy.spec.rotations import Representation

WIDTH, HEIGHT = 40, 36
POSE_6D = ("x", "y", "z", "r11", "r12", "r13", "r21", "r22", "r23")
TWO_ARMS = tuple(f"{arm}.{name}" for arm in ("left", "right") for name in (*POSE_6D, "gripper"))
JOINTS = tuple(f"joint_{i}" for i in range(1, 8))


def poses(length: int, seed: int) -> np.ndarray:
    """(N, 7) on a smooth path, the tool turning by half a radian."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, length)[:, None]
    turns = Rotation.from_rotvec([np.pi - 0.2, 0.1 * seed, 0.1]) * Rotation.from_rotvec(t * [0.1, -0.2, 0.5])
    quaternions = turns.as_quat()
    quaternions *= np.sign(quaternions[:1, :1])
    for i in range(1, length):
        quaternions[i] *= np.sign(quaternions[i] @ quaternions[i - 1])
    return np.concatenate([rng.uniform(0.2, 0.4, 3) + t * [0.1, 0.05, -0.1], quaternions], axis=1)


def gripper(length: int) -> np.ndarray:
    """(N, 1) open, closed in the middle third, open."""
    t = np.linspace(0, 1, length)[:, None]
    return ((t < 1 / 3) | (t > 2 / 3)).astype(np.float64)


def episode(kind: str, length: int, seed: int) -> dict[str, np.ndarray]:
    """Returns its arrays except the images; commands lead measurements by a step."""
    if kind == "joints":
        t = np.linspace(0, 1, length)[:, None]
        joints = 0.3 * seed + t * np.linspace(-1, 1, 7)
        measured = np.concatenate([joints, gripper(length)], axis=1)
    elif kind == "two arms":
        layout = ActionLayout.of(POSE)
        arms = [layout.converted(poses(length, seed + i), ActionLayout.of(POSE_6D)) for i in (0, 5)]
        measured = np.concatenate([arms[0], gripper(length), arms[1], np.roll(gripper(length), 2)], axis=1)
    else:
        measured = np.concatenate([poses(length, seed), gripper(length)], axis=1)
    return {"state": measured, "action": np.concatenate([measured[1:], measured[-1:]])}


NAMES = {"one arm": POSE_GRIPPER, "two arms": TWO_ARMS, "joints": (*JOINTS, "gripper")}
CAMERAS = {"one arm": ("image",), "two arms": ("left_image", "right_image"), "joints": ("image",)}


def low_dim_keys(kind: str) -> dict[str, tuple[str, ...]]:
    """Names of each observed vector; together they are the action's."""
    names = NAMES[kind]
    if kind == "one arm":
        return {"robot_eef_pose": POSE, "robot_gripper_state": ("gripper",)}
    if kind == "two arms":
        return {"left_state": names[:10], "right_state": names[10:]}
    return {"joint_state": names[:7], "robot_gripper_state": ("gripper",)}


@made_once
def write(path: Path, kind: str, lengths: tuple[int, ...] = (13, 12, 14, 12), **change: Any) -> Path:
    """A dataset; ``change`` is a factor of named numbers ("gripper" of all arrays) by which they are stored."""
    names, keys = NAMES[kind], low_dim_keys(kind)
    layouts = {camera: image_layout(WIDTH, HEIGHT) for camera in CAMERAS[kind]}
    layouts |= {key: low_dim_layout(entry) for key, entry in keys.items()} | {"action": low_dim_layout(names)}
    buffer = ReplayBuffer.create(path, layouts)
    factors = np.array([change.get(name.replace(".", "_"), 1.0) for name in names])
    for seed, length in enumerate(lengths):
        numbers = {key: values * factors for key, values in episode(kind, length, seed).items()}
        rows = {key: numbers["state"][:, [names.index(name) for name in entry]] for key, entry in keys.items()}
        rng = np.random.default_rng(seed)
        images = {c: rng.integers(0, 256, (length, HEIGHT, WIDTH, 3), dtype=np.uint8) for c in CAMERAS[kind]}
        floats = {key: values.astype(np.float32) for key, values in {**rows, "action": numbers["action"]}.items()}
        buffer.append({**images, **floats})
    units = dict.fromkeys(JOINTS, "rad") if kind == "joints" else None
    buffer.root.attrs["action_semantics"] = action_semantics(names, units)
    return path


def shape_meta(kind: str, **action: Any) -> dict[str, Any]:
    """Returns the shape_meta of a policy that reads and predicts everything."""
    cameras = {camera: {"shape": [3, HEIGHT, WIDTH], "type": "rgb"} for camera in CAMERAS[kind]}
    low_dim = {
        key: {"shape": [len(names)], "type": "low_dim", "names": list(names)}
        for key, names in low_dim_keys(kind).items()
    }
    names = NAMES[kind]
    return {"obs": {**cameras, **low_dim}, "action": {"shape": [len(names)], "names": list(names), **action}}


def trained_meta(kind: str, rotation: Representation | None = None, *, relative: bool = False) -> dict[str, Any]:
    """Like ``shape_meta``, for a policy trained with other rotations than recorded, or on relative actions."""
    meta = shape_meta(kind, rotation=rotation, relative=relative)
    if rotation is not None:
        for entry in (meta["action"], *meta["obs"].values()):
            if "names" in entry:
                layout = ActionLayout.of(entry["names"]).with_rotations_as(rotation)
                entry |= {"names": list(layout.names), "shape": [len(layout.names)]}
    return meta


def trained_arrays(kind: str, meta: dict[str, Any]) -> dict[str, np.ndarray]:
    """(N, D) by key, the numbers that such a policy is trained on, to which its normalizer is fitted."""
    transform, recorded, names = StepTransform(read_shape_meta(meta)), episode(kind, 12, 0), NAMES[kind]
    observed = {
        key: recorded["state"][:, [names.index(name) for name in entry]] for key, entry in low_dim_keys(kind).items()
    }
    chunks = transform.trained(recorded["action"][:, None], recorded["state"])
    return {**transform.observed(observed), "action": chunks[:, 0]}
