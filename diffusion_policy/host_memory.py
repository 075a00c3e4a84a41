"""What the C library does with the memory that a process frees.

glibc hands large blocks back to the system as they are freed, and asks for new ones, which come page by page and
zeroed. An update on a CPU frees and asks for gigabytes of the same sizes as the one before: memory that is kept is
there at once. Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
MMAP_MAX = -4


def set_malloc(option: int, value: int) -> bool:
    """Set one of the options above for this process; whether that was possible."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc: macOS, musl; no such thing as a process's own symbols
        return False
    return bool(mallopt(ctypes.c_int(option), ctypes.c_int(value)))


def keep_freed_memory() -> None:
    """Keep what is freed from now on; the process does not get larger than it was at its largest."""
    # -1 is the largest size there is. Older releases refuse it as the first threshold: there no block is a large one.
    if set_malloc(TRIM_THRESHOLD, -1) and not set_malloc(MMAP_THRESHOLD, -1):
        set_malloc(MMAP_MAX, 0)
