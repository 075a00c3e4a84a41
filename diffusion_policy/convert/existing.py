"""A dataset that an earlier conversion made: what `--append` builds on, and how `--resume` knows that all is done."""

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
        hemisphere: (4,) that its quaternions point to, (R, 4) of several arms; None if their signs were kept.
    """

    buffer: ReplayBuffer
    report: ConversionReport
    episodes: tuple[Mapping[str, Any], ...]
    hemisphere: NDArray[np.float64] | None

    @classmethod
    def open(cls, path: Path) -> ExistingDataset:
        """Open a dataset that this converter made.

        Raises:
            ConversionError: it carries no record of a conversion.
            DatasetError: it is no dataset, or a file of it is absent or cut.
        """
        buffer = ReplayBuffer.open(path, check_files=False)
        attributes = buffer.root.attrs.asdict()
        if not {CONVERSION, EPISODES, HEMISPHERE} <= attributes.keys():
            raise ConversionError(f"{path} carries no record of its conversion; convert its recordings anew")
        buffer.refuse(buffer.file_faults())
        hemisphere = attributes[HEMISPHERE]
        return cls(
            buffer=buffer,
            report=report_from_json(path, attributes[CONVERSION]),  # type: ignore[arg-type]
            episodes=tuple(attributes[EPISODES]),  # type: ignore[arg-type]
            hemisphere=None if hemisphere is None else np.asarray(hemisphere, dtype=np.float64),
        )

    def check_same_content(self, settings: ConversionSettings) -> None:
        """Refuse to add episodes made in another way.

        Raises:
            ConversionError: names the settings that differ.
        """
        wanted = {"mapping": None, **settings.content(), "quaternion_sign": settings.quaternion_sign}
        differing = [key for key, value in wanted.items() if self.report.settings.get(key) != value]
        if differing:
            found = {key: self.report.settings.get(key) for key in differing}
            raise ConversionError(f"{settings.output} was made with other settings: {found}; append with the same ones")

    def check_same_names(self, names: ArrayNames, source: Path) -> None:
        """Refuse to add recordings whose arrays are others.

        Raises:
            ConversionError: names the array that differs.
        """
        for key, wanted in {**names.states, ACTION_KEY: names.action}.items():
            existing = self.buffer.names(key) if key in self.buffer else ()
            if existing != wanted:
                raise ConversionError(
                    f"{source}: data/{key} is {', '.join(wanted)}; {self.buffer.where} has "
                    f"{', '.join(existing) or 'no such array'}: convert it to a dataset of its own"
                )
