"""diffusion_policy.serve.parity: recorded frames through a live server, and mistakes named."""

import json
import runpy
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from serve_factory import ServerThread, settings

from diffusion_policy.serve.engine import PolicyEngine, Prepared
from diffusion_policy.serve.parity import IMAGE_MISTAKES, STATE_MISTAKES, name_culprit
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.spec import ImageArray


def door(repository: Path, *arguments: object) -> int:
    main = runpy.run_path(str(repository / "scripts" / "check_parity.py"))["main"]
    return int(main([str(argument) for argument in arguments]))


class SwappingEngine(PolicyEngine):
    """A server with the predecessor's mistake: blue and red exchanged."""

    def prepare(self, frames: Sequence[ImageArray], states: np.ndarray) -> Prepared:
        return super().prepare([frame[..., ::-1] for frame in frames], states)


@pytest.mark.parametrize(
    ("kind", "encoding", "status", "said"),
    [
        (PolicyEngine, ".png", 0, None),
        (PolicyEngine, ".jpg", 1, "JPEG compression, or a slightly different interpolation"),
        (SwappingEngine, ".png", 1, "colour order: BGR where RGB is expected"),
    ],
)
def test_a_live_server_is_compared_with_training(
    kind: type[PolicyEngine],
    encoding: str,
    status: int,
    said: str | None,
    served_checkpoint: Path,
    recorded_zarr: Path,
    repository: Path,
    tmp_path: Path,
) -> None:
    engine = kind.open(served_checkpoint, EngineSettings(steps=2))
    out = tmp_path / "parity.json"
    with ServerThread(engine, settings(None, "allow_inspection=true", "engine.steps=2")) as server:
        place = f"127.0.0.1:{server.ports['line']}"
        arguments = (recorded_zarr, "--ckpt", served_checkpoint, "--server", place, "--requests", 3)
        assert door(repository, *arguments, "--encoding", encoding, "--json", out) == status
    found = json.loads(out.read_text())
    assert {entry["key"]: entry["culprit"] for entry in found["keys"]} == {
        "image": said, "robot_eef_pose": None, "robot_gripper_state": None
    }  # fmt: skip
    assert found["same_checkpoint"] is True
    if status == 0:
        assert found["action_difference"] < 1e-4


def test_without_a_server_or_permission_there_is_no_verdict(
    served_checkpoint: Path, recorded_zarr: Path, repository: Path
) -> None:
    assert door(repository, recorded_zarr, "--ckpt", served_checkpoint, "--server", "127.0.0.1:1") == 2
    engine = PolicyEngine.open(served_checkpoint, EngineSettings(steps=2))
    with ServerThread(engine, settings()) as server:
        place = f"127.0.0.1:{server.ports['line']}"
        assert door(repository, recorded_zarr, "--ckpt", served_checkpoint, "--server", place) == 2


def pictures() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (6, 6, 10, 3), dtype=np.uint8)
    frames = [cv2.resize(image, (64, 40), interpolation=cv2.INTER_NEAREST) for image in coarse]
    return np.moveaxis(np.stack(frames), -1, 1).reshape(3, 2, 3, 40, 64)


def states() -> np.ndarray:
    rng = np.random.default_rng(1)
    quaternions = rng.normal(size=(3, 2, 4))
    unit = quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True)
    return np.concatenate([rng.uniform(0.1, 0.6, (3, 2, 3)), unit], axis=-1)


@pytest.mark.parametrize("name", [name for name, _ in IMAGE_MISTAKES])
def test_every_mistake_with_images_is_named(name: str) -> None:
    mistake = dict(IMAGE_MISTAKES)[name]
    assert name_culprit(pictures(), mistake(pictures()), IMAGE_MISTAKES) == name


@pytest.mark.parametrize("name", [name for name, _ in STATE_MISTAKES if "polarity" not in name])
def test_every_mistake_with_poses_is_named(name: str) -> None:
    mistake = dict(STATE_MISTAKES)[name]
    assert name_culprit(states(), mistake(states()), STATE_MISTAKES) == name


def test_polarity_is_named_and_nonsense_is_not() -> None:
    gripper = np.array([[[1.0], [1.0]], [[1.0], [0.0]], [[0.0], [0.0]]])
    assert name_culprit(gripper, 1 - gripper, STATE_MISTAKES) == "polarity: 1 = closed where 1 = open is expected"
    noise = np.random.default_rng(2).integers(0, 255, pictures().shape)
    assert name_culprit(pictures(), noise, IMAGE_MISTAKES) is None
