"""The verdict of the checks on a dataset that was just converted."""

from __future__ import annotations

from pathlib import Path

from diffusion_policy.command_line import Stopped
from diffusion_policy.commands import command
from diffusion_policy.diagnose.inspection import inspect_conversion
from diffusion_policy.errors import WorkspaceError


def checked(dataset: Path) -> list[str]:
    """Returns the verdict in one line and the command that shows all checks; they do not affect the exit status."""
    verify = command("verify_converted_data", "--zarr-path", dataset)
    try:
        verdict = inspect_conversion(dataset).verdict()
    except WorkspaceError as error:
        verdict = f"The checks cannot read it: {error}"
    except KeyboardInterrupt as error:
        raise Stopped(f"{dataset} is complete, but the checks had not finished", command=verify) from error
    return [verdict, f"all checks, with every frame: {verify}"]
