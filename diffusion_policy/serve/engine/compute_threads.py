"""The number of compute threads: chosen when the checkpoint is loaded, and again between requests.

Threads of one product wait for each other, so two threads are slower than one on cores that others use (``cores``). A
robot's computer is often busy in this way, but not always.
"""

from __future__ import annotations

import logging
import time

import torch

from diffusion_policy.cpu import CpuTimes, Threads, choose_threads

logger = logging.getLogger(__name__)

# Seconds for which other processes are measured between two choices; a much longer measurement is outdated.
MEASUREMENT_S, OUTDATED_S = 2.0, 30.0


class ComputeThreads:
    """The number of torch's threads, set in the one thread that computes; every method must be called from it.

    Args:
        asked: ``engine.threads``; None for as many as there are cores that other processes leave free.
        since: when the measurement of other processes began.
    """

    def __init__(self, asked: int | None, since: CpuTimes) -> None:
        self._asked = asked
        self._use(choose_threads(asked, since))
        self._proposed = self.count
        self._since = CpuTimes.now()

    def choose_again(self) -> None:
        """Changes the number once two consecutive measurements agree on it; cheap enough to call between requests."""
        if self._asked is not None:
            return
        watched = time.monotonic() - self._since.wall
        if watched < MEASUREMENT_S:
            return
        if watched < OUTDATED_S:
            choice = choose_threads(None, self._since)
            if choice.count != self.count and choice.count == self._proposed:
                self._use(choice)
            self._proposed = choice.count
        self._since = CpuTimes.now()

    def _use(self, threads: Threads) -> None:
        self.count = threads.count
        torch.set_num_threads(threads.count)
        logger.info("compute threads: %d (%s)", threads.count, threads.reason)
