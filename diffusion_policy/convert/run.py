"""The conversion: survey, stage episode by episode, assemble."""

from __future__ import annotations

import logging
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2

from diffusion_policy.commands import unpack
from diffusion_policy.convert.assembly import assemble
from diffusion_policy.convert.existing import ExistingDataset
from diffusion_policy.convert.frames import Block, BlockReport, write_block
from diffusion_policy.convert.ledger import ConversionReport, EpisodeEntry
from diffusion_policy.convert.placement import remove_work, restore_replaced
from diffusion_policy.convert.publication import (
    check_can_be_added_to,
    finish_publication,
    was_interrupted,
)
from diffusion_policy.convert.settings import ConversionError, ConversionSettings
from diffusion_policy.convert.staging import StagedEpisode, Staging
from diffusion_policy.convert.survey import Plan, Survey, survey
from diffusion_policy.dataset.archive import Archive
from diffusion_policy.dataset.opening import is_dataset
from diffusion_policy.paths import PathError, is_remote, reaching
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.trajectory import TrajectoryError

logger = logging.getLogger(__name__)

# Values of settings in ledgers that predate these settings.
_NOT_RECORDED_EARLIER = {"mixed_frames": "refuse", "timestamps": None, "split_at_gap": None}
# Blocks in flight per worker: enough to keep it busy, few enough to bound memory.
_BLOCKS_AHEAD = 2


def convert(
    settings: ConversionSettings, *, executor: Executor | None = None, on_progress: Progress = no_progress
) -> ConversionReport:
    """Converts recorded trajectories to a dataset.

    Resuming a finished conversion, or appending recordings that are all present, changes nothing.

    The source is only read. The output appears under its name only when it is complete.

    Args:
        settings: the settings of the conversion.
        executor: runs the blocks of frames; threads of this process by default. Its workers must have access to the
            same files.
        on_progress: called after every block and, if the output is a URL, for the files then sent there.

    Raises:
        ConversionError: the output exists, there is nothing to convert, the disk is full, or a store cannot be reached.
        DatasetError: there is no dataset to append to.
        TrajectoryError: a bad episode, unless they are to be skipped.
        UnsafePickleError: a data.pkl asks for more than arrays, unless such episodes are to be skipped.
    """
    _refuse_archive(settings)
    _finish_interrupted(settings, on_progress)
    existing = _existing(settings)
    if existing is not None and not settings.append:
        return existing.report
    surveyed = survey(settings, existing.report.kept if existing else ())
    if existing is not None and not surveyed.plans:
        return existing.report
    if existing is not None:
        existing.check_same_names(surveyed.plans[0].names, settings.source)
    staging = Staging(settings)
    try:
        with staging.open(), _workers(settings, executor) as workers:
            stage = _Stage(staging, workers, settings, surveyed, on_progress)
            staged = stage.run()
            if not staged:
                raise ConversionError(f"{settings.source}: every episode was left out; nothing is written")
            return assemble(staged, [*surveyed.left_out, *stage.left_out], settings, existing, on_progress)
    except PathError as error:
        raise ConversionError(
            f"{error}; finished episodes are kept in {settings.partial}: continue with --resume"
        ) from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ConversionError(
            f"{settings.output} cannot be made: {error.strerror or error}{where}; finished episodes are kept in "
            f"{settings.partial}: fix the cause and continue with --resume"
        ) from error


def _refuse_archive(settings: ConversionSettings) -> None:
    """Refuses to write into a zip archive, or to give a folder its name, before anything is touched.

    Raises:
        ConversionError: the output is an archive; the message tells how to unpack it.
        DatasetError: the archive is damaged.
    """
    output = settings.output
    is_there = not is_remote(output) and output.exists()
    if output.is_dir() if is_there else output.suffix != ".zip":
        return
    if is_there and not zipfile.is_zipfile(output) and output.suffix != ".zip":
        return  # some other file, which is refused later
    reason = f"{output}: a zip archive is read in place, never written"
    folder = output.with_suffix("") if output.suffix == ".zip" else output.with_name(f"{output.name}.folder")
    if not is_remote(folder) and folder.exists():
        folder = folder.with_name(f"{folder.stem}.unpacked{folder.suffix}")
    if not settings.append:
        raise ConversionError(f"{reason}; name a folder, such as {folder}, and pack that when it is complete")
    if not is_there:
        raise ConversionError(f"{reason}; unpack it, and append to the folder")
    dataset = folder / Archive(output).root()
    raise ConversionError(
        f"{reason}, so nothing can be appended. Unpack it: {unpack(output, folder)}; then run this command with "
        f"--output {shlex.quote(str(dataset))}, and pack that folder again if you want an archive"
    )


