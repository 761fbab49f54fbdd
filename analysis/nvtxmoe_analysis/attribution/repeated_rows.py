"""GPU operations that were recorded more than once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nvtxmoe_analysis.attribution.gpu_operations import Operations

Digests = npt.NDArray[np.uint64]

#: What tells one operation from every other.
KEY = ("globalPid", "correlationId", "graphNodeId", "start", "end", "name")


def row_digests(operations: Operations) -> Digests:
    """Return a 64-bit digest of KEY per operation: uint64 [operations]."""
    digests: Digests = operations.frame.select(KEY).hash_rows(seed=operations.kind).to_numpy()
    return digests


def repeated(parts: Sequence[Digests]) -> int:
    """Return how many operations have the digest of an earlier one.

    Two different operations share a digest with a chance of about n^2 / 2^65: 3e-6 for ten million.
    """
    if not parts:
        return 0
    every = np.concatenate(parts)
    every.sort()
    return int((every[1:] == every[:-1]).sum())
