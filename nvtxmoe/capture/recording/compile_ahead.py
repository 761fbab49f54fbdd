"""Compiles a recorder's kernels before the first request, which would else wait for them."""

from __future__ import annotations

from typing import Any

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.cuda_counter import CudaCounter
from nvtxmoe.capture.recording.router_logits import RouterLogits

#: The recorder, which imports this module.
Recorder = Any


def compile_counting(recorder: Recorder) -> None:
    """Compile the counting of the model's layers on the current GPU."""
    layers = () if recorder.identity is None else recorder.identity.layers
    shapes = {(layer.num_experts, layer.top_k) for layer in layers}
    shapes |= {(layer.num_physical, layer.top_k) for layer in layers if layer.num_physical is not None}
    try:
        with recorder._lock:  # else the thread that sends could take what is counted for a step
            counter = recorder._counter = recorder._counter or CudaCounter()
            if isinstance(counter, CudaCounter):
                counter.warm_up(sorted(shapes), recorder._pairs is not None)
    except Exception:  # it is tried again with the first step
        logger().info("the counting could not be compiled ahead", exc_info=True)


def compile_recomputing(recorder: Recorder, logits: RouterLogits) -> None:
    """Compile the recomputing of such logits, once a kind."""
    kind = logits.rule, logits.num_experts, logits.top_k, logits.logits.dtype, logits.bias is None
    if recorder.graphs.closed or kind in recorder._warmed or not logits.is_cuda:
        return
    recorder._warmed.add(kind)
    with recorder._lock:
        if isinstance(recorder._counter, CudaCounter):
            recorder._counter.warm_up_logits(logits)
