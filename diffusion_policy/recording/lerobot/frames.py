"""Frames of a LeRobot dataset: from videos, decoded in sequence, and from pictures in a parquet column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from diffusion_policy.images import MAX_PIXELS
from diffusion_policy.paths import is_remote, reaching
from diffusion_policy.recording.contract import Picture
from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.recording.lerobot.tables import COPY_AGAIN, column_names, opened, pictures_at_a_time
from diffusion_policy.spec import ImageArray
from diffusion_policy.storage import sha256

# FFmpeg is given the format, so that it refuses any other kind of file, such as a playlist of other files.
_CONTAINER = "mp4"
# Packets of a video that represent its content.
_SAMPLED_PACKETS = 4
# Number of steps of a video that are decoded in one go.
_STRETCH = 2048
# Fraction of a step by which time stamps of the same frame may differ, since those of steps are float32.
_SAME_TIME = 1e-3


@contextmanager
def opened_video(file: Path) -> Iterator[Any]:
    """Opens an mp4's container with PyAV; errors, including those of decoding, name the file.

    Raises:
        RecordingError: it is missing, truncated, damaged or not an mp4, or has no picture that may be decoded.
        PathError: its store cannot be reached.
    """
    try:
        with reaching(file), file.open("rb") if is_remote(file) else _nothing() as stream:
            source = f"file:{file.absolute()}" if stream is None else stream
            with av.open(source, mode="r", format=_CONTAINER) as container:
                if not container.streams.video:
                    raise RecordingError(f"{file}: holds no video: {COPY_AGAIN}")
                video = container.streams.video[0]
                video.codec_context.thread_count = 1
                if not 0 < video.width * video.height <= MAX_PIXELS:
                    raise RecordingError(
                        f"{file}: {video.width}x{video.height} pixels; at most {MAX_PIXELS} are decoded: {COPY_AGAIN}"
                    )
                yield container
    except (av.error.FFmpegError, ValueError, EOFError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecordingError(f"{file}: cannot be decoded ({reason}): {COPY_AGAIN}") from error
    except OSError as error:
        raise RecordingError(f"{file}: cannot be read ({error.strerror or error}): {COPY_AGAIN}") from error


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


@dataclass(frozen=True)
class VideoFrames:
    """Frames of a video at given times, found by the nearest time stamp.

    Attributes:
        file: an mp4.
        times: (n,) seconds in the file, increasing.
        steps: (n,) steps of the episode, for messages.
        period: seconds from a step to the next; a frame further than half a period from its time does not count.
    """

    file: Path
    times: tuple[float, ...]
    steps: tuple[int, ...]
    period: float

    def __len__(self) -> int:
        return len(self.times)

    def pictures(self) -> Iterator[Picture]:
        """Yields the frames, decoded from the key frame before the first one on; see `recording.contract.Frames`."""
        with opened_video(self.file) as container:
            video = container.streams.video[0]
            _seek(container, video, self.times[0])
            wanted = _Wanted(self, video.width, video.height)
            for frame in container.decode(video):
                yield from wanted.up_to(frame, _seconds(frame, video))
                if wanted.is_complete:
                    return
            yield from wanted.rest()

    def at(self, steps: Sequence[int]) -> VideoFrames:
        """Returns the frames of some steps, in increasing order."""
        return replace(self, times=tuple(self.times[step] for step in steps), steps=tuple(steps))

    def pieces(self, steps: Sequence[int], at_most: int) -> Iterator[VideoFrames]:
        """Yields stretches of the video; each costs the decoding from a key frame to its first wanted frame."""
        starts = self.starts(len(steps), at_most)
        return (self.at(steps[start : start + starts.step]) for start in starts)

    @staticmethod
    def starts(n_steps: int, at_most: int) -> range:
        """Returns where pieces of `at_most` steps begin."""
        return range(0, n_steps, at_most if at_most == 1 else _STRETCH)

    def sample_sha256(self) -> str:
        """Returns the SHA-256 of the first packets from the first frame's time on, as encoded."""
        packets: list[bytes] = []
        with opened_video(self.file) as container:
            video = container.streams.video[0]
            _seek(container, video, self.times[0])
            for packet in container.demux(video):
                if packet.pts is None or packet.pts * video.time_base < self.times[0] - self.period / 2:
                    continue
                packets.append(bytes(packet))
                if len(packets) == _SAMPLED_PACKETS:
                    break
        return sha256(*packets).hex()


def _seek(container: Any, video: Any, seconds: float) -> None:
    if seconds > 0:
        container.seek(int(seconds / video.time_base), stream=video, backward=True)


def _seconds(frame: Any, video: Any) -> float | None:
    return None if frame.pts is None else float(frame.pts * video.time_base)


