"""The tabletop as a Gymnasium environment: observations of image, pose and gripper, actions of eight numbers."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_events import CLIENT_THRESHOLD
from diffusion_policy.sim.camera import Camera
from diffusion_policy.sim.failures import FailureMonitor
from diffusion_policy.sim.referees import PHYSICS, make_tabletop
from diffusion_policy.sim.scene import PICK_AND_PLACE, STEP_SECONDS
from diffusion_policy.sim.tabletop import Tabletop
from diffusion_policy.sim.tasks import Progress, task_of
from diffusion_policy.spec import POSE, POSE_GRIPPER, ImageArray, SpecError

Observation = dict[str, NDArray[Any]]

_REACH = 1.0  # meters from the base on each axis; commanded positions are clipped to it
_SHORTEST_QUATERNION = 1e-6
_STEPS_PER_TARGET = 150


class TabletopEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """One arm at a table. ``gymnasium.make("diffusion_policy.sim:Tabletop-v0")`` creates it.

    Observation: ``image`` (H, W, 3) uint8 RGB, ``pose`` (7,) float64 x y z qx qy qz qw measured, ``gripper`` (1,)
    float32 measured, 1 = open. Action (8,) float32: the next target pose and the gripper, above 0.5 = open; a position
    beyond the arm's reach is clipped, a quaternion of any length but zero is normalized. A step takes a tenth of a
    second. The reward is 1 at the step that completes the task, else 0; the episode terminates there.

    ``info`` holds ``success``, ``grasped``, ``failure`` (the reason of failure if the episode ended now; None after
    success), ``target_xy`` (initial position of the first target), ``referee`` and ``task``. ``tabletop`` is the state.

    Args:
        task: a name in ``tasks.TASKS``.
        referee: "physics" or "kinematic".
        image_size: (width, height) of the camera's frames.
        max_steps: number of steps after which an episode is truncated; None: 150 for each target (the expert needs
            about 80).
        render_mode: "rgb_array" or None.

    Raises:
        WorkspaceError: no such task, referee or render mode, or MuJoCo is absent.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": round(1 / STEP_SECONDS)}  # noqa: RUF012

    def __init__(
        self,
        task: str = PICK_AND_PLACE,
        referee: str = PHYSICS,
        image_size: tuple[int, int] = (320, 180),
        max_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise WorkspaceError(f"no render_mode {render_mode!r}; expected rgb_array or None")
        self.task = task_of(task)
        self.referee = referee
        self.render_mode = render_mode
        self._image_size = (int(image_size[0]), int(image_size[1]))
        if min(self._image_size) < 1:
            raise WorkspaceError(f"image_size is {self._image_size}; expected a width and a height, in pixels")
        self._max_steps = max_steps
        width, height = self._image_size
        observation_space: gymnasium.Space[Any] = gymnasium.spaces.Dict(
            {
                "image": gymnasium.spaces.Box(0, 255, (height, width, 3), np.uint8),
                "pose": gymnasium.spaces.Box(-2 * _REACH, 2 * _REACH, (len(POSE),), np.float64),
                "gripper": gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32),
            }
        )
        self.observation_space = observation_space
        low = np.array([*[-_REACH] * 3, *[-1.0] * 4, 0.0], dtype=np.float32)
        high = np.array([*[_REACH] * 3, *[1.0] * 5], dtype=np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, (len(POSE_GRIPPER),), np.float32)
        self._begin(np.random.default_rng(0))

    def _begin(self, rng: np.random.Generator) -> None:
        scene = self.task.draw(rng)
        self.tabletop: Tabletop = make_tabletop(scene, self.referee)
        self.progress = Progress()
        self._failures = FailureMonitor(self.tabletop)
        self._camera = Camera(scene, self._image_size)
        self._truncate_at = self._max_steps or _STEPS_PER_TARGET * scene.n_targets

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Draws a random scene; equal seeds give equal scenes, with any referee."""
        super().reset(seed=seed)
        self._begin(self.np_random)
        return self._observe(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Executes one command for a tenth of a second.

        Raises:
            SpecError: the action is not eight finite numbers, or its quaternion is zero.
        """
        numbers = np.array(action, dtype=np.float64)
        if numbers.shape != (len(POSE_GRIPPER),):
            raise SpecError(f"an action has shape {numbers.shape}; expected ({len(POSE_GRIPPER)},)")
        numbers[:3] = numbers[:3].clip(-_REACH, _REACH)
        norm = np.linalg.norm(numbers[3:7])
        numbers[3:7] /= norm if norm > _SHORTEST_QUATERNION else 1.0
        self.tabletop.step(numbers[: len(POSE)], float(numbers[len(POSE)]))
        self.progress.update(self.tabletop)
        self._failures.update(wants_open=numbers[len(POSE)] > CLIENT_THRESHOLD)
        done = self.progress.succeeded
        return self._observe(), float(done), done, self.tabletop.steps >= self._truncate_at, self._info()

    def render(self) -> ImageArray:
        """Renders the camera's current frame (H, W, 3)."""
        return self._camera.render(self.tabletop)

    def _observe(self) -> Observation:
        return {
            "image": self._camera.render(self.tabletop),
            "pose": self.tabletop.pose.copy(),
            "gripper": np.array([self.tabletop.gripper], dtype=np.float32),
        }

    def _info(self) -> dict[str, Any]:
        return {
            "success": self.progress.succeeded,
            "grasped": self.progress.grasped,
            "failure": None if self.progress.succeeded else self._failures.reason,
            "target_xy": self.tabletop.scene.block_xy,
            "referee": self.tabletop.referee,
            "task": self.task.name,
        }
