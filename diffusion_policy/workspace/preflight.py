"""Checks, before anything is written, whether a training run could start here: settings, device, datasets, checkpoint.

    python -m diffusion_policy.workspace.preflight ARGUMENTS OF train.py

The launchers run it before they adapt a checkpoint; a checkpoint that does not exist yet is not checked. Exit status: 0
it could start, 2 it could not, with one message, 128 + N ended by signal N.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import StopSignals, refuse, tell_stop
from diffusion_policy.errors import WorkspaceError


def check_start(arguments: Sequence[str]) -> None:
    """Check what `train.py` would need first.

    Args:
        arguments: of its command line.

    Raises:
        WorkspaceError: an unknown setting, a missing device, a dataset that does not open, or a checkpoint to start
            from with other actions, settings or tensors.
    """
    from diffusion_policy.adapt.starting_point import plan_pretrained
    from diffusion_policy.dataset.joined_datasets import dataset_paths  # slow imports, which may be interrupted
    from diffusion_policy.dataset.replay_buffer import ReplayBuffer
    from diffusion_policy.training_config import compose_arguments
    from diffusion_policy.workspace.processes import find_device
    from diffusion_policy.workspace.start import decide_start

    cfg = compose_arguments(arguments)
    find_device(cfg.training.device)
    for path in dataset_paths(cfg.task.dataset.zarr_path):
        ReplayBuffer.open(path)
    named = cfg.pretrained.path
    if named is not None and Path(named).is_file():
        start = decide_start(cfg, run_folder(arguments))
        if start.origin == "pretrained" and start.path is not None:
            plan_pretrained(start.path, cfg)


def run_folder(arguments: Sequence[str]) -> Path | None:
    """The run folder that the arguments name; None: a new one."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = OverridesParser.create().parse_overrides([word for word in arguments if not word.startswith("-")])
    named = [override.value() for override in overrides if override.key_or_group == "hydra.run.dir"]
    return Path(str(named[-1])) if named else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; returns the exit status."""
    with StopSignals(keep=arguments is None) as stop:
        try:
            check_start(sys.argv[1:] if arguments is None else arguments)
        except (WorkspaceError, OSError) as error:
            return refuse(error)
        except KeyboardInterrupt:
            number = stop.signal or signal.SIGINT
            tell_stop(f"stopped by {number.name}: nothing was written; the same command starts it again")
            return 128 + number
    return 0


if __name__ == "__main__":
    sys.exit(main())
