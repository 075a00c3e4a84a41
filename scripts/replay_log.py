"""Recompute the actions of a logged run and compare.

python scripts/replay_log.py data/logs/serve/run_20260108_171739 --ckpt latest.ckpt
python scripts/replay_log.py RUN --ckpt other.ckpt --steps 4

Exit status: 0 reproduced (or compared with another policy), 1 not reproduced, 2 cannot be replayed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diffusion_policy.policy.sampler import SCHEDULERS
from diffusion_policy.serve.replay import replay
from diffusion_policy.spec import WorkspaceError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--ckpt", type=Path, required=True, help="the log's own checkpoint, or another")
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="default: the log's")
    parser.add_argument("--steps", type=int, help="default: the log's")
    parser.add_argument("--device", help="default: the log's")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the comparison")
    arguments = parser.parse_args(argv)
    wanted = {name: getattr(arguments, name) for name in ("scheduler", "steps", "device")}
    overrides = {name: value for name, value in wanted.items() if value is not None}
    try:
        report = replay(arguments.run, arguments.ckpt, overrides)
    except WorkspaceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    if arguments.json:
        arguments.json.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    Console().print(report.table())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
