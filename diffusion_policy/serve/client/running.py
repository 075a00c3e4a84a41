"""What ``scripts/run_robot.py`` does: connects to a server, finds the arm, runs the loop, and keeps its log."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_policy.command_line import Stopped
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.client.arm import Arm, FloatArray, Reading
from diffusion_policy.serve.client.arm_log import ArmLog, ArmLogContent, read_arm_log
from diffusion_policy.serve.client.clock import Clock
from diffusion_policy.serve.client.connections import LineClient, WebSocketClient
from diffusion_policy.serve.client.control_loop import ControlLoop
from diffusion_policy.serve.client.loop_settings import LoopSettings
from diffusion_policy.serve.client.requester import PolicyClient, PolicyForm, ThreadRequester
from diffusion_policy.serve.client.strategies import AUTO, chosen_strategy, make_strategy

Client = LineClient | WebSocketClient
# Of the first messages; the loop's own limit is ``answer_timeout_s`` (s).
_REPLY_TIMEOUT_S = 10.0


class DryRun:
    """An arm that observes and gets no commands: everything is computed and logged, nothing moves.

    Args:
        arm: the real one.
    """

    def __init__(self, arm: Arm) -> None:
        self._arm = arm

    def observe(self) -> Reading:
        """What the arm measures."""
        return self._arm.observe()

    def move(self, action: FloatArray) -> None:
        """Nothing."""

    def hold(self, reason: str) -> None:
        """Nothing: the arm was not moved."""

    def stop(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class RunSettings:
    """What a run is asked for.

    Attributes:
        loop: rates and limits.
        strategy: name of the chunk strategy, or "auto", see ``chosen_strategy``.
        n_action_steps: steps of a chunk that are executed; None: 6, or all of a shorter chunk, as in rollouts.
        dry_run: compute and log, do not move.
        seconds: after which the run ends by itself; None: never.
        log: folder of the arm's log.
        about: further entries of the log's first line.
    """

    loop: LoopSettings
    strategy: str = AUTO
    n_action_steps: int | None = None
    dry_run: bool = False
    seconds: float | None = None
    log: Path = Path("data/logs/arm")
    about: Mapping[str, Any] = field(default_factory=dict)

    def steps(self, form: PolicyForm) -> int:
        """Steps of a chunk that are executed.

        Raises:
            WorkspaceError: the chunk does not have so many.
        """
        count = min(6, form.n_action_steps) if self.n_action_steps is None else self.n_action_steps
        if not 1 <= count <= form.n_action_steps:
            raise WorkspaceError(f"--n-action-steps {count}; expected 1 to the {form.n_action_steps} of a chunk")
        return count


def connect(address: str, token: str | None = None) -> Client:
    """Connects to a server.

    Args:
        address: HOST:PORT of the line protocol, or ws://HOST:PORT.
        token: if the server requires one.

    Raises:
        WorkspaceError: it is no address.
        ServerError: nothing answers there.
    """
    if re.match(r"wss?://", address):
        return WebSocketClient(address, token, _REPLY_TIMEOUT_S)
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise WorkspaceError(f"--server {address}; expected HOST:PORT, such as 127.0.0.1:8007, or ws://HOST:PORT")
    return LineClient(host, int(port), token, _REPLY_TIMEOUT_S)


def make_arm(name: str, form: PolicyForm) -> Arm:
    """Imports and calls what makes an arm.

    Args:
        name: ``MODULE:FUNCTION``; the module may be in the current folder. The function takes the policy's form.
        form: what the policy observes and commands.

    Raises:
        WorkspaceError: there is no such module or function, or the function returns no arm.
    """
    module_name, _, function_name = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        maker = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise WorkspaceError(f"--arm {name}: {error}; expected MODULE:FUNCTION, importable from here") from error
    arm: Arm = maker(form)
    missing = [method for method in ("observe", "move", "hold", "stop") if not callable(getattr(arm, method, None))]
    if missing:
        raise WorkspaceError(f"--arm {name}: {type(arm).__name__} has no {', '.join(missing)}; see serve/client/arm.py")
    return arm


def run_arm(
    arm: Arm, client: Client, settings: RunSettings, clock: Clock, is_done: Callable[[], bool] = lambda: False
) -> tuple[ArmLogContent, Path]:
    """Runs an arm until it is done, ``settings.seconds`` are over, or it is stopped; returns its log and the file.

    Raises:
        Stopped: by Ctrl-C or a signal; says where the log is.
        WorkspaceError: settings and policy do not match, or the log cannot be written.
    """
    policy_client = PolicyClient(client)
    metadata = client.metadata
    kept: dict[str, Any] = {key: metadata.get(key) for key in ("checkpoint", "checkpoint_sha256")}
    name = chosen_strategy(settings.strategy, policy_client.form.continuations)
    strategy = make_strategy(name, settings.steps(policy_client.form))
    log = ArmLog(settings.log)
    loop = ControlLoop(
        DryRun(arm) if settings.dry_run else arm,
        ThreadRequester(policy_client, policy_client.interrupt),
        policy_client.form,
        strategy,
        settings.loop,
        clock=clock,
        log=log,
        about={"dry_run": settings.dry_run, **kept, **settings.about},
    )
    end = None if settings.seconds is None else clock.now() + settings.seconds
    try:
        loop.run(lambda: is_done() or (end is not None and clock.now() >= end))
    except KeyboardInterrupt as interruption:
        raise Stopped(f"the arm was stopped, and what it was sent is kept in {log.path}") from interruption
    assert log.path is not None, "a loop that ran has written its first line"
    return read_arm_log(log.path), log.path
