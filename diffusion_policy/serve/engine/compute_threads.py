"""How many threads compute an answer: chosen when the checkpoint is loaded, judged again between requests.

Threads of one product wait for each other, so on cores that others use, two are slower than one (``cores``). A robot's
computer is such a machine, and not at all times.
"""

from __future__ import annotations

import logging
import time

import torch

from diffusion_policy.cpu import CpuTimes, Threads, choose_threads

logger = logging.getLogger(__name__)

# Seconds over which other processes are watched between two judgments; a much longer look says nothing of now.
LOOK_S, OLD_S = 2.0, 30.0


class ComputeThreads:
    """The number of torch's threads, in the one thread that computes; every method is called there.

    Args:
        asked: ``engine.threads``; None: as many as there are cores that other processes leave.
        since: when looking at other processes began.
    """

    def __init__(self, asked: int | None, since: CpuTimes) -> None:
        self._asked = asked
        self._use(choose_threads(asked, since))
        self._proposed = self.count
        self._since = CpuTimes.now()

    def judge_again(self) -> None:
        """Use another number once two looks in a row agree on it; cheap, for between requests."""
        if self._asked is not None:
            return
        watched = time.monotonic() - self._since.wall
        if watched < LOOK_S:
            return
        if watched < OLD_S:
            found = choose_threads(None, self._since)
            if found.count != self.count and found.count == self._proposed:
                self._use(found)
            self._proposed = found.count
        self._since = CpuTimes.now()

    def _use(self, threads: Threads) -> None:
        self.count = threads.count
        torch.set_num_threads(threads.count)
        logger.info("compute threads: %d (%s)", threads.count, threads.reason)
