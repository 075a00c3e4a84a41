"""diffusion_policy.serve.checks.parity: recorded frames through a live server, and mistakes named."""

import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from evaluation_factory import HEIGHT, WIDTH
from serve_factory import ServerThread, settings

from diffusion_policy.serve.checks.parity import (
    IMAGE_MISTAKES,
    ComparedInputs,
    ParityReport,
    check_parity,
    compare_inputs,
    enlarge,
    name_culprit,
    state_mistakes,
)
from diffusion_policy.serve.client import LineClient
from diffusion_policy.serve.engine import PolicyEngine, Prepared
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.spec import POSE, ActionLayout, ImageArray, resize_frame

STATE_MISTAKES = state_mistakes(ActionLayout.of(POSE).arms)


def script_main(repository: Path, *arguments: object) -> int:
    main = runpy.run_path(str(repository / "scripts" / "check_parity.py"))["main"]
    return int(main([str(argument) for argument in arguments]))


Frames, States = Sequence[ImageArray], np.ndarray


def engine_with(trouble: Callable[[Frames, States], tuple[Frames, States]]) -> type[PolicyEngine]:
    """A server that makes a mistake between decoding and the policy."""

    class TroubledEngine(PolicyEngine):
        def prepare(self, frames: Frames, states: States) -> Prepared:
            return super().prepare(*trouble(frames, states.copy()))

    return TroubledEngine


def interpolated(flag: int) -> Callable[[Frames, States], tuple[Frames, States]]:
    return lambda frames, states: ([cv2.resize(frame, (WIDTH, HEIGHT), interpolation=flag) for frame in frames], states)


def turned_polarity(frames: Frames, states: States) -> tuple[Frames, States]:
    states[:, 7] = 1 - states[:, 7]
    return frames, states


def scalar_first(frames: Frames, states: States) -> tuple[Frames, States]:
    states[:, 3:7] = states[:, [6, 3, 4, 5]]
    return frames, states


PLANTED = {
    "linear": (interpolated(cv2.INTER_LINEAR), "image", "interpolation: linear"),
    "nearest": (interpolated(cv2.INTER_NEAREST), "image", "interpolation: nearest"),
    "cubic": (interpolated(cv2.INTER_CUBIC), "image", "interpolation: cubic"),
    "colors": (lambda frames, states: ([frame[..., ::-1] for frame in frames], states), "image", "color order: BGR"),
    "crop": (lambda frames, states: ([frame[7:-7, 8:-8] for frame in frames], states), "image", "crop: cut to 90 %"),
    "spacing": (lambda frames, states: ([frames[-1]] * 2, states), "image", "step spacing: the newest frame twice"),
    "order": (lambda frames, states: (frames[::-1], states), "image", "step order: newest first"),
    "polarity": (turned_polarity, "robot_gripper_state", "polarity: 1 = closed"),
    "quaternion": (scalar_first, "robot_eef_pose", "quaternion order: wxyz"),
}


@pytest.mark.parametrize(("trouble", "key", "message"), PLANTED.values(), ids=PLANTED.keys())
def test_a_server_s_mistake_is_named(
    trouble: Callable[[Frames, States], tuple[Frames, States]],
    key: str,
    message: str,
    served_checkpoint: Path,
    recorded_zarr: Path,
) -> None:
    engine = engine_with(trouble).open(served_checkpoint, EngineSettings(steps=1))
    allowing = settings(None, "allow_inspection=true", "engine.steps=1")
    with ServerThread(engine, allowing) as server, LineClient(port=server.ports["line"], timeout=20) as client:
        report = check_parity(served_checkpoint, recorded_zarr, client, 4)
    assert report.resize_tested
    assert not report.passed
    culprits = {entry.key: entry.culprit for entry in report.keys if entry.culprit}
    assert culprits.keys() == {key}
    assert culprits[key].startswith(message), culprits


def test_area_interpolation_alone_gives_an_enlarged_frame_back() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    large = enlarge(frame)
    assert large.shape == (4 * HEIGHT, 4 * WIDTH, 3)
    np.testing.assert_array_equal(resize_frame(large, WIDTH, HEIGHT), frame)
    assert (cv2.resize(large, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR) != frame).mean() > 0.9


SwappingEngine = engine_with(lambda frames, states: ([frame[..., ::-1] for frame in frames], states))


@pytest.mark.parametrize(
    ("kind", "encoding", "status", "message"),
    [
        (PolicyEngine, ".png", 0, None),
        (PolicyEngine, ".jpg", 1, "JPEG compression, or a slightly different resize"),
        (SwappingEngine, ".png", 1, "color order: BGR where RGB is expected"),
    ],
)
def test_a_live_server_is_compared_with_training(
    kind: type[PolicyEngine],
    encoding: str,
    status: int,
    message: str | None,
    served_checkpoint: Path,
    recorded_zarr: Path,
    repository: Path,
    tmp_path: Path,
) -> None:
    engine = kind.open(served_checkpoint, EngineSettings(steps=2))
    out = tmp_path / "parity.json"
    with ServerThread(engine, settings(None, "allow_inspection=true", "engine.steps=2")) as server:
        address = f"127.0.0.1:{server.ports['line']}"
        arguments = (recorded_zarr, "--ckpt", served_checkpoint, "--server", address, "--requests", 3)
        assert script_main(repository, *arguments, "--encoding", encoding, "--json", out) == status
    found = json.loads(out.read_text())
    assert {entry["key"]: entry["culprit"] for entry in found["keys"]} == {
        "image": message, "robot_eef_pose": None, "robot_gripper_state": None
    }  # fmt: skip
    assert found["same_checkpoint"] is True
    if status == 0:
        assert found["action_difference"] < 1e-4


def test_without_a_server_or_permission_there_is_no_verdict(
    served_checkpoint: Path, recorded_zarr: Path, repository: Path
) -> None:
    assert script_main(repository, recorded_zarr, "--ckpt", served_checkpoint, "--server", "127.0.0.1:1") == 2
    engine = PolicyEngine.open(served_checkpoint, EngineSettings(steps=2))
    with ServerThread(engine, settings()) as server:
        address = f"127.0.0.1:{server.ports['line']}"
        assert script_main(repository, recorded_zarr, "--ckpt", served_checkpoint, "--server", address) == 2
        assert (
            script_main(repository, recorded_zarr, "--ckpt", served_checkpoint, "--server", address, "--requests", 0)
            == 2
        )


def test_inputs_of_two_shapes_are_distinguished_and_can_be_written() -> None:
    collected = ComparedInputs()
    collected.add({"robot_eef_pose": np.zeros((2, 7))}, {"robot_eef_pose": np.zeros((2, 6))})
    (entry,) = compare_inputs(collected)
    assert entry.culprit == "shape (2, 6), not (2, 7)"
    assert json.loads(json.dumps(ParityReport(1, (entry,)).to_json(), allow_nan=False))["keys"][0]["largest"] is None


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
    assert name_culprit(gripper, 1 - gripper, state_mistakes(())) == "polarity: 1 = closed where 1 = open is expected"
    noise = np.random.default_rng(2).integers(0, 255, pictures().shape)
    assert name_culprit(pictures(), noise, IMAGE_MISTAKES) is None
