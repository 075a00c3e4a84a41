"""Push recorded frames through a live server, and compare model inputs and actions with training's way.

python scripts/serve.py ckpt=latest.ckpt allow_inspection=true
python scripts/check_parity.py data/zarr/set.zarr --ckpt latest.ckpt --server 127.0.0.1:8007

Exit status: 0 equal, 1 not equal (the culprit is named), 2 cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.serve.client import LineClient
from diffusion_policy.serve.parity import ParityReport, check_parity
from diffusion_policy.serve.verdict import conclude


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, metavar="ZARR")
    parser.add_argument("--ckpt", type=Path, required=True, help="the checkpoint that is served")
    parser.add_argument("--server", default="127.0.0.1:8007", metavar="HOST:PORT")
    parser.add_argument("--token", help="if the server wants one")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--encoding", choices=[".png", ".jpg"], default=".png", help=".jpg shows what compression does")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args(argv)
    host, _, port = arguments.server.rpartition(":")

    def compare() -> ParityReport:
        with LineClient(host, int(port) if port.isdecimal() else 0, arguments.token, timeout=60) as client:
            return check_parity(arguments.ckpt, arguments.dataset, client, arguments.requests, arguments.encoding)

    return conclude(compare, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
