"""Entry point of training: `python train.py --config-name=train_cogact_robot task.dataset_path=data/zarr/mine.zarr`.

Settings are Hydra overrides of config/; the head of each file there states its purpose. Exit status: 0 done, 2 refused
with one sentence, 128 + N stopped by signal N (the checkpoint is saved and the command that continues it is printed).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_policy.command_line import StopSignals, tell_stop
from diffusion_policy.command_line import refuse as write_refusal
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.installation import CONFIG

if TYPE_CHECKING:
    from omegaconf import DictConfig

STOP = StopSignals(keep=True)

HOME = Path(__file__).resolve().parent  # the folder that Hydra resolves a relative --config-path from

logger = logging.getLogger("train")


def train(cfg: DictConfig) -> None:
    """Builds the workspace that the config names, and runs it."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import get_class

    from diffusion_policy.training_config import config_errors

    summary = None
    try:
        with config_errors(cfg):
            workspace = get_class(cfg._target_)
        warn_of_data(cfg)
        if STOP.signal is not None:  # a signal that came during an import may have been swallowed there
            raise KeyboardInterrupt
        summary = workspace(cfg).run()
    except WorkspaceError as error:
        refuse(error)
    except KeyboardInterrupt:
        end_at_once(Path(HydraConfig.get().runtime.output_dir), STOP.signal)
    if summary is not None:
        if summary.interrupted is not None:
            tell_stop(str(summary))
            sys.exit(128 + summary.interrupted)
        print_findings(summary.folder)
        print_summary(str(summary))


def warn_of_data(cfg: DictConfig) -> None:
    """Logs the gravest findings about the data before the first update, in the first process.

    Data that cannot be read is refused by the run itself, with the reason.
    """
    if int(os.environ.get("RANK", "0")):
        return
    from diffusion_policy.diagnose.gravest import gravest_before_training  # reads the numbers, in under a second
    from diffusion_policy.training_config import config_errors

    try:
        with config_errors(cfg):
            found = gravest_before_training(cfg)
        for line in found:
            logger.warning("data: %s", line)
    except WorkspaceError as error:
        logger.debug("the data cannot be inspected: %s", error)


def print_summary(text: str) -> None:
    """Prints the end of a run to the terminal, with unfolded lines that can be copied."""
    from diffusion_policy.terminal import show_line

    show_line(text)


def print_findings(folder: Path) -> None:
    """Prints the doctor's findings on a finished run and writes its page; the run succeeds even if that fails."""
    from diffusion_policy.diagnose.doctor import examine_numbers  # takes a second, which a refusal should not wait for
    from diffusion_policy.terminal import show

    try:
        table = examine_numbers(folder).table()
    except WorkspaceError as error:
        sys.stderr.write(f"the run is finished, but its results cannot be read: {error}\n")
    else:
        show(table)


def end_at_once(folder: Path | None, number: signal.Signals | None = None) -> None:
    """Handles a signal before the first update, or a second one: prints what is left of the run, and exits.

    Args:
        folder: folder of the run; None if it has none yet.
        number: the signal; None for Ctrl-C.
    """
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"ended at once: {what_is_left(folder)}\n")
    sys.exit(128 + (number or signal.SIGINT))


def what_is_left(folder: Path | None) -> str:
    """Returns what an interrupted run has saved, and how to continue it."""
    from diffusion_policy.run_folder import LATEST
    from diffusion_policy.run_folder.resuming import resume_command

    if folder is not None and (folder / "checkpoints" / LATEST).is_file():
        return f"updates since its last checkpoint are lost\ngo on with: {resume_command(folder)}"
    return "nothing was saved; the same command starts it again"


def refuse(error: WorkspaceError) -> None:
    """Prints the error and exits with status 2."""
    sys.exit(write_refusal(error))


def main() -> None:
    """Checks the request, then hands over to Hydra, which composes the config and calls `train`."""
    with STOP:
        try:
            import hydra

            from diffusion_policy.resolvers import register_resolvers
            from diffusion_policy.training_config import DEFAULT, checked_arguments, follower_overrides

            register_resolvers()
            sys.argv += follower_overrides()
            sys.argv[1:] = checked_arguments(sys.argv[1:], HOME)
            hydra.main(version_base="1.2", config_path=str(CONFIG), config_name=DEFAULT)(train)()
        except WorkspaceError as error:
            refuse(error)
        except KeyboardInterrupt:
            end_at_once(None, STOP.signal)


if __name__ == "__main__":
    main()
