"""Between a policy's numbers and the robot's: 6-D rotations, rotation vectors, relative actions, and back."""

import itertools
from typing import Any

import layout_factory
import numpy as np
import pytest

from diffusion_policy.geometry import geodesic_distance
from diffusion_policy.spec import SpecError, StepSpec, StepTransform, read_shape_meta
from diffusion_policy.spec.rotations import ROTATIONS, Representation

KINDS = [None, "rotation_6d_rows", "rotation_6d_columns", "rotation_vector", "quaternion"]


def spec(kind: str, rotation: Representation | None, relative: bool) -> StepSpec:
    """Returns the shape_meta of a policy with that representation; None for the recorded one."""
    return read_shape_meta(layout_factory.trained_meta(kind, rotation, relative=relative))


def window(kind: str, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(T, D) absolute actions, and two observed steps."""
    recorded, names = layout_factory.episode(kind, 12, seed), layout_factory.NAMES[kind]
    keys = layout_factory.low_dim_keys(kind)
    obs = {key: recorded["state"][:2, [names.index(name) for name in part]] for key, part in keys.items()}
    return recorded["action"][1:9], obs


CASES = [
    (kind, rotation, relative)
    for kind, rotation, relative in itertools.product(layout_factory.NAMES, KINDS, (False, True))
    if rotation is None or kind == "one arm"
]


@pytest.mark.parametrize(("kind", "rotation", "relative"), CASES)
def test_what_a_policy_learns_comes_back_as_it_was_recorded(kind: str, rotation: str | None, relative: bool) -> None:
    policy = spec(kind, rotation, relative)
    transform = StepTransform(policy)
    actions, obs = window(kind)
    learned = transform.trained(actions, transform.state(obs))
    assert learned.shape == (8, policy.action_dim)
    np.testing.assert_allclose(transform.commanded(learned, obs), actions, atol=1e-9)
    assert policy.robot == read_shape_meta(layout_factory.shape_meta(kind))
    assert read_shape_meta(policy.shape_meta()) == policy
    batch = {key: np.stack([values] * 3) for key, values in obs.items()}
    np.testing.assert_allclose(transform.commanded(np.stack([learned] * 3), batch)[1], actions, atol=1e-9)


def test_relative_actions_are_in_the_frame_of_the_newest_pose() -> None:
    transform = StepTransform(spec("one arm", None, relative=True))
    actions, obs = window("one arm")
    state = transform.state(obs)
    np.testing.assert_array_equal(state[:7], obs["robot_eef_pose"][-1])
    standing = transform.trained(np.tile(state, (3, 1)) * [*[1] * 7, 0], state)
    np.testing.assert_allclose(standing, [[0, 0, 0, 0, 0, 0, 1, 0]] * 3, atol=1e-12)
    learned = transform.trained(actions, state)
    np.testing.assert_array_equal(learned[:, 7], actions[:, 7])
    steps = np.linalg.norm(actions[:, :3] - state[:3], axis=1)
    np.testing.assert_allclose(np.linalg.norm(learned[:, :3], axis=1), steps)
    np.testing.assert_allclose(2 * np.arccos(learned[:, 6]), geodesic_distance(actions[:, 3:7], state[3:7]), atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_quaternions_continue_from_the_observed_sign(sign: int) -> None:
    transform = StepTransform(spec("one arm", "rotation_6d_rows", relative=False))
    actions, obs = window("one arm")
    measured = {**obs, "robot_eef_pose": obs["robot_eef_pose"] * [1, 1, 1, *[sign] * 4]}
    commanded = transform.commanded(transform.trained(actions, None), measured)
    np.testing.assert_allclose(commanded[:, 3:7], sign * actions[:, 3:7], atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, 0.0])
@pytest.mark.parametrize("relative", [False, True])
def test_an_answer_without_a_rotation_is_not_a_number(bad: float, relative: bool) -> None:
    transform = StepTransform(spec("one arm", "rotation_6d_rows", relative))
    actions, obs = window("one arm")
    learned = transform.trained(actions, transform.state(obs))
    learned[2, 3:9] = bad
    commanded = transform.commanded(learned, obs)
    assert np.isnan(commanded[2]).all()
    np.testing.assert_allclose(np.delete(commanded, 2, axis=0), np.delete(actions, 2, axis=0), atol=1e-9)


def test_todays_layouts_are_given_back_as_they_are() -> None:
    transform = StepTransform(spec("one arm", None, relative=False))
    actions, obs = window("one arm")
    assert transform.is_identity
    assert transform.policy.robot is transform.policy
    assert transform.commanded(actions, obs) is actions
    assert all(transform.observed(obs)[key] is values for key, values in obs.items())


def without_pose(meta: dict[str, Any]) -> dict[str, Any]:
    del meta["obs"]["robot_eef_pose"]
    return meta


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (layout_factory.shape_meta("one arm", rotation="euler"), f"expected null or one of {', '.join(ROTATIONS)}"),
        (layout_factory.shape_meta("one arm", rotation="rotation_6d_rows"), "cogact_robot_10d.yaml"),
        (layout_factory.shape_meta("joints", rotation="quaternion"), "whose numbers are called qx qy qz qw"),
        (layout_factory.shape_meta("one arm", relative="yes"), "expected true or false"),
        (without_pose(layout_factory.shape_meta("one arm", relative=True)), "lack x y z qx qy qz qw of the action"),
    ],
)
def test_what_cannot_be_converted_is_refused(meta: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        StepTransform(read_shape_meta(meta))
