"""Readings aligned by capture time: what a policy is shown, and when nothing can be shown."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.client import BufferSettings, DoubtError, ObservationBuffer, Picture, Reading, VirtualClock
from diffusion_policy.serve.client.interpolation import interpolate, slerp
from diffusion_policy.spec import POSE_GRIPPER, ActionLayout, SpecError

LAYOUT = ActionLayout.of(POSE_GRIPPER)
HEAVY = ("torch", "zarr", "diffusers", "cv2", "simplejpeg", "imagecodecs", "numcodecs", "hydra", "omegaconf", "yaml")


def buffer(cameras: tuple[str, ...] = ("front", "wrist"), **changes: object) -> ObservationBuffer:
    return ObservationBuffer(BufferSettings(LAYOUT, cameras, 2, 0.1, **changes))  # type: ignore[arg-type]


def state(x: float, gripper: float = 1.0, angle: float = 0.0) -> np.ndarray:
    return np.array([x, 0, 0.3, *Rotation.from_rotvec([0, 0, angle]).as_quat(), gripper])


def reading(moment: float, **pictures: float) -> Reading:
    """A state whose x is its time, and frames that contain their times."""
    shown = {camera: Picture(f"{camera} {at:.3f}".encode(), at) for camera, at in pictures.items()}
    return Reading(state(moment), moment, shown)


def test_the_package_needs_only_numpy_scipy_msgpack_and_websockets(repository: Path) -> None:
    program = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import pkgutil, diffusion_policy.serve.client as client
for module in pkgutil.iter_modules(client.__path__, client.__name__ + "."):
    __import__(module.name)
missing = [name for name in client.__all__ if not hasattr(client, name)]
ours = {{name.partition(".")[0] for name in sys.modules if not name.startswith("_")}} - sys.stdlib_module_names
print(missing, sorted(ours & {{"numpy", "scipy", "msgpack", "websockets", *{HEAVY!r}}}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] ['msgpack', 'numpy', 'scipy', 'websockets']"


def test_sources_at_their_own_rates_meet_at_the_policy_s_steps() -> None:
    """State at 100 Hz, one camera at 30 Hz, the other at 15 Hz and 20 ms late."""
    observed = buffer()
    for tick in range(100):
        now = tick / 100
        front, wrist = int(now * 30) / 30, int(max(0.0, now - 0.02) * 15) / 15
        observed.add(reading(now, front=front, wrist=wrist), now)
    found = observed.observation(0.99)
    newest = 14 / 15  # of the slower camera
    np.testing.assert_allclose(found.timestamps, [newest - 0.1, newest])
    np.testing.assert_allclose(found.states[:, 0], found.timestamps, atol=1e-9)
    assert found.images == {"front": [b"front 0.833", b"front 0.933"], "wrist": [b"wrist 0.867", b"wrist 0.933"]}
    assert found.captured_at == pytest.approx({"front": 28 / 30, "wrist": 14 / 15})
    assert found.ages_s == pytest.approx({"front": 0.99 - 29 / 30, "wrist": 0.99 - newest})


def test_the_first_reading_is_repeated_as_training_pads_it() -> None:
    observed = buffer()
    observed.add(reading(5.0, front=4.98, wrist=4.99), 5.0)
    found = observed.observation(5.0)
    np.testing.assert_allclose(found.timestamps, [4.88, 4.98])
    assert found.images == {"front": [b"front 4.980"] * 2, "wrist": [b"wrist 4.990"] * 2}
    np.testing.assert_array_equal(found.states[:, 0], [5.0, 5.0])


def test_a_lagging_camera_does_not_make_the_others_repeat_themselves() -> None:
    """Steps as far back as one camera's limit still have the other's frames."""
    observed = buffer(camera_max_ages_s={"wrist": 1.0})
    for tick in range(21):
        now = 3 + tick / 20
        observed.add(reading(now, front=now, wrist=min(now, 3.1)), now)
    assert observed.observation(4.0).images["front"] == [b"front 3.000", b"front 3.100"]


@pytest.mark.parametrize(
    ("pictures", "now", "code", "message"),
    [
        ({"front": 1.0}, 1.0, "camera_missing", "camera wrist has not"),
        ({"front": 1.0, "wrist": 0.6}, 1.0, "camera_stale", "camera wrist: the newest frame is 0.400 s old; the limit"),
        ({"front": 0.6, "wrist": 1.0}, 1.0, "camera_stale", "camera front: .* limit is 0.3 s"),
        ({"front": 1.0, "wrist": 1.0}, 1.25, "state_stale", "0.250 s old; the limit is 0.2 s"),
    ],
)
def test_what_stopped_is_named(pictures: dict[str, float], now: float, code: str, message: str) -> None:
    observed = buffer()
    observed.add(reading(1.0, **pictures), 1.0)
    for ask in (observed.check, observed.observation):
        with pytest.raises(DoubtError, match=message) as caught:
            ask(now)
        assert caught.value.code == code


def test_a_limit_of_one_camera_is_its_own() -> None:
    observed = buffer(camera_max_ages_s={"wrist": 0.5})
    observed.add(reading(1.0, front=1.0, wrist=0.6), 1.0)
    observed.check(1.0)
    with pytest.raises(WorkspaceError, match=r"names \['left'\]; the policy's cameras are"):
        buffer(camera_max_ages_s={"left": 0.5})


@pytest.mark.parametrize("name", ["period_s", "camera_max_age_s", "state_max_age_s", "max_skew_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_limits_that_limit_nothing_are_refused(name: str, value: float) -> None:
    with pytest.raises(WorkspaceError, match=name):
        BufferSettings(LAYOUT, ("image",), 2, **{"period_s": 0.1, name: value})  # type: ignore[arg-type]


def test_a_hole_within_an_episode_is_not_filled() -> None:
    observed = buffer(("front",), max_skew_s=0.04)
    for moment in (1.0, 1.1, 1.25):
        observed.add(reading(moment, front=moment), moment)
    with pytest.raises(
        DoubtError, match=r"no frame within 0.04 s of the step at 1.150 s; the nearest is of 1.100"
    ) as caught:
        observed.observation(1.25)
    assert caught.value.code == "camera_uneven"


def test_clocks_that_jump_are_a_doubt_and_what_was_before_is_forgotten() -> None:
    observed = buffer(("front",))
    observed.add(reading(2.0, front=2.0), 2.0)
    for bad in (reading(2.3, front=2.1), reading(2.1, front=2.3), reading(2.1, front=float("nan"))):
        with pytest.raises(DoubtError, match="on the loop's clock") as caught:
            observed.add(bad, 2.1)
        assert caught.value.code == "clock"
    with pytest.raises(DoubtError, match="times of the state, front went back"):
        observed.add(reading(1.9, front=1.9), 2.1)
    assert observed.observation(2.0).images == {"front": [b"front 1.900"] * 2}, "nothing of before"


@pytest.mark.parametrize("values", [[0.0] * 7, [0.0] * 7 + [float("nan")], [[0.0] * 8]])
def test_an_invalid_state_is_a_doubt(values: list[float]) -> None:
    with pytest.raises(DoubtError, match="expected finite numbers: x y z qx") as caught:
        buffer(()).add(Reading(np.array(values), 0.0, {}), 0.0)
    assert caught.value.code == "state_invalid"


def test_nothing_measured_yet_and_reset() -> None:
    observed = buffer()
    for _ in range(2):
        with pytest.raises(DoubtError, match="not measured anything yet"):
            observed.check(0.0)
        observed.add(reading(0.0, front=0.0, wrist=0.0), 0.0)
        observed.reset()


@pytest.mark.parametrize("flip", [1, -1])
def test_rotations_turn_the_short_way(flip: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        pair = Rotation.random(2, random_state=rng)
        first, second = pair.as_quat()
        between = slerp(first.tolist(), (flip * second).tolist(), 0.3)
        assert (Rotation.from_quat(between).inv() * Slerp([0, 1], pair)(0.3)).magnitude() < 1e-7
        assert np.dot(between, first) > 0
    near = Rotation.from_rotvec([0, 0, 1e-6]).as_quat()
    assert Rotation.from_quat(slerp([0, 0, 0, 1.0], near.tolist(), 0.5)).magnitude() == pytest.approx(5e-7)


def test_between_two_actions_grippers_are_not_blended() -> None:
    found = interpolate(LAYOUT, state(0.0, 1.0), state(0.1, 0.0, angle=0.4), 0.25)
    np.testing.assert_allclose(found, state(0.025, 0.0, angle=0.1), atol=1e-12)
    with pytest.raises(SpecError, match="as in messages: qx qy qz qw"):
        BufferSettings(ActionLayout.of(("x", "y", "z", "rx", "ry", "rz")), (), 2, 0.1)


def test_virtual_time_passes_only_when_told() -> None:
    clock = VirtualClock(3.0)
    clock.sleep_until(2.0)
    assert clock.now() == 3.0
    clock.sleep_until(4.0)
    clock.advance(0.5)
    assert clock.now() == 4.5
