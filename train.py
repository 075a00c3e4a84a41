"""The door of training: `python train.py --config-name=train_cogact_robot task.dataset_path=data/zarr/mine.zarr`.

Settings are Hydra overrides of config/; the head of each file there says what it is for. Exit status: 0 done, 2 refused
with one sentence, 128 + N stopped by signal N (the checkpoint is saved and the command to go on is printed).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich import get_console

from diffusion_policy.installation import CONFIG
from diffusion_policy.resolvers import register_resolvers
from diffusion_policy.spec import WorkspaceError
from diffusion_policy.workspace.overrides import check_overrides, follower_overrides

logger = logging.getLogger("train")


@hydra.main(version_base="1.2", config_path=str(CONFIG), config_name="train_cogact_robot")
def train(cfg: DictConfig) -> None:
    """Build the workspace that the config names and run it."""
    summary = None
    try:
        warn_of_data(cfg)
        summary = hydra.utils.get_class(cfg._target_)(cfg).run()
    except WorkspaceError as error:
        refuse(error)
    except KeyboardInterrupt:
        end_at_once(Path(HydraConfig.get().runtime.output_dir))
    if summary is not None:
        if summary.interrupted is None:
            print_findings(summary.folder)
        get_console().print(str(summary), markup=False, highlight=False, soft_wrap=True)
        if summary.interrupted is not None:
            sys.exit(128 + summary.interrupted)


def warn_of_data(cfg: DictConfig) -> None:
    """Log the gravest that the data shows, before the first update; the first process does.

    What cannot be read is refused by the run itself, with its reason.
    """
    if int(os.environ.get("RANK", "0")):
        return
    from diffusion_policy.report.gravest import gravest_before_training  # reads the numbers: under a second

    try:
        for line in gravest_before_training(cfg):
            logger.warning("data: %s", line)
    except WorkspaceError as error:
        logger.debug("the data cannot be looked at: %s", error)


def print_findings(folder: Path) -> None:
    """What doctor and page say of a finished run; the run stays a good one if they cannot read it."""
    from diffusion_policy.report.doctor import examine_numbers  # takes a second, which a refusal need not wait for

    try:
        table = examine_numbers(folder).table()
    except WorkspaceError as error:
        sys.stderr.write(f"the run is finished, but nothing can be said of it: {error}\n")
    else:
        get_console().print(table, highlight=False, crop=False)


def end_at_once(folder: Path | None) -> None:
    """Ctrl-C before the first update, or a second one: say what is left of the run and leave with its status.

    Args:
        folder: of the run; None: it has none yet.
    """
    from diffusion_policy.workspace.start import LATEST  # takes seconds, which a refusal need not wait for
    from diffusion_policy.workspace.summary import resume_command

    if folder is not None and (folder / "checkpoints" / LATEST).is_file():
        left = f"updates since its last checkpoint are lost\ngo on with: {resume_command(folder)}"
    else:
        left = "nothing was saved; the same command starts it again"
    sys.stderr.write(f"ended at once: {left}\n")
    sys.exit(128 + signal.SIGINT)


def refuse(error: WorkspaceError) -> None:
    """Say what is wrong and leave with status 2."""
    sys.stderr.write(f"error: {error}\n")
    sys.exit(2)


if __name__ == "__main__":
    register_resolvers()
    sys.argv += follower_overrides()
    try:
        check_overrides(CONFIG, "train_cogact_robot", sys.argv[1:])
        train()
    except WorkspaceError as error:
        refuse(error)
    except KeyboardInterrupt:
        end_at_once(None)
