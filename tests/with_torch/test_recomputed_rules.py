"""Recomputed experts against those that vLLM's own routers choose of the same logits, token by token, rule by rule."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.fused_moe.router import fused_topk_bias_router as biased_module
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
from vllm.model_executor.layers.fused_moe.router.custom_routing_router import CustomRoutingRouter
from vllm.model_executor.layers.fused_moe.router.fused_topk_bias_router import FusedTopKBiasRouter
from vllm.model_executor.layers.fused_moe.router.fused_topk_router import FusedTopKRouter
from vllm.model_executor.layers.fused_moe.router.grouped_topk_router import GroupedTopKRouter
from vllm.model_executor.layers.fused_moe.router.zero_expert_router import ZeroExpertRouter
from vllm.model_executor.models.cohere2_moe import token_choice_with_bias
from vllm.model_executor.models.llama4 import Llama4MoE

from nvtxmoe.capture.recording.routing_rule import Chosen, RoutingRule, choose
from nvtxmoe.capture.vllm.router_rules import UnknownRuleError, rule_of

TOKENS = 400
VOCABULARY = 50


@pytest.fixture(autouse=True)
def own_torch_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's routers on this CPU: the routes in PyTorch that they have beside their kernels, and nothing compiled."""
    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    monkeypatch.setattr(biased_module, "rocm_aiter_ops", SimpleNamespace(is_fused_moe_enabled=lambda: True))
    monkeypatch.setattr(biased_module, "_aiter_can_use_biased_grouped_topk", lambda *_: False)


def bias(experts: int) -> torch.nn.Parameter:
    chance = torch.Generator().manual_seed(3)
    return torch.nn.Parameter(torch.randn(experts, generator=chance) * 0.2, requires_grad=False)


def grouped(experts: int, **more: Any) -> GroupedTopKRouter:
    return GroupedTopKRouter(4, experts, num_expert_group=4, topk_group=2, **more)


def cpu(experts: int, **more: Any) -> CPURouter:
    return CPURouter(4, experts, **more)


def table(top_k: int, experts: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(4)
    return torch.stack([torch.randperm(experts, generator=chance)[:top_k] for _ in range(VOCABULARY)]).to(torch.int32)


ROUTERS: dict[str, tuple[int, Callable[[int], Any]]] = {
    "softmax, renormalised": (16, cpu),
    "softmax": (60, lambda e: cpu(e, renormalize=False)),
    "softmax and bias": (99, lambda e: FusedTopKBiasRouter(6, e, bias(e), scoring_func="softmax")),
    "sigmoid and bias": (99, lambda e: FusedTopKBiasRouter(6, e, bias(e), routed_scaling_factor=2.5)),
    "sigmoid and bias, as it is": (64, lambda e: FusedTopKBiasRouter(6, e, bias(e), renormalize=False)),
    "groups of softmax": (32, lambda e: grouped(e, renormalize=False, routed_scaling_factor=16.0)),
    "groups of sigmoid and bias": (
        32,
        lambda e: grouped(e, scoring_func="sigmoid", e_score_correction_bias=bias(e), routed_scaling_factor=2.5),
    ),
    "groups of sigmoid": (32, lambda e: grouped(e, scoring_func="sigmoid")),
    "groups of a CPU": (
        64,
        lambda e: cpu(
            e, use_grouped_topk=True, num_expert_group=8, topk_group=3, scoring_func="sigmoid",
            e_score_correction_bias=bias(e), routed_scaling_factor=2.0,
        ),
    ),
    "hash table": (64, lambda e: FusedTopKBiasRouter(4, e, scoring_func="sigmoid", hash_indices_table=table(4, e))),
    "Llama 4": (16, lambda e: CustomRoutingRouter(1, e, Llama4MoE.custom_routing_function)),
    "Cohere 2": (32, lambda e: CustomRoutingRouter(4, e, token_choice_with_bias)),
    "Cohere 2, as it is": (32, lambda e: CustomRoutingRouter(4, e, token_choice_with_bias, renormalize=False)),
    "Cohere 2 on a CPU": (32, lambda e: cpu(e, custom_routing_function=token_choice_with_bias)),
}  # fmt: skip


def both(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, Chosen]:
    """The router's ids and weights, each token's by expert, and ours likewise."""
    experts, make = ROUTERS[name]
    router = make(experts)
    chance = torch.Generator().manual_seed(len(name))
    logits = (2 * torch.randn(TOKENS, experts, generator=chance)).to(dtype)
    input_ids = torch.randint(0, VOCABULARY, (TOKENS,), generator=chance)
    hidden = torch.zeros(TOKENS, 8)
    weights, ids = router._compute_routing(hidden, logits.clone(), torch.int32, input_ids=input_ids)
    found = rule_of(router, experts)
    ours = choose(logits, router.top_k, found.rule, found.bias, found.table, input_ids)
    by_expert = torch.zeros(2, TOKENS, experts)
    by_expert[0].scatter_(1, ids.to(torch.int64), weights.float())
    by_expert[1].scatter_(1, ours.ids, ours.weights)
    return by_expert[0], by_expert[1], ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ROUTERS)
