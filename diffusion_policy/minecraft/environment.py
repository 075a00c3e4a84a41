"""Environments for VPT policies: this package's grove, or MineDojo if it is installed, created by one function."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.minecraft.actions import MinecraftError
from diffusion_policy.minecraft.grove import (
    DEFAULT_MAX_STEPS,
    GroveEnv,
    Observation,
    Spaces,
    make_spaces,
    observation_of,
    read_vpt,
)
from diffusion_policy.minecraft.minedojo import DEFAULT_INTERVAL, CameraRemainder, MineDojoSpace
from diffusion_policy.minecraft.view import IMAGE_HEIGHT, IMAGE_WIDTH

Game = Literal["grove", "minedojo"]


def make_minecraft(
    game: Game = "grove",
    task: str = "log",
    spaces: Spaces = "vpt",
    camera_interval: float = DEFAULT_INTERVAL,
    max_steps: int = DEFAULT_MAX_STEPS,
) -> gymnasium.Env[Observation, Any]:
    """An environment of the grove or of MineDojo, with the same spaces.

    Args:
        game: "grove" or "minedojo".
        task: of the grove ("log", "wool", "stone"), or an id of MineDojo's (``minedojo.tasks.ALL_TASKS_SPECS``).
        spaces: "vpt" (pov, 20 buttons and the camera) or "minedojo" (rgb, eight slots); see ``GroveEnv``.
        camera_interval: degrees between two bins of MineDojo's camera.
        max_steps: ticks after which an episode is truncated.

    Raises:
        MinecraftError: there is no such game or task, or MineDojo is missing or cannot start.
    """
    if game == "grove":
        return GroveEnv(task, spaces, camera_interval, max_steps)
    if game != "minedojo":
        raise MinecraftError(f"game is {game!r}; expected grove or minedojo")
    return MineDojoEnv(task, spaces, camera_interval, max_steps)


@contextmanager
def _minedojo_errors(task: str) -> Iterator[None]:
    """Makes what MineDojo raises while it starts one sentence.

    Raises:
        MinecraftError: instead.
    """
    instead = "take game=grove, which needs nothing"
    try:
        yield
    except ImportError as error:
        absent = error.name == "minedojo"
        found = "MineDojo is not installed" if absent else f"MineDojo is there and cannot be imported ({error})"
        needs = "it needs JDK 8, gym 0.21 and a build of its Minecraft client: https://docs.minedojo.org"
        raise MinecraftError(f"{found}; {needs}; or {instead}") from error
    except (AttributeError, TypeError) as error:
        raise MinecraftError(
            f"this MineDojo has another interface than version 0.1 ({error}); install that one, or {instead}"
        ) from error
    except (KeyError, ValueError, AssertionError) as error:
        raise MinecraftError(f"MineDojo does not start its task {task!r}: {error}") from error
    except (OSError, EOFError, RuntimeError) as error:
        java = "" if shutil.which("java") else ", and there is no java on PATH (it needs JDK 8)"
        raise MinecraftError(f"MineDojo's Minecraft does not start: {error}{java}; or {instead}") from error


class MineDojoEnv(gymnasium.Env[Observation, Any]):
    """A task of MineDojo under Gymnasium's interface and the spaces of ``GroveEnv``.

    In VPT's space, turns that fall between two bins are carried over to the next step, so with a small
    ``camera_interval`` they take effect sooner. A task counts as completed when it ends with a positive reward, as
    MineDojo's own tasks do.

    Raises:
        MinecraftError: MineDojo is missing, or does not know the task.
    """

    def __init__(self, task: str, spaces: Spaces, camera_interval: float, max_steps: int) -> None:
        self.slots = MineDojoSpace(camera_interval)
        self._task = task
        with _minedojo_errors(task):
            import minedojo  # type: ignore[import-not-found]

            size = (IMAGE_HEIGHT, IMAGE_WIDTH)
            self._game = minedojo.make(task_id=task, image_size=size, cam_interval=camera_interval)
        self.spaces, self.max_steps, self._steps = spaces, max_steps, 0
        self._owed = CameraRemainder()
        self.observation_space, self.action_space = make_spaces(spaces, self.slots)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode; MineDojo takes its seed before resetting."""
        super().reset(seed=seed)
        if options:
            raise MinecraftError(f"options are {sorted(options)}; MineDojo takes none")
        self._steps = 0
        self._owed.reset()
        with _minedojo_errors(self._task):  # Minecraft starts here
            if seed is not None:
                self._game.seed(seed)
            observed = self._game.reset()
        return self._observe(observed), {"success": False, "ignored": ()}

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One step of MineDojo."""
        slots, lost = self._to_slots(action)
        observed, reward, done, info = self._game.step(slots)
        self._steps += 1
        success = bool(done and reward > 0)
        late = not done and self._steps >= self.max_steps
        failure = None if success or not (done or late) else "the task was not completed"
        details = {**info, "success": success, "failure": failure, "ignored": lost}
        return self._observe(observed), float(reward), bool(done), late, details

    def close(self) -> None:
        """Ends MineDojo's client."""
        self._game.close()

    def _to_slots(self, action: ArrayLike) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        if self.spaces == "minedojo":
            return np.asarray(action, dtype=np.int64), ()
        found = self.slots.from_vpt(read_vpt(action), self._owed)
        return found.action, found.lost

    def _observe(self, observed: Any) -> Observation:
        return observation_of(np.asarray(observed["rgb"], dtype=np.uint8).transpose(1, 2, 0), self.spaces)
