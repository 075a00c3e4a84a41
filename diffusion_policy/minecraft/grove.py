"""A small Minecraft-like world for tests, demos and studies of VPT policies on a CPU: Gymnasium, first person, seeded.

    env = GroveEnv("log", spaces="minedojo")
    observation, info = env.reset(seed=7)                      # observation["rgb"] (3, 160, 256) uint8
    observation, reward, terminated, truncated, info = env.step([1, 0, 0, 12, 12, 0, 0, 0])

Tasks: ``log`` (walk to a tree, aim at the trunk, hold attack until the log drops), ``wool`` (reach a sheep that
wanders, use the shears), ``stone`` (aim down at a rock, hold attack). It is not Minecraft: a policy's behavior here
shows whether it was trained and connected correctly, not how well it would do there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.minecraft.actions import BUTTONS, VPT_ACTION, MinecraftError, pressed_buttons
from diffusion_policy.minecraft.minedojo import DEFAULT_INTERVAL, MineDojoSpace
from diffusion_policy.minecraft.view import IMAGE_HEIGHT, IMAGE_WIDTH, render
from diffusion_policy.minecraft.world import TICK_SECONDS, World, draw_world, task_of

Observation = dict[str, NDArray[np.uint8]]
Spaces = Literal["minedojo", "vpt"]

_MOST_TURN = 180.0
DEFAULT_MAX_STEPS = 600  # 30 s; the scripted expert needs 60 to 250


class GroveEnv(gymnasium.Env[Observation, Any]):
    """One player in a grove; a step is a tick of a twentieth of a second.

    With ``spaces="minedojo"``, as in MineDojo: observation {"rgb": (3, 160, 256) uint8}, action (8,) slots. With
    ``spaces="vpt"``, as in VPT: observation {"pov": (160, 256, 3) uint8}, action (22,) float32: the 20 buttons in the
    order of ``actions.BUTTONS``, above 0.5 = down, then pitch and yaw in degrees.

    The reward is 1 at the step that harvests the target, else 0; the episode terminates there. ``info`` holds
    ``success``, ``failure`` (the reason of failure if the episode ended now; None after success), ``progress`` (0 to 1
    of the harvest), ``aimed`` (whether the target is in the middle of the picture and within reach), ``ignored`` (parts
    of the last action without a meaning here) and ``target_xy`` (2,), the initial position of the nearest target
    relative to the player, in meters to the right and ahead.

    Args:
        task: "log", "wool" or "stone".
        spaces: "minedojo" or "vpt".
        camera_interval: degrees between two bins of MineDojo's camera.
        max_steps: ticks after which an episode is truncated.
        render_mode: "rgb_array" or None.

    Raises:
        MinecraftError: there is no such task, spaces or render mode, or the interval has no bin for no turn.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": round(1 / TICK_SECONDS)}  # noqa: RUF012

    def __init__(
        self,
        task: str = "log",
        spaces: Spaces = "minedojo",
        camera_interval: float = DEFAULT_INTERVAL,
        max_steps: int = DEFAULT_MAX_STEPS,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise MinecraftError(f"no render_mode {render_mode!r}; expected rgb_array or None")
        if max_steps < 1:
            raise MinecraftError(f"max_steps is {max_steps}; expected 1 or more")
        self.task, self.spaces, self.max_steps, self.render_mode = task_of(task), spaces, max_steps, render_mode
        self.slots = MineDojoSpace(camera_interval)
        self.observation_space, self.action_space = make_spaces(spaces, self.slots)
        self.world = draw_world(self.task, np.random.default_rng(0))
        self._start = (0.0, 0.0)
        self._ignored: tuple[str, ...] = ()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Draws a world; equal seeds give equal worlds.

        Raises:
            MinecraftError: options are given, but the grove has none.
        """
        super().reset(seed=seed)
        if options:
            raise MinecraftError(f"options are {sorted(options)}; the grove has none")
        self.world = draw_world(self.task, self.np_random)
        self._start, self._ignored = _nearest(self.world), ()
        return self._observe(), self._info(ended=False)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One tick.

        Raises:
            MinecraftError: the action is not in this space.
        """
        taken, self._ignored = self._read(action)
        pressed, turn = pressed_buttons(taken)
        self.world.step(pressed, turn)
        done, late = self.world.done, self.world.ticks >= self.max_steps
        return self._observe(), float(done), done, late and not done, self._info(ended=done or late)

    def render(self) -> NDArray[np.uint8]:
        """The current frame (160, 256, 3)."""
        return render(self.world)

    def _read(self, action: Any) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        return self.slots.to_vpt(action) if self.spaces == "minedojo" else (read_vpt(action), ())

    def _observe(self) -> Observation:
        return observation_of(self.render(), self.spaces)

    def _info(self, *, ended: bool) -> dict[str, Any]:
        aimed = self.world.aimed_at()
        on_target = aimed is not None and aimed.material == self.task.target
        return {
            "success": self.world.done,
            "failure": self._failure(on_target=on_target) if ended and not self.world.done else None,
            "progress": min(1.0, self.world.progress / self.task.ticks),
            "aimed": on_target,
            "ignored": self._ignored,
            "target_xy": np.array(self._start),
        }

    def _failure(self, *, on_target: bool) -> str:
        if on_target:
            return f"aimed at the {self.task.target}, but did not hold {self.task.button} long enough"
        near = float(np.hypot(*_nearest(self.world))) < 4.0
        return (
            f"stood at the {self.task.target}, but did not aim at it"
            if near
            else f"did not reach the {self.task.target}"
        )


def make_spaces(spaces: Spaces, slots: MineDojoSpace) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
    """The observation and action spaces that ``GroveEnv`` describes.

    Raises:
        MinecraftError: neither "minedojo" nor "vpt".
    """
    if spaces not in ("minedojo", "vpt"):
        raise MinecraftError(f"spaces is {spaces!r}; expected minedojo or vpt")
    size = (IMAGE_HEIGHT, IMAGE_WIDTH)
    if spaces == "minedojo":
        rgb = gymnasium.spaces.Box(0, 255, (3, *size), np.uint8)
        return gymnasium.spaces.Dict({"rgb": rgb}), gymnasium.spaces.MultiDiscrete(list(slots.sizes))
    pov = gymnasium.spaces.Box(0, 255, (*size, 3), np.uint8)
    low = np.array([0.0] * len(BUTTONS) + [-_MOST_TURN] * 2, np.float32)
    high = np.array([1.0] * len(BUTTONS) + [_MOST_TURN] * 2, np.float32)
    return gymnasium.spaces.Dict({"pov": pov}), gymnasium.spaces.Box(low, high)


def read_vpt(action: ArrayLike) -> dict[str, Any]:
    """(22,) numbers of VPT's space as buttons by name and the camera (2,) in degrees.

    Raises:
        MinecraftError: they are not 22 finite numbers.
    """
    numbers = np.asarray(action, dtype=np.float64)
    if numbers.shape != (len(VPT_ACTION),) or not np.isfinite(numbers).all():
        raise MinecraftError(
            f"an action {numbers.shape}; expected {len(VPT_ACTION)} finite numbers: 20 buttons, pitch and yaw"
        )
    buttons = dict(zip(BUTTONS, (numbers[: len(BUTTONS)] > 0.5).astype(int), strict=True))
    return {**buttons, "camera": np.clip(numbers[len(BUTTONS) :], -_MOST_TURN, _MOST_TURN)}


def observation_of(frame: NDArray[np.uint8], spaces: Spaces) -> Observation:
    """A frame (H, W, 3) RGB as an observation: {"rgb": (3, H, W)} or {"pov": (H, W, 3)}."""
    return {"rgb": np.ascontiguousarray(frame.transpose(2, 0, 1))} if spaces == "minedojo" else {"pov": frame}


def _nearest(world: World) -> tuple[float, float]:
    """Position of the nearest target, in meters to the right of the player and ahead of it."""
    middles = [(box.low + box.high) / 2 - world.position for box in world.targets()]
    away = min(middles, key=lambda at: float(np.hypot(at[0], at[2])), default=np.zeros(3))
    turned = np.radians(world.yaw)
    ahead, right = (-np.sin(turned), np.cos(turned)), (-np.cos(turned), -np.sin(turned))
    return tuple(float(away[0] * x + away[2] * z) for x, z in (right, ahead))  # type: ignore[return-value]
