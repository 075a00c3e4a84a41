"""diffusion_policy.spec: what a step is, who may read shape_meta, and the single path for observations."""

import copy
import math

import cv2
import numpy as np
import pytest

from diffusion_policy import spec
from diffusion_policy.spec import POSE, POSE_GRIPPER, SpecError, StepSpec, read_shape_meta

SHAPE_META = {
    "obs": {
        "image": {"shape": [3, 18, 32], "type": "rgb"},
        "robot_eef_pose": {"shape": [7], "type": "low_dim"},
        "robot_gripper_state": {"shape": [1], "type": "low_dim"},
    },
    "action": {"shape": [8]},
}


@pytest.fixture
def step() -> StepSpec:
    return read_shape_meta(SHAPE_META)


def raw_observation(leading: tuple[int, ...] = (2,)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (*leading, 18, 32, 3), dtype=np.uint8),
        "robot_eef_pose": rng.normal(size=(*leading, 7)),
        "robot_gripper_state": np.ones((*leading, 1), dtype=np.int64),
    }


def test_shape_meta_keeps_order_and_names_dimensions(step: StepSpec) -> None:
    assert [field.key for field in step.obs] == ["image", "robot_eef_pose", "robot_gripper_state"]
    assert [field.key for field in step.rgb] == ["image"]
    assert step.rgb[0].width_height == (32, 18)
    assert step.action_names == POSE_GRIPPER
    assert step.field("robot_eef_pose").names == POSE
    assert step.field("robot_gripper_state").names == ("gripper",)


def test_names_in_the_config_win() -> None:
    meta = copy.deepcopy(SHAPE_META)
    meta["action"] = {"shape": [7], "names": list(spec.ROTVEC_WIDTH)}
    assert read_shape_meta(meta).action_names == spec.ROTVEC_WIDTH


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("action",), None, "no 'action' mapping"),
        (("obs",), {}, "obs is empty"),
        (("obs", "image"), 3, "expected a mapping"),
        (("obs", "image", "type"), "depth", "expected 'rgb' or 'low_dim'"),
        (("obs", "image", "shape"), [18, 32], "expected 3 positive integers"),
        (("action", "shape"), [0], "expected 1 positive integers"),
        (("action", "shape"), "8", "expected a list"),
        (("action", "names"), ["x", "x"], "expected 8 different names"),
    ],
)
def test_bad_shape_meta_is_refused(path: tuple[str, ...], value: object, message: str) -> None:
    meta = copy.deepcopy(SHAPE_META)
    entry = meta
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    with pytest.raises(SpecError, match=message):
        read_shape_meta(meta)


def test_an_unknown_key_lists_the_known_ones(step: StepSpec) -> None:
    with pytest.raises(SpecError, match=r"no observation key 'wrist'.*robot_eef_pose"):
        step.field("wrist")


@pytest.mark.parametrize("leading", [(), (2,), (3, 2)])
def test_policy_observation_moves_channels_and_casts(step: StepSpec, leading: tuple[int, ...]) -> None:
    raw = raw_observation(leading)
    observation = spec.policy_observation(step, raw)
    assert observation["image"].shape == (*leading, 3, 18, 32)
    assert observation["image"].dtype == np.uint8
    assert observation["image"].flags.c_contiguous
    np.testing.assert_array_equal(np.moveaxis(observation["image"], -3, -1), raw["image"])
    assert observation["robot_eef_pose"].dtype == np.float32
    assert observation["robot_gripper_state"].shape == (*leading, 1)


def test_policy_observation_refuses(step: StepSpec) -> None:
    for key, value, message in [
        ("image", np.zeros((2, 18, 32, 3), np.float32), "expected uint8"),
        ("image", np.zeros((2, 3, 18, 32), np.uint8), r"\(\.\.\., 18, 32, 3\)"),
        ("robot_eef_pose", np.zeros((2, 6)), r"expected numbers \(\.\.\., 7\)"),
        ("robot_eef_pose", np.full((2, 7), np.nan), "NaN"),
    ]:
        with pytest.raises(SpecError, match=message):
            spec.policy_observation(step, raw_observation() | {key: value})
    incomplete = raw_observation()
    del incomplete["image"]
    with pytest.raises(SpecError, match=r"lacks \['image'\]"):
        spec.policy_observation(step, incomplete)


