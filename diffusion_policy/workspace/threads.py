"""The number of compute threads on a CPU: chosen when a run starts, kept when it is resumed."""

from __future__ import annotations

import logging
import os

import torch

from diffusion_policy.cpu import EXPLICIT, CpuTimes, choose_threads, usable_cores

logger = logging.getLogger(__name__)


def set_compute_threads(requested: int | None, kept: int | None, since: CpuTimes) -> int:
    """Set torch's number of compute threads and return it.

    Sums over several threads are grouped by thread, so their last bits depend on the number of threads. A resumed run
    keeps the number that it started with, so that it equals an uninterrupted one; a warning is logged if other
    processes now leave fewer cores than that.

    Args:
        requested: `training.threads`; None: choose (see `cpu.choose_threads`).
        kept: number stored by the resumed run; None: a new run, or the number was not stored.
        since: CPU times at the start of the interval over which the load of other processes is measured.
    """
    chosen = choose_threads(requested, since)
    count = chosen.count
    explicit = requested is not None or any(os.environ.get(name) for name in EXPLICIT)
    if not explicit:
        count = max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if kept is not None:
            if count < kept:
                logger.warning(
                    "this run started with %d compute threads and keeps them; now there are %s, so "
                    "training.threads=%d may be faster (the last bits of sums then differ)",
                    kept, chosen.reason, count,
                )  # fmt: skip
            count = min(kept, usable_cores())
        elif count < usable_cores():
            logger.info("%d compute thread%s (%s); training.threads=N sets it", count, "s" * (count > 1), chosen.reason)
    if count != torch.get_num_threads():
        torch.set_num_threads(count)
    return count
