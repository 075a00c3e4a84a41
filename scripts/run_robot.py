"""Run an arm with a served policy: the control loop, on the robot's computer.

    python scripts/run_robot.py --arm my_robot:make_arm --server 10.0.0.2:8007 --dry-run     # computes, moves nothing
    python scripts/run_robot.py --arm my_robot:make_arm --server 10.0.0.2:8007 --strategy skip --hz 50
    python scripts/run_robot.py --simulator                  # the tabletop in real time, its server on this machine
    python scripts/run_robot.py --replay EPISODE             # a recorded episode as the arm: compares, moves nothing

Holds the arm when in doubt, recovers by itself, and ends with Ctrl-C; what was sent to the arm is in the log that it
names. Exit status: 0 ended by itself, 130 by Ctrl-C, 2 refused.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_policy.command_line import CommandResult, run_command, seed_number
from diffusion_policy.installation import CONFIG

if TYPE_CHECKING:
    from diffusion_policy.serve.client import PolicyForm, RealClock
    from diffusion_policy.serve.client.running import RunSettings

TABLETOP = CONFIG / "simulator" / "tabletop.yaml"
TOKEN = "DIFFUSION_POLICY_TOKEN"
ARM_HZ = 50.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    arm = parser.add_mutually_exclusive_group(required=True)
    arm.add_argument("--arm", metavar="MODULE:FUNCTION", help="returns your robot's Arm, given the policy's form")
    arm.add_argument("--simulator", type=Path, nargs="?", const=TABLETOP, metavar="YAML", help="default: the tabletop")
    arm.add_argument("--replay", type=Path, metavar="EPISODE", help="a recorded episode, instead of an arm")
    parser.add_argument(
        "--server", default="127.0.0.1:8007", metavar="HOST:PORT", help="the server's address, or ws://HOST:PORT"
    )
    parser.add_argument(
        "--strategy",
        default="auto",
        help="wait, skip, ensemble, warm_start, rtc, or auto (default): rtc if possible, else skip",
    )
    parser.add_argument(
        "--smoothing", type=int, metavar="N", help="passes of the filter over a plan's steps (default 2; 0 for none)"
    )
    parser.add_argument("--n-action-steps", type=int, metavar="N", help="steps of a chunk executed (default 6)")
    parser.add_argument("--hz", type=float, help="commands per second (default 50; in simulators their own rate)")
    parser.add_argument("--dry-run", action="store_true", help="compute and log; no command is sent to the arm")
    parser.add_argument("--seconds", type=float, help="end after this time")
    parser.add_argument("--answer-timeout", type=float, default=1.0, metavar="S", help="then the arm holds (default 1)")
    parser.add_argument("--max-action-age", type=float, default=2.0, metavar="S", help="of executed steps (default 2)")
    parser.add_argument(
        "--camera-max-age",
        action="append",
        default=[],
        metavar="[CAMERA=]S",
        help="largest age of the newest frame (default 0.3)",
    )
    parser.add_argument(
        "--state-max-age", type=float, default=0.2, metavar="S", help="largest age of the state (default 0.2)"
    )
    parser.add_argument(
        "--longest-gap", type=float, metavar="S", help="longest gap between commands (default 2.5 periods, 0.1 s)"
    )
    parser.add_argument(
        "--gripper-blocking", type=float, default=0.0, metavar="S", help="time that a gripper movement blocks the arm"
    )
    parser.add_argument("--seed", type=seed_number, default=100_000, help="seed of the simulator's scene")
    parser.add_argument(
        "--log", type=Path, default=Path("data/logs/arm"), metavar="DIR", help="folder for the log of what was sent"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures of the run")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Runs the arm until it is done or stopped."""
    from diffusion_policy.serve.client import PolicyForm, RealClock
    from diffusion_policy.serve.client.loop_figures import LoopFigures
    from diffusion_policy.serve.client.running import connect, run_arm

    clock = RealClock()
    with connect(arguments.server, os.environ.get(TOKEN)) as client:
        form = PolicyForm.of(client.metadata)
        arm, hz, is_done = arm_of(arguments, form, clock, client.metadata)
        log, path = run_arm(arm, client, settings_of(arguments, hz), clock, is_done)
    figures = LoopFigures.of(log)
    shown = [f"{name:26}{value}" for name, value in figures.rows()]
    outcome: dict[str, Any] = {}
    if arguments.simulator is not None:
        outcome["succeeded"] = arm.succeeded
        shown.append(f"{'task':26}{'done' if arm.succeeded else 'not done'}")
    if arguments.replay is not None:
        from diffusion_policy.serve.replayed_commands import CommandComparison

        compared = CommandComparison.of(log, arm.commands, arm.start)
        outcome["against_recorded"] = compared.to_json()
        shown += [f"{name:26}{value}" for name, value in compared.rows()]
    return CommandResult([*shown, f"log: {path}"], document={**figures.to_json(), **outcome, "log": str(path)})


