"""Who a worker is in the run, and what its layers are: the content of moe.meta."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.measured_overhead import overhead
from nvtxmoe.capture.run_identity import Identity, LayerInfo
from nvtxmoe.capture.vllm.expert_shape import expert_shape
from nvtxmoe.capture.vllm.fused_front import HIDDEN as FUSED_FRONT
from nvtxmoe.capture.vllm.fused_front import may_replace_router
from nvtxmoe.capture.vllm.monolithic import MONOLITHIC
from nvtxmoe.capture.vllm.own_rows import token_offset_of_thread
from nvtxmoe.capture.vllm.unknown_experts import unknown_experts
from nvtxmoe.formats import schema

#: Beginnings of the names of an expert's weights in vLLM: gate and up together, and down.
WEIGHTS = ("w13", "w2")
MICRO_BATCHES = "micro-batches (DBO) are on, and this vLLM does not give their token offsets (0.33 and newer do)"
DRAFT = "it is a draft model's, which runs after the step's forward"
SUBSTITUTED = "vLLM replaces the routed experts afterwards"
CONTEXT_PARALLEL = "prefill context parallelism divides the rows"
ADAPTIVE = "the drafts of a step are cut after it was scheduled"
ZERO_EXPERTS = "its router has zero-computation experts, whose ids vLLM overwrites"
NO_LAYER = "the model has no MoE layer that vLLM runs through its MoE runner"
#: Set by ``nvtxmoe profile`` to tell runs apart.
RUN_ID = "NVTXMOE_RUN_ID"


def identify(
    worker: Any, layers: Sequence[Any], changed_program: str | None = None
) -> tuple[Identity, list[LayerInfo], dict[int, str]]:
    """Return the process's identity, an info for each of ``layers``, and why layers are hidden, by number.

    Parameters:
        changed_program: in what way capture changed the program that runs; None where it runs as without capture.
    """
    parallel = worker.vllm_config.parallel_config
    target_modules = _own_modules(worker, layers)
    # A draft model's blocks may have the numbers of the target's: the target's layers keep theirs.
    target_first = sorted(
        range(len(layers)), key=lambda place: bool(target_modules) and id(layers[place].key) not in target_modules
    )
    numbers = dict(zip(target_first, numbering([layers[place].layer_id for place in target_first]), strict=True))
    infos = [_info(numbers[place], layer) for place, layer in enumerate(layers)]
    in_rank, dp_size = parallel.world_size, parallel.data_parallel_size
    tp_size = parallel.tensor_parallel_size
    moe = layers[0].moe_config.moe_parallel_config if layers else None
    many = dp_size > 1
    identity = Identity(
        rank=parallel.data_parallel_rank * in_rank + worker.rank if many else worker.rank,
        world_size=in_rank * dp_size,
        tp_rank=worker.rank % tp_size,
        tp_size=tp_size,
        ep_rank=moe.ep_rank if moe is not None and moe.use_ep else 0,
        ep_size=moe.ep_size if moe is not None and moe.use_ep else 1,
        dp_rank=parallel.data_parallel_rank if many else None,
        dp_size=dp_size if many else None,
        layers=tuple(infos),
        extra={
            **_extra(worker, infos),
            **_unrecorded_fields(worker, layers),
            "changed_program": changed_program,
            "model_layers": len(infos),
        },
    )
    reasons = {info.layer: _hidden(worker, layer, target_modules) for info, layer in zip(infos, layers, strict=True)}
    hidden = {layer: reason for layer, reason in reasons.items() if reason is not None}
    return identity, infos, hidden


def _unrecorded_fields(worker: Any, layers: Sequence[Any]) -> dict[str, Any]:
    """Keys of moe.meta that name experts which no hook sees, and why there is no layer; each is logged."""
    try:
        unknown = unknown_experts(worker.model_runner.get_model(), layers)
    except AttributeError:
        unknown = {}
    named = ", ".join(f"{name} ({count})" for name, count in sorted(unknown.items()))
    if unknown:
        logger().warning("experts of a class that nvtxmoe does not record: %s", named)
    no_layers = None
    if not layers:
        no_layers = f"the model's experts are of a class that nvtxmoe does not record: {named}" if named else NO_LAYER
        logger().warning("%s: nothing to record", no_layers)
    return {"unrecorded_experts": unknown or None, "no_layers": no_layers}


def numbering(layer_ids: Sequence[int]) -> list[int]:
    """Numbers unique in the process: vLLM's own; of several MoE layers in a block, the later ones past the last."""
    after = max(layer_ids, default=-1) + 1
    seen: Counter[int] = Counter()
    out = []
    for number in layer_ids:
        seen[number] += 1
        if seen[number] == 1:
            out.append(number)
        else:
            out.append(after)
            after += 1
    return out