@pytest.mark.parametrize(
    ("low", "high", "layout"),
    [
        ([0.3, -0.1, 0.2, 0.85, -0.53, -0.04, -0.17], [0.7, 0.2, 0.7, 0.94, -0.32, 0.19, 0.05], "xyz_quat"),
        (
            [0.3, -0.1, 0.2, 0.85, -0.53, -0.04, -0.17, 0],
            [0.7, 0.2, 0.7, 0.94, -0.32, 0.19, 0.05, 1],
            "xyz_quat_gripper",
        ),
        ([0.3, -0.1, 0.2, -3.1, -0.5, -0.4, 0.03], [0.7, 0.2, 0.7, 3.1, 0.4, 0.3, 0.08], "xyz_rotvec_width"),
        ([0.3, -0.1, 0.2, 2.9, -0.5, -0.4, 0.03], [0.7, 0.2, 0.7, 3.1, 0.4, 0.3, 0.08], "xyz_rotvec_width"),
        ([-1] * 7, [1] * 7, "xyz_quat"),
        ([0.3, -0.1, 0.2, 0, 0, 0, 0.5], [0.7, 0.2, 0.7, 0.1, 0.1, 0.1, 0.6], "unknown"),
        ([0] * 6, [1] * 6, "unknown"),
        ([float("nan")] * 7, [1] * 7, "unknown"),
    ],
)
def test_layouts_are_distinguished_by_their_numbers(low: list[float], high: list[float], layout: str) -> None:
    assert spec.layout_from_range(low, high) == layout


LOW = [0.3, -0.2, 0.1, 0.85, -0.53, -0.05, -0.17, 0.0]
MEAN = [0.5, 0.0, 0.3, 0.89, -0.43, 0.07, -0.06, 0.5]
HIGH = [0.7, 0.2, 0.6, 0.93, -0.32, 0.18, 0.05, 1.0]
QUATERNION = {"min": LOW, "max": HIGH, "mean": MEAN, "std": [0.06] * 8}
ALL_AROUND = {"min": [-1.0] * 8, "max": [1.0] * 8}
TOLD: dict[str, tuple[dict[str, list[float]], str]] = {
    "all four": (QUATERNION, "squared norm is 1.00 on average"),
    "of a pose alone": ({name: values[:7] for name, values in QUATERNION.items()}, "squared norm is 1.00 on average"),
    "narrow ranges": ({"min": LOW, "max": HIGH}, "ranges allow norms of 0.91 to 1.10 only"),
    "any rotation": ({**ALL_AROUND, "mean": [0.0] * 8, "std": [0.5] * 8}, "squared norm is 1.00 on average"),
    "placeholder -1..1": (ALL_AROUND, ""),
    "placeholder 0..1": ({"min": [0.0] * 8, "max": [1.0] * 8}, ""),
    "placeholder with mean and std": ({**ALL_AROUND, "mean": [0.0] * 8, "std": [1.0] * 8}, ""),
    "joints within a radian": ({"min": [-0.9] * 8, "max": [0.8] * 8, "mean": [0.1] * 8, "std": [0.3] * 8}, ""),
    "a mean out of its range": ({**QUATERNION, "max": [0.5] * 8}, ""),
    "no numbers": ({"min": [math.nan] * 8, "max": [math.nan] * 8}, ""),
    "ten numbers": ({"min": [-1.0] * 10, "max": [1.0] * 10, "mean": [0.0] * 10, "std": [0.5] * 10}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_a_quaternion_is_reported_where_the_numbers_show_one(name: str) -> None:
    statistics, words = TOLD[name]
    sign = spec.sign_of_quaternion(statistics)
    assert words in sign if words else not sign


def test_semantics_agree_between_pose_and_pose_with_gripper() -> None:
    spec.check_semantics(spec.action_semantics(POSE_GRIPPER), spec.action_semantics(POSE), "dataset")
    spec.check_semantics(None, spec.action_semantics(POSE), "an old dataset without labels")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quaternion_order": "wxyz"}, "here: quaternion_order is 'wxyz', expected 'xyzw'"),
        ({"gripper": {"open": 0.0, "closed": 1.0}}, "here: gripper is"),
        ({"units": ["mm", *spec.action_semantics()["units"][1:]]}, "x is in 'mm', expected 'm'"),
        ({"units": ["m"]}, "8 names .* but 1 units"),
        ({"names": ["a"], "units": ["m"]}, "share no name"),
    ],
)
def test_contradicting_semantics_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec.check_semantics(spec.action_semantics() | change, spec.action_semantics(), "here")


def test_decode_and_resize_are_opencv_area_in_rgb() -> None:
    rgb = np.zeros((90, 160, 3), np.uint8)
    rgb[..., 0] = np.arange(160, dtype=np.uint8)
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    decoded = spec.decode_jpeg(jpeg.tobytes(), "here")
    assert decoded[..., 0].mean() > 10 * decoded[..., 2].mean()  # red stays red
    expected = cv2.resize(decoded, (32, 18), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(spec.resize_frame(decoded, 32, 18), expected)
    assert spec.resize_frame(decoded, 160, 90) is decoded


@pytest.mark.parametrize("data", [b"", b"not a JPEG"])
def test_undecodable_image_is_refused(data: bytes) -> None:
    with pytest.raises(SpecError, match=f"frame_0001: {len(data)} bytes that do not decode"):
        spec.decode_jpeg(data, "frame_0001")


def test_episode_number_is_the_trailing_one() -> None:
    assert spec.episode_number("episode_0066") == 66
    assert spec.episode_number("take2_episode_7") == 7
    assert spec.episode_number("episode") is None
