"""Which recorded episodes a checkpoint is evaluated on, and whether it was trained on them.

A checkpoint of this project stores the episodes of its training (`dataset.split`), so they are recognized in a dataset
that was appended to, reconverted or joined. If the checkpoint does not store them, or the dataset's episodes cannot be
recognized, nothing here is called held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from diffusion_policy.checkpoint import Checkpoint
from diffusion_policy.dataset.joined_datasets import JoinedDatasets
from diffusion_policy.dataset.split import STATUSES, WORDS, Split, Status, episode_identities, split_of
from diffusion_policy.dataset.windows import validation_episodes
from diffusion_policy.evaluate.writing import EvaluateError

HELD_OUT, ALL = "held-out", "all"


@dataclass(frozen=True)
class EpisodeChoice:
    """Episodes to evaluate on.

    Attributes:
        numbers: numbers of the episodes in the dataset, in order.
        statuses: whether the policy was trained on each of them, as far as the checkpoint shows.
        note: the same in a sentence, with the reason if it is unknown.
    """

    numbers: tuple[int, ...]
    statuses: tuple[Status, ...]
    note: str

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON: the status of each episode by its number, and the sentence."""
        named = {str(number): status for number, status in zip(self.numbers, self.statuses, strict=True)}
        return {"episodes": named, "note": self.note}


def episode_statuses(dataset: JoinedDatasets, split: Split | None) -> list[Status]:
    """Returns the status of every episode of a dataset; "unknown" for all without a split."""
    if split is None:
        return ["unknown"] * dataset.n_episodes
    return split.statuses([episode_identities(buffer) for buffer in dataset.buffers])


def parse_episodes(words: Sequence[str]) -> str | list[int]:
    """Returns the episodes named on a command line: "held-out", "all", or numbers; EvaluateError for anything else."""
    if len(words) == 1 and words[0] in (HELD_OUT, ALL):
        return words[0]
    if not all(word.isdecimal() for word in words):
        raise EvaluateError(f"--episodes {' '.join(words)}: expected held-out, all, or episode numbers")
    return [int(word) for word in words]


def choose_episodes(
    dataset: JoinedDatasets, checkpoint: Checkpoint, episodes: str | Sequence[int] | None = None
) -> EpisodeChoice:
    """Chooses episodes, and states whether the policy was trained on them.

    Args:
        dataset: recorded episodes.
        checkpoint: the policy's checkpoint.
        episodes: "held-out" (or None): those that its training held out; if the dataset has none of them, those
            that were not in the training set; if that is unknown, those that its config would hold out. "all",
            or episode numbers.

    Raises:
        EvaluateError: a number is out of range, or every episode was trained on.
        DatasetError: the checkpoint's split is damaged.
    """
    split = split_of(checkpoint.provenance, str(checkpoint.path))
    statuses = episode_statuses(dataset, split)
    if isinstance(episodes, str) and episodes not in (HELD_OUT, ALL):
        raise EvaluateError(f"episodes is {episodes!r}; expected 'held-out', 'all' or a list of numbers")
    if episodes is None or episodes == HELD_OUT:
        numbers = _held_out(dataset, checkpoint, statuses, known=split is not None)
    else:
        numbers = list(range(dataset.n_episodes)) if isinstance(episodes, str) else list(episodes)
    unknown = [number for number in numbers if not 0 <= number < dataset.n_episodes]
    if unknown or not numbers:
        raise EvaluateError(f"{dataset.where}: no episodes {unknown}; it has 0 to {dataset.n_episodes - 1}")
    chosen = tuple(statuses[number] for number in numbers)
    return EpisodeChoice(tuple(numbers), chosen, _note(numbers, chosen, statuses, split, checkpoint))


def _held_out(dataset: JoinedDatasets, checkpoint: Checkpoint, statuses: Sequence[Status], *, known: bool) -> list[int]:
    wanted: Status
    if known:
        for wanted in ("held out", "unseen", "unknown"):
            result = [number for number, status in enumerate(statuses) if status == wanted]
            if result:
                return result
        raise EvaluateError(
            f"{checkpoint.path}: all {dataset.n_episodes} episodes of {dataset.where} were trained on, none was held "
            "out; ask for 'all' or for a list (--episodes all)"
        )
    ratio = float(OmegaConf.select(checkpoint.cfg, "task.dataset.val_ratio", default=0.0))
    seed = int(OmegaConf.select(checkpoint.cfg, "task.dataset.seed", default=42))
    lengths = [buffer.n_episodes for buffer in dataset.buffers]
    drawn = np.flatnonzero(np.concatenate([validation_episodes(n, ratio, seed) for n in lengths])).tolist()
    if not drawn:
        raise EvaluateError(
            f"{checkpoint.path}: training held no episode of {dataset.where} out (val_ratio {ratio}, "
            f"{dataset.n_episodes} episodes); ask for 'all' or for a list"
        )
    return drawn


def _note(
    numbers: Sequence[int],
    chosen: Sequence[Status],
    statuses: Sequence[Status],
    split: Split | None,
    checkpoint: Checkpoint,
) -> str:
    groups = {s: [n for n, status in zip(numbers, chosen, strict=True) if status == s] for s in STATUSES}
    text = [f"{_episodes(episodes)} {WORDS[status]}" for status, episodes in groups.items() if episodes]
    if split is None:
        text[0] += f": {checkpoint.path.name} does not record which episodes it was trained on"
    elif groups["unknown"]:
        text[-1] += ": the episodes of this dataset cannot be recognized"
    new = [number for number, status in enumerate(statuses) if status == "unseen" and number not in numbers]
    if new:
        text.append(f"{_episodes(new)}, not evaluated, {WORDS['unseen']}")
    if split is not None and not split.earlier_known and groups["held out"]:
        text.append("the checkpoint that training started from does not record which episodes it had been trained on")
    return "; ".join(text)


def _episodes(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
    return f"episode{'s' if len(numbers) > 1 else ''} {shown}"
