"""What the C library does with the memory that a process frees.

glibc returns large blocks to the system when they are freed and requests new ones, which arrive page by page and
zeroed. An update on a CPU frees and requests gigabytes in the same sizes as the previous update: memory that is kept is
available at once. Other C libraries are left alone.
"""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
MMAP_MAX = -4


def set_malloc(option: int, value: int) -> bool:
    """Set one of the options above for this process; returns whether that was possible."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc (macOS, musl), or no access to the process's own symbols
        return False
    return bool(mallopt(ctypes.c_int(option), ctypes.c_int(value)))


def keep_freed_memory() -> None:
    """Keep freed memory from now on; the process never exceeds its previous peak because of that."""
    # -1 is the largest size. If a release refuses it as MMAP_THRESHOLD, no block is mapped separately at all.
    if set_malloc(TRIM_THRESHOLD, -1) and not set_malloc(MMAP_THRESHOLD, -1):
        set_malloc(MMAP_MAX, 0)