class _Wanted:
    """Chooses the nearer of two neighboring frames for each wanted time, and converts only those to pixels."""

    def __init__(self, frames: VideoFrames, width: int, height: int) -> None:
        self._frames = frames
        self._size = (width, height)
        self._next = 0
        self._before: tuple[Any, float] | None = None
        self._picture: tuple[float, Picture] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every frame was found."""
        return self._next == len(self._frames.times)

    def up_to(self, frame: Any, seconds: float | None) -> Iterator[Picture]:
        """Yields the pictures that are determined once this frame is decoded."""
        if seconds is None or (self._before is not None and seconds <= self._before[1]):
            return
        times = self._frames.times
        while not self.is_complete and times[self._next] <= seconds:
            before, wanted = self._before, times[self._next]
            is_nearer = before is not None and wanted - before[1] < seconds - wanted
            chosen, at = before if before is not None and is_nearer else (frame, seconds)
            yield self._found(chosen, at)
        self._before = (frame, seconds)
        # A frame within a fraction of a step of its time need not be compared with the next one.
        while not self.is_complete and 0 < times[self._next] - seconds < _SAME_TIME * self._frames.period:
            yield self._found(frame, seconds)

    def rest(self) -> Iterator[Picture]:
        """Yields the pictures of the last frame.

        Raises:
            RecordingError: the video ends earlier.
        """
        while not self.is_complete:
            if self._before is None:
                raise RecordingError(f"{self._frames.file}: no frame can be decoded: {COPY_AGAIN}")
            yield self._found(*self._before)

    def _found(self, frame: Any, at: float) -> Picture:
        wanted, step = self._frames.times[self._next], self._frames.steps[self._next]
        if abs(wanted - at) > self._frames.period / 2:
            raise RecordingError(
                f"{self._frames.file}: no frame at {wanted:.4f} s, the time of step {step}; the nearest is at {at:.4f} "
                f"s: the video is truncated, or its time stamps do not match the steps': {COPY_AGAIN}"
            )
        self._next += 1
        if self._picture is None or self._picture[0] != at:
            name = self._frames.file.with_name(f"{self._frames.file.name}#{at:.4f}s")
            self._picture = (at, Picture(name, self._rgb(frame)))
        return self._picture[1]

    def _rgb(self, frame: Any) -> ImageArray:
        if frame.is_corrupt:
            raise RecordingError(f"{self._frames.file}: a frame in use is damaged: {COPY_AGAIN}")
        if (frame.width, frame.height) != self._size:
            raise RecordingError(
                f"{self._frames.file}: a frame is {frame.width}x{frame.height} pixels among frames of {self._size[0]}x"
                f"{self._size[1]}: record the camera again, or convert without this episode"
            )
        return np.asarray(frame.to_ndarray(format="rgb24"))


@dataclass(frozen=True)
class ColumnPictures:
    """Encoded pictures in a parquet column of {bytes, path}.

    Attributes:
        file: the file with the rows.
        column: the camera's column.
        rows: (n,) rows of the file, increasing.
    """

    file: Path
    column: str
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def pictures(self) -> Iterator[Picture]:
        """Yields the pictures, in order; see `recording.contract.Frames`."""
        waiting = list(self.rows)
        with opened(self.file) as parquet:
            if self.column not in column_names(parquet):
                raise RecordingError(f"{self.file}: has no column {self.column!r}, which meta/info.json declares")
            together = pictures_at_a_time(parquet, self.column, self.file)
            for first, batch in _batches(parquet, self.column, self.rows[0], self.rows[-1], together):
                while waiting and waiting[0] < first + len(batch):
                    yield self._picture(batch, waiting[0], waiting.pop(0) - first)
                if not waiting:
                    return
        raise RecordingError(f"{self.file}: ends before row {waiting[0]}: {COPY_AGAIN}")

    def at(self, steps: Sequence[int]) -> ColumnPictures:
        """Returns the pictures of some steps, in increasing order."""
        return replace(self, rows=tuple(self.rows[step] for step in steps))

    def pieces(self, steps: Sequence[int], at_most: int) -> Iterator[ColumnPictures]:
        """Yields `at_most` pictures at a time."""
        return (self.at(steps[start : start + at_most]) for start in range(0, len(steps), at_most))

    def sample_sha256(self) -> str:
        """Returns the SHA-256 of the first picture."""
        picture = next(ColumnPictures(self.file, self.column, self.rows[:1]).pictures())
        assert isinstance(picture.content, bytes)
        return sha256(picture.content).hex()

    def _picture(self, batch: Any, row: int, at: int) -> Picture:
        value = batch[at].as_py()
        content = value.get("bytes") if isinstance(value, dict) else None
        if not isinstance(content, bytes):
            raise RecordingError(
                f"{self.file}: column {self.column!r} has no picture in row {row}; expected bytes of a PNG or JPEG: "
                "embed the pictures in the dataset"
            )
        return Picture(self.file.with_name(f"{self.file.name}#{self.column}[{row}]"), content)


def _batches(parquet: Any, column: str, first: int, last: int, together: int) -> Iterator[tuple[int, Any]]:
    """Yields batches of a column from the row group of row `first` to that of row `last`, each with its first row."""
    start = 0
    for group in range(parquet.metadata.num_row_groups):
        n_rows = parquet.metadata.row_group(group).num_rows
        if start <= last and start + n_rows > first:
            at = start
            for batch in parquet.iter_batches(together, row_groups=[group], columns=[column], use_threads=False):
                yield at, batch.column(0)
                at += batch.num_rows
        start += n_rows
