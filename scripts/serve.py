"""Serve a checkpoint to a robot.

python scripts/serve.py --config config/serve.yaml ckpt=data/outputs/finetune/checkpoints/latest.ckpt
python scripts/serve.py ckpt=latest.ckpt engine.steps=8 guard.max_step_m=0.02 websocket_port=8008

Prints the limits in force, listens until SIGTERM or Ctrl-C, then closes the log and prints which runs are kept.
Other settings: config/serve.yaml. Exit status: 0 ended by SIGTERM, 130 by Ctrl-C, 2 refused.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--config", type=Path, metavar="YAML", help="config/serve.yaml, or your own file")
    parser.add_argument(
        "--allow-unauthenticated", action="store_true", help="admit clients without a token on any address"
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Serves until stopped."""
    from diffusion_policy.serve.server import serve_checkpoint
    from diffusion_policy.serve.settings import read_settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    flag = ["allow_unauthenticated=true"] if arguments.allow_unauthenticated else []
    serve_checkpoint(read_settings(arguments.config, [*arguments.settings, *flag]))
    return CommandResult()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
