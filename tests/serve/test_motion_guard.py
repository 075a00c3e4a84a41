"""diffusion_policy.serve.checks.motion_guard: limits that engage, in meters and radians, and report it."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from diffusion_policy import geometry
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.checks.motion_guard import GuardSettings, MotionGuard, MotionLimits, MotionRefusedError
from diffusion_policy.serve.checks.seams import measure_seam
from diffusion_policy.spec import POSE_GRIPPER, ActionLayout

DOWN = Rotation.from_euler("x", np.pi)
BOX = {"workspace_low": (-0.2, -0.8, -0.05), "workspace_high": (0.9, 0.8, 1.2)}
HERE = np.array([0.5, 0.0, 0.3, *DOWN.as_quat()])


def chunk(steps: int = 8, dx: float = 0.01, yaw: float = 0.02, gripper: float = 1.0) -> np.ndarray:
    moved = np.arange(1, steps + 1)[:, None]
    positions = HERE[:3] + moved * [dx, 0, 0]
    rotations = (DOWN * Rotation.from_rotvec(moved * [0, 0, yaw])).as_quat()
    return np.concatenate([positions, rotations, np.full((steps, 1), gripper)], axis=1)


def test_a_gentle_chunk_passes_unchanged() -> None:
    guarded = MotionGuard(GuardSettings(**BOX)).check(chunk(), HERE)
    assert not guarded.interventions
    np.testing.assert_allclose(guarded.actions, chunk(), atol=1e-9)


def pose_steps(poses: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far each pose (N, 7) is from the previous one: meters (N-1,) and radians (N-1,)."""
    meters = np.linalg.norm(np.diff(poses[:, :3], axis=0), axis=1)
    return meters, geometry.geodesic_distance(poses[:-1, 3:7], poses[1:, 3:7])


@given(
    dx=st.floats(-0.2, 0.2),
    yaw=st.floats(-1, 1),
    signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=8, max_size=8),
    norm=st.floats(0.96, 1.04),
    whole=st.floats(0.01, 0.5),
)
@settings(max_examples=60, deadline=None)
@example(dx=0.0, yaw=0.796875, signs=[-1.0] * 8, norm=1.0, whole=1.0)  # clipped first, then near enough as it is
def test_whatever_comes_in_the_steps_that_leave_are_within_the_limits(
    dx: float, yaw: float, signs: list[float], norm: float, whole: float
) -> None:
    limits = GuardSettings(on_workspace="clip", max_chunk_m=whole, max_chunk_rad=2 * whole, **BOX)
    wild = chunk(dx=dx, yaw=yaw)
    wild[:, 3:7] *= np.array(signs)[:, None] * norm
    actions = MotionGuard(limits).check(wild, HERE).actions
    meters, radians = pose_steps(np.vstack([HERE, actions[:, :7]]))
    assert meters.max() <= limits.max_step_m + 1e-9
    assert radians.max() <= limits.max_step_rad + 1e-6
    assert np.linalg.norm(actions[:, :3] - HERE[:3], axis=1).max() <= whole + 1e-9
    assert geometry.geodesic_distance(HERE[3:7], actions[:, 3:7]).max() <= 2 * whole + 1e-6
    np.testing.assert_allclose(np.linalg.norm(actions[:, 3:7], axis=1), 1)
    path = np.vstack([HERE[3:7], actions[:, 3:7]])
    assert (np.einsum("ij,ij->i", path[1:], path[:-1]) > 0).all(), "a sign flip left the guard"


def test_clipping_is_counted_and_keeps_direction() -> None:
    guard = MotionGuard(GuardSettings(**BOX))
    guarded = guard.check(chunk(steps=1, dx=0.3, yaw=0.5), HERE)
    assert guarded.interventions == {"step distance": 1, "step angle": 1}
    np.testing.assert_allclose(guarded.actions[0, :3], np.add(HERE[:3], [0.04, 0, 0]))
    turned = (DOWN.inv() * Rotation.from_quat(guarded.actions[0, 3:7])).as_rotvec()
    np.testing.assert_allclose(turned, [0, 0, 0.1], atol=1e-9)
    assert not guard.totals, "a chunk that has not left is not counted"
    guard.accept(guarded)
    assert guard.totals == guarded.interventions


