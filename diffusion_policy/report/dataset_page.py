"""The page of datasets: all episodes with findings; for as many as fit, frames, gripper, path, tasks and flags.

It opens from disk and fetches nothing. Episodes marked on it are saved to a file that `edit_dataset.py` reads.
The size of a page is limited in megabytes; what was left out for that reason is listed at the top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy.commands import command
from diffusion_policy.diagnose.episode_findings import EpisodeSummary, episode_summaries
from diffusion_policy.diagnose.inspection import Inspection, inspect_opened
from diffusion_policy.diagnose.steps import HeldNumbers, open_for_report
from diffusion_policy.edit.marks import dataset_marks
from diffusion_policy.gripper_scale import parse_scales
from diffusion_policy.hub import is_hub
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.report import ReportError
from diffusion_policy.report.dataset_episodes import NUMBERS_BYTES, EpisodeViews
from diffusion_policy.report.page import Section, embedded, paragraph, render, template
from diffusion_policy.report.sections import CLASSES, findings_section
from diffusion_policy.storage import write_text

MEGABYTES = 20.0
# Most pictures of each camera per episode, and fewest: rather than fewer than that, fewer episodes are shown.
MOST_FRAMES, FEWEST_FRAMES = 120, 12
# Bytes reserved for the numbers inserted into the sentences of a page.
_SENTENCES = 1000


@dataclass(frozen=True)
class PageSettings:
    """What is shown.

    Raises:
        ReportError: nothing could be shown at that size.

    Attributes:
        episodes: episodes to show with pictures, numbered over all datasets; None for the ones with the gravest
            findings, then others, evenly spread, as the page's size allows.
        megabytes: largest size of the page.
        frames: largest number of frames per episode and camera.
        all_frames: whether every frame is inspected and compared with the recorded hashes.
        gripper_scale: scale in which grippers are stored, if declared.
    """

    episodes: Sequence[int] | None = None
    megabytes: float = MEGABYTES
    frames: int = MOST_FRAMES
    all_frames: bool = False
    gripper_scale: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.megabytes) or self.megabytes <= 0 or self.frames < 1:
            raise ReportError(
                f"a page of {self.megabytes:g} MB with {self.frames} frames per episode; expected more than 0 MB and 1 "
                "frame or more"
            )


@dataclass(frozen=True)
class OpenedSet:
    """One opened and inspected dataset.

    Attributes:
        buffer: its arrays; numbers are read once.
        inspection: the findings.
        summaries: (E,) summaries of its episodes.
        views: what the page shows of the episodes.
    """

    buffer: HeldNumbers
    inspection: Inspection
    summaries: list[EpisodeSummary]
    views: EpisodeViews


@dataclass
class Filled:
    """The episodes with pictures in a page, and their size.

    Attributes:
        shown: by number of the episode, the element with its pictures and numbers.
        frames: number of pictures in the page.
        of_frames: number of pictures that the shown episodes have.
        size: bytes of all elements, and of their numbers in the list.
    """

    shown: dict[int, str] = field(default_factory=dict)
    frames: int = 0
    of_frames: int = 0
    size: int = 0


def write_dataset_page(
    path: Path, opened: Sequence[OpenedSet], settings: PageSettings, on_progress: Progress = no_progress
) -> str:
    """Writes the page atomically; returns a sentence on what it holds.

    Args:
        path: path of the page.
        opened: the datasets, in the order in which their episodes are numbered.
        settings: what is shown.
        on_progress: called with the number of episodes whose pictures are in the page, and the number wanted.

    Raises:
        ReportError: the list of episodes does not fit, or an episode does not exist.
    """
    index = _index(opened)
    listed = len(_page(opened, index, Filled(), settings).encode()) + _SENTENCES
    budget = int(settings.megabytes * 2**20) - listed
    if budget < 0:
        need = math.ceil(listed / 2**20 * 10) / 10
        raise ReportError(
            f"the list of {len(index['episodes'])} episodes alone takes {need:g} of the page's "
            f"{settings.megabytes:g} MB; raise the limit with --max-megabytes {math.ceil(need)}"
        )
    filled = _fill(opened, settings, budget, on_progress)
    write_text(path, _page(opened, index, filled, settings))
    return _sentence(opened, index, filled, settings)


def open_set(path: Path, settings: PageSettings, on_progress: Progress = no_progress) -> OpenedSet:
    """Opens and inspects a dataset.

    Args:
        path: path of the dataset.
        settings: settings of the page that will show it.
        on_progress: called with the number of frames read, and the total; never if only a few are read.

    Raises:
        ReportError: it has no action, or no step.
        DatasetError: there is no dataset, or some of its numbers are lost.
    """
    buffer, faults = open_for_report(path, parse_scales(settings.gripper_scale))
    inspection = inspect_opened(path, buffer, faults, all_frames=settings.all_frames, on_progress=on_progress)
    return OpenedSet(buffer, inspection, episode_summaries(inspection, faults), EpisodeViews(buffer, inspection.steps))


def _index(opened: Sequence[OpenedSet]) -> dict[str, Any]:
    """Returns the page's list: every episode of every dataset, numbered as in `edit_dataset.py`."""
    tasks: dict[str, int] = {}
    episodes = [
        one.views.entry(number, summary, source, tasks)
        for source, one in enumerate(opened)
        for number, summary in enumerate(one.summaries)
    ]
    marks = dataset_marks([one.buffer for one in opened])
    again = command("view_dataset", *(one.buffer.where for one in opened))
    return {"episodes": episodes, "tasks": list(tasks), "datasets": marks, "levels": CLASSES, "again": again}


