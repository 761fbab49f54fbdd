"""The oracle of the GPU checks on CPU tensors: layers that route in their kernel, gates, ties, the stand-in kernel."""

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import torch

from scripts.gpu import vllm_topk
from scripts.gpu.oracle import Oracle, draw_gates, kernels_of
from scripts.gpu.stand_in_sink import stand_in_class
from scripts.gpu.vllm_state import capturer_buffer

TOP_K, EXPERTS = 2, 4
LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 1.0, 1.0, 0.0], [4.0, 3.0, 0.0, 3.0]])
CHOSEN = [[1, 3], [0, 1], [0, 1]]
TIED = [False, True, True]


class Router:
    """A router with the rule softmax, top-k."""

    top_k = TOP_K

    def _compute_routing(self, hidden: torch.Tensor, logits: torch.Tensor, indices_type: Any) -> tuple[Any, Any]:
        weights, ids = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True, stable=True)
        return weights[:, :TOP_K], ids[:, :TOP_K]


class Experts:
    """A layer's experts, whose kernel takes logits."""

    def __init__(self, kernel: object) -> None:
        self.quant_method = SimpleNamespace(moe_kernel=SimpleNamespace(impl=SimpleNamespace(fused_experts=kernel)))
        self.seen: list[Any] = []

    def forward_monolithic(self, x: Any, router_logits: Any = None, input_ids: Any = None) -> Any:
        self.seen.append(router_logits)
        return x


def runner(kernel: object) -> Any:
    return SimpleNamespace(
        layer_id=3,
        router=Router(),
        routed_experts=Experts(kernel),
        is_monolithic=True,
        moe_config=SimpleNamespace(num_logical_experts=EXPERTS),
    )


def prepared(kernel: object) -> tuple[Oracle, Any]:
    """An oracle that follows one layer which routes inside."""
    oracle, layer = Oracle("copies", most_tokens=8), runner(kernel)
    oracle.recorded.layers = [3]
    for name, dtype in (("ids", "int32"), ("physical", "int32"), ("weights", "float32")):
        oracle._buffers[name][3] = oracle._empty(TOP_K, dtype)
    oracle._inside(layer)
    return oracle, layer


def test_a_layer_that_routes_inside_is_routed_again_on_its_logits() -> None:
    oracle, layer = prepared(object())
    padded = torch.cat([LOGITS, torch.full((2, EXPERTS), 9.0)]).to(torch.bfloat16)
    layer.routed_experts.forward_monolithic(x=padded, router_logits=padded)
    oracle.step(SimpleNamespace(), tokens=3)
    (ids,), (ties,), (weights,) = oracle.recorded.ids, oracle.recorded.ties, oracle.recorded.weights
    assert ids[:, 0].tolist() == CHOSEN
    assert ties[:, 0].tolist() == TIED
    assert weights.shape == (3, 1, TOP_K)
    assert layer.routed_experts.seen[0] is padded
    assert oracle.recorded.sources == {3: "Router._compute_routing"}


def test_rows_that_are_exactly_tied() -> None:
    assert vllm_topk.tied(LOGITS, TOP_K).tolist() == TIED
    assert vllm_topk.tied(LOGITS, EXPERTS).tolist() == [False] * 3


def test_only_floating_gates_are_drawn_anew() -> None:
    model = torch.nn.ModuleDict()
    for name, dtype in (("gate", torch.bfloat16), ("router", torch.float32), ("other", torch.float32)):
        linear = torch.nn.Linear(64, 8, bias=False, dtype=dtype)
        linear.weight.data.zero_()
        model[name] = linear
    quantised = torch.nn.ParameterDict()
    quantised["weight"] = torch.nn.Parameter(torch.zeros(8, 64, dtype=torch.float8_e4m3fn), requires_grad=False)
    model["second"] = torch.nn.ModuleDict({"gate": quantised})
    assert draw_gates(model, "cpu") == 2
    drawn = {name: bool(parameter.data.float().abs().sum()) for name, parameter in model.named_parameters()}
    assert drawn == {"gate.weight": True, "router.weight": True, "other.weight": False, "second.gate.weight": False}


def test_where_the_runners_hold_the_capturer() -> None:
    first = SimpleNamespace(routed_experts_capturer=SimpleNamespace(get_device_buffer=lambda: "V1's"))
    second = SimpleNamespace(aux_output_connector=SimpleNamespace(_capturer=SimpleNamespace(device_buffer="V2's")))
    assert [capturer_buffer(first), capturer_buffer(second)] == ["V1's", "V2's"]


def test_classes_that_ran() -> None:
    class Kernel:
        pass

    (found,) = kernels_of([runner(Kernel()), runner(Kernel())])
    assert found == {
        "method": "SimpleNamespace", "experts": "Kernel", "router": "Router", "monolithic": True, "layers": [3, 3],
    }  # fmt: skip


# The stand-in kernel -------------------------------------------------------------------------------------------------


class Rule(IntEnum):
    Default = 0
    Renormalize = 1
    Llama4 = 3


class Base:
    def __init__(self, moe_config: Any, quant_config: Any) -> None:
        self.moe_config, self.quant_config = moe_config, quant_config


def stand_in(rule: Rule) -> tuple[Any, list[dict[str, Any]]]:
    calls: list[dict[str, Any]] = []

    def fused(**given: Any) -> str:
        calls.append(given)
        return "result"

    module = SimpleNamespace(FusedMoEExpertsMonolithic=Base, FusedMoEActivationFormat=SimpleNamespace(Standard="s"))
    made = stand_in_class(module, Rule, fused)
    return made(SimpleNamespace(experts_per_token=TOP_K, routing_method=rule), None), calls


def applied(kernel: Any, **more: Any) -> Any:
    return kernel.apply(
        hidden_states=LOGITS, w1=None, w2=None, router_logits=LOGITS, activation=None, global_num_experts=EXPERTS,
        expert_map=None, a1q_scale=None, apply_router_weight_on_input=False, **more,
    )  # fmt: skip


def test_the_stand_in_fills_the_sink_and_runs_what_it_chose() -> None:
    kernel, calls = stand_in(Rule.Renormalize)
    sink = torch.full((3, TOP_K), -1, dtype=torch.int16)
    assert applied(kernel, routing_replay_out=sink, num_expert_group=None) == "result"
    assert sink.tolist()[0] == CHOSEN[0]
    assert torch.equal(sink.to(torch.int32), calls[0]["topk_ids"])
    assert torch.allclose(calls[0]["topk_weights"].sum(dim=-1), torch.ones(3))
    assert kernel.supports_routing_replay_capture() is True


def test_the_stand_in_needs_no_sink_and_reports_to_the_oracle() -> None:
    kernel, calls = stand_in(Rule.Default)
    oracle, _ = prepared(kernel)
    applied(kernel)
    oracle.step(SimpleNamespace(), tokens=3)
    assert oracle.recorded.ids[0][:, 0].tolist() == calls[0]["topk_ids"].tolist()
    assert torch.allclose(torch.tensor(oracle.recorded.weights[0][:, 0]), calls[0]["topk_weights"])
    assert float(calls[0]["topk_weights"][0].sum()) < 1
    assert oracle.recorded.ties == []


def test_rules_that_the_stand_in_takes() -> None:
    kernel, _ = stand_in(Rule.Default)
    assert [kernel._supports_routing_method(rule, None, None) for rule in Rule] == [True, True, False]
