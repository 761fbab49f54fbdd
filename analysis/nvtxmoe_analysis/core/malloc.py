"""How the C library hands out memory, for processes of our own: the command's, and those that read reports."""

from __future__ import annotations

import ctypes
from contextlib import suppress

#: Parameters of mallopt(3), as glibc's malloc.h numbers them.
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
#: Blocks of this size are the system's again once they are freed.
LARGE_BYTES = 4 << 20


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
        return bool(mallopt(_ARENA_MAX, 1)) and bool(mallopt(_MMAP_THRESHOLD, LARGE_BYTES))
    return False