def _finish_interrupted(settings: ConversionSettings, on_progress: Progress) -> None:
    """Moves into place what was complete when a conversion was killed, or restores what it was to replace."""
    if not is_remote(settings.output):
        restore_replaced(settings)
    elif settings.partial.exists():
        with Staging(settings).locked():
            finish_publication(settings, on_progress)


def _existing(settings: ConversionSettings) -> ExistingDataset | None:
    """Returns the dataset to append to, or the finished one of a resumed conversion; None to begin or replace.

    Raises:
        ConversionError: the output is something else, or there is nothing to append to.
    """
    output = settings.output
    if settings.append:
        if is_remote(output):
            check_can_be_added_to(settings)
        existing = ExistingDataset.open(output)
        existing.check_same_content(settings)
        return existing
    with reaching(output):
        if not output.exists():
            return None
    if not is_dataset(output):
        if is_remote(output) and was_interrupted(settings):
            return None
        raise ConversionError(f"{output} exists and is not a zarr dataset; it is not replaced; choose another name")
    if settings.overwrite:
        return None
    if settings.resume:
        existing = ExistingDataset.open(output)
        if {**_NOT_RECORDED_EARLIER, **existing.report.settings} == settings.as_json():
            if settings.partial.exists():
                remove_work(settings.partial)
            return existing
    raise ConversionError(
        f"{output} exists; choose another name, add to it with --append, or replace it with --overwrite"
    )


@contextmanager
def _workers(settings: ConversionSettings, executor: Executor | None) -> Iterator[Executor]:
    """Yields the given executor, or threads; OpenCV's own threads would only compete with these."""
    if executor is not None:
        yield executor
        return
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(settings.n_workers, thread_name_prefix="convert")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


@dataclass
class _Episode:
    """An episode in progress."""

    plan: Plan
    n_blocks: int
    reports: dict[Block, BlockReport] = field(default_factory=dict)
    is_bad: bool = False


class _Stage:
    """Keeps the workers busy with blocks, in order of episodes, and collects their reports."""

    def __init__(
        self,
        staging: Staging,
        executor: Executor,
        settings: ConversionSettings,
        surveyed: Survey,
        on_progress: Progress,
    ) -> None:
        self.staging = staging
        self.executor = executor
        self.settings = settings
        self.plans: Sequence[Plan] = surveyed.plans
        self.staged: dict[Path, StagedEpisode] = {}
        self.left_out: list[EpisodeEntry] = []
        self._pending: dict[Future[BlockReport], tuple[_Episode, Block]] = {}
        self._on_progress = on_progress
        self._total = sum(_frames(plan) for plan in self.plans)
        self._done = 0

    def run(self) -> list[StagedEpisode]:
        """Stages every episode; bad ones are left out, or end the conversion."""
        try:
            for episode, block in self._blocks():
                while len(self._pending) >= _BLOCKS_AHEAD * self.settings.n_workers:
                    self._take_in()
                if not episode.is_bad:
                    self._pending[self.executor.submit(write_block, block)] = (episode, block)
            while self._pending:
                self._take_in()
        finally:
            for future in self._pending:
                future.cancel()
            wait(self._pending)
        return [self.staged[plan.path] for plan in self.plans if plan.path in self.staged]

    def _blocks(self) -> Iterator[tuple[_Episode, Block]]:
        for plan in self.plans:
            finished = self.staging.finished(plan) if self.settings.resume else None
            if finished is not None:
                self.staged[plan.path] = finished
                self._advance(_frames(plan))
                continue
            blocks = self.staging.begin(plan)
            episode = _Episode(plan, len(blocks))
            for block in blocks:
                yield episode, block

    def _take_in(self) -> None:
        done, _ = wait(self._pending, return_when=FIRST_COMPLETED)
        for future in sorted(done, key=lambda future: future.exception() is not None):  # completed blocks first
            episode, block = self._pending.pop(future)
            if episode.is_bad:
                continue
            try:
                episode.reports[block] = future.result()
                if len(episode.reports) == episode.n_blocks:
                    self.staged[episode.plan.path] = self.staging.finish(episode.plan, episode.reports)
            except TrajectoryError as error:
                self._leave_out(episode, error)
            self._advance(len(block.frames))

    def _leave_out(self, episode: _Episode, error: TrajectoryError) -> None:
        if self.settings.on_error == "stop":
            raise error
        logger.warning("left out %s: %s", episode.plan.entry.name, error)
        episode.is_bad = True
        self.left_out.append(episode.plan.entry.left_out(str(error)))

    def _advance(self, frames: int) -> None:
        self._done += frames
        self._on_progress(self._done, self._total)


def _frames(plan: Plan) -> int:
    return plan.entry.n_kept * len(plan.cameras)
