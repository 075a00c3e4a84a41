"""Send recorded frames through a live server, and compare model inputs and actions with those of training.

python scripts/serve.py ckpt=latest.ckpt allow_inspection=true
python scripts/check_parity.py data/zarr/set.zarr --ckpt latest.ckpt --server 127.0.0.1:8007

Exit status: 0 equal, 1 not equal (the culprit is named), 2 cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, run_command
from diffusion_policy.errors import WorkspaceError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("dataset", type=Path, metavar="ZARR")
    parser.add_argument("--ckpt", type=Path, required=True, help="the checkpoint that is served")
    parser.add_argument("--server", default="127.0.0.1:8007", metavar="HOST:PORT")
    parser.add_argument("--token", help="token, if the server requires one")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument(
        "--encoding", choices=[".png", ".jpg"], default=".png", help=".jpg shows the effect of compression"
    )
    parser.add_argument("--json", type=Path, metavar="OUT")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Compares the server's answers with the checkpoint's own."""
    from diffusion_policy.serve.checks.parity import check_parity
    from diffusion_policy.serve.client import LineClient

    host, _, port = arguments.server.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise WorkspaceError(f"--server {arguments.server}: expected HOST:PORT, such as 127.0.0.1:8007")
    with LineClient(host, int(port), arguments.token, timeout=60) as client:
        report = check_parity(arguments.ckpt, arguments.dataset, client, arguments.requests, arguments.encoding)
    return CommandResult(report.table(), 0 if report.passed else 1, report.to_json())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