def _fill(opened: Sequence[OpenedSet], settings: PageSettings, budget: int, on_progress: Progress) -> Filled:
    """Returns the elements of as many episodes as fit, in order of preference."""
    episodes_of = [(one, number) for one in opened for number in range(len(one.summaries))]
    wanted = _wanted(opened, settings, len(episodes_of))
    frames = _frames_of_each(opened, settings, budget, len(wanted))
    filled = Filled()
    for done, episode in enumerate(wanted, 1):
        one, number = episodes_of[episode]
        view = one.views.view(number, one.summaries[number], frames)
        element = embedded(f"episode-{episode}", view.data)
        size = len(element) + len(f"{episode}, ")
        if filled.size + size > budget:
            break
        filled.shown[episode] = element
        filled.size += size
        filled.frames += view.frames
        filled.of_frames += view.of_frames
        on_progress(done, len(wanted))
    return filled


def _frames_of_each(opened: Sequence[OpenedSet], settings: PageSettings, budget: int, n_wanted: int) -> int:
    """Returns how many frames to show per episode and camera.

    As many as the budget allows for all wanted episodes, or for as many of them as can have a few frames each.
    """
    of_one = max(len(one.views.cameras) * one.views.picture_bytes() for one in opened)
    fewest = min(FEWEST_FRAMES, settings.frames)
    count = min(n_wanted, max(1, int(budget / (fewest * of_one + NUMBERS_BYTES))))
    return max(1, min(settings.frames, int((budget / count - NUMBERS_BYTES) / max(of_one, 1))))


def _wanted(opened: Sequence[OpenedSet], settings: PageSettings, n_episodes: int) -> list[int]:
    """Returns the numbers of episodes in the order in which they are included."""
    if settings.episodes is not None:
        unknown = [number for number in settings.episodes if not 0 <= number < n_episodes]
        if unknown:
            raise ReportError(f"no episode {unknown[0]}; there are {n_episodes}, numbered from 0 over all datasets")
        return list(dict.fromkeys(settings.episodes))
    summaries = [summary for one in opened for summary in one.summaries]
    troubled = {"error": 0, "warning": 1}
    spread = _bit_reversed(n_episodes)
    return sorted(range(n_episodes), key=lambda number: (troubled.get(summaries[number].worst, 2), spread[number]))


def _bit_reversed(count: int) -> list[int]:
    """Returns the numbers below `count`, ordered so that the first few are evenly spaced."""
    bits = max(1, (count - 1).bit_length())
    return [int(f"{number:0{bits}b}"[::-1], 2) for number in range(count)]


def _page(opened: Sequence[OpenedSet], index: dict[str, Any], filled: Filled, settings: PageSettings) -> str:
    paths = [one.buffer.where for one in opened]
    title = ", ".join(Path(path).name for path in paths)
    marks = f"{Path(paths[0]).name}.marks.json"
    base = Path(paths[0]).name if is_hub(paths[0]) else paths[0]  # nothing is written into a hub
    edit = command("edit_dataset", *paths, "--delete-marked", marks, "--output", f"{base}.edited.zarr")
    body = template("dataset.html").render(edit=edit)
    data = {**index, "marks": marks, "shown": sorted(filled.shown)}
    elements = "".join([embedded("dataset", data), *filled.shown.values()])
    groups = {Path(one.buffer.where).name: one.inspection.findings for one in opened}
    sections = [Section("episodes", "Episodes", body + elements), findings_section(groups)]
    looked = (
        "Every frame was read and compared with the hashes that the conversion recorded."
        if settings.all_frames
        else "Every number and every file's size was checked, but only a few frames: --all-frames reads all of them."
    )
    sentence = _sentence(opened, index, filled, settings)
    lead = paragraph(sentence) + paragraph(looked, "dim") + paragraph(", ".join(paths), "dim")
    return render(title, lead, sections, "dataset_page")


def _sentence(opened: Sequence[OpenedSet], index: dict[str, Any], filled: Filled, settings: PageSettings) -> str:
    episodes = index["episodes"]
    steps = sum(entry["steps"] for entry in episodes)
    count = sum(entry["level"] in ("error", "warning") for entry in episodes)
    text = f"{len(episodes)} episodes, {steps} steps; {count} with a warning or an error."
    if len(filled.shown) < len(episodes):
        asked = settings.episodes is not None and len(filled.shown) == len(set(settings.episodes))
        why = "the requested ones" if asked else f"as many as fit into {settings.megabytes:g} MB (--max-megabytes)"
        text += (
            f" {len(filled.shown)} have pictures and curves, {why}; the others are listed and can be marked as well."
        )
    if filled.frames < filled.of_frames:
        share, widest = filled.frames / filled.of_frames, max(one.views.widest for one in opened)
        text += (
            f" Of these, {filled.frames} of {filled.of_frames} frames are shown ({share:.0%}), at most {widest} pixels "
            "wide."
        )
    return text


def numbers_of(words: Sequence[str]) -> list[int]:
    """Returns episode numbers from their form on the command line: "3", "5-8".

    Raises:
        ReportError: a word has another form.
    """
    result: list[int] = []
    for word in words:
        first, _, last = word.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or len(word) > 20:
            raise ReportError(f"{word!r} does not name episodes; expected numbers and ranges, such as 3 or 5-8")
        result += np.arange(int(first), min(int(last or first), int(first) + 10**6) + 1).tolist()
    return result
