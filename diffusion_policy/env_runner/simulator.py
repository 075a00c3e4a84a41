"""A Gymnasium environment with its settings: where a policy's observations are found, and what an action means.

These settings hold everything that differs between simulators; ``config/simulator/tabletop.yaml`` explains each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import gymnasium
import hydra
import numpy as np
import yaml
from hydra.errors import HydraException
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.images import decode_jpeg, resize_frame
from diffusion_policy.installation import CONFIG
from diffusion_policy.sim.recorder import encode_jpeg
from diffusion_policy.spec import POSE_GRIPPER, ImageArray, SpecError, StepSpec

FloatArray = NDArray[np.float64]
RawStep = dict[str, NDArray[Any]]
Env = gymnasium.Env[Any, Any]


class SimulatorError(WorkspaceError):
    """A simulator cannot be created, or its observations do not match its settings."""


@dataclass(frozen=True)
class InfoKeys:
    """Keys of the environment's info dictionary; None where it has no such entry.

    Attributes:
        success: true once the task is completed. None: a terminated episode with a positive reward counts as completed.
        grasped: true once the object was held.
        failure: why the episode would have failed, if it ended here.
        position: (2,) after reset, where the outcome is drawn in plots.
    """

    success: str | None = "success"
    grasped: str | None = None
    failure: str | None = None
    position: str | None = None


@dataclass(frozen=True)
class Simulator:
    """How to create an environment, and how to read its observations.

    Attributes:
        env: a Hydra section: ``_target_`` and its arguments.
        observations: maps each key of the policy to a path in the environment's observation.
        action: names of the numbers of the environment's action, in its order.
        absent: constant values, by name, of the numbers that the policy does not command.
        jpeg: whether frames go through JPEG, as recorded and served ones do.
        resize: interpolation by which frames are made as small as the policy's: "area", as the converter does it for
            robots, or "linear", as it does for Minecraft.
        control_hz: steps per second.
        info: keys of the environment's info.
    """

    env: Mapping[str, Any]
    observations: Mapping[str, str]
    action: tuple[str, ...] = POSE_GRIPPER
    absent: Mapping[str, float] = field(default_factory=dict)
    jpeg: bool = True
    resize: Literal["area", "linear"] = "area"
    control_hz: float = 10.0
    info: InfoKeys = InfoKeys()

    @classmethod
    def read(cls, settings: Simulator | Mapping[str, Any] | DictConfig) -> Simulator:
        """Reads a config section; a ``Simulator`` is returned as it is.

        Raises:
            SimulatorError: a key is unknown, or its value has the wrong type.
        """
        if isinstance(settings, Simulator):
            return settings
        if not isinstance(settings.get("env"), Mapping | DictConfig | None):
            raise SimulatorError(
                f"simulator.env is a {type(settings['env']).__name__}; expected _target_ and its arguments: write "
                "_recursive_: false next to the runner's _target_"
            )
        content: dict[str, Any] = dict(OmegaConf.to_container(OmegaConf.create(dict(settings)), resolve=True))  # type: ignore[arg-type]
        known = set(cls.__dataclass_fields__)
        if set(content) - known or not {"env", "observations"} <= set(content):
            raise SimulatorError(f"simulator has the keys {sorted(map(str, content))}; expected {sorted(known)}")
        if not isinstance(content["env"], Mapping) or "_target_" not in content["env"]:
            raise SimulatorError(f"simulator.env is {content['env']!r}; expected _target_ and its arguments")
        info = dict(content.pop("info", None) or {})
        if set(info) - set(InfoKeys.__dataclass_fields__):
            raise SimulatorError(
                f"simulator.info has the keys {sorted(info)}; expected {list(InfoKeys.__dataclass_fields__)}"
            )
        if content.get("resize", "area") not in ("area", "linear"):
            raise SimulatorError(f"simulator.resize is {content['resize']!r}; expected area or linear")
        content["action"] = tuple(content.get("action", POSE_GRIPPER))
        return cls(**content, info=InfoKeys(**info))

    @classmethod
    def load(cls, path: str | Path, **env: Any) -> Simulator:
        """Reads a YAML file; ``env`` replaces arguments of the environment.

        Raises:
            SimulatorError: the file cannot be read, or its content is refused as by ``read``.
        """
        try:
            settings = OmegaConf.load(path)
        except (OSError, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            raise SimulatorError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
        if not isinstance(settings, DictConfig):
            raise SimulatorError(f"{path}: does not hold a mapping; config/simulator/tabletop.yaml is an example")
        for key, value in env.items():
            OmegaConf.update(settings, f"env.{key}", value)
        return cls.read(settings)

    def with_camera(self, key: str) -> Simulator:
        """Returns the same simulator with its single camera under another key of the policy."""
        cameras = [known for known, path in self.observations.items() if path == "image"]
        others = {known: path for known, path in self.observations.items() if known not in cameras}
        return replace(self, observations={key: "image", **others})

    @property
    def name(self) -> str:
        """A name for messages: the environment's game or class, its task and referee."""
        chosen = [str(value) for key, value in self.env.items() if key in ("task", "referee")]
        where = self.env.get("game") or str(self.env["_target_"]).rpartition(".")[2]
        return " ".join([str(where), *chosen])

    def make(self) -> Env:
        """Creates an environment.

        Raises:
            SimulatorError: its class does not exist or refuses its arguments.
        """
        try:
            env = hydra.utils.instantiate(dict(self.env))
        except HydraException as error:
            cause = error.__cause__
            if isinstance(cause, WorkspaceError):
                raise cause from error
            raise SimulatorError(f"simulator.env cannot be created: {cause or error}") from error
        if not isinstance(env, gymnasium.Env):
            raise SimulatorError(f"simulator.env makes a {type(env).__name__}; expected a Gymnasium environment")
        return env

    def check_policy(self, spec: StepSpec) -> list[str]:
        """Checks that a policy can act here, and returns notes about what it does not command.

        Raises:
            SpecError: the policy observes what the simulator does not offer, or commands what it does not accept.
        """
        unread = [entry.key for entry in spec.obs if entry.key not in self.observations]
        if unread:
            raise SpecError(f"the policy reads {unread}, but simulator.observations offers {list(self.observations)}")
        unknown = [name for name in spec.action_names if name not in self.action]
        if unknown:
            raise SpecError(f"the policy commands {unknown}, but the simulator's action is {list(self.action)}")
        missing = [name for name in self.action if name not in spec.action_names]
        unsettled = [name for name in missing if name not in self.absent]
        if unsettled:
            raise SpecError(
                f"the simulator needs {unsettled}, which the policy does not command (it has "
                f"{list(spec.action_names)}); simulator.absent can hold them at a value"
            )
        return [f"the policy commands no {name}: held at {self.absent[name]:g}" for name in missing]

    def read_step(self, observation: Any, spec: StepSpec) -> RawStep:
        """Reads one observation, in the environment's own sizes and units, by key of the policy.

        Raises:
            SimulatorError: the observation lacks an entry, or a frame is not (H, W, 3) uint8.
        """
        step: RawStep = {}
        for entry in spec.obs:
            value = np.asarray(_found(observation, self.observations[entry.key], entry.key))
            if entry.kind == "rgb" and (value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3):
                raise SimulatorError(
                    f"{entry.key}: the environment's {self.observations[entry.key]} is {value.dtype} {value.shape}; "
                    "expected uint8 (H, W, 3) RGB"
                )
            step[entry.key] = value if entry.kind == "rgb" else value.astype(np.float64).reshape(-1)
        return step

    def resized(self, frame: ImageArray, width: int, height: int) -> ImageArray:
        """Returns a frame as in the training set: JPEG-coded if ``jpeg``, then resized by ``resize``."""
        if self.jpeg:
            frame = decode_jpeg(encode_jpeg(frame), "simulator")
        if self.resize == "linear":
            return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
        return resize_frame(frame, width, height)

    def to_env(self, actions: FloatArray, names: tuple[str, ...]) -> FloatArray:
        """Converts actions (..., D) from the policy's order to the environment's."""
        columns = [
            actions[..., names.index(name)] if name in names else np.full(actions.shape[:-1], self.absent[name])
            for name in self.action
        ]
        return np.stack(columns, axis=-1)

    def succeeded(self, info: Mapping[str, Any], reward: float, *, terminated: bool) -> bool:
        """Whether the task is completed.

        Raises:
            SimulatorError: info lacks the key that reports success.
        """
        if self.info.success is None:
            return terminated and reward > 0
        if self.info.success not in info:
            raise SimulatorError(
                f"simulator.info.success is {self.info.success!r}, but the environment's info has {sorted(info)}"
            )
        return bool(info[self.info.success])

    def optional_info(self, info: Mapping[str, Any], key: str) -> Any:
        """Returns an optional entry of info, by its name in ``InfoKeys``; None where there is none."""
        name = getattr(self.info, key)
        return None if name is None else info.get(name)

    def describe(self) -> dict[str, Any]:
        """Returns the environment and its arguments as plain data, for results."""
        settings = {"env": dict(self.env), "control_hz": self.control_hz, "jpeg": self.jpeg}
        return settings if self.resize == "area" else {**settings, "resize": self.resize}


