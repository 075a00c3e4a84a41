"""Small zarr datasets as published by others: public diffusion_policy sets, UMI, the older collector of this robot."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from dataset_factory import pack
from scipy.spatial.transform import Rotation

from diffusion_policy.dataset.image_codecs import image_codec, zarr_arguments

LENGTHS = (7, 5, 9)
HZ = 10


def path_of(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (n, 3) in meters, rotation vectors (n, 3), widths (n, 1) from 8 cm to 3 cm and back."""
    t = np.linspace(0, 1, n)[:, None]
    position = np.concatenate([0.4 + 0.1 * t, 0.02 * seed + 0.05 * t, 0.3 - 0.1 * t], axis=1)
    turn = np.concatenate([2.9 + 0.1 * t, 0.1 * t, 0.05 * t], axis=1)
    width = np.where((t > 0.3) & (t < 0.7), 0.03, 0.08)
    return position, turn, width


def paths(lengths: tuple[int, ...] = LENGTHS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`path_of` of all episodes, end to end."""
    position, turn, width = zip(*(path_of(seed, n) for seed, n in enumerate(lengths)), strict=True)
    return np.concatenate(position), np.concatenate(turn), np.concatenate(width)


def pictures(n: int, size: tuple[int, int] = (24, 20)) -> np.ndarray:
    """(n, H, W, 3) uint8, smooth, so that lossy codecs keep them; all different."""
    x, y = np.meshgrid(np.linspace(0, 200, size[0]), np.linspace(0, 200, size[1]))
    return np.stack([np.stack([x, y, np.full_like(x, 5 * i % 250)], axis=-1) for i in range(n)]).astype(np.uint8)


def write(
    path: Path,
    arrays: dict[str, np.ndarray],
    lengths: tuple[int, ...] = LENGTHS,
    options: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """A zarr of format 2 with data/ and meta/episode_ends, as zarr-python 2 lays it out."""
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    data = root.create_group("data")
    for key, values in arrays.items():
        chosen = {"chunks": (4, *values.shape[1:]), "compressors": numcodecs.Blosc(), **(options or {}).get(key, {})}
        array = data.create_array(
            key, shape=values.shape, dtype=values.dtype, config={"write_empty_chunks": True}, **chosen
        )
        array[:] = values
    ends = np.cumsum(lengths)
    root.create_group("meta").create_array("episode_ends", data=ends, chunks=ends.shape)
    return path


def umi_arrays(lengths: tuple[int, ...] = LENGTHS) -> dict[str, np.ndarray]:
    position, turn, width = paths(lengths)
    start = np.concatenate([position, turn], axis=1)
    return {
        "camera0_rgb": pictures(len(position)),
        "robot0_eef_pos": position.astype(np.float32),
        "robot0_eef_rot_axis_angle": turn.astype(np.float32),
        "robot0_gripper_width": width.astype(np.float32),
        "robot0_demo_start_pose": start,
        "robot0_demo_end_pose": start,
    }


def write_umi(path: Path, lengths: tuple[int, ...] = LENGTHS, folder: Path | None = None) -> Path:
    """A .zarr.zip with JPEG XL frames, one per chunk; level 99 as written by UMI."""
    arrays = umi_arrays(lengths)
    jpegxl = {"chunks": (1, *arrays["camera0_rgb"].shape[1:]), **zarr_arguments(image_codec("jpegxl", 99), 2)}
    unpacked = write(folder or path.with_suffix(".folder"), arrays, lengths, {"camera0_rgb": jpegxl})
    return pack(unpacked, path)


def pusht_arrays(lengths: tuple[int, ...] = LENGTHS) -> dict[str, np.ndarray]:
    n = sum(lengths)
    t = np.linspace(0, 1, n)[:, None]
    return {
        "img": pictures(n).astype(np.float32),
        "state": np.concatenate([100 + 300 * t, 400 - 100 * t, 256 + 0 * t, 300 * t, 2 * t], axis=1).astype(np.float32),
        "action": np.concatenate([110 + 300 * t, 390 - 100 * t], axis=1).astype(np.float32),
        "keypoint": np.linspace(0, 512, n * 18).reshape(n, 9, 2).astype(np.float32),
        "n_contacts": np.zeros((n, 1), dtype=np.float32),
    }


def write_pusht(path: Path, lengths: tuple[int, ...] = LENGTHS) -> Path:
    """A folder whose chunks span the ends of episodes."""
    return write(path, pusht_arrays(lengths), lengths)


def write_collected(folder: Path, lengths: tuple[int, ...] = LENGTHS, fps: int = 30, frames_a_step: int = 1) -> Path:
    """replay_buffer.zarr with rotation vectors and widths, and videos/<episode>/0.mp4 next to it."""
    import av

    position, turn, width = paths(lengths)
    pose = np.concatenate([position, turn, width], axis=1)
    stamps = np.concatenate([np.arange(n) / HZ + 100 * seed for seed, n in enumerate(lengths)])
    arrays = {"timestamp": stamps, "robot_eef_pose": pose, "action": np.concatenate([pose[1:], pose[-1:]])}
    one = {key: {"chunks": (1, *values.shape[1:])} for key, values in arrays.items()}
    write(folder / "replay_buffer.zarr", arrays, lengths, one)
    shown = pictures(sum(lengths) * frames_a_step, (64, 48))
    start = 0
    for number, n in enumerate(lengths):
        file = folder / "videos" / str(number) / "0.mp4"
        file.parent.mkdir(parents=True)
        with av.open(str(file), "w") as container:
            stream = container.add_stream("mpeg4", rate=Fraction(fps))
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
            for frame in shown[start : start + n * frames_a_step]:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        start += n * frames_a_step
    return folder


def quaternions(turn: np.ndarray) -> np.ndarray:
    """Converts rotation vectors to quaternions xyzw."""
    return np.asarray(Rotation.from_rotvec(turn).as_quat())
