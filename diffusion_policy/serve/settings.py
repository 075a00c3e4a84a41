"""All settings of the server, with their meanings; ``config/serve.yaml`` shows the defaults.

A misspelled key, a missing checkpoint or a value of the wrong type is an error before anything is loaded.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING as MISSING_FACTORY
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Optional

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from diffusion_policy.commands import command
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_scale import INTERNAL, DeclaredScales, parse_scales
from diffusion_policy.installation import CONFIG
from diffusion_policy.policy.default_sampler import DEFAULT_SAMPLER
from diffusion_policy.serve.checks.motion_guard import GuardSettings
from diffusion_policy.serve.transport.protocol import DEFAULT_PORT, Limits
from diffusion_policy.spec import SpecError

PRECISIONS = ("float32", "bfloat16")


class ServeError(WorkspaceError):
    """The server cannot start with its settings; the message names the setting, its value and what was expected."""


def _at_least(settings: object, group: str, smallest: Mapping[str, int]) -> None:
    """Refuses settings below their smallest useful value, by name."""
    for name, least in smallest.items():
        if not getattr(settings, name) >= least:
            raise ServeError(f"{group}.{name} is {getattr(settings, name)}; expected {least} or more")


@dataclass
class EngineSettings:
    """Settings of the engine, which runs the policy.

    Attributes:
        weights: "ema_model" or "model".
        device: "cpu", "cuda:0", ...
        scheduler: "ddim", "ddpm" or "dpm-solver++".
        steps: denoising steps.
        precision: "float32", or "bfloat16" for the convolutions and the denoiser's large products, which is faster
            where the device has instructions for it.
        fast: False runs ``predict_action`` as training does, without any cache; policies that require it run this way
            anyway.
        compile: use torch.compile for the convolutions; its warm-up takes a minute.
        cuda_graphs: on a CUDA device, launch each denoising step as one graph; no effect elsewhere.
        cached_frames: number of frames whose features are cached, by content; 0 for none.
        seed: seed of the noise; request i of an episode draws from (seed, i).
        warm_start: share of the denoising steps skipped by starting from the remainder of the last chunk.
        n_action_steps: number of actions in an answer; None for the policy's own. If it exceeds those executed, the
            next answer can use the rest of the previous chunk ("previous_actions" in messages).
        threads: torch's threads; None for one per core that other processes leave free, updated while serving.
    """

    weights: str = "ema_model"
    device: str = "cpu"
    scheduler: str = DEFAULT_SAMPLER.scheduler
    steps: int = DEFAULT_SAMPLER.steps
    precision: str = "float32"
    fast: bool = True
    compile: bool = False
    cuda_graphs: bool = True
    cached_frames: int = 8
    seed: int = 0
    warm_start: float = 0.0
    n_action_steps: Optional[int] = None  # noqa: UP045 - OmegaConf reads this form
    threads: Optional[int] = None  # noqa: UP045

    def __post_init__(self) -> None:
        """Refuses values that no policy can run with."""
        optional = {name: 1 for name in ("threads", "n_action_steps") if getattr(self, name) is not None}
        _at_least(self, "engine", {"cached_frames": 0, "seed": 0, "steps": 1} | optional)
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ServeError(
                f"engine.device is {self.device!r}; expected cpu, cuda, or cuda:0 for the first of several"
            )
        if self.precision not in PRECISIONS:
            raise ServeError(f"engine.precision is {self.precision!r}; expected {', '.join(PRECISIONS)}")
        if not 0 <= self.warm_start < 1:
            raise ServeError(f"engine.warm_start is {self.warm_start}; expected 0 <= warm_start < 1")
        if not self.fast and (self.warm_start or self.precision != "float32"):
            raise ServeError("engine.fast is off: warm_start and precisions other than float32 need it")


@dataclass
class CameraSettings:
    """Settings of the checks of decoded images; see ``cameras``.

    Attributes:
        on_black: "warn" or "refuse" an image that is black or of one color.
        on_aspect: "warn" or "refuse" an image whose aspect ratio differs from training.
        on_frozen: "warn" or "refuse" a camera whose image has stopped changing.
        frozen_frames: number of consecutive equal images after which a camera counts as stopped, ...
        frozen_m: ... if the arm has moved at least this far meanwhile, meters, ...
        frozen_rad: ... or turned this far, radians.
        max_lag_s: largest time between a camera's newest frame and the newest step, for clients that send frame times
            (``camera_times``).
    """

    on_black: str = "warn"
    on_aspect: str = "warn"
    on_frozen: str = "refuse"
    frozen_frames: int = 5
    frozen_m: float = 0.03
    frozen_rad: float = 0.1
    max_lag_s: float = 0.3

    def __post_init__(self) -> None:
        """Refuses unknown choices, and limits that every camera of a static scene would exceed."""
        for name in ("on_black", "on_aspect", "on_frozen"):
            if getattr(self, name) not in ("warn", "refuse"):
                raise ServeError(f"cameras.{name} is {getattr(self, name)!r}; expected 'warn' or 'refuse'")
        _at_least(self, "cameras", {"frozen_frames": 2})
        for name in ("frozen_m", "frozen_rad", "max_lag_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ServeError(f"cameras.{name} is {getattr(self, name)}; expected more than 0, finite")


@dataclass
class LogSettings:
    """Settings of the run log.

    Attributes:
        directory: folder in which run folders are created; None for no log.
        max_bytes: beyond this size, images included, a run continues in a new folder.
        queue: number of steps that may wait to be written; further steps are left out of the log, and counted.
    """

    directory: Optional[str] = "data/logs/serve"  # noqa: UP045
    max_bytes: int = 2 * 2**30
    queue: int = 64

    def __post_init__(self) -> None:
        """Refuses an unbounded queue, and a size that leaves no room for a step."""
        _at_least(self, "log", {"max_bytes": 1, "queue": 1})


@dataclass
class Traffic:
    """Limits on connections.

    Attributes:
        connections: connections open at once, including those that are answered "busy".
        messages_per_s: messages of one connection within a second.
        message_s: time from the first byte of a message to its last.
        idle_s: time without a message; a robot that pauses longer must reconnect.
        linger_s: time without a message after an error that ended the session; a client that sends one meanwhile is
            served again.
        errors_in_a_row: errors in a row after which the session ends and the robot lock is free for others.
    """

    connections: int = 8
    messages_per_s: float = 50.0
    message_s: float = 10.0
    idle_s: float = 600.0
    linger_s: float = 2.0
    errors_in_a_row: int = 20

    def __post_init__(self) -> None:
        """Refuses numbers that would prevent any robot from being served."""
        _at_least(self, "traffic", {"connections": 1, "messages_per_s": 1, "errors_in_a_row": 1})
        for name in ("messages_per_s", "message_s", "idle_s", "linger_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ServeError(f"traffic.{name} is {getattr(self, name)}; expected more than 0, finite")


@dataclass
class ServeSettings:
    """All settings of the server.

    Attributes:
        ckpt: the checkpoint.
        host, port: of the line protocol.
        websocket_port: of the second transport; None: off.
        token_file: a file whose first line is the token that new clients must send; None for no token.
        allow_unauthenticated: admits old clients, which have no token, on an address other than the loopback.
        allow_inspection: answers "inspect" with the model's input, for scripts/check_parity.py.
        deadline_s: seconds within which an observation is answered; after that, an error is sent and no action.
        max_age_s: how much older an observation may be than the episode's freshest one on arrival; see ``freshness``.
        control_hz: rate at which the client executes actions.
        range_margin: observations outside the training range by more than this share of it cause a warning.
        workspace_margin_m: the workspace box is the range of the training actions, widened by this margin, unless
            ``guard.workspace_low`` and ``guard.workspace_high`` override it.
        on_unseen_state: "warn" or "refuse" a measured state outside the training range.
        gripper_scale: scale of the robot's gripper, where it is not 0 (closed) to 1 (open): a name from
            ``gripper_scale``, or COMMAND/MEASURED. Measurements and commands are converted.
        cameras: checks of images.
        guard: the motion limits.
    """

    ckpt: str = MISSING
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    websocket_port: Optional[int] = None  # noqa: UP045
    token_file: Optional[str] = None  # noqa: UP045
    allow_unauthenticated: bool = False
    allow_inspection: bool = False
    deadline_s: float = 1.0
    max_age_s: float = 0.5
    control_hz: float = 10.0
    range_margin: float = 0.1
    workspace_margin_m: float = 0.05
    on_unseen_state: str = "warn"
    gripper_scale: Optional[str] = None  # noqa: UP045
    engine: EngineSettings = field(default_factory=EngineSettings)
    cameras: CameraSettings = field(default_factory=CameraSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    limits: Limits = field(default_factory=Limits)
    traffic: Traffic = field(default_factory=Traffic)
    log: LogSettings = field(default_factory=LogSettings)

    def __post_init__(self) -> None:
        """Refuses invalid times and rates."""
        for name in ("deadline_s", "max_age_s", "control_hz"):
            if not 0 < getattr(self, name) < math.inf:
                raise ServeError(f"{name} is {getattr(self, name)}; expected more than 0, finite")
        for name in ("range_margin", "workspace_margin_m"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ServeError(f"{name} is {getattr(self, name)}; expected 0 or more, finite")
        if self.on_unseen_state not in ("warn", "refuse"):
            raise ServeError(f"on_unseen_state is {self.on_unseen_state!r}; expected 'warn' or 'refuse'")
        try:
            parse_scales(self.gripper_scale)
        except SpecError as error:
            raise ServeError(f"gripper_scale: {error}") from error
        for name in ("port", "websocket_port"):
            number = getattr(self, name)
            if number is not None and not 0 <= number <= 65535:
                raise ServeError(f"{name} is {number}; expected 0 (a free one) to 65535")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def gripper(self) -> DeclaredScales:
        """The scales of the robot's gripper: commands, and measurements where they differ."""
        return parse_scales(self.gripper_scale) or DeclaredScales(INTERNAL)

    def token(self) -> str | None:
        """The shared token.

        Raises:
            ServeError: the file cannot be read or is empty; or an address that others can reach has neither a token nor
                ``allow_unauthenticated``.
        """
        if self.token_file is None:
            if not self.is_local and not self.allow_unauthenticated:
                raise ServeError(
                    f"host is {self.host}: anyone on that network could move the arm. Keep 127.0.0.1 and use an SSH "
                    "tunnel, or set token_file (new clients), or --allow-unauthenticated (old clients)"
                )
            return None
        try:
            lines = Path(self.token_file).read_text(encoding="utf-8").split()
        except (OSError, ValueError) as error:
            raise ServeError(f"token_file {self.token_file}: cannot be read ({error})") from error
        if not lines:
            raise ServeError(f"token_file {self.token_file} is empty; expected a token in its first line")
        return lines[0]


