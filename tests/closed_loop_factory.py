"""A foreign simulator, and policies with known outcomes, for the tests of closed loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from layout_factory import CAMERAS, HEIGHT, NAMES, WIDTH, episode, low_dim_keys

from diffusion_policy.env_runner.actors import ActionReply, ActionRequest
from diffusion_policy.env_runner.simulator import InfoKeys, Simulator
from diffusion_policy.gripper_events import CLIENT_THRESHOLD
from diffusion_policy.sim.expert import plan
from diffusion_policy.sim.tabletop_env import TabletopEnv
from diffusion_policy.spec import POSE_GRIPPER, ActionLayout, StepSpec, read_shape_meta

SEED = 100_000
SIZE = [64, 36]


def shape_meta(action_dim: int = 8, camera: str = "image") -> dict[str, Any]:
    return {
        "obs": {
            camera: {"shape": [3, 36, 64], "type": "rgb"},
            "robot_eef_pose": {"shape": [7], "type": "low_dim"},
            "robot_gripper_state": {"shape": [1], "type": "low_dim"},
        },
        "action": {"shape": [action_dim]},
    }


SPEC: StepSpec = read_shape_meta(shape_meta())


def tabletop(referee: str = "kinematic", **env: Any) -> Simulator:
    from diffusion_policy.env_runner.tabletop_runner import SETTINGS

    return Simulator.load(SETTINGS, referee=referee, image_size=SIZE, **env)


class Driver(gymnasium.Env[dict[str, Any], np.ndarray]):
    """Moves a point; done once it is past ``goal`` on x, or after ``length`` steps. Remembers all commands.

    Its observation is nested, its action has the gripper first, and its info has "is_success".
    """

    told: list[np.ndarray] = []  # noqa: RUF012 - shared on purpose: tests look at it
    seeds: list[int | None] = []  # noqa: RUF012

    def __init__(self, length: int = 40, goal: float = 1e9) -> None:
        self.length, self.goal, self.steps = length, goal, 0
        self.action_space = gymnasium.spaces.Box(-10, 1e6, (8,), np.float64)
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            {
                "cameras": gymnasium.spaces.Dict({"front": box(0, 255, (36, 64, 3), np.uint8)}),
                "agent": gymnasium.spaces.Dict({"pose": box(-1e6, 1e6, (7,)), "hand": box(0, 1, ())}),
            }
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.steps, self.last = 0, np.array([1.0, *[0.0] * 6, 1.0])
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.told.append(action.copy())
        self.steps, self.last = self.steps + 1, action
        done = bool(action[1] > self.goal)
        return self._observe(), float(done), done, self.steps >= self.length, {"is_success": done}

    def _observe(self) -> dict[str, Any]:
        image = np.full((36, 64, 3), self.steps, dtype=np.uint8)
        pose = np.array([*self.last[1:4], 0.0, 0.0, 0.0, 1.0])
        return {"cameras": {"front": image}, "agent": {"pose": pose, "hand": np.float64(self.last[0])}}


def driver(**env: Any) -> Simulator:
    Driver.told, Driver.seeds = [], []
    return Simulator(
        {"_target_": "closed_loop_factory.Driver", **env},
        {"image": "cameras.front", "robot_eef_pose": "agent.pose", "robot_gripper_state": "agent.hand"},
        ("gripper", *POSE_GRIPPER[:7]),
        jpeg=False,
        info=InfoKeys(success="is_success"),
    )


class Follower(gymnasium.Env[dict[str, Any], np.ndarray]):
    """An arm of any layout that is always where it was commanded to be; remembers where that was.

    As in the tabletop, quaternions may have any norm, and grippers are open above one half.
    """

    told: list[np.ndarray] = []  # noqa: RUF012 - shared on purpose: tests look at it

    def __init__(self, kind: str, length: int) -> None:
        self.kind, self.length = kind, length
        self.action_space = gymnasium.spaces.Box(-1e3, 1e3, (len(NAMES[kind]),), np.float64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.state = 0, episode(self.kind, 12, seed or 0)["state"][0]
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        layout = ActionLayout.of(NAMES[self.kind])
        turns = layout.rotations(action)
        turns = turns / np.linalg.norm(turns, axis=-1, keepdims=True)
        self.steps, self.state = (
            self.steps + 1,
            layout.replaced(action, rotations=turns, grippers=layout.grippers(action) > CLIENT_THRESHOLD),
        )
        self.told.append(self.state)
        return self._observe(), 0.0, False, self.steps >= self.length, {"success": False}

    def _observe(self) -> dict[str, Any]:
        names, rng = NAMES[self.kind], np.random.default_rng(self.steps)
        frames = {name: rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8) for name in CAMERAS[self.kind]}
        keys = low_dim_keys(self.kind).items()
        return {**frames, **{key: self.state[[names.index(name) for name in entry]] for key, entry in keys}}


def follower(kind: str, length: int) -> Simulator:
    Follower.told.clear()
    env = {"_target_": "closed_loop_factory.Follower", "kind": kind, "length": length}
    return Simulator(env, {key: key for key in (*CAMERAS[kind], *low_dim_keys(kind))}, NAMES[kind])


class Scripted:
    """Answers each request with a function's result: a chunk (Ta, 8), or None."""

    spec, n_obs_steps, n_action_steps = SPEC, 2, 8

    def __init__(self, rule: Callable[[ActionRequest], np.ndarray | None]) -> None:
        self.rule = rule
        self.asked: list[ActionRequest] = []
        self.at_once: list[int] = []

    def answer(self, requests: Sequence[ActionRequest]) -> list[ActionReply]:
        self.asked += requests
        self.at_once.append(len(requests))
        chunks = [self.rule(request) for request in requests]
        return [ActionReply(None, "refused: no") if chunk is None else ActionReply(chunk) for chunk in chunks]


def numbered(request: ActionRequest) -> np.ndarray:
    """Actions whose x is the step that they are meant for, from 1."""
    x = request.step + np.arange(1, 9)
    return np.stack([x, *np.zeros((2, 8)), *np.zeros((3, 8)), np.ones(8), np.zeros(8)], axis=1)


def expert(change: Callable[[int, np.ndarray], np.ndarray | None] = lambda scene, chunk: chunk) -> Scripted:
    """The scripted expert of the tabletop, or its chunk changed by ``change`` in a scene."""
    plans: dict[int, np.ndarray] = {}

    def rule(request: ActionRequest) -> np.ndarray | None:
        if request.scene not in plans:
            env = TabletopEnv(referee="kinematic", image_size=(16, 9))
            env.reset(seed=SEED + request.scene)
            commands = plan(env.tabletop.scene, np.random.default_rng(request.scene))
            plans[request.scene] = np.stack([np.append(command.pose, command.gripper) for command in commands])
        steps = np.minimum(request.step + np.arange(8), len(plans[request.scene]) - 1)
        return change(request.scene, plans[request.scene][steps].copy())

    return Scripted(rule)
