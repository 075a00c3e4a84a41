"""What the checks say of a dataset that was converted just now."""

from __future__ import annotations

from pathlib import Path

from diffusion_policy.command_line import Stopped
from diffusion_policy.commands import command
from diffusion_policy.diagnose.inspection import inspect_conversion
from diffusion_policy.errors import WorkspaceError


def checked(dataset: Path) -> list[str]:
    """The verdict of the checks in a line, and the command that shows all of them; they decide no exit status here."""
    verify = command("verify_converted_data", "--zarr-path", dataset)
    try:
        verdict = inspect_conversion(dataset).verdict()
    except WorkspaceError as error:
        verdict = f"The checks cannot read it: {error}"
    except KeyboardInterrupt as error:
        raise Stopped(f"{dataset} is complete, the checks had not ended", command=verify) from error
    return [verdict, f"all checks, with every frame: {verify}"]