def read_settings(config: str | Path | None, overrides: Sequence[str] = ()) -> ServeSettings:
    """Reads settings: defaults, then the file, then ``key=value`` arguments.

    Raises:
        ServeError: an unknown key (the nearest is named), a wrong type, no checkpoint, or a file that cannot be read.
        WorkspaceError: a value that is refused.
    """
    merged = OmegaConf.structured(ServeSettings)
    for frozen in (merged.guard, merged.limits):  # OmegaConf reads a frozen dataclass as read-only
        OmegaConf.set_readonly(frozen, False)  # noqa: FBT003
    if config is not None:
        merged = _merge(merged, lambda: _read_yaml(config), str(config))
    for word in overrides:
        _check_word(word)
        merged = _merge(merged, lambda word=word: OmegaConf.from_dotlist([word]), repr(word))  # type: ignore[misc]
    if OmegaConf.is_missing(merged, "ckpt") or not merged.ckpt:
        raise ServeError(f"ckpt: missing mandatory value; which checkpoint is to be served? {_example(config)}")
    try:
        settings = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, RecursionError) as error:  # an interpolation that cannot be resolved
        key = getattr(error, "full_key", None)
        raise ServeError(f"{f'{key}: ' if key else ''}{str(error).splitlines()[0]}") from error
    assert isinstance(settings, ServeSettings)
    return settings


