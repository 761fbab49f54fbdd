"""Experts that are not vLLM's ``MoERunner`` but hand the chosen ids to a ``capture_fn`` of their own.

In vLLM 0.33 that is ``DeepGemmMegaMoEExperts``. ``capture_fn`` is one slot, which vLLM fills too, at any time after the
model is loaded. So the class gets a property in its place: whoever sets the slot is called first, then nvtxmoe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvtxmoe.capture.hooks import put, wrap
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from nvtxmoe.capture.vllm.layer_hooks import Capture
from nvtxmoe.capture.vllm.moe_layer import MoeLayer
from nvtxmoe.capture.vllm.own_rows import UnknownLayoutError, own_start

SLOT = "capture_fn"
#: Whole numbers that a source must have: of physical and local experts, its first local one, and its choices per token.
NUMBERS = ("layer_id", "num_experts", "num_local_experts", "experts_start_idx", "top_k")


@dataclass(frozen=True)
class _Parallel:
    use_ep: bool
    ep_rank: int
    ep_size: int


@dataclass(frozen=True)
class _Config:
    """As the parts of vLLM's FusedMoEConfig that an identity is made of."""

    num_experts: int
    num_logical_experts: int
    num_local_experts: int
    moe_parallel_config: _Parallel


def is_source(module: Any) -> bool:
    """Whether a module hands its ids to a ``capture_fn`` and tells its layer and its experts."""
    return hasattr(module, SLOT) and all(type(getattr(module, name, None)) is int for name in NUMBERS)


def sources(static_context: Mapping[str, Any], runner: type) -> list[MoeLayer]:
    """Return the layers of vLLM's static forward context that are such sources and no ``runner``."""
    return [
        _layer(name, module)
        for name, module in static_context.items()
        if not isinstance(module, runner) and is_source(module)
    ]


def hook_sources(capture: Capture, layers: list[MoeLayer]) -> None:
    """Put a range around each source's forward, and nvtxmoe behind its ``capture_fn``."""
    import torch  # noqa: PLC0415  inside vLLM only

    around = capture.layer_hook(lambda module, *_, **__: module, lambda _: False, name="layer of experts")
    for kind in {type(layer.key) for layer in layers}:
        if not isinstance(vars(kind).get(SLOT), _Slot):
            put(kind, SLOT, _Slot(capture))
        wrap(kind, "forward", around, skip=torch.compiler.is_compiling)


class _Slot(property):
    """``capture_fn`` of a class: set by anybody, read as a call of theirs and of nvtxmoe's."""

    def __init__(self, capture: Capture) -> None:
        hook = capture.hook(SLOT)

        def read(module: Any) -> Callable[[Any], None] | None:
            vllm_hook: Callable[[Any], None] | None = vars(module).get(SLOT)
            info = capture.layers.get(id(module))
            if hook.failure is not None or info is None or not capture.recorder.listens(info.layer):
                return vllm_hook

            def both(topk_ids: Any) -> None:
                if vllm_hook is not None:
                    vllm_hook(topk_ids)
                try:
                    _chosen(capture, module, topk_ids)
                except Exception as error:  # fails open
                    hook.fail(error, hook.depth())

            return both

        def write(module: Any, value: Any) -> None:
            vars(module)[SLOT] = value  # where it was before, and is again without the property

        super().__init__(read, write)


def _chosen(capture: Capture, module: Any, topk_ids: Any) -> None:
    from vllm.forward_context import get_forward_context, is_forward_context_available  # noqa: PLC0415

    info = capture.layers[id(module)]
    if topk_ids.ndim != 2 or topk_ids.shape[1] != module.top_k:
        capture.recorder.hide(info.layer, f"its router gives {list(topk_ids.shape)}, not [tokens, {module.top_k}]")
        return
    metadata = get_forward_context().dp_metadata if is_forward_context_available() else None
    try:
        start = own_start(topk_ids.shape[0], metadata, capture.dp_rank)
    except UnknownLayoutError as error:
        capture.recorder.hide(info.layer, str(error))
        return
    capture.recorder.routed(
        RoutingTensors(
            layer=info.layer,
            num_experts=info.num_experts,
            ids=topk_ids,
            weights=None,
            start=start,
            token_offset=capture.token_offset(),
        )
    )


def _layer(name: str, module: Any) -> MoeLayer:
    physical, local, first = module.num_experts, module.num_local_experts, module.experts_start_idx
    ranks = max(1, physical // max(1, local))
    placed = np.full(physical, -1)
    placed[first : first + local] = np.arange(len(placed[first : first + local]))
    return MoeLayer(
        key=module,
        layer_id=module.layer_id,
        name=name,
        moe_config=_Config(
            num_experts=physical,
            num_logical_experts=int(getattr(module, "num_logical_experts", physical)),
            num_local_experts=local,
            moe_parallel_config=_Parallel(ranks > 1, first // max(1, local), ranks),
        ),
        router=module,  # it has top_k; the model itself routes
        experts=module,
        expert_map=placed,
        monolithic=False,
    )
