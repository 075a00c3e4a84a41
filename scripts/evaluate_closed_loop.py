"""Evaluate a checkpoint in a simulator: how often it does the task, with an interval, and what goes wrong otherwise.

    python scripts/evaluate_closed_loop.py data/outputs/.../latest.ckpt
    python scripts/evaluate_closed_loop.py latest.ckpt --scenes 40 --json closed_loop.json --picture --video 4
    python scripts/evaluate_closed_loop.py latest.ckpt --compare best.ckpt       # the same scenes, paired
    python scripts/evaluate_closed_loop.py latest.ckpt --through-server --set guard.max_step_m=0.08 --latency 200

An interrupted evaluation with --json keeps the finished scenes; the same command with --resume continues. Exit
status: 0 measured, 2 refused, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_policy.command_line import CommandResult, Stopped, progress, run_command, seed_number
from diffusion_policy.installation import CONFIG
from diffusion_policy.policy import SCHEDULER_NAMES
from diffusion_policy.policy.default_sampler import DEFAULT_SAMPLER

if TYPE_CHECKING:
    from diffusion_policy.closed_loop.evaluation import Evaluation
    from diffusion_policy.env_runner.document import ClosedLoop, VideoFile
    from diffusion_policy.env_runner.results import SceneResult

TABLETOP = CONFIG / "simulator" / "tabletop.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CKPT", help="a checkpoint, or VPT's .weights")
    add("--scenes", type=int, default=100, metavar="N", help="episodes (default 100)")
    add("--seed", type=seed_number, default=100_000, help="seed of the first scene and of the noise (default 100000)")
    add("--simulator", type=Path, default=TABLETOP, metavar="YAML", help="another simulator's settings")
    add("--env", dest="env_words", action="append", default=[], metavar="KEY=VALUE", help="an argument of its env")
    add("--referee", help="the tabletop's referee: physics (default) or kinematic, which is faster")
    add("--task", help="the tabletop's task: pick_and_place (default), two_in_order, distractors, pose_only")
    add(
        "--camera-size",
        type=int,
        nargs=2,
        metavar=("WIDTH", "HEIGHT"),
        help="size of the recordings' frames (default 320 180)",
    )
    add("--n-action-steps", type=int, metavar="N", help="steps of a chunk that are executed (default 6)")
    add_loop_arguments(parser)
    add("--compare", type=Path, metavar="OTHER", help="a checkpoint, or the --json result of one")
    add(
        "--weights",
        choices=["ema_model", "model"],
        help="weights to evaluate (default ema_model; model if the file has no average)",
    )
    add("--scheduler", choices=SCHEDULER_NAMES, default=DEFAULT_SAMPLER.scheduler)
    add("--steps", type=int, default=DEFAULT_SAMPLER.steps, help="denoising steps (default %(default)d)")
    add("--greedy", action="store_true", help="for VPT: take the most probable actions instead of sampling")
    add("--device", default="cpu", help="cpu (default), cuda:0; auto: cuda if available")
    add("--threads", type=int, help="compute threads (default: one per core that other processes leave free)")
    add("--output", type=Path, default=Path("data/closed_loop"), metavar="DIR", help="folder for picture and videos")
    add("--picture", action="store_true", help="draw outcomes over positions: DIR/outcomes.png")
    add("--video", type=int, default=0, metavar="N", help="film the first N scenes: DIR/scene_0000_*.mp4")
    add("--json", type=Path, metavar="OUT", help="write all numbers")
    add("--resume", action="store_true", help="run only the scenes that are not yet in --json OUT")


def add_loop_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of latency, control loop and server."""
    parser.add_argument(
        "--latency", type=float, default=0.0, metavar="MS", help="injected latency, during which the world continues"
    )
    parser.add_argument(
        "--strategy",
        metavar="NAME",
        help="the control loop's strategy (with --through-server): wait, skip, ensemble, warm_start, rtc, auto",
    )
    parser.add_argument(
        "--smoothing", type=int, metavar="N", help="passes of the loop's filter over a plan (default 2; 0 for none)"
    )
    parser.add_argument("--jitter", type=float, default=0.0, metavar="MS", help="uniform jitter of the latency")
    parser.add_argument("--through-server", action="store_true", help="run through the real server, client and guard")
    parser.add_argument("--serve-config", type=Path, default=CONFIG / "serve.yaml", metavar="YAML", help="its settings")
    parser.add_argument(
        "--set", dest="serve_words", action="append", default=[], metavar="KEY=VALUE", help="a setting of the server"
    )


def work(arguments: argparse.Namespace) -> CommandResult:
    """Runs the scenes, then the other checkpoint's, if there is one."""
    from diffusion_policy.closed_loop.pictures import draw_outcomes
    from diffusion_policy.closed_loop.tables import comparison_table, result_table
    from diffusion_policy.env_runner.outcomes import with_position
    from diffusion_policy.env_runner.results import compare
    from diffusion_policy.storage import write_json

    evaluation = evaluation_of(arguments)
    other = None if arguments.compare is None else readable(arguments.compare, evaluation)
    found = run(arguments.checkpoint, evaluation, arguments, arguments.json)
    shown: list[Any] = [str(arguments.checkpoint), result_table(found)]
    if arguments.video:
        found.videos = video_files(found.results, arguments)
    document = found.to_json()
    if arguments.picture and with_position(found.results):
        picture = arguments.output / "outcomes.png"
        draw_outcomes(found.results, f"{arguments.checkpoint.name}, {evaluation.simulator.name}", picture)
        shown.append(f"picture: {picture}")
    elif arguments.picture:
        shown.append("picture: left out, since this simulator reports no position on a table (info.position)")
    if arguments.video:
        shown.append(f"videos: {arguments.output}")
    if arguments.compare:
        if other is None:
            if arguments.json:
                write_json(arguments.json, document)  # the other checkpoint takes as long
            second = run(arguments.compare, evaluation, arguments, None)
            shown += ["", str(arguments.compare), result_table(second)]
            other = second.results
        comparison = compare(other, found.results)
        alike = arguments.compare.name == arguments.checkpoint.name
        names = [str(path) if alike else path.name for path in (arguments.compare, arguments.checkpoint)]
        shown.append(comparison_table(comparison, *names))
        document["comparison"] = {"with": str(arguments.compare), **comparison.to_json()}
    return CommandResult(shown, document=document)