def _merge(settings: DictConfig, read: Callable[[], Any], where: str) -> DictConfig:
    try:
        layer = read()
        if not isinstance(layer, DictConfig):
            raise ServeError(
                f"{where} holds a {type(OmegaConf.to_container(layer)).__name__}; expected keys and values"
            )
        merged = OmegaConf.merge(settings, layer)
    except (OmegaConfBaseException, OSError, ValueError, yaml.YAMLError) as error:
        key = getattr(error, "full_key", None)
        cause = " ".join(str(error).split("\n    full_key")[0].split())
        hint = _nearest(str(key)) if isinstance(error, ConfigKeyError) else ""
        if "is not a subclass of" in cause:
            cause = f"one value where a group of settings is expected; settings are {', '.join(setting_names())}"
        raise ServeError(f"{where}: {f'{key}: ' if key else ''}{cause}{hint}") from error
    assert isinstance(merged, DictConfig)
    return merged


def _read_yaml(config: str | Path) -> Any:
    if not Path(config).is_file():
        shipped = CONFIG / "serve.yaml"
        raise ServeError(f"{config}: No such file; omit --config for the defaults, which are in {shipped}")
    return OmegaConf.load(config)


def _check_word(word: str) -> None:
    """Refuses an argument that is not KEY=VALUE."""
    key, equals, _ = word.partition("=")
    if equals and key:
        return
    if word.endswith((".yaml", ".yml")):
        hint = f"did you mean --config {shlex.quote(word)}?"
    elif word.endswith(".ckpt") or Path(word).exists():
        hint = f"did you mean {shlex.quote(f'ckpt={word}')}?"
    else:
        hint = "such as ckpt=latest.ckpt, engine.steps=8"
    raise ServeError(f"{word!r} is not a setting; expected KEY=VALUE, {hint}")


