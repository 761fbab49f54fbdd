"""The launch by the CUDA driver is tried out on this machine before it is used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from nvtxmoe.capture.run_identity import Step

#: The counter, which imports this module.
Counter = Any


def counts_by_driver(counter: Counter, shapes: Iterable[tuple[int, int]]) -> bool:
    """Return whether counts of known ids are right if the driver launches the kernel. This waits for the device.

    The counter launches by the driver afterwards, whatever came out.

    Parameters:
        shapes: (experts, top_k) of the layers.
    """
    counter.launch_by_driver(True)
    failure = next(filter(None, (_failure(counter, experts, top_k) for experts, top_k in shapes)), None)
    if failure is not None:
        logger().warning("counting takes more CPU time than it could: launches by the CUDA driver %s", failure)
    return failure is None


def _failure(counter: Counter, experts: int, top_k: int) -> str | None:
    """Why counts of such layers are not right, None where they are."""
    import torch  # noqa: PLC0415

    key = object()
    try:
        chosen = np.arange(2 * top_k, dtype=np.int32).reshape(2, top_k) % experts
        ids = torch.tensor(chosen, device="cuda")
        routed = (RoutingTensors(0, experts, ids, None), RoutingTensors(1, experts, ids, None))
        for tokens in (1, 2, 1):  # the first launch is by Triton, which compiles
            counter.submit(Step(-1, 0, tokens, 1, 0, tokens), routed, sample=False, key=key)
            (counted,) = counter.drain(wait=True)
            expected = np.bincount(chosen[:tokens].ravel(), minlength=experts)
            if not np.array_equal(counted.cells[0].counts, [expected, expected]):
                return "gave wrong counts when they were tried out"
    except Exception as error:
        return f"failed when they were tried out: {type(error).__name__}: {error}"
    return None
