"""The format of an input, told by looking at it."""

from __future__ import annotations

from pathlib import Path

from diffusion_policy.gripper_scale import parse_scales
from diffusion_policy.places import place
from diffusion_policy.recording.cogact import CogActRecordings
from diffusion_policy.recording.contract import Recordings
from diffusion_policy.timestamps import parse_timestamps


def open_recordings(
    source: Path | str, *, gripper_scale: str | None = None, timestamps: str | None = None
) -> Recordings:
    """The recordings of a folder or URL.

    Args:
        source: holds episodes.
        gripper_scale: of all their grippers where it is not 1 (open) and 0 (closed), as ``--gripper-scale`` names it.
        timestamps: what their time stamps are in where that is not seconds, as ``--timestamps`` names it.

    Raises:
        SpecError: no such scale or unit.
        PlaceError: the URL's store cannot be reached.
    """
    return CogActRecordings(place(source), parse_scales(gripper_scale), parse_timestamps(timestamps))
