"""The format of an input, told by looking at it."""

from __future__ import annotations

from pathlib import Path

from diffusion_policy.gripper_scale import parse_scales
from diffusion_policy.places import place
from diffusion_policy.recording.cogact import CogActRecordings
from diffusion_policy.recording.contract import Recordings
from diffusion_policy.recording.lerobot.info import is_dataset
from diffusion_policy.recording.mapping import FLAG, MappingError, read_mapping
from diffusion_policy.timestamps import parse_timestamps


def open_recordings(
    source: Path | str,
    *,
    gripper_scale: str | None = None,
    timestamps: str | None = None,
    mapping: str | None = None,
) -> Recordings:
    """The recordings of a folder or URL.

    Args:
        source: holds episodes of one format.
        gripper_scale: of all their grippers where it is not 1 (open) and 0 (closed), as ``--gripper-scale`` names it.
        timestamps: what their time stamps are in where that is not seconds, as ``--timestamps`` names it.
        mapping: file, or name of one that comes with this package, that says what their columns are.

    Raises:
        SpecError: no such scale or unit.
        MappingError: a mapping that cannot be read, does not fit, is missing, or is given for a format without columns.
        RecordingError: the folder's own description is not as it must be.
        PlaceError: the URL's store cannot be reached.
    """
    found, unit = place(source), parse_timestamps(timestamps)
    if is_dataset(found):
        from diffusion_policy.recording.lerobot.recordings import LeRobotRecordings

        said = None if mapping is None else read_mapping(mapping)
        return LeRobotRecordings(found, said, gripper_scale, unit)
    if mapping is not None:
        raise MappingError(
            f"{found}: {FLAG} {mapping} is for formats whose columns have names, such as LeRobot's (meta/info.json); "
            "leave it out"
        )
    return CogActRecordings(found, parse_scales(gripper_scale), unit)