def arm_of(
    arguments: argparse.Namespace, form: PolicyForm, clock: RealClock, metadata: Mapping[str, Any]
) -> tuple[Any, float, Callable[[], bool]]:
    """Yields the arm and the rate at which it is commanded unless --hz sets another."""
    if arguments.arm is not None:
        from diffusion_policy.serve.client.running import make_arm

        return make_arm(arguments.arm, form), ARM_HZ, lambda: False
    if arguments.replay is not None:
        with whole_package("--replay"):
            from diffusion_policy.serve.recorded_arm import open_recorded_arm

        recorded = open_recorded_arm(arguments.replay, form, clock)
        return recorded, ARM_HZ, lambda: recorded.ended  # slower, and frames between two looks would be missed
    with whole_package("--simulator"):
        from diffusion_policy.closed_loop.simulated_arm import open_simulated_arm

    simulated, hz = open_simulated_arm(arguments.simulator, Path(metadata["checkpoint"]), clock, arguments.seed)
    return simulated, hz, lambda: simulated.ended


@contextmanager
def whole_package(option: str) -> Iterator[None]:
    """Raises WorkspaceError for an option whose modules are missing on a robot's computer."""
    from diffusion_policy.errors import WorkspaceError

    try:
        yield
    except ModuleNotFoundError as error:
        raise WorkspaceError(
            f"{option} needs {error.name}, which the installation for a robot's computer lacks: use --arm here, or "
            f"{option} where the whole package is installed"
        ) from error


def settings_of(arguments: argparse.Namespace, hz: float) -> RunSettings:
    """Returns the settings that the command line requests; raises WorkspaceError if they make no sense."""
    from diffusion_policy.errors import WorkspaceError
    from diffusion_policy.serve.client import DEFAULT_SMOOTHING, LoopSettings
    from diffusion_policy.serve.client.running import RunSettings

    ages: dict[str, float] = {}
    for word in arguments.camera_max_age:
        camera, _, seconds = word.rpartition("=")
        try:
            ages[camera] = float(seconds)
        except ValueError as error:
            raise WorkspaceError(f"--camera-max-age {word}; expected seconds, or CAMERA=SECONDS") from error
    loop = LoopSettings(
        hz if arguments.hz is None else arguments.hz,
        answer_timeout_s=arguments.answer_timeout,
        max_action_age_s=arguments.max_action_age,
        camera_max_age_s=ages.pop("", 0.3),
        camera_max_ages_s=ages,
        state_max_age_s=arguments.state_max_age,
        longest_gap_s=arguments.longest_gap,
        gripper_blocking_s=arguments.gripper_blocking,
        smoothing=DEFAULT_SMOOTHING if arguments.smoothing is None else arguments.smoothing,
    )
    return RunSettings(
        loop, arguments.strategy, arguments.n_action_steps, arguments.dry_run, arguments.seconds, arguments.log
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
