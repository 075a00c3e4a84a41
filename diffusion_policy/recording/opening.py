"""The format of an input, told by looking at it."""

from __future__ import annotations

from pathlib import Path

from diffusion_policy.gripper_scale import parse_scales
from diffusion_policy.places import place
from diffusion_policy.recording.cogact import CogActRecordings
from diffusion_policy.recording.contract import Recordings
from diffusion_policy.recording.lerobot.info import is_dataset
from diffusion_policy.recording.mapping import read_mapping
from diffusion_policy.recording.other_layouts import OtherLayoutRecordings
from diffusion_policy.recording.zarr_sets.place import zarr_set
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
        source: a folder of episodes, a LeRobot dataset, or a zarr of others: a folder, a zip archive, or
            replay_buffer.zarr with videos.
        gripper_scale: of all their grippers where it is not 1 (open) and 0 (closed), as ``--gripper-scale`` names it.
        timestamps: what their time stamps are in where that is not seconds, as ``--timestamps`` names it.
        mapping: file, or name of one that comes with this package, that says what their columns are.

    Raises:
        SpecError: no such scale or unit.
        MappingError: a mapping that cannot be read, does not fit, or is missing.
        RecordingError: the folder's own description is not as it must be.
        DatasetError: a zarr that cannot be read.
        PlaceError: the URL's store cannot be reached.
    """
    found, unit = place(source), parse_timestamps(timestamps)
    said = None if mapping is None else read_mapping(mapping)
    if is_dataset(found):
        from diffusion_policy.recording.lerobot.recordings import LeRobotRecordings

        return LeRobotRecordings(found, said, gripper_scale, unit)
    of_zarr = zarr_set(found)
    if of_zarr is not None:
        from diffusion_policy.recording.zarr_sets.recordings import ZarrRecordings

        return ZarrRecordings(of_zarr, said, gripper_scale, unit)
    if said is not None:
        return OtherLayoutRecordings(found, said, gripper_scale, unit)
    return CogActRecordings(found, parse_scales(gripper_scale), unit)