def _info(number: int, layer: Any) -> LayerInfo:
    config = layer.moe_config
    logical, physical = int(config.num_logical_experts), int(config.num_experts)
    local = None
    if layer.expert_map is not None and layer.expert_map.ndim == 1:
        local = tuple(i for i, at in enumerate(layer.expert_map.tolist()[:physical]) if at >= 0)
    elif config.num_local_experts == physical:
        local = tuple(range(physical))
    return LayerInfo(
        layer=number,
        name=layer.name,
        num_experts=logical,
        top_k=int(layer.router.top_k),
        local_experts=local,
        expert_bytes=_expert_bytes(layer.experts, int(config.num_local_experts)),
        num_physical=physical,
        recording=schema.REFERENCES if layer.way is None else layer.way.recording,
        shape=expert_shape(config, layer.experts),
    )


def _expert_bytes(experts: Any, num_local: int) -> int | None:
    """Bytes of an expert's parameters; None unless both of its weights are among them.

    Some kernels (those of triton_kernels, for one) keep weights in objects of their own, and only biases are left.
    """
    parameters = {name: p for name, p in experts.named_parameters(recurse=False) if p.ndim and p.shape[0] == num_local}
    weights = [name for name in parameters if "weight" in name and "scale" not in name]
    if not num_local or not all(any(name.startswith(part) for name in weights) for part in WEIGHTS):
        return None
    return int(sum(p.numel() * p.element_size() for p in parameters.values())) // num_local


def _hidden(worker: Any, layer: Any, target_modules: set[int]) -> str | None:
    """Why a layer's counts would be wrong or absent; ``target_modules`` are the modules of the model itself."""
    parallel = worker.vllm_config.parallel_config
    speculative = worker.vllm_config.speculative_config
    if layer.monolithic and (layer.way is None or layer.way.reason is not None):
        return MONOLITHIC if layer.way is None else layer.way.reason
    reasons = {
        DRAFT: bool(target_modules) and id(layer.key) not in target_modules,
        FUSED_FRONT: may_replace_router(worker, layer),
        ZERO_EXPERTS: type(layer.router).__name__ == "ZeroExpertRouter",
        SUBSTITUTED: type(layer.experts).__name__ == "SubstitutedRoutedExperts",
        MICRO_BATCHES: bool(parallel.use_ubatching) and token_offset_of_thread() is None,
        CONTEXT_PARALLEL: getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        ADAPTIVE: getattr(speculative, "method", None) == "dspark",
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _own_modules(worker: Any, layers: Sequence[Any]) -> set[int]:
    """Modules of the target model by id(); empty where they can't be told from a draft model's."""
    try:
        target_modules = {id(module) for module in worker.model_runner.get_model().modules()}
    except AttributeError:
        return set()
    return target_modules if any(id(layer.key) in target_modules for layer in layers) else set()


def _extra(worker: Any, layers: Sequence[LayerInfo]) -> dict[str, Any]:
    import torch  # noqa: PLC0415  inside vLLM only
    import vllm  # noqa: PLC0415

    config = worker.vllm_config
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "device": device,
        "overhead": overhead(device, vllm.__version__, layers),
        "model": config.model_config.model,
        "eplb": bool(config.parallel_config.enable_eplb) or None,
        "run_id": os.environ.get(RUN_ID),
    }
