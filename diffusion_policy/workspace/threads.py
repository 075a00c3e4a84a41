"""How many threads compute on a CPU: chosen when a run begins, kept when it is resumed."""

from __future__ import annotations

import logging
import os

import torch

from diffusion_policy.cpu import EXPLICIT, CpuTimes, choose_threads, usable_cores

logger = logging.getLogger(__name__)


def settle_threads(asked: int | None, kept: int | None, since: CpuTimes) -> int:
    """Set torch's compute threads and return how many they are.

    Sums that several threads share are grouped by thread, so their last bits depend on the number. A resumed run keeps
    the number that it began with, so that it equals one never stopped; where that is too many for what other processes
    leave now, it says so.

    Args:
        asked: `training.threads`; None: choose (see `cores.choose_threads`).
        kept: of the run that is resumed; None: it begins, or did not say.
        since: when looking at other processes began.
    """
    chosen = choose_threads(asked, since)
    count = chosen.count
    explicit = asked is not None or any(os.environ.get(name) for name in EXPLICIT)
    if not explicit:
        count = max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if kept is not None:
            if count < kept:
                logger.warning(
                    "this run began with %d compute threads and goes on with them; now there are %s, so "
                    "training.threads=%d may be faster (the last bits of sums then differ)",
                    kept, chosen.reason, count,
                )  # fmt: skip
            count = min(kept, usable_cores())
        elif count < usable_cores():
            logger.info("%d compute thread%s (%s); training.threads=N sets it", count, "s" * (count > 1), chosen.reason)
    if count != torch.get_num_threads():
        torch.set_num_threads(count)
    return count
