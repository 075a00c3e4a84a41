"""Recordings of Minecraft for VPT: contractors' videos with a line of JSON per tick, or a folder of frames instead.

    NAME.mp4 and NAME.jsonl            as recorded by OpenAI's contractors
    NAME/frames/0000.png and NAME.jsonl    the same with a picture per tick, in order of their names

A step holds the frame as in VPT's training, 128 x 128 by linear interpolation with the cursor drawn while a window
is open, and its action: 20 buttons and the camera in degrees, in the order of ``actions.VPT_ACTION``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from diffusion_policy.images import decode_image
from diffusion_policy.minecraft.actions import VPT_ACTION, MinecraftError
from diffusion_policy.minecraft.contractor import SCREEN_HEIGHT, Played, read_lines
from diffusion_policy.paths import reaching, read_bytes
from diffusion_policy.recording.contract import FRAME_SIZE_KEY, ArrayNames, EpisodeMetadata, Picture
from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.recording.lerobot.frames import VideoFrames, opened_video
from diffusion_policy.recording.mapped_recording import MappedRecording, numbers_sha256
from diffusion_policy.spec import ImageArray, episode_number
from diffusion_policy.storage import sha256

FRAME_SIZE = (128, 128)  # width, height
NullActions = Literal["keep", "drop"]
_CAMERA = "pov"
_HZ = 20.0
_PICTURES = (".png", ".jpg", ".jpeg")
_MOST_BYTES = 1 << 30
# An arrow with its tip at the origin, 16 pixels high: white with a dark edge, like a mouse cursor.
_ARROW = np.array([[0, 0], [0, 14], [3, 11], [6, 16], [8, 15], [6, 10], [10, 10]], np.float32)


@dataclass(frozen=True)
class FrameFiles:
    """Frames stored in one file each.

    Attributes:
        files: by step.
    """

    files: tuple[Path, ...]

    def at(self, steps: Sequence[int]) -> FrameFiles:
        """Returns the frames of some steps."""
        return FrameFiles(tuple(self.files[step] for step in steps))

    def pictures(self) -> Iterator[Picture]:
        """The files' contents, in order; see `recording.contract.Frames`."""
        for file in self.files:
            try:
                yield Picture(file, read_bytes(file))
            except OSError as error:
                raise RecordingError(f"{file}: cannot be read ({error.strerror or error})") from error

    def sample_sha256(self) -> str:
        """Returns the SHA-256 of the first file."""
        return sha256(read_bytes(self.files[0])).hex()


@dataclass(frozen=True)
class GameFrames:
    """Frames as seen by VPT.

    Attributes:
        source: the frames as recorded.
        cursors: (n,) cursor positions, in pixels of a screen 720 high; None where none is shown.
    """

    source: VideoFrames | FrameFiles
    cursors: tuple[tuple[float, float] | None, ...]

    def __len__(self) -> int:
        return len(self.cursors)

    def pictures(self) -> Iterator[Picture]:
        """Yields the frames, decoded, with their cursors, at the training size; see `recording.contract.Frames`."""
        for picture, cursor in zip(self.source.pictures(), self.cursors, strict=True):
            content = picture.content
            frame = decode_image(content, str(picture.name)).frame if isinstance(content, bytes) else content
            yield Picture(picture.name, game_frame(frame, cursor))

    def pieces(self, steps: Sequence[int], at_most: int) -> Iterator[GameFrames]:
        """Yields stretches of a video, or `at_most` pictures at a time."""
        in_video = isinstance(self.source, VideoFrames)
        starts = VideoFrames.starts(len(steps), at_most) if in_video else range(0, len(steps), at_most)
        for start in starts:
            some = steps[start : start + starts.step]
            yield GameFrames(self.source.at(some), tuple(self.cursors[step] for step in some))

    def sample_sha256(self) -> str:
        """Returns the SHA-256 of the beginning of the recording."""
        return self.source.sample_sha256()


def game_frame(frame: ImageArray, cursor: tuple[float, float] | None = None) -> ImageArray:
    """Returns a recorded frame (H, W, 3) RGB at the training size (128, 128, 3), with a cursor if one is shown."""
    if cursor is not None:
        scale = len(frame) / SCREEN_HEIGHT
        arrow = np.round(_ARROW + np.array(cursor, np.float32) * scale).astype(np.int32)
        frame = np.ascontiguousarray(frame).copy()
        cv2.fillPoly(frame, [arrow], (255, 255, 255), cv2.LINE_AA)
        cv2.polylines(frame, [arrow], isClosed=True, color=(40, 40, 40), thickness=1, lineType=cv2.LINE_AA)
    return np.asarray(cv2.resize(frame, FRAME_SIZE, interpolation=cv2.INTER_LINEAR), np.uint8)


