"""A kernel that routes inside and writes the experts that it chose into vLLM's sink, on a GPU that has none.

vLLM's own such kernels (TRT-LLM's) run on Blackwell only. The stand-in has their interface: it takes router logits, and
fills the leading rows of ``routing_replay_out``. It routes with plain PyTorch and runs vLLM's Triton experts.
"""

from __future__ import annotations

from typing import Any

#: Names of ``RoutingMethodType`` that the stand-in routes by, and whether the chosen weights sum to 1.
ROUTING = {"Default": False, "Renormalize": True, "RenormalizeNaive": True}


def stand_in_class(module: Any, types: Any, fused_experts: Any) -> type:
    """Make the class.

    Parameters:
        module: vLLM's ``modular_kernel``.
        types: vLLM's ``RoutingMethodType``.
        fused_experts: vLLM's function that runs Triton experts on chosen ids.
    """

    class StandInExpertsMonolithic(module.FusedMoEExpertsMonolithic):  # type: ignore[misc]
        """Softmax, top-k, Triton experts; the ids go into the sink."""

        def __init__(self, moe_config: Any, quant_config: Any) -> None:
            super().__init__(moe_config, quant_config)  # type: ignore[no-untyped-call,unused-ignore]
            self.top_k = moe_config.experts_per_token
            self.renormalise = ROUTING[types(moe_config.routing_method).name]
            self.report_ids: Any = lambda *_: None

        @staticmethod
        def activation_format() -> Any:
            return module.FusedMoEActivationFormat.Standard

        @staticmethod
        def _supports_current_device() -> bool:
            return True

        @staticmethod
        def _supports_no_act_and_mul() -> bool:
            return False

        @staticmethod
        def _supports_quant_scheme(weight_key: Any, activation_key: Any) -> bool:
            return weight_key is None and activation_key is None

        @staticmethod
        def _supports_activation(activation: Any) -> bool:
            return bool(activation.value == "silu")

        @staticmethod
        def _supports_parallel_config(moe_parallel_config: Any) -> bool:
            return not moe_parallel_config.enable_eplb and moe_parallel_config.dp_size <= 1

        @staticmethod
        def _supports_routing_method(routing_method: Any, weight_key: Any, activation_key: Any) -> bool:  # noqa: ARG004
            return types(routing_method).name in ROUTING

        @staticmethod
        def _supports_router_logits_dtype(router_logits_dtype: Any, routing_method: Any) -> bool:  # noqa: ARG004
            return True

        @property
        def expects_unquantized_inputs(self) -> bool:
            return True

        def supports_routing_replay_capture(self) -> bool:
            return True

        def apply(
            self,
            hidden_states: Any,
            w1: Any,
            w2: Any,
            router_logits: Any,
            activation: Any,
            global_num_experts: int,
            expert_map: Any,
            a1q_scale: Any,  # noqa: ARG002
            apply_router_weight_on_input: bool,
            routing_replay_out: Any = None,
            **_: Any,
        ) -> Any:
            import torch  # noqa: PLC0415

            scores = torch.softmax(router_logits.float(), dim=-1)
            weights, ids = torch.topk(scores, self.top_k, dim=-1)
            if self.renormalise:
                weights = weights / weights.sum(dim=-1, keepdim=True)
            ids = ids.to(torch.int32)
            self.report_ids(weights, ids)
            if routing_replay_out is not None:
                routing_replay_out.copy_(ids)
            return fused_experts(
                hidden_states=hidden_states,
                w1=w1,
                w2=w2,
                topk_weights=weights,
                topk_ids=ids,
                activation=activation,
                apply_router_weight_on_input=apply_router_weight_on_input,
                global_num_experts=global_num_experts,
                expert_map=expert_map,
                quant_config=self.quant_config,
            )

    return StandInExpertsMonolithic


def install() -> None:
    """Have vLLM take the stand-in for every bf16 layer, as it takes TRT-LLM's kernels on Blackwell."""
    from vllm.model_executor.layers.fused_moe import modular_kernel  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.config import RoutingMethodType  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.oracle import unquantized  # noqa: PLC0415

    made = stand_in_class(modular_kernel, RoutingMethodType, fused_experts)
    classes = unquantized.backend_to_kernel_cls
    triton = unquantized.UnquantizedMoeBackend.TRITON

    def kernel_classes(backend: Any) -> list[type]:
        return [made, *classes(backend)] if backend == triton else classes(backend)

    unquantized.backend_to_kernel_cls = kernel_classes
