"""Export a logged run for other tools; the run itself stays as it is.

python scripts/export_run.py RUN --inference-log data/logs     the predecessor's inference_log_*.json
python scripts/export_run.py RUN --vlalab vlalab_runs          a run directory of VLA-Lab
python scripts/export_run.py RUN --rerun run.rrd               a Rerun recording (extra: rerun)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diffusion_policy.serve.log_export import to_inference_log, to_rerun, to_vlalab
from diffusion_policy.spec import WorkspaceError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--inference-log", type=Path, metavar="DIR")
    kinds.add_argument("--vlalab", type=Path, metavar="DIR")
    kinds.add_argument("--rerun", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    exports = ((to_inference_log, arguments.inference_log), (to_vlalab, arguments.vlalab), (to_rerun, arguments.rerun))
    try:
        (written,) = [export(arguments.run, target) for export, target in exports if target is not None]
    except WorkspaceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    Console().print(str(written), markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