def evaluation_of(arguments: argparse.Namespace) -> Evaluation:
    """Returns the evaluation that the command line requests; raises WorkspaceError if it makes no sense."""
    from diffusion_policy.closed_loop.evaluation import Evaluation
    from diffusion_policy.env_runner.simulator import Simulator, read_arguments
    from diffusion_policy.errors import WorkspaceError

    if arguments.scenes < 1:
        raise WorkspaceError(f"--scenes is {arguments.scenes}; expected 1 or more")
    if arguments.resume and arguments.json is None:
        raise WorkspaceError("--resume needs --json OUT: it continues with the scenes in OUT")
    if arguments.serve_words and not arguments.through_server:
        raise WorkspaceError("--set is for the server; add --through-server")
    if arguments.jitter and arguments.strategy is None:
        raise WorkspaceError("--jitter is for the control loop; add --strategy skip --through-server")
    if arguments.smoothing is not None and arguments.strategy is None:
        raise WorkspaceError("--smoothing is for the control loop; add --strategy auto --through-server")
    chosen = read_arguments(arguments.env_words)
    chosen |= {key: getattr(arguments, key) for key in ("task", "referee") if getattr(arguments, key) is not None}
    if arguments.camera_size is not None:
        chosen["image_size"] = arguments.camera_size
    simulator = Simulator.load(arguments.simulator, **chosen)
    simulator.make().close()
    return Evaluation(
        simulator,
        arguments.scenes,
        arguments.seed,
        arguments.n_action_steps,
        arguments.latency,
        arguments.weights,
        arguments.scheduler,
        arguments.steps,
        found_device(arguments.device),
        arguments.threads,
        arguments.through_server,
        arguments.serve_config,
        tuple(arguments.serve_words),
        arguments.strategy,
        arguments.jitter,
        arguments.smoothing,
        arguments.greedy,
    )


def found_device(asked: str) -> str:
    """Returns the device to compute on; for ``auto``, cuda if available, else the CPU."""
    if asked != "auto":
        return asked
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def run(checkpoint: Path, evaluation: Evaluation, arguments: argparse.Namespace, kept_in: Path | None) -> ClosedLoop:
    """Evaluates one checkpoint with a progress bar and videos, and keeps the scenes of an interrupted evaluation."""
    from diffusion_policy.closed_loop.evaluation import evaluate
    from diffusion_policy.closed_loop.videos import Video
    from diffusion_policy.env_runner.document import read_document
    from diffusion_policy.storage import write_json

    earlier, done = read_document(kept_in) if arguments.resume and kept_in else ({}, [])

    def recorder(scene: int) -> Video | None:
        is_recorded = checkpoint == arguments.checkpoint and scene < arguments.video
        return Video(arguments.output, scene, evaluation.simulator.control_hz) if is_recorded else None

    def keep(found: ClosedLoop) -> None:
        if arguments.json is None:
            raise Stopped("no scene is kept without --json OUT")
        if kept_in is None:
            raise Stopped(f"the scenes of {arguments.checkpoint} are kept in {arguments.json}", added=["--resume"])
        if not found.results:
            return
        write_json(kept_in, found.to_json())
        raise Stopped(f"{len(found.results)} of {found.scenes} scenes are kept in {kept_in}", added=["--resume"])

    with progress("scenes") as show:
        return evaluate(checkpoint, evaluation, earlier=earlier, done=done, show=show, recorder=recorder, kept=keep)


def video_files(results: Sequence[SceneResult], arguments: argparse.Namespace) -> list[VideoFile]:
    """Returns the videos of this evaluation, with paths relative to the folder of --json, or else to --output."""
    from diffusion_policy.env_runner.document import VideoFile, video_name
    from diffusion_policy.storage import file_sha256

    folder = arguments.output if arguments.json is None else arguments.json.parent
    files = {
        result.scene: arguments.output / video_name(result) for result in results if result.scene < arguments.video
    }
    return [
        VideoFile(scene, os.path.relpath(file, folder), file_sha256(file))
        for scene, file in sorted(files.items())
        if file.is_file()
    ]


def readable(path: Path, evaluation: Evaluation) -> list[SceneResult] | None:
    """Returns the scenes of a result to compare with; None for a checkpoint, which must be run.

    Raises:
        WorkspaceError: it is neither, or a result on other scenes.
    """
    from diffusion_policy.checkpoint import read_checkpoint
    from diffusion_policy.env_runner.document import check_same, read_document

    if path.suffix != ".json":
        read_checkpoint(path)
        return None
    document, results = read_document(path)
    here = {"simulator": evaluation.simulator.describe(), "seed": evaluation.seed}
    check_same(here, document, str(path), scenes_only=True)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