@pytest.mark.parametrize(
    ("wrong", "limits", "limit"),
    [
        (chunk() * np.nan, {}, "not finite"),
        (np.zeros((8, 8)), {}, "quaternion norm"),
        (chunk()[:, :7], {}, "shape"),
        (chunk()[:0], {}, "shape"),
        (chunk(dx=0.2), {"on_step": "refuse"}, "step distance"),
        (chunk(yaw=0.2), {"on_step": "refuse"}, "step angle"),
        (chunk(dx=0.03), {"on_chunk": "refuse"}, "chunk distance"),
        (chunk(yaw=0.08), {"on_chunk": "refuse"}, "chunk angle"),
        (chunk(dx=0.06), {"max_step_m": 1.0}, "workspace"),
    ],
)
def test_refusals_name_the_limit_and_are_counted(wrong: np.ndarray, limits: dict[str, object], limit: str) -> None:
    guard = MotionGuard(GuardSettings(**(BOX | limits)))
    with pytest.raises(MotionRefusedError) as refused:
        guard.check(wrong, HERE)
    assert refused.value.limit == limit
    assert guard.totals == {f"refused: {limit}": 1}


def test_the_gripper_is_debounced_by_dead_band_and_dwell() -> None:
    guard = MotionGuard(GuardSettings(gripper_min_dwell=3, **BOX))
    values = [1.0, 0.6, 0.4, 0.2, 0.9, 0.9, 0.9, 0.1]
    wanted = chunk()
    wanted[:, 7] = values
    guarded = guard.check(wanted, HERE)
    assert guarded.actions[:, 7].tolist() == [1, 1, 1, 0, 0, 0, 1, 1]
    assert guarded.interventions == {"gripper dead band": 2, "gripper dwell": 3}


def test_scale_and_smoothing_shorten_position_and_rotation_alike() -> None:
    half = MotionGuard(GuardSettings(action_scale=0.5, **BOX)).check(chunk(steps=1), HERE).actions[0]
    np.testing.assert_allclose(half[:3] - HERE[:3], [0.005, 0, 0])
    assert geometry.geodesic_distance(HERE[3:7], half[3:7]) == pytest.approx(0.01)
    smooth = MotionGuard(GuardSettings(smoothing=0.75, **BOX)).check(chunk(steps=1), HERE).actions[0]
    np.testing.assert_allclose(smooth[:3] - HERE[:3], [0.0025, 0, 0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_step_m": 0.0},
        {"max_step_rad": float("nan")},
        {"action_scale": 2.0},
        {"smoothing": 1.0},
        {"gripper_closed": 0.8},
        {"workspace_low": (1.0, 1.0, 1.0)},
        {"on_step": "ignore"},
        {"on_chunk": "ignore"},
        {"max_chunk_m": 0.0},
        {"max_chunk_m": float("inf")},
        {"max_chunk_rad": -1.0},
    ],
)
def test_settings_that_limit_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(WorkspaceError, match="motion guard"):
        GuardSettings(**(BOX | wrong))


def test_the_start_up_message_says_what_the_limits_are() -> None:
    message = GuardSettings(**BOX).describe()
    assert "0.04 m and 0.1 rad a step (clip)" in message
    assert "0.16 m and 0.4 rad from the measured pose in a chunk (clip)" in message


def test_the_limit_of_a_chunk_is_on_by_default_and_follows_that_of_a_step() -> None:
    default, slower = GuardSettings(), GuardSettings(max_step_m=0.01, max_step_rad=0.02)
    assert (default.max_chunk_m, default.max_chunk_rad) == (0.16, 0.4)
    assert (slower.max_chunk_m, slower.max_chunk_rad) == (0.04, 0.08)
    assert GuardSettings(max_step_m=0.01, max_chunk_m=0.3).max_chunk_m == 0.3
    assert slower.within([0, 0, 0], [1, 1, 1]).max_chunk_m == 0.04


def test_a_client_that_commands_a_whole_chunk_at_once_drives_no_further_than_its_limit() -> None:
    guard = MotionGuard(GuardSettings(**BOX))
    wanted = chunk(dx=0.04, yaw=0.1)
    guarded = guard.check(wanted, HERE)
    goal = guarded.actions[-1]
    assert np.linalg.norm(goal[:3] - HERE[:3]) == pytest.approx(0.16), "not 0.32"
    assert geometry.geodesic_distance(HERE[3:7], goal[3:7]) == pytest.approx(0.4)
    np.testing.assert_allclose(guarded.actions[:4], wanted[:4], atol=1e-9, err_msg="what is near stays as it was")
    assert guarded.interventions["chunk distance"] == guarded.interventions["chunk angle"] == 4


def test_a_chunk_that_comes_back_is_not_shortened() -> None:
    wanted = chunk(dx=0.03)
    wanted[4:, :3] = wanted[3::-1, :3]
    guarded = MotionGuard(GuardSettings(**BOX)).check(wanted, HERE)
    assert not guarded.interventions
    np.testing.assert_allclose(guarded.actions, wanted, atol=1e-9)


def test_a_chunk_that_never_left_changes_no_later_one() -> None:
    guard = MotionGuard(GuardSettings(gripper_min_dwell=4, **BOX))
    guard.check(chunk(gripper=0.0), HERE)
    assert guard.check(chunk(gripper=1.0), HERE).interventions == {}


