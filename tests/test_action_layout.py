"""spec.ActionLayout: every part of an action by name, in every representation and back."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusion_policy.minecraft.actions import VPT_ACTION
from diffusion_policy.spec import POSE, POSE_GRIPPER, ROTVEC_WIDTH, ActionLayout, SpecError, action_semantics, is_game
from diffusion_policy.spec.rotations import ROTATIONS, Representation

ROWS, COLUMNS = ROTATIONS["rotation_6d_rows"], ROTATIONS["rotation_6d_columns"]
TWO_ARMS = tuple(f"{arm}.{part}" for arm in ("left", "right") for part in ("x", "y", "z", *ROWS, "gripper"))
JOINTS = (*(f"joint_{number}" for number in range(1, 8)), "gripper")
LAYOUTS = {
    "pose": POSE,
    "pose and gripper": POSE_GRIPPER,
    "gripper first": ("gripper", "qw", "qx", "qy", "qz", "z", "y", "x"),
    "rotation vector": ROTVEC_WIDTH,
    "6-D rows": ("x", "y", "z", *ROWS, "gripper"),
    "6-D columns": ("x", "y", "z", *COLUMNS),
    "two arms": TWO_ARMS,
    "joints": JOINTS,
    "position alone": ("x", "y", "z", "gripper"),
}


def actions_of(layout: ActionLayout, count: int = 5) -> np.ndarray:
    rng = np.random.default_rng(0)
    turns = Rotation.random(count * len(layout.labels("rotation")), rng=rng).as_quat(canonical=True)
    return layout.replaced(
        rng.normal(size=(count, len(layout.names))),
        rotations=turns.reshape(count, len(layout.labels("rotation")), 4),
    )


@pytest.fixture(params=LAYOUTS, name="layout")
def layout_of_each_kind(request: pytest.FixtureRequest) -> ActionLayout:
    return ActionLayout.of(LAYOUTS[request.param])


def test_parts_that_are_read_and_replaced_are_the_same(layout: ActionLayout) -> None:
    actions = actions_of(layout)
    other = layout.replaced(
        np.full_like(actions, 7.0),
        positions=layout.positions(actions),
        rotations=layout.rotations(actions),
        grippers=layout.grippers(actions),
        joints=layout.joints(actions),
    )
    looked_at = [*layout.motion_columns, *layout.gripper_columns]
    np.testing.assert_allclose(other[:, looked_at], actions[:, looked_at], atol=1e-12)
    untouched = sorted(set(range(len(layout.names))) - set(looked_at))
    assert (other[:, untouched] == 7).all()


def test_relative_actions_come_back(layout: ActionLayout) -> None:
    base, actions = actions_of(layout, 6)[-1], actions_of(layout)
    relative = layout.difference(base, actions)
    np.testing.assert_allclose(layout.grippers(relative), layout.grippers(actions))
    back = layout.integrate(base, relative)
    np.testing.assert_allclose(layout.positions(back), layout.positions(actions), atol=1e-12)
    agreement = np.abs(np.einsum("...i,...i->...", layout.rotations(back), layout.rotations(actions)))
    np.testing.assert_allclose(agreement, 1, atol=1e-12)
    np.testing.assert_allclose(layout.joints(back), layout.joints(actions), atol=1e-12)


def test_the_base_itself_is_not_a_motion(layout: ActionLayout) -> None:
    base = actions_of(layout, 1)[0]
    still = layout.difference(base, base)
    assert np.abs(layout.positions(still)).max(initial=0) < 1e-12
    np.testing.assert_allclose(np.abs(layout.rotations(still)[..., 3]), 1, atol=1e-12)
    assert np.abs(layout.joints(still)).max(initial=0) == 0


@pytest.mark.parametrize("representation", ROTATIONS)
def test_a_rotation_is_the_same_in_every_representation(layout: ActionLayout, representation: Representation) -> None:
    actions, other = actions_of(layout), layout.with_rotations_as(representation)
    written = layout.converted(actions, other)
    assert other.labels("rotation") == layout.labels("rotation")
    agreement = np.abs(np.einsum("...i,...i->...", other.rotations(written), layout.rotations(actions)))
    np.testing.assert_allclose(agreement, 1, atol=1e-12)
    np.testing.assert_array_equal(other.positions(written), layout.positions(actions))
    np.testing.assert_array_equal(other.grippers(written), layout.grippers(actions))
    back = other.converted(written, layout)
    columns = [column for column in range(len(layout.names)) if column not in layout._rotation_columns]
    np.testing.assert_array_equal(back[:, columns], actions[:, columns])


def test_layouts_of_other_parts_are_not_converted() -> None:
    with pytest.raises(SpecError, match="differ in their parts"):
        ActionLayout.of(POSE).converted(np.zeros(7), ActionLayout.of(POSE_GRIPPER))


def test_a_relative_position_is_in_the_frame_of_the_end_effector() -> None:
    layout = ActionLayout.of(POSE)
    turned = Rotation.from_euler("z", 90, degrees=True).as_quat()
    base, ahead = np.array([1.0, 2, 3, *turned]), np.array([1.0, 2.5, 3, *turned])
    np.testing.assert_allclose(layout.difference(base, ahead), [0.5, 0, 0, 0, 0, 0, 1], atol=1e-12)


@pytest.mark.parametrize(("names", "matrix_part"), [(ROWS, np.s_[:2, :]), (COLUMNS, np.s_[:, :2])])
def test_six_numbers_are_rows_or_columns_of_the_matrix(names: tuple[str, ...], matrix_part: tuple[slice, ...]) -> None:
    rotation = Rotation.from_euler("xyz", [10, 20, 30], degrees=True)
    part = rotation.as_matrix()[matrix_part]
    six = part.reshape(6) if names == ROWS else part.T.reshape(6)
    named = [rotation.as_matrix()[int(name[1]) - 1, int(name[2]) - 1] for name in names]
    np.testing.assert_allclose(six, named)
    np.testing.assert_allclose(ActionLayout.of(names).rotations(six)[0], rotation.as_quat(), atol=1e-12)


def test_six_numbers_that_are_off_are_made_orthogonal_by_gram_schmidt() -> None:
    layout = ActionLayout.of(ROWS)
    (quaternion,) = layout.rotations(np.array([2.0, 0, 0, 1, 3, 0]))
    np.testing.assert_allclose(quaternion, [0, 0, 0, 1], atol=1e-12)
    assert np.isnan(layout.rotations(np.array([1.0, 0, 0, 2, 0, 0]))).all(), "two rows on one line span no plane"


def test_arms_keep_their_names() -> None:
    layout = ActionLayout.of(TWO_ARMS)
    assert layout.labels("position") == layout.labels("gripper") == ("left", "right")
    actions = actions_of(layout)
    assert layout.positions(actions).shape == (5, 2, 3)
    np.testing.assert_array_equal(layout.grippers(actions)[:, 1], actions[:, TWO_ARMS.index("right.gripper")])
    assert (
        layout.describe()
        == "left: position, 6-D rotation (rows), gripper; right: position, 6-D rotation (rows), gripper"
    )


def test_joints_have_no_pose() -> None:
    layout = ActionLayout.of(JOINTS, dict.fromkeys(JOINTS[:-1], "rad"))
    assert not layout.has_pose
    assert layout.has_gripper
    assert layout.joint_unit == "rad"
    assert layout.positions(actions_of(layout)).shape == (5, 0, 3)
    assert layout.describe() == "7 joints, gripper"
    assert ActionLayout.of(JOINTS).joint_unit == "unknown"


def test_motors_of_lerobot_are_joints() -> None:
    layout = ActionLayout.of(("shoulder_pan.pos", "elbow_flex.pos", "gripper.pos"))
    assert (layout.joint_columns, layout.gripper_columns) == ((0, 1), (2,))


@pytest.mark.parametrize("names", [("x", "y"), ("x", "y", "z", "qx"), ("left.x", "left.z", "gripper"), ("r11", "r12")])
def test_a_part_of_a_position_or_rotation_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(SpecError, match="alone; expected all of"):
        ActionLayout.of(names)


def test_other_numbers_and_other_widths_are_reported() -> None:
    layout = ActionLayout.of(("a0", "a1", "gripper"))
    assert layout.describe() == "gripper; 2 other numbers (a0, a1)"
    with pytest.raises(SpecError, match=r"expected \(\.\.\., 3\)"):
        layout.grippers(np.zeros(4))
    with pytest.raises(SpecError, match="must be distinct"):
        ActionLayout.of(("x", "x"))


def test_a_games_players_actions_are_not_an_arms() -> None:
    """Turns in degrees are no joints, and `hotbar.1` is no arm of that name."""
    game = ActionLayout.of(VPT_ACTION, {"camera_pitch": "deg", "camera_yaw": "deg"})
    assert game.is_game
    assert game.arms == game.motion_columns == game.gripper_columns == ()
    assert game.describe() == "20 buttons, camera pitch and yaw in degrees"
    assert game.units[-2:] == ("deg", "deg")
    assert ActionLayout.of(VPT_ACTION).units == game.units
    semantics = action_semantics(VPT_ACTION)
    assert not {"pose", "quaternion_order", "gripper"} & semantics.keys()
    assert not any(is_game(names) for names in LAYOUTS.values())