class MinecraftRecordings:
    """The recordings in a folder.

    Args:
        folder: holds NAME.jsonl and, for each, NAME.mp4 or NAME/frames/.
        null_actions: "keep" ticks without any action, or "drop" their frame and action, like upstream's reader.
    """

    def __init__(self, folder: Path, null_actions: NullActions = "keep") -> None:
        self._folder, self._null = folder, null_actions
        stems = sorted(file.stem for file in folder.glob("*.jsonl"))
        numbers = [episode_number(stem) for stem in stems]
        # Names given by contractors end in a time of day, which two recordings may share.
        is_unique = None not in numbers and len(set(numbers)) == len(numbers)
        names = stems if is_unique else [f"{stem}_{index:04d}" for index, stem in enumerate(stems)]
        self._stems = {folder / name: stem for name, stem in zip(names, stems, strict=True)}

    @property
    def account(self) -> Mapping[str, Any]:
        """Format, rate, frame size, and treatment of ticks without an action."""
        lonely = sorted(file.name for file in self._folder.glob("*.mp4") if not file.with_suffix(".jsonl").exists())
        return {
            "format": "Minecraft, a line of JSON per tick",
            "control_hz": _HZ,
            FRAME_SIZE_KEY: list(FRAME_SIZE),
            "null_actions": self._null,
            "left_out": dict.fromkeys(lonely, "has no .jsonl next to it"),
        }

    def find(self) -> list[Path]:
        """Returns the names of the recordings, in order of number."""
        return sorted(self._stems, key=lambda path: (episode_number(path.name) or 0, path.name))

    def open(self, path: Path) -> MappedRecording:
        """Opens and checks a recording.

        Raises:
            RecordingError: lines or frames are invalid.
        """
        stem = self._folder / self._stems[path]
        lines = stem.with_name(f"{stem.name}.jsonl")
        played = _read(lines)
        source, n_frames, files = _frames_of(stem)
        ticks = np.flatnonzero(~played.null) if self._null == "drop" else np.arange(len(played))
        shown = ticks < n_frames
        if not shown.any():
            raise RecordingError(f"{path}: none of its {len(played)} ticks is left: leave it out")
        seen = ticks[shown]
        cursors = tuple(_cursor(played, tick) for tick in seen)
        action = played.action[ticks]
        n_shown = len(seen)
        return MappedRecording(
            path=path,
            number=episode_number(path.name) or 0,
            n_recorded=len(ticks),
            names=ArrayNames({}, VPT_ACTION, {"camera_pitch": "deg", "camera_yaw": "deg"}),
            states={},
            action=action,
            timestamp=ticks / _HZ,
            metadata=EpisodeMetadata(),
            image_index=np.where(shown, np.arange(len(ticks)), -1),
            frame_numbers={_CAMERA: range(n_shown)},
            files=(lines, *files),
            numbers_sha256=numbers_sha256({"action": action, "tick": ticks}),
            notes=_notes(played, n_frames, self._null),
            camera_frames={_CAMERA: GameFrames(source.at(seen.tolist()), cursors)},
        )


def is_minecraft(folder: Path) -> bool:
    """Whether a folder holds recordings of Minecraft: lines of JSON next to videos or folders of frames."""
    with reaching(folder):
        return any(
            file.with_suffix(".mp4").is_file() or (file.with_suffix("") / "frames").is_dir()
            for file in folder.glob("*.jsonl")
        )


def _read(file: Path) -> Played:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise RecordingError(
                f"{file}: {file.stat().st_size} bytes; expected at most {_MOST_BYTES}, one line per tick"
            )
        with file.open("r", encoding="utf-8", errors="replace") as opened:
            return read_lines(opened, str(file))
    except MinecraftError as error:
        raise RecordingError(str(error)) from error
    except OSError as error:
        raise RecordingError(f"{file}: cannot be read ({error.strerror or error})") from error


def _frames_of(stem: Path) -> tuple[VideoFrames | FrameFiles, int, list[Path]]:
    """Returns the frames of a recording, their number, and their files."""
    video = stem.with_name(f"{stem.name}.mp4")
    if video.is_file():
        times = _frame_times(video)
        return VideoFrames(video, times, tuple(range(len(times))), 1 / _HZ), len(times), [video]
    folder = stem / "frames"
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in _PICTURES)
    if not files:
        raise RecordingError(
            f"{stem.name}.jsonl has neither {video.name} nor pictures ({', '.join(_PICTURES)}) in {folder}"
        )
    return FrameFiles(tuple(files)), len(files), files


def _frame_times(file: Path) -> tuple[float, ...]:
    """Returns the times in seconds at which a video's frames are shown, in order, without decoding them."""
    with opened_video(file) as container:
        video = container.streams.video[0]
        stamps = sorted(packet.pts for packet in container.demux(video) if packet.pts is not None)
        return tuple(float(stamp * video.time_base) for stamp in stamps)


def _cursor(played: Played, tick: int) -> tuple[float, float] | None:
    x, y = played.cursor[tick]
    return None if np.isnan(x) else (float(x), float(y))


def _notes(played: Played, n_frames: int, null_actions: NullActions) -> tuple[str, ...]:
    """Returns harmless irregularities of a recording."""
    found: list[str] = []
    if played.null.any():
        what = "kept" if null_actions == "keep" else "left out with their frames"
        found.append(f"{int(played.null.sum())} of {len(played)} ticks have no action: {what}")
    if n_frames > len(played):
        found.append(f"{n_frames - len(played)} frames after the last line are not used")
    if played.stuck:
        found.append(f"attack was down from the start: released for {played.stuck} ticks")
    windows = int((~np.isnan(played.cursor[:, 0])).sum())
    if windows:
        found.append(f"a window is open in {windows} ticks: the cursor is drawn")
    found += [f"{name} was down in {count} ticks: VPT has no such button" for name, count in played.ignored.items()]
    return tuple(found)