def test_the_dwell_counts_the_actions_that_were_executed() -> None:
    guard = MotionGuard(GuardSettings(gripper_min_dwell=4, **BOX))
    guard.accept(guard.check(chunk(gripper=1.0), HERE))
    assert guard.check(chunk(gripper=0.0), HERE, executed=2).interventions == {"gripper dwell": 2}
    assert guard.check(chunk(gripper=0.0), HERE, executed=6).interventions == {}
    assert guard.check(chunk(gripper=0.5), HERE, executed=6).actions[:, 7].tolist() == [1.0] * 8
    guard.reset()
    assert guard.check(chunk(gripper=0.5), HERE).actions[0, 7] == 0.5, "nothing was commanded yet"


def test_the_box_is_the_training_range_unless_the_settings_say_otherwise() -> None:
    limits = GuardSettings(workspace_low=(0.0, 0.0, 0.0)).within([0.1, 0.1, 0.1], [0.6, 0.4, 0.5])
    assert (limits.workspace_low, limits.workspace_high) == ((0.0, 0.0, 0.0), (0.6, 0.4, 0.5))
    with pytest.raises(WorkspaceError, match="workspace_low and workspace_high are not set"):
        MotionGuard(GuardSettings())


@pytest.mark.parametrize(("measured", "kept"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.55)])
def test_before_the_first_clear_command_the_gripper_stays_as_it_is(measured: float, kept: float) -> None:
    guard = MotionGuard(GuardSettings(gripper_min_dwell=4, **BOX))
    wanted = chunk(gripper=0.55)  # an old client would open for it
    assert guard.check(wanted, HERE, gripper=measured).actions[:, 7].tolist() == [kept] * 8
    wanted[1:, 7] = 1 - measured
    assert guard.check(wanted, HERE, gripper=measured).actions[-1, 7] == (1 - measured if measured != 0.5 else 0.5)


def test_an_arm_outside_the_workspace_comes_back_by_steps_within_the_limits() -> None:
    outside = HERE + [1.0, 0, 0, 0, 0, 0, 0]  # noqa: RUF005 - arrays
    limits = GuardSettings(on_workspace="clip", max_chunk_m=1.0, **BOX)
    for wanted in (chunk(), chunk() + [1.0, 0, 0, 0, 0, 0, 0, 0]):  # noqa: RUF005 - arrays
        guarded = MotionGuard(limits).check(wanted, outside)
        meters, _ = pose_steps(np.vstack([outside, guarded.actions[:, :7]]))
        assert meters.max() <= limits.max_step_m + 1e-9
        assert (np.diff(guarded.actions[:, 0]) < 0).all(), "toward the box"
        assert guarded.interventions["workspace"] == 8
    at_once = MotionGuard(GuardSettings(on_workspace="clip", **BOX)).check(chunk(), outside)
    assert np.linalg.norm(at_once.actions[:, :3] - outside[:3], axis=1).max() == pytest.approx(0.16)
    with pytest.raises(MotionRefusedError, match=r"the workspace is 0\.6000 m away"):
        MotionGuard(GuardSettings(on_workspace="clip", on_step="refuse", **BOX)).check(
            np.tile([*outside, 1.0], (8, 1)), outside
        )


# ---- other layouts ----

TWO_ARMS = ActionLayout.of([f"{arm}.{name}" for arm in ("left", "right") for name in POSE_GRIPPER])
JOINTS = ActionLayout.of([*(f"joint_{i}" for i in range(1, 8)), "gripper"], {f"joint_{i}": "rad" for i in range(1, 8)})


def both_arms(limits: dict[str, object] | None = None) -> MotionGuard:
    low, high = np.tile([0.2, -0.2, 0, -1, -1, -1, -1, 0.0], 2), np.tile([0.8, 0.2, 0.6, 1, 1, 1, 1, 1.0], 2)
    low[8:11] -= 1.0
    return MotionGuard(MotionLimits.within(GuardSettings(**(limits or {})), TWO_ARMS, low, high, 0.05))


def of_joints(**limits: object) -> MotionGuard:
    low, high = np.full(8, -1.0), np.array([1, 1, 1, 1, 1, 1, -1, 1.0])
    return MotionGuard(MotionLimits.within(GuardSettings(**limits), JOINTS, low, high))


