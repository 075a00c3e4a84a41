"""Recorded episodes of any format, as the converter reads them.

    contract    what a recording is: arrays, frames, content hash, meaning of its numbers, tasks and flags
    opening     detects the format of an input
    cogact      CogACT trajectories (one folder per episode; `trajectory` opens and checks them)
    lerobot     LeRobot datasets, v3.0 and v2.1
    zarr_sets   zarr datasets from elsewhere: public diffusion_policy sets, UMI, a zarr with videos
    minecraft   contractors' recordings of Minecraft, for VPT
    other_layouts   folders in CogACT's form with other arrays, which a mapping names
    mapping     the declared meaning of columns whose names do not give it; `mapped`, `scales` and `mapped_recording`
    apply
                it, `question` asks for it

No later stage depends on the format. To add one, write a module that implements `contract.Recordings`, and name it in
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
