"""A dataset that an earlier conversion made: `--append` adds to it, and `--resume` detects by it that all is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.convert.ledger import ConversionReport, report_from_json
from diffusion_policy.convert.settings import ConversionError, ConversionSettings
from diffusion_policy.dataset.content_hash import CONVERSION, EPISODES
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, HEMISPHERE, ReplayBuffer
from diffusion_policy.recording import ArrayNames


@dataclass(frozen=True)
class ExistingDataset:
    """A finished dataset and the record of how it was made.

    Attributes:
        buffer: the dataset, read-only.
        report: its ledger.
        episodes: one mapping per episode: name, number, steps and hash.
        hemisphere: (4,) hemisphere of its quaternions, (R, 4) with several arms; None if their signs were kept.
    """

    buffer: ReplayBuffer
    report: ConversionReport
    episodes: tuple[Mapping[str, Any], ...]
    hemisphere: NDArray[np.float64] | None

    @classmethod
    def open(cls, path: Path) -> ExistingDataset:
        """Opens a dataset that this converter made.

        Raises:
            ConversionError: it has no record of a conversion.
            DatasetError: it is not a dataset, or one of its files is missing or truncated.
        """
        buffer = ReplayBuffer.open(path, check_files=False)
        attributes = buffer.root.attrs.asdict()
        if not {CONVERSION, EPISODES, HEMISPHERE} <= attributes.keys():
            raise ConversionError(f"{path} has no record of its conversion; convert its recordings again")
        buffer.refuse(buffer.file_faults())
        hemisphere = attributes[HEMISPHERE]
        return cls(
            buffer=buffer,
            report=report_from_json(path, attributes[CONVERSION]),  # type: ignore[arg-type]
            episodes=tuple(attributes[EPISODES]),  # type: ignore[arg-type]
            hemisphere=None if hemisphere is None else np.asarray(hemisphere, dtype=np.float64),
        )

    def check_same_content(self, settings: ConversionSettings) -> None:
        """Refuses to add episodes made with other settings.

        Raises:
            ConversionError: some settings differ; the message names them.
        """
        wanted = {"mapping": None, **settings.content(), "quaternion_sign": settings.quaternion_sign}
        differing = [key for key, value in wanted.items() if self.report.settings.get(key) != value]
        if differing:
            found = {key: self.report.settings.get(key) for key in differing}
            raise ConversionError(f"{settings.output} was made with other settings: {found}; append with the same ones")

    def check_same_names(self, names: ArrayNames, source: Path) -> None:
        """Refuses to add recordings with different arrays.

        Raises:
            ConversionError: an array differs; the message names it.
        """
        for key, wanted in {**names.states, ACTION_KEY: names.action}.items():
            existing = self.buffer.names(key) if key in self.buffer else ()
            if existing != wanted:
                raise ConversionError(
                    f"{source}: data/{key} is {', '.join(wanted)}; {self.buffer.where} has "
                    f"{', '.join(existing) or 'no such array'}: convert it to a separate dataset"
                )
