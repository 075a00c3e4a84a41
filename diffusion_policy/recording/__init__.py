"""Recorded episodes of any format, as the converter takes them in.

    contract    what a recording is: arrays, frames, content hash, what it says of its numbers, tasks and flags
    opening     detects the format of an input
    cogact      CogACT trajectories (a folder an episode; `trajectory` opens and checks them)
    lerobot     LeRobot datasets, v3.0 and v2.1
    zarr_sets   zarr datasets of others: public diffusion_policy sets, UMI, a zarr with videos
    minecraft   contractors' recordings of Minecraft, for VPT
    other_layouts   folders of CogACT's form whose arrays a mapping names
    mapping     what somebody says of columns whose names do not say it; `mapped`, `scales` and `mapped_recording` apply
                it, `question` asks for it

No later stage knows a format. To add one, write a module that offers `contract.Recordings`, named in
`opening`. Inputs are only read.
"""

from diffusion_policy.recording.contract import (
    FRAME_SIZE_KEY,
    ArrayNames,
    EpisodeMetadata,
    Frames,
    Picture,
    Recording,
    Recordings,
    image_runs,
)
from diffusion_policy.recording.mapping import read_mapping
from diffusion_policy.recording.opening import open_recordings

__all__ = [
    "FRAME_SIZE_KEY",
    "ArrayNames",
    "EpisodeMetadata",
    "Frames",
    "Picture",
    "Recording",
    "Recordings",
    "image_runs",
    "open_recordings",
    "read_mapping",
]
