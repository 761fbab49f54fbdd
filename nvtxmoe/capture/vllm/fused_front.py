"""Layers whose router vLLM replaces in full CUDA graphs: DeepSeek V4.1 with ``decode_backend=latency_specialized``.

There one kernel computes the top-k unless the router's ``capture_fn`` is set. Setting it changes the program that runs,
so nvtxmoe sets it only where NVTXMOE_KEEP_ROUTER asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.vllm.moe_layer import MoeLayer

BACKEND = "latency_specialized"
HIDDEN = (
    f"decode_backend={BACKEND} replaces its router in full CUDA graphs (NVTXMOE_KEEP_ROUTER=1 keeps the router, which "
    "changes the program that runs)"
)
CHANGED = f"the fused front of decode_backend={BACKEND} is off, since NVTXMOE_KEEP_ROUTER keeps the router"


def may_replace_router(worker: Any, layer: MoeLayer) -> bool:
    """Whether vLLM may run its fused front in the place of a layer's router, as its rules for it tell."""
    config = worker.vllm_config
    more = getattr(config, "additional_config", None)
    if not isinstance(more, dict) or more.get("decode_backend") != BACKEND:
        return False
    if getattr(config.model_config, "enable_return_routed_experts", False):
        return False  # vLLM's own capture sets capture_fn
    router = layer.router
    if getattr(router, "capture_fn", None) is not None:
        return False
    return (
        type(router).__name__ == "FusedTopKBiasRouter"
        and getattr(router, "scoring_func", None) == "sqrtsoftplus"
        and getattr(router, "_hash_indices_table", None) is None
    )


def keep_routers(worker: Any, layers: Iterable[MoeLayer]) -> bool:
    """Set the router's ``capture_fn`` where it is free, so that vLLM runs the router; return whether one was set."""
    replaced = [layer for layer in layers if may_replace_router(worker, layer)]
    for layer in replaced:
        layer.router.set_capture_fn(_heard)
    if replaced:
        logger().warning("%s: the program that runs is another one", CHANGED)
    return bool(replaced)


def _heard(_: Any) -> None:
    return None
