"""Quicker ways to launch and to notice arrival, each taken only after it has been tried out on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.counts_memory import flags_are_ordered
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from nvtxmoe.capture.run_identity import Step

#: The counter, which imports this module.
Counter = Any


class Ways(NamedTuple):
    """What a counter does instead of calling Triton and recording a CUDA event in every step.

    Attributes:
        driver: kernels of kept plans are launched by the CUDA driver, without Triton.
        flags: kernels set flags in the host's memory when counts have arrived, so that no event is needed.
    """

    driver: bool = False
    flags: bool = False

    def __str__(self) -> str:
        launches = "launches by the driver" if self.driver else "launches by Triton"
        return f"{launches} with {'flags of the kernel' if self.flags else 'events'}"


#: From the quickest on.
QUICK = (Ways(driver=True, flags=True), Ways(flags=True), Ways(driver=True))


def try_out(counter: Counter, shapes: Iterable[tuple[int, int]]) -> Ways:
    """Return the quickest ways by which counts of known ids are right on the current GPU. This waits for the device.

    Parameters:
        shapes: (experts, top_k) of the layers.
    """
    kinds = list(shapes)
    failures: list[str] = []
    for ways in QUICK:
        if ways.flags and not flags_are_ordered():
            continue
        failure = next(filter(None, (_failure(counter, ways, experts, top_k) for experts, top_k in kinds)), None)
        if failure is None:
            if failures:
                logger().warning("counting takes more CPU time than it could: %s", failures[0])
            return ways
        failures.append(failure)
    logger().warning("counting takes more CPU time than it could: %s", failures[0])
    return Ways()


def _failure(counter: Counter, ways: Ways, experts: int, top_k: int) -> str | None:
    """Why counts are not right in these ways, None where they are."""
    import torch  # noqa: PLC0415

    key = object()
    try:
        counter.use(ways)
        chosen = np.arange(2 * top_k, dtype=np.int32).reshape(2, top_k) % experts
        ids = torch.tensor(chosen, device="cuda")
        routed = (RoutingTensors(0, experts, ids, None), RoutingTensors(1, experts, ids, None))
        for tokens in (1, 2, 1):  # the first launch compiles
            counter.submit(Step(-1, 0, tokens, 1, 0, tokens), routed, sample=False, key=key)
            torch.cuda.synchronize()
            counts = [cells.counts.copy() for counted in counter.drain() for cells in counted.cells]
            expected = np.bincount(chosen[:tokens].ravel(), minlength=experts)
            if len(counts) != 1 or not np.array_equal(counts[0], [expected, expected]):
                return f"{ways} gave {'no' if not counts else 'wrong'} counts when it was tried out"
    except Exception as error:
        return f"{ways} failed when it was tried out: {type(error).__name__}: {error}"
    finally:
        counter.forget_pending()
        counter.use(Ways())
    return None
