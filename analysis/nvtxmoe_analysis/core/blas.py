"""How many threads numpy's linear algebra has."""

from __future__ import annotations

import os
import sys

#: Threads of OpenBLAS, which numpy's wheels contain. It reads the variable when it is loaded.
THREADS = "OPENBLAS_NUM_THREADS"


def one_thread() -> None:
    """Import numpy with a linear algebra of one thread, if neither numpy nor a number of threads is there.

    Matrices of the layer model are small: threads wait for each other longer than they work, and the model then takes
    twice the CPU time. Programs that are started later do not inherit the setting.
    """
    if "numpy" in sys.modules or THREADS in os.environ:
        return
    os.environ[THREADS] = "1"
    try:
        import numpy  # noqa: F401, PLC0415
    finally:
        del os.environ[THREADS]