def setting_names() -> list[str]:
    """Returns the dotted names of all settings."""
    names = []
    for entry in fields(ServeSettings):
        group = entry.default_factory() if entry.default_factory is not MISSING_FACTORY else None
        names += [f"{entry.name}.{inner.name}" for inner in fields(group)] if is_dataclass(group) else [entry.name]
    return names


def _nearest(key: str) -> str:
    """Returns the settings that an unknown key may mean: those with the same last part, then similar names."""
    names = setting_names()
    last = key.rpartition(".")[2]
    by_last = {name.rpartition(".")[2]: name for name in reversed(names)}
    alike = [by_last[name] for name in difflib.get_close_matches(last, by_last, n=2, cutoff=0.6)]
    candidates = dict.fromkeys(alike + difflib.get_close_matches(key, names, n=1, cutoff=0.7))
    return f"; nearest: {', '.join(candidates)}" if candidates else f"; settings are {', '.join(names)}"


def _example(config: str | Path | None) -> str:
    """Returns a command that serves the newest checkpoint of a training run in this folder."""
    outputs = Path("data/outputs")
    checkpoints = [path for depth in ("*", "*/*") for path in outputs.glob(f"{depth}/checkpoints/latest.ckpt")]
    newest = max(
        checkpoints, key=lambda path: path.stat().st_mtime, default=outputs / "finetune/checkpoints/latest.ckpt"
    )
    options = [] if config is None else ["--config", config]
    return f"For instance: {command('serve', *options, f'ckpt={newest}')}"