def test_of_two_arms_each_is_held_within_its_own_limits_and_named() -> None:
    guard, here = both_arms({"on_workspace": "clip"}), np.tile([*HERE, 1.0], 2)
    wild = np.concatenate([chunk(), chunk(dx=-0.1, yaw=0.3, gripper=0.5)], axis=1)
    wild[:, 3:7] *= -1
    guarded = guard.check(wild, here, gripper=[1.0, 0.0])
    np.testing.assert_allclose(guarded.actions[:, :8], chunk(), atol=1e-9, err_msg="the other arm stays as it was")
    meters, radians = pose_steps(np.vstack([HERE, guarded.actions[:, 8:15]]))
    assert meters.max() <= 0.04 + 1e-9
    assert radians.max() <= 0.1 + 1e-6
    assert set(guarded.interventions) == {
        "right step distance",
        "right step angle",
        "right chunk distance",
        "right chunk angle",
        "right gripper dead band",
    }
    assert guarded.actions[:, [7, 15]].tolist() == [[1, 0]] * 8, "an unclear command leaves a gripper as it is"
    assert "workspace of left (0.15, -0.25, -0.05) to (0.85, 0.25, 0.65) m" in guard.limits.describe()
    assert guard.limits.to_json()["workspaces"]["right"]["low"] == (-0.85, -1.25, -1.05)


@pytest.mark.parametrize(
    ("columns", "value", "limit"),
    [((3, 7), 0.0, "left quaternion norm"), ((8, 9), 2.0, "right workspace"), ((2, 3), 1.0, "left workspace")],
)
def test_a_refusal_names_the_arm(columns: tuple[int, int], value: float, limit: str) -> None:
    wild = np.concatenate([chunk(), chunk()], axis=1)
    wild[4, slice(*columns)] = value
    guard = both_arms({"max_step_m": 5.0, "max_chunk_m": 5.0})
    with pytest.raises(MotionRefusedError) as refused:
        guard.check(wild, np.tile([*HERE, 1.0], 2))
    assert refused.value.limit == limit


def test_joints_are_held_within_a_step_and_a_chunk_by_their_training_ranges() -> None:
    guard, here = of_joints(), np.zeros(8)
    wild = np.zeros((8, 8))
    wild[:, 0], wild[:, 1], wild[:, 6] = 0.5 * np.arange(1, 9), 0.25 * np.arange(1, 9), 0.001
    actions = guard.check(wild, here).actions
    steps = np.abs(np.diff(np.vstack([here, actions]), axis=0))
    assert guard.limits.joint_steps == (0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.02)
    assert (steps[:, :7] <= np.array(guard.limits.joint_steps) + 1e-9).all()
    assert np.abs(actions[:, 0]).max() == pytest.approx(0.8), "four steps"
    np.testing.assert_allclose(actions[0, :2], [0.2, 0.1], err_msg="the direction stays")
    guarded = guard.check(wild, here)
    assert set(guarded.interventions) == {"joint_1 step", "joint_1 chunk", "joint_2 step"}
    assert "at most (joint_1 0.2, joint_2 0.2" in guard.limits.describe()
    assert guard.limits.to_json()["joints"]["joint_7"] == {"max_step": 0.02, "max_chunk": 0.08}


@pytest.mark.parametrize(("limits", "limit"), [({"on_step": "refuse"}, "step"), ({"on_chunk": "refuse"}, "chunk")])
def test_a_joint_that_goes_too_far_is_refused_by_name_and_unit(limits: dict[str, object], limit: str) -> None:
    wild = np.zeros((8, 8))
    wild[:, 2] = np.arange(1, 9) * (1.0 if limit == "step" else 0.19)
    with pytest.raises(MotionRefusedError, match=r"\d rad.*; at most 0\.") as refused:
        of_joints(**limits).check(wild, np.zeros(8))
    assert refused.value.limit == f"joint_3 {limit}"


def test_limits_of_joints_are_settings_and_never_absent() -> None:
    assert of_joints(max_step_joint=0.05).limits.joint_chunks == (0.2,) * 7
    assert of_joints(max_chunk_joint=0.3).limits.joint_chunks == (0.3,) * 7
    with pytest.raises(WorkspaceError, match=r"set guard\.max_step_joint, in rad"):
        MotionLimits.within(GuardSettings(), JOINTS, np.zeros(8), np.zeros(8))
    with pytest.raises(WorkspaceError, match="max_step_joint is 0"):
        GuardSettings(max_step_joint=0.0)


def test_a_seam_is_the_largest_of_all_arms_and_joints_have_their_unit() -> None:
    here = np.tile([*HERE, 1.0], 2)
    there = here.copy()
    there[8], there[0], there[15] = here[8] + 0.02, here[0] + 0.01, 0.4
    seam = measure_seam(here, there, TWO_ARMS)
    assert seam.to_json() == {
        "millimetres": pytest.approx(20), "degrees": pytest.approx(0, abs=1e-6), "gripper": pytest.approx(0.6)
    }  # fmt: skip
    moved = measure_seam(np.zeros(8), np.array([0, 0, -0.3, 0, 0.1, 0, 0, 1.0]), JOINTS)
    assert moved.to_json() == {"millimetres": None, "degrees": None, "gripper": 1.0, "joints": pytest.approx(0.3)}
