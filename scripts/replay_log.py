"""Recompute the actions of a logged run and compare.

python scripts/replay_log.py data/logs/serve/run_20260108_171739 --ckpt latest.ckpt
python scripts/replay_log.py RUN --ckpt other.ckpt --steps 4

Exit status: 0 reproduced (or compared with another policy), 1 not reproduced, 2 cannot be replayed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.policy.sampler import SCHEDULERS
from diffusion_policy.serve.replay import replay
from diffusion_policy.serve.verdict import conclude


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
    return conclude(lambda: replay(arguments.run, arguments.ckpt, overrides), arguments.json)


if __name__ == "__main__":
    sys.exit(main())
