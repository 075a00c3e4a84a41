"""Detects the format of an input."""

from __future__ import annotations

from pathlib import Path

from diffusion_policy.gripper_scale import parse_scales
from diffusion_policy.paths import as_path, is_remote
from diffusion_policy.recording.cogact import CogActRecordings
from diffusion_policy.recording.contract import Recordings
from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.recording.lerobot.info import is_dataset
from diffusion_policy.recording.mapping import MappingError, read_mapping
from diffusion_policy.recording.minecraft import MinecraftRecordings, NullActions, is_minecraft
from diffusion_policy.recording.other_layouts import OtherLayoutRecordings
from diffusion_policy.recording.zarr_sets.zarr_set import zarr_set
from diffusion_policy.timestamps import parse_timestamps


def open_recordings(
    source: Path | str,
    *,
    gripper_scale: str | None = None,
    timestamps: str | None = None,
    mapping: str | None = None,
    null_actions: NullActions = "keep",
) -> Recordings:
    """Finds the recordings in a folder or at a URL.

    Args:
        source: a folder of episodes, a LeRobot dataset, recordings of Minecraft, or a foreign zarr: a folder, a zip
            archive, or replay_buffer.zarr with videos.
        gripper_scale: scale of all their grippers, if not 1 (open) and 0 (closed), as in ``--gripper-scale``.
        timestamps: unit of their time stamps, if not seconds, as in ``--timestamps``.
        mapping: a mapping file, or the name of one that comes with this package, that defines their columns.
        null_actions: for recordings of Minecraft, whether ticks without any action are kept.

    Raises:
        SpecError: no such scale or unit.
        MappingError: a mapping that cannot be read, does not fit, is missing, or is for another format.
        RecordingError: there is nothing, or the folder's own description is invalid.
        DatasetError: a zarr cannot be read.
        PathError: the URL's store cannot be reached.
    """
    location, unit = as_path(source), parse_timestamps(timestamps)
    columns = None if mapping is None else read_mapping(mapping)
    if not is_remote(location) and not location.exists() and not location.is_symlink():
        raise RecordingError(f"{location}: does not exist; expected a folder of recordings, or a zarr")
    if is_dataset(location):
        from diffusion_policy.recording.lerobot.recordings import LeRobotRecordings

        return LeRobotRecordings(location, columns, gripper_scale, unit)
    if is_minecraft(location):
        _refuse_settings_of_others(location, gripper_scale, timestamps, mapping)
        return MinecraftRecordings(location, null_actions)
    if null_actions != "keep":
        raise RecordingError(f"{location}: --null-actions is for recordings of Minecraft (NAME.jsonl next to NAME.mp4)")
    of_zarr = zarr_set(location)
    if of_zarr is not None:
        from diffusion_policy.recording.zarr_sets.recordings import ZarrRecordings

        return ZarrRecordings(of_zarr, columns, gripper_scale, unit)
    if columns is not None:
        return OtherLayoutRecordings(location, columns, gripper_scale, unit)
    return CogActRecordings(location, parse_scales(gripper_scale), unit)


def _refuse_settings_of_others(location: Path, *settings: str | None) -> None:
    """Refuses settings that recordings of Minecraft make redundant, since they define all their numbers."""
    flags = ("--gripper-scale", "--timestamps", "--mapping")
    given = [f"{flag} {value}" for flag, value in zip(flags, settings, strict=True) if value is not None]
    if given:
        raise MappingError(f"{location}: recordings of Minecraft define their numbers; omit {', '.join(given)}")
