"""Keeps the memory that tensors leave, for the next ones: every step frees and asks for the same sizes."""

from __future__ import annotations

import ctypes
import os

# Of mallopt(3). From the threshold on, a block is mapped for itself, and given back when it is freed; more free
# memory than the other one at the end of the heap is given back too. What comes back is zeroed page by page.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
MOST = 2**31 - 1  # mallopt takes an int
MOST_BEFORE_235 = 2**25  # an older glibc refuses a larger threshold of mapped blocks


def keep_freed_memory() -> bool:
    """Asks glibc's malloc to give nothing back to the system below 2 GiB; whether it will.

    Not where the user has set a MALLOC_ variable or a tunable of malloc, and not with another C library.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if own or mallopt is None:
        return False
    kept = mallopt(MMAP_THRESHOLD, MOST) or mallopt(MMAP_THRESHOLD, MOST_BEFORE_235)
    return bool(kept and mallopt(TRIM_THRESHOLD, MOST))
