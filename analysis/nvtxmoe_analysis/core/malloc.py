"""How the C library hands out memory, for processes of our own: the command's, and those that read reports."""

from __future__ import annotations

import ctypes
from contextlib import suppress

#: Parameters of mallopt(3), as glibc's malloc.h numbers them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
#: Blocks of this size are the system's again once they are freed.
LARGE_BYTES = 4 << 20
#: So much that was freed at the end of the heap stays. By default next to nothing does once LARGE_BYTES is set, and the
#: system hands out and clears the same pages again for each batch of rows: a tenth of the CPU time of an analysis.
KEPT_BYTES = 16 << 20


def keep_low() -> bool:
    """Have glibc keep less of what was freed; call it before there are threads.

    By default each thread gets an arena of its own, and freed arrays stay in it: a process that reads reports one after
    the other grows to nearly twice what one needs (docs/development/benchmarks-many-captures.md).
    Elsewhere it does nothing.

    Returns:
        Whether it was done.
    """
    with suppress(OSError, AttributeError, TypeError):  # other systems, and other C libraries
        mallopt = ctypes.CDLL(None).mallopt
        values = {_ARENA_MAX: 1, _MMAP_THRESHOLD: LARGE_BYTES, _TRIM_THRESHOLD: KEPT_BYTES}
        return all(mallopt(parameter, value) for parameter, value in values.items())
    return False
