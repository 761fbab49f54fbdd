"""vLLM in which the runner is the layer: ``MoERunner`` knows its number, router and experts."""

from __future__ import annotations

from typing import Any

from nvtxmoe.capture.hooks import Hook, wrap
from nvtxmoe.capture.vllm import common_hooks as common
from nvtxmoe.capture.vllm.layer_hooks import Capture
from nvtxmoe.capture.vllm.moe_layer import MoeLayer
from nvtxmoe.capture.vllm.monolithic import Way, way_of
from nvtxmoe.capture.vllm.monolithic_hooks import MonolithicLayers
from nvtxmoe.capture.vllm.recomputed_beside import record_beside_if_asked
from nvtxmoe.capture.vllm.requirements import Need

NAME = "runner_is_layer"
VERSIONS = "0.24 to 0.33"
ORDER = 10

FUSED = "vllm.model_executor.layers.fused_moe"
RUNNER = f"{FUSED}.runner.moe_runner"
#: How experts are run.
PASSES = ("forward_modular", "forward_monolithic")
NEEDS = (
    *common.NEEDS,
    Need(RUNNER, "MoERunner._forward_impl", ("hidden_states", "router_logits")),
    Need(RUNNER, "MoERunner.layer_id"),
    Need(RUNNER, "MoERunner.is_monolithic"),
    Need(f"{FUSED}.router.base_router", "BaseRouter._select_experts", ("hidden_states", "router_logits")),
    Need(f"{FUSED}.routed_experts", "RoutedExperts.forward_modular", ("topk_weights", "topk_ids")),
    Need(f"{FUSED}.runner.shared_experts", "SharedExperts.forward"),
)


def _layers(static_context: dict[str, Any]) -> list[MoeLayer]:
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner  # noqa: PLC0415

    return [
        MoeLayer(
            key=runner,
            layer_id=runner.layer_id,
            name=name,
            moe_config=runner.moe_config,
            router=runner.router,
            experts=runner.routed_experts,
            expert_map=runner.expert_map,
            monolithic=bool(runner.is_monolithic),
            way=_way(runner) if runner.is_monolithic else None,
        )
        for name, runner in static_context.items()
        if isinstance(runner, MoERunner)
    ]


def _way(runner: Any) -> Way:
    return way_of(runner.routed_experts, runner.router, int(runner.moe_config.num_logical_experts))


def install(capture: Capture) -> None:
    """Hook the classes."""
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.runner.shared_experts import SharedExperts  # noqa: PLC0415

    routers: dict[int, Any] = {}
    modular, monolithic = PASSES
    passes = {
        modular: capture.phase_hook("experts"),
        monolithic: MonolithicLayers(capture, routers).hook(),
    }

    def find_layers(static_context: dict[str, Any]) -> list[MoeLayer]:
        layers = _layers(static_context)
        for layer in layers:  # some models have experts of their own class
            routers[id(layer.experts)] = layer.router
            for attribute, hook in passes.items():
                wrap(type(layer.experts), attribute, hook)
        return layers

    common.install(capture, MoERunner, find_layers)
    layer = capture.layer_hook(lambda runner, *_, **__: runner, common.reduces)
    wrap(MoERunner, "_forward_impl", layer)
    wrap(BaseRouter, "_select_experts", capture.router_hook())
    for attribute, hook in passes.items():
        wrap(RoutedExperts, attribute, hook)
    shared: Hook = capture.phase_hook("shared")
    for attribute in ("forward", "maybe_forward_async"):
        if attribute in vars(SharedExperts):
            wrap(SharedExperts, attribute, shared)
    common.route_through_the_op(MoERunner)
    record_beside_if_asked(capture)