def test_the_routers_choice(name: str, dtype: torch.dtype) -> None:
    theirs, ours, chosen = both(name, dtype)
    # Where vLLM computes scores in bfloat16, neighbours become equal, and it takes one of them.
    rough = dtype == torch.bfloat16 and name.startswith(("groups of s", "sigmoid and", "softmax and"))
    clear = ~chosen.ambiguous
    same = ((theirs > 0) == (ours > 0)).all(dim=1)
    if rough:
        assert same[clear].float().mean() > 0.9
    else:
        assert bool(same[clear].all())
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(theirs[same], ours[same], rtol=tolerance, atol=tolerance)
    assert int(clear.sum()) > TOKENS // 2


def test_routers_of_a_gpu_have_the_rules_of_the_others() -> None:
    """Their choice is a kernel's, which only a GPU has: scripts/gpu/check_recomputed.py compares it there."""
    plain = rule_of(FusedTopKRouter(4, 16, scoring_func="sigmoid", renormalize=False), 16)
    assert (plain.rule, plain.bias, plain.table) == (RoutingRule("sigmoid", renormalize=False), None, None)
    assert rule_of(FusedTopKRouter(4, 16), 16).rule == RoutingRule("softmax", renormalize=True)
    # vLLM scores by softmax where the groups don't divide the experts.
    odd = GroupedTopKRouter(4, 30, num_expert_group=4, topk_group=2, scoring_func="sigmoid")
    assert rule_of(odd, 30).rule == RoutingRule("softmax", renormalize=True)


def test_square_roots_of_softplus() -> None:
    """DeepSeek V4's scores, whose routers need a GPU or AVX-512: by their formula, in float64."""
    router = cpu(64, scoring_func="sqrtsoftplus", e_score_correction_bias=bias(64), routed_scaling_factor=1.5)
    found = rule_of(router, 64)
    logits = 8 * torch.randn(TOKENS, 64, generator=torch.Generator().manual_seed(5))
    ours = choose(logits, 4, found.rule, found.bias)
    scores = torch.nn.functional.softplus(logits.double()).sqrt()
    ids = (scores + bias(64).double()).topk(4).indices
    clear = ~ours.ambiguous
    assert ours.ids[clear].tolist() == ids[clear].tolist()
    weights = scores.gather(1, ids)
    weights = 1.5 * weights / weights.sum(dim=1, keepdim=True)
    assert torch.allclose(ours.weights[clear].double(), weights[clear], rtol=1e-5)
    assert int(clear.sum()) > TOKENS - 5
    hashed = rule_of(cpu(64, scoring_func="sqrtsoftplus", hash_indices_table=table(4, 64)), 64)
    assert hashed.table is not None


def test_unknown_rules_are_named() -> None:
    def own(hidden_states: Any, gating_output: Any, topk: int, renormalize: bool) -> Any:
        raise AssertionError

    for router, said in [
        (CustomRoutingRouter(4, 16, own), r"a function of its own \(.*own\)"),
        (ZeroExpertRouter(4, 16, bias(16), 12, "identity"), "ZeroExpertRouter"),
        (FusedTopKBiasRouter(4, 16, bias(16), num_fused_shared_experts=1), "shared experts"),
    ]:
        with pytest.raises(UnknownRuleError, match=said):
            rule_of(router, 16)


def test_equal_scores_are_ambiguous_and_go_to_the_lower_expert() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0, 0.0], [3.0, 2.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    for rule in (RoutingRule(exact=True), RoutingRule(), RoutingRule("sigmoid"), RoutingRule("sqrtsoftplus")):
        found = choose(logits, 2, rule)
        assert found.ids.tolist() == [[0, 1], [0, 1], [0, 1]]
        assert found.ambiguous.tolist() == [True, False, True]
    found = choose(logits, 2, RoutingRule("sigmoid"), bias=torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert found.ids.tolist() == [[3, 0], [3, 0], [3, 0]]
    assert found.ambiguous.tolist() == [False, False, True]


def test_scores_that_rounding_makes_equal_are_ambiguous() -> None:
    logits = torch.tensor([[30.0, 25.0, 24.0, 0.0], [200.0, 5.0, 4.0, 3.0]])
    assert choose(logits, 2, RoutingRule("sigmoid")).ambiguous.tolist() == [True, False]
    assert choose(logits, 2, RoutingRule("softmax")).ambiguous.tolist() == [False, True]
    assert choose(logits, 2, RoutingRule("softmax", exact=True)).ambiguous.tolist() == [False, False]


def test_equal_groups_are_ambiguous() -> None:
    logits = torch.tensor([[5.0, 0.0, 1.0, 0.5, 1.0, 0.7, 0.0, 0.0], [5.0, 0.0, 2.0, 0.5, 1.0, 0.7, 0.0, 0.0]])
    found = choose(logits, 2, RoutingRule("softmax", groups=4, top_groups=2))
    assert found.ids.tolist() == [[0, 2], [0, 2]]
    assert found.ambiguous.tolist() == [True, False]


def test_what_is_no_number_comes_last() -> None:
    logits = torch.tensor([[float("nan"), 1.0, float("-inf"), 0.0], [float("nan")] * 4])
    found = choose(logits, 2, RoutingRule())
    assert found.ids.tolist() == [[1, 3], [0, 1]]


def test_token_ids_outside_a_table_do_no_harm() -> None:
    found = choose(torch.zeros(2, 8), 4, RoutingRule(), table=table(4, 8), input_ids=torch.tensor([-5, 10**6]))
    assert found.ids.tolist() == table(4, 8)[[0, VOCABULARY - 1]].tolist()