def words_for(described: Mapping[str, Any]) -> list[str] | None:
    """Options of evaluate_closed_loop.py that make an environment again; None if no file of config/simulator makes it.

    Args:
        described: what ``Simulator.describe`` returned.
    """
    env = described.get("env") or {}
    for path in sorted((CONFIG / "simulator").glob("*.yaml")):
        shipped = Simulator.load(path).env
        if shipped["_target_"] == env.get("_target_"):
            changed = {key: value for key, value in env.items() if value != shipped.get(key)}
            words = (word for key, value in changed.items() for word in ("--env", f"{key}={json.dumps(value)}"))
            return ["--simulator", str(path), *words]
    return None


def read_arguments(words: Sequence[str]) -> dict[str, Any]:
    """Arguments of an environment from words KEY=VALUE, the values read as in a YAML file.

    Raises:
        SimulatorError: a word is something else.
    """
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise SimulatorError(f"--env is {word!r}; expected KEY=VALUE, such as max_steps=200")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SimulatorError(f"--env {word}: the value cannot be read ({str(error).splitlines()[0]})") from error
    return found


def _found(observation: Any, path: str, key: str) -> Any:
    value = observation
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            present = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise SimulatorError(
                f"simulator.observations.{key} is {path!r}; the environment's observation has {present}"
            )
        value = value[part]
    return value
