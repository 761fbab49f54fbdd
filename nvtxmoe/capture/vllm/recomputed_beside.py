"""For checks of the recomputing: layers whose router's ids are held are recorded a second time, recomputed.

The second recording of layer N has the number N + ``FIRST``. Only a check asks for it, by the variable ``VARIABLE``.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from nvtxmoe.capture.hooks import wrap
from nvtxmoe.capture.recording.router_logits import RouterLogits
from nvtxmoe.capture.vllm.layer_hooks import Capture
from nvtxmoe.capture.vllm.own_rows import own_start
from nvtxmoe.capture.vllm.router_rules import UnknownRuleError, rule_of
from nvtxmoe.formats import schema

VARIABLE = "NVTXMOE_DEVELOPER_RECOMPUTE"
#: Added to a layer's number.
FIRST = 1000


def record_beside_if_asked(capture: Capture) -> None:
    """Hook the routers once more if the variable asks for it; to be called after the adapter's own hooks."""
    if os.environ.get(VARIABLE) != "1":
        return
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter  # noqa: PLC0415  inside vLLM only
    from vllm.v1.worker.gpu_worker import Worker  # noqa: PLC0415

    recorder = capture.recorder

    def loaded(_: Any, __: Any) -> None:
        identity = recorder.identity
        if identity is None or any(layer.layer >= FIRST for layer in identity.layers):
            return
        second_layers = [
            replace(layer, layer=layer.layer + FIRST, name=f"{layer.name} again", recording=schema.RECOMPUTED)
            for layer in identity.layers
            if layer.recording == schema.REFERENCES
        ]
        recorder.model_loaded(replace(identity, layers=(*identity.layers, *second_layers)))

    def enter(router: Any, _: Any, router_logits: Any, *__: Any, input_ids: Any = None, **___: Any) -> Any:
        return router, router_logits, input_ids

    def leave(state: Any, _: Any) -> None:
        router, logits, input_ids = state
        info = capture.thread.info
        if info is None or not (recorder.listens(info.layer + FIRST) or recorder.warming_up):
            return
        try:
            router_rule = rule_of(router, info.num_experts)
        except UnknownRuleError as error:
            recorder.hide(info.layer + FIRST, str(error))
            return
        router_logits = RouterLogits(
            layer=info.layer + FIRST,
            num_experts=info.num_experts,
            top_k=info.top_k,
            logits=logits,
            rule=router_rule.rule,
            bias=router_rule.bias,
            table=router_rule.table,
            input_ids=input_ids,
            token_offset=capture.token_offset(),
        )
        if not recorder.listens(router_logits.layer):
            recorder.prepare_for_logits(router_logits)
            return
        from vllm.forward_context import get_forward_context  # noqa: PLC0415

        start = own_start(logits.shape[0], get_forward_context().dp_metadata, capture.dp_rank)
        recorder.routed(router_logits.starting_at(start))

    wrap(Worker, "load_model", capture.hook("recomputed_layers", leave=loaded))
    wrap(BaseRouter, "_select_experts", capture.hook("recomputed_beside", enter, leave))
