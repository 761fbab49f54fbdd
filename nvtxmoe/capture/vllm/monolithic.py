"""How a layer is recorded whose kernel routes inside itself: by a sink that the kernel fills, or recomputed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nvtxmoe.capture.recording.routing_rule import SOFTMAX, RoutingRule
from nvtxmoe.capture.vllm.router_rules import RouterRule, UnknownRuleError, rule_of
from nvtxmoe.formats import schema

MONOLITHIC = "its routing runs inside a monolithic kernel"


@dataclass(frozen=True)
class Way:
    """How a layer is recorded.

    Attributes:
        recording: one of ``schema.RECORDINGS``.
        rule: with ``recomputed``.
        reason: why it can't be recorded; None if it can.
    """

    recording: str
    rule: RouterRule | None = None
    reason: str | None = None


def way_of(experts: Any, router: Any, num_experts: int) -> Way:
    """The way for a monolithic layer, as its kernel is now.

    Parameters:
        experts: vLLM's RoutedExperts.
        num_experts: logical ones.
    """
    kernel = kernel_of(experts)
    if kernel is None:
        method = type(getattr(experts, "quant_method", None)).__name__
        return Way(schema.RECOMPUTED, reason=f"{MONOLITHIC} ({method}, which does not show its kernel)")
    name = type(kernel).__name__
    if getattr(router, "eplb_state", None) is not None:
        return Way(schema.RECOMPUTED, reason=f"{MONOLITHIC} ({name}) with EPLB: its physical experts can't be seen")
    if has_sink(experts, kernel):
        return Way(schema.SINK)
    read = _RULES.get(name)
    if read is None:
        return Way(schema.RECOMPUTED, reason=f"{MONOLITHIC} ({name})")
    try:
        return Way(schema.RECOMPUTED, read(kernel, router, num_experts))
    except UnknownRuleError as error:
        return Way(schema.RECOMPUTED, reason=f"{MONOLITHIC} ({name}), and {error}")


def kernel_of(experts: Any) -> Any:
    """The object that runs the experts; None where vLLM does not show one."""
    kernel = getattr(getattr(experts, "quant_method", None), "moe_kernel", None)
    return getattr(getattr(kernel, "impl", kernel), "fused_experts", None)


def has_sink(experts: Any, kernel: Any) -> bool:
    """Whether the kernel can write the ids that it chose."""
    supports = getattr(kernel, "supports_routing_replay_capture", None)
    return hasattr(experts, "routing_sink") and supports is not None and bool(supports())


def _triton_kernels(kernel: Any, router: Any, _: int) -> RouterRule:
    """gpt-oss on triton_kernels: the best logits, compared as they are; softmax of those as weights."""
    bias, groups = getattr(router, "e_score_correction_bias", None), getattr(router, "num_expert_group", None)
    if not kernel.renormalize or bias is not None or groups:
        raise UnknownRuleError("it routes by more than the best logits")
    return RouterRule(RoutingRule(SOFTMAX, renormalize=True, exact=True))


def _by_router(_: Any, router: Any, num_experts: int) -> RouterRule:
    return rule_of(router, num_experts)


#: Kernels whose rule is known and that leave the logits as they are.
_RULES: Mapping[str, Callable[[Any, Any, int], RouterRule]] = {
    "OAITritonMxfp4ExpertsMonolithic": _triton_kernels,
    "CPUExpertsInt4": _by_router,
    "ZentorchExpertsInt4": _by_router,
}
