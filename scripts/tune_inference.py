"""Measure samplers and chunk strategies on recorded data and this machine; propose the cheapest that is good enough.

python scripts/tune_inference.py latest.ckpt data/zarr/set.zarr --candidates ddim:4 ddim:8 ddim:8:rtc ddpm:100
python scripts/tune_inference.py latest.ckpt data/zarr/set.zarr --simulator config/simulator/tabletop.yaml --scenes 40
A candidate is SCHEDULER:STEPS; with :WARM, a number, the server starts from the remainder of its last chunk; with :rtc
or :warm_start the requests carry what the arm executes meanwhile, as run_robot.py --strategy does. With a simulator
success in closed loop counts as well. Settings of server and control loop are printed, ready to paste.

Exit status: 0 a candidate is proposed, 1 none fits the budget, 2 cannot be measured.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_policy.command_line import CommandResult, progress, run_command, seed_number
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_events import TOLERANCE_SECONDS
from diffusion_policy.gripper_scale import add_gripper_scale
from diffusion_policy.installation import CONFIG

if TYPE_CHECKING:
    from diffusion_policy.closed_loop.evaluation import Evaluation
    from diffusion_policy.serve.candidates import Candidate
    from diffusion_policy.serve.settings import EngineSettings
    from diffusion_policy.tables import Printable, Table

PLAIN_STRATEGY = "skip"  # of the control loop, for a candidate that continues no chunk


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    from diffusion_policy.serve.settings import PRECISIONS

    parser.add_argument("checkpoint", type=Path, metavar="CKPT")
    parser.add_argument("dataset", type=Path, metavar="ZARR")
    parser.add_argument("--candidates", nargs="+", metavar="SCHEDULER:STEPS[:WARM|:rtc|:warm_start]",
        help="default: eight samplers, and two of them that continue chunks")  # fmt: skip
    parser.add_argument("--episodes", nargs="+", default=["held-out"], help="held-out (default), all, or numbers")
    add_gripper_scale(parser)
    parser.add_argument("--stride", type=int, default=6, help="steps executed before the client asks again")
    parser.add_argument("--delay-steps", type=int, default=1, metavar="N",
        help="steps that the arm executes from an observation to its answer (default 1)")  # fmt: skip
    parser.add_argument("--hz", type=float, default=10.0, help="control rate")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE_SECONDS, metavar="SECONDS",
        help="seconds between a predicted and a recorded gripper event that match (default %(default)g)")  # fmt: skip
    parser.add_argument(
        "--budget-mm", type=float, default=1.0, help="allowed position error beyond the best candidate's"
    )
    parser.add_argument(
        "--budget-deg", type=float, default=0.5, help="allowed rotation error beyond the best candidate's"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--json", type=Path, metavar="OUT")
    loop = parser.add_argument_group("success in closed loop, through the server")
    loop.add_argument(
        "--simulator", type=Path, metavar="YAML", help="a simulator, such as config/simulator/tabletop.yaml"
    )
    loop.add_argument(
        "--scenes", type=int, default=40, metavar="N", help="scenes, the same for all candidates (default 40)"
    )
    loop.add_argument("--seed", type=seed_number, default=100_000, help="seed of the first scene (default 100000)")
    loop.add_argument(
        "--latency", type=float, metavar="MS", help="injected latency (default: each candidate's median time)"
    )
    loop.add_argument(
        "--strategy", metavar="NAME", help="strategy of the control loop: wait, skip, ensemble, warm_start, rtc"
    )
    loop.add_argument(
        "--budget-points", type=float, default=5.0, help="allowed loss of success compared with the best (default 5)"
    )
    loop.add_argument(
        "--serve-config", type=Path, default=CONFIG / "serve.yaml", metavar="YAML", help="the server's settings"
    )
    loop.add_argument(
        "--set", dest="serve_words", action="append", default=[], metavar="KEY=VALUE", help="a setting of the server"
    )


def work(arguments: argparse.Namespace) -> CommandResult:
    """Measures the candidates on recorded data, then in the simulator, if there is one."""
    from diffusion_policy.closed_loop.tuning import check_candidate, tune_in_closed_loop
    from diffusion_policy.evaluate.episode_choice import parse_episodes
    from diffusion_policy.serve.candidates import DEFAULT_CANDIDATES, parse_candidate
    from diffusion_policy.serve.settings import EngineSettings
    from diffusion_policy.serve.tuning import Budget, tune

    if not arguments.hz > 0:
        raise WorkspaceError(f"--hz is {arguments.hz}; expected more than 0")
    words = arguments.candidates
    candidates = None if words is None else [parse_candidate(word) for word in words]
    evaluation = evaluation_of(arguments, candidates)
    settings = EngineSettings(device=arguments.device, precision=arguments.precision)
    if evaluation is not None:
        first = parse_candidate(DEFAULT_CANDIDATES[0]) if candidates is None else candidates[0]
        check_candidate(arguments.checkpoint, evaluation, first, settings)
    with progress("requests") as show:
        logging.basicConfig(level=logging.INFO, format="%(message)s")  # above the bar
        report = tune(
            arguments.checkpoint,
            arguments.dataset,
            candidates,
            Budget(arguments.budget_mm, arguments.budget_deg, arguments.stride / arguments.hz),
            settings,
            parse_episodes(arguments.episodes),
            arguments.stride,
            arguments.hz,
            arguments.tolerance,
            arguments.gripper_scale,
            show,
            arguments.delay_steps,
        )
    if evaluation is None:
        return answer_of(arguments, [report.table()], report.proposed, settings, report.to_json())
    with progress("scenes") as show:
        tuned = tune_in_closed_loop(
            arguments.checkpoint,
            report,
            evaluation,
            settings,
            latency_ms=arguments.latency,
            allowed_loss=arguments.budget_points / 100,
            show=show,
        )
    return answer_of(arguments, [report.table(), tuned.table()], tuned.proposed, settings, tuned.to_json())


def evaluation_of(arguments: argparse.Namespace, candidates: list[Candidate] | None) -> Evaluation | None:
    """The closed loop that is asked for; None without --simulator. WorkspaceError where it makes no sense.

    If one of the candidates continues chunks, the others run by the control loop, too: they are compared.
    """
    if arguments.simulator is None:
        if arguments.serve_words or arguments.strategy is not None or arguments.latency is not None:
            raise WorkspaceError("--set, --strategy and --latency are for closed loop; add --simulator YAML")
        return None
    from diffusion_policy.closed_loop.evaluation import Evaluation
    from diffusion_policy.env_runner.rollout import DEFAULT_ACTION_STEPS
    from diffusion_policy.env_runner.simulator import Simulator

    if arguments.scenes < 1:
        raise WorkspaceError(f"--scenes is {arguments.scenes}; expected 1 or more")
    if not 0 <= arguments.budget_points <= 100:
        raise WorkspaceError(f"--budget-points is {arguments.budget_points}; expected 0 to 100")
    in_loop = candidates is None or any(candidate.continues for candidate in candidates)
    return Evaluation(
        Simulator.load(arguments.simulator),
        arguments.scenes,
        arguments.seed,
        None if arguments.stride == DEFAULT_ACTION_STEPS else arguments.stride,
        0.0 if arguments.latency is None else arguments.latency,
        serve_config=arguments.serve_config,
        serve_words=tuple(arguments.serve_words),
        strategy=arguments.strategy or (PLAIN_STRATEGY if in_loop else None),
    )


def answer_of(
    arguments: argparse.Namespace,
    tables: list[Table],
    proposed: Candidate | None,
    settings: EngineSettings,
    document: dict[str, Any],
) -> CommandResult:
    """Returns the tables and, for a proposal, the settings to paste."""
    from diffusion_policy.commands import command
    from diffusion_policy.tables import Text

    if proposed is None:
        return CommandResult(tables, 1, {**document, "serve_settings": None, "strategy": None})
    words = proposed.serve_words(settings)
    config: tuple[object, ...] = ("--config", arguments.serve_config) if arguments.simulator is not None else ()
    line = command("serve", *config, f"ckpt={arguments.checkpoint}", *words, *arguments.serve_words)
    strategy = proposed.continues or arguments.strategy or PLAIN_STRATEGY
    stride = str(arguments.stride)
    robot = command("run_robot", "--arm", "my_robot:make_arm", "--strategy", strategy, "--n-action-steps", stride)
    lines: list[str] = [
        f"  {key}: {value}" for key, _, value in (word.removeprefix("engine.").partition("=") for word in words)
    ]
    shown: list[Printable] = [
        "in the server's settings:",
        "engine:",
        *lines,
        "or on its command line:",
        Text(line, no_wrap=True),
        "and on the robot's computer:",
        Text(robot, no_wrap=True),
    ]
    return CommandResult([*tables, *shown], 0, {**document, "serve_settings": list(words), "strategy": strategy})


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
