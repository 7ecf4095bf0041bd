"""The C library's allocator, told to keep freed memory: else half of a large network's step on a CPU is page faults."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Keep memory that is freed for the next allocation, large blocks too; return whether that could be set.

    By default glibc gives blocks of more than 32 MiB back to the system at once, and takes fresh pages, which the
    system has to clear, for the next one: a step allocates and frees the same gigabytes again and again. For whole
    programs (train.py): nothing is given back until the process ends. Only glibc (Linux) is told.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 * 2**20}
    return all([mallopt(option, value) == 1 for option, value in settings.items()])
