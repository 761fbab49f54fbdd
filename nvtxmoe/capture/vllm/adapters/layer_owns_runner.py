"""Older vLLM: ``FusedMoE`` is the layer and hands itself to its runner."""

from __future__ import annotations

from typing import Any

from nvtxmoe.capture.hooks import wrap
from nvtxmoe.capture.vllm import common_hooks as common
from nvtxmoe.capture.vllm.layer_hooks import Capture
from nvtxmoe.capture.vllm.moe_layer import MoeLayer
from nvtxmoe.capture.vllm.requirements import Need

NAME = "layer_owns_runner"
VERSIONS = "0.20 to 0.23"
ORDER = 20

FUSED = "vllm.model_executor.layers.fused_moe"
RUNNER = f"{FUSED}.runner.moe_runner"
NEEDS = (
    *common.NEEDS,
    Need(RUNNER, "MoERunner._forward_impl", ("layer", "hidden_states", "router_logits")),
    Need(f"{FUSED}.layer", "FusedMoE.layer_id"),
    Need(f"{FUSED}.router.base_router", "BaseRouter.select_experts", ("hidden_states", "router_logits")),
    Need(f"{FUSED}.runner.shared_experts", "SharedExperts.apply"),
)


def _layers(static_context: dict[str, Any]) -> list[MoeLayer]:
    from vllm.model_executor.layers.fused_moe.layer import FusedMoE  # noqa: PLC0415

    return [
        MoeLayer(
            key=layer,
            layer_id=layer.layer_id,
            name=name,
            moe_config=layer.moe_config,
            router=layer.router,
            experts=layer,
            expert_map=layer._expert_map,
            monolithic=bool(layer.quant_method.is_monolithic),
        )
        for name, layer in static_context.items()
        if isinstance(layer, FusedMoE)
    ]


def install(capture: Capture) -> None:
    """Hook the classes, and the experts' methods once the model is loaded: there is no class of them all."""
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.runner.shared_experts import SharedExperts  # noqa: PLC0415

    def find_layers(static_context: dict[str, Any]) -> list[MoeLayer]:
        layers = _layers(static_context)
        for layer in layers:
            for attribute in ("apply", "apply_monolithic"):
                if hasattr(layer.experts.quant_method, attribute):
                    wrap(layer.experts.quant_method, attribute, capture.phase_hook("experts"))
        return layers

    common.install(capture, MoERunner, find_layers)
    layer_hook = capture.layer_hook(lambda _, layer, *__, **___: layer, lambda layer: common.reduces(layer.runner))
    wrap(MoERunner, "_forward_impl", layer_hook)
    wrap(BaseRouter, "select_experts", capture.router_hook())
    wrap(SharedExperts, "apply", capture.phase_hook("shared"))
    common.route_through_the_op(MoERunner)
