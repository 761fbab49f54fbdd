"""The rule by which one of vLLM's routers chooses experts, read from its attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nvtxmoe.capture.recording.routing_rule import SCORINGS, SIGMOID, SOFTMAX, SQRTSOFTPLUS, RoutingRule


class UnknownRuleError(LookupError):
    """A router whose rule is not known; the message says what it is."""


@dataclass(frozen=True)
class RouterRule:
    """A rule with the layer's tensors of it, see ``RouterLogits``."""

    rule: RoutingRule
    bias: Any = None
    table: Any = None


def rule_of(router: Any, num_experts: int) -> RouterRule:
    """The rule of a router.

    Raises:
        UnknownRuleError: the class, the function or an option of it is not known.
    """
    name = type(router).__name__
    read = _READERS.get(name)
    if read is None:
        raise UnknownRuleError(f"its router is a {name}")
    if getattr(router, "num_fused_shared_experts", 0):
        raise UnknownRuleError("shared experts are among its routed experts")
    if getattr(router, "bias_vl", None) is not None:
        raise UnknownRuleError("its router has a bias of its own for image tokens")
    router_rule = read(router, num_experts)
    if router_rule.rule.scoring not in SCORINGS:
        raise UnknownRuleError(f"its router scores by {router_rule.rule.scoring}")
    return router_rule


def _plain(router: Any, _: int) -> RouterRule:
    return RouterRule(RoutingRule(router.scoring_func, bool(router.renormalize)))


def _biased(router: Any, _: int) -> RouterRule:
    return RouterRule(
        RoutingRule(router.scoring_func, bool(router.renormalize), float(router.routed_scaling_factor)),
        router.e_score_correction_bias,
        getattr(router, "_hash_indices_table", None),
    )


def _grouped(router: Any, num_experts: int) -> RouterRule:
    groups = int(router.num_expert_group)
    scale, renormalize = float(router.routed_scaling_factor), bool(router.renormalize)
    if num_experts > groups and num_experts % groups == 0:
        rule = RoutingRule(router.scoring_func, renormalize, scale, groups, int(router.topk_group))
        return RouterRule(rule, router.e_score_correction_bias)
    if router.e_score_correction_bias is None:  # vLLM scores by softmax here, whatever the router was made for
        return RouterRule(RoutingRule(SOFTMAX, renormalize))
    return RouterRule(RoutingRule(router.scoring_func, renormalize, scale), router.e_score_correction_bias)


def _cpu(router: Any, _: int) -> RouterRule:
    renormalize, scale = bool(router.renormalize), float(router.routed_scaling_factor)
    bias = router.e_score_correction_bias
    if router.use_grouped_topk:
        groups, top_groups = int(router.num_expert_group), int(router.topk_group)
        return RouterRule(RoutingRule(router.scoring_func, renormalize, scale, groups, top_groups), bias)
    if router.scoring_func == SQRTSOFTPLUS:
        return RouterRule(RoutingRule(SQRTSOFTPLUS, renormalize, scale), bias, router._hash_indices_table)
    if router.custom_routing_function is not None:
        return _by_function(router.custom_routing_function, renormalize)
    if router.scoring_func != SOFTMAX:
        raise UnknownRuleError(f"its router scores by {router.scoring_func}")
    return RouterRule(RoutingRule(SOFTMAX, renormalize, exact=True))


def _custom(router: Any, _: int) -> RouterRule:
    return _by_function(router.custom_routing_function, bool(router.renormalize))


#: Routing functions of models, by module and name: the rule without and with renormalisation.
_FUNCTIONS: Mapping[tuple[str, str], tuple[RoutingRule, RoutingRule]] = {
    # The best logits, and their sigmoid as weights: it divides by no sum.
    ("vllm.model_executor.models.llama4", "Llama4MoE.custom_routing_function"): (
        RoutingRule(SIGMOID, renormalize=False, exact=True),
        RoutingRule(SIGMOID, renormalize=False, exact=True),
    ),
    ("vllm.model_executor.models.cohere2_moe", "token_choice_with_bias"): (
        RoutingRule(SIGMOID, renormalize=False),
        RoutingRule(SIGMOID, renormalize=True),
    ),
}


def _by_function(function: Any, renormalize: bool) -> RouterRule:
    name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    rules = _FUNCTIONS.get((str(name[0]), str(name[1])))
    if rules is None:
        raise UnknownRuleError(f"its model routes by a function of its own ({name[1] or type(function).__name__})")
    return RouterRule(rules[renormalize])


_READERS: Mapping[str, Callable[[Any, int], RouterRule]] = {
    "FusedTopKRouter": _plain,
    "FusedTopKBiasRouter": _biased,
    "GroupedTopKRouter": _grouped,
    "CPURouter": _cpu,
    "CustomRoutingRouter": _custom,
}
