"""How a kernel says that its counts have arrived: a flag per program in the host's memory, behind the counts."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tell_arrival(out, size, program):  # type: ignore[no-untyped-def]
    """Set a program's flag behind ``size`` counts, ``size`` rounded up to a multiple of 4 (``counts_memory.ALIGNED``).

    The barrier waits for the stores of all threads of the program. One thread then writes the flag with release
    semantics in the scope of the system, which orders those stores before it for the host, too.
    """
    tl.debug_barrier()
    tl.atomic_xchg(out + (size + 3) // 4 * 4 + program, 1, sem="release", scope="sys")
