"""Experts that are no MoE runner, on stand-ins of vLLM 0.33's shape: recorded by their capture_fn, or named."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nvtxmoe.capture.hooks import REGISTRY, failures, unhook_all
from nvtxmoe.capture.log import logger
from nvtxmoe.capture.run_identity import Identity
from nvtxmoe.capture.vllm import fused_front, worker_hooks
from nvtxmoe.capture.vllm.capture_sources import hook_sources, sources
from nvtxmoe.capture.vllm.changed_identity import Place
from nvtxmoe.capture.vllm.identity import DRAFT, identify
from nvtxmoe.capture.vllm.layer_hooks import Capture
from nvtxmoe.capture.vllm.moe_layer import MoeLayer
from nvtxmoe.capture.vllm.unknown_experts import unknown_experts
from tests.support.vllm_stand_ins import (
    DeepGemmMegaMoEExperts,
    Hearing,
    Module,
    MoERunner,
    MuseSparkMegaMoEExperts,
    Ranges,
)


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A torch and a vLLM with the little that is asked of them."""
    unhook_all()
    torch = ModuleType("torch")
    torch.compiler = SimpleNamespace(is_compiling=lambda: False)  # type: ignore[attr-defined]
    torch.cuda = SimpleNamespace(is_available=lambda: False)  # type: ignore[attr-defined]
    torch.__version__ = "2.14.0"  # type: ignore[attr-defined]
    vllm = ModuleType("vllm")
    vllm.__version__ = "0.33.0"  # type: ignore[attr-defined]
    context = ModuleType("vllm.forward_context")
    context.get_forward_context = lambda: SimpleNamespace(dp_metadata=None)  # type: ignore[attr-defined]
    context.is_forward_context_available = lambda: True  # type: ignore[attr-defined]
    for module in (torch, vllm, context):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield
    unhook_all()


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(logger(), "propagate", True)
    with caplog.at_level(logging.WARNING, "nvtxmoe"):
        yield caplog


def worker(model: Any, **more: Any) -> Any:
    """vLLM's worker with a model."""
    parallel = SimpleNamespace(
        data_parallel_rank=0, data_parallel_size=1, world_size=1, tensor_parallel_size=1, enable_eplb=False,
        use_ubatching=False,
    )  # fmt: skip
    config = SimpleNamespace(
        parallel_config=parallel, speculative_config=None, model_config=SimpleNamespace(model="invented"),
        additional_config=more,
    )  # fmt: skip
    return SimpleNamespace(rank=0, vllm_config=config, model_runner=SimpleNamespace(get_model=lambda: model))


IDS = np.array([[0, 5], [2, 3]])


def recorded(*experts: DeepGemmMegaMoEExperts) -> tuple[Capture, Hearing, Ranges]:
    """The experts hooked, their model known."""
    recorder, ranges = Hearing(), Ranges()
    capture = Capture(recorder, ranges)
    found = sources({f"layers.{one.layer_id}.experts": one for one in experts} | {"other": Module()}, MoERunner)
    hook_sources(capture, found)
    identity, infos, hidden = identify(worker(Module(**{str(n): one for n, one in enumerate(experts)})), found)
    assert hidden == {}
    capture.layers.update({id(one.key): info for one, info in zip(found, infos, strict=True)})
    recorder.model_loaded(identity)
    return capture, recorder, ranges


def test_ids_are_recorded_and_the_identity_is_the_experts_own() -> None:
    _, recorder, ranges = recorded(experts := DeepGemmMegaMoEExperts())
    assert experts.forward(IDS) is IDS
    (one,) = recorder.got
    assert (one.layer, one.num_experts, one.weights, one.start) == (3, 6, None, 0)
    assert one.ids is IDS
    assert ranges.seen == ["moe.layer.3"]
    assert ranges.deep == 0
    assert recorder.identity is not None
    (layer,) = recorder.identity.layers
    assert (layer.num_experts, layer.num_physical, layer.top_k, layer.local_experts) == (6, 8, 2, (4, 5, 6, 7))
    assert (recorder.identity.ep_rank, recorder.identity.ep_size) == (1, 2)


def test_whoever_sets_the_slot_before_or_after_is_called_first() -> None:
    """vLLM binds its own capturer after the model is loaded: nothing is overwritten, by nobody."""
    experts, order = DeepGemmMegaMoEExperts(), list[str]()
    experts.capture_fn = lambda ids: order.append("before")
    _, recorder, _ = recorded(experts)
    experts.forward(IDS)
    experts.capture_fn = lambda ids: order.append(f"after, with {len(recorder.got)} recorded")
    experts.forward(IDS)
    experts.capture_fn = None
    experts.forward(IDS)
    assert order == ["before", "after, with 1 recorded"]
    assert len(recorder.got) == 3
    unhook_all()
    assert experts.capture_fn is None
    assert "capture_fn" not in vars(DeepGemmMegaMoEExperts)


def test_the_slot_of_another_module_of_the_class_is_left_alone() -> None:
    _, recorder, _ = recorded(_target := DeepGemmMegaMoEExperts())
    draft = DeepGemmMegaMoEExperts(layer_id=9)
    assert draft.capture_fn is None
    draft.forward(IDS)
    assert recorder.got == []


def test_what_goes_wrong_reaches_neither_vllm_nor_its_capture() -> None:
    _, recorder, _ = recorded(experts := DeepGemmMegaMoEExperts())
    seen: list[Any] = []
    experts.capture_fn = seen.append
    recorder.routed = lambda one: 1 // 0  # type: ignore[method-assign, assignment]
    for _ in range(2):
        experts.forward(IDS)
    assert experts.ran == len(seen) == 2
    assert failures() == {"capture_fn": "ZeroDivisionError: integer division or modulo by zero"}
    experts.capture_fn = lambda ids: dict[str, None]()["theirs"]
    with pytest.raises(KeyError, match="theirs"):
        experts.forward(IDS)


def test_ids_of_another_width_hide_the_layer() -> None:
    _, recorder, _ = recorded(experts := DeepGemmMegaMoEExperts())
    experts.forward(np.zeros((2, 3), int))
    assert recorder.hidden == {3: "its router gives [2, 3], not [tokens, 2]"}


# Classes that nobody knows ------------------------------------------------------------------------------------------


def test_experts_of_an_unknown_class_are_named(heard: pytest.LogCaptureFixture) -> None:
    model = Module(
        layers=Module(a=Module(experts=MuseSparkMegaMoEExperts()), b=Module(experts=MuseSparkMegaMoEExperts()))
    )
    identity, infos, hidden = identify(worker(model), [])
    assert (infos, hidden) == ([], {})
    assert identity.extra["unrecorded_experts"] == {"MuseSparkMegaMoEExperts": 2}
    why = "the model's experts are of a class that nvtxmoe does not record: MuseSparkMegaMoEExperts (2)"
    assert identity.extra["no_layers"] == why
    assert f"{why}: nothing to record" in heard.messages
    assert not any("LAYERS" in text for text in heard.messages)


def test_a_dense_model_has_no_moe_layer(heard: pytest.LogCaptureFixture) -> None:
    identity, _, _ = identify(worker(Module(mlp=Module())), [])
    assert identity.extra["unrecorded_experts"] is None
    assert heard.messages == ["the model has no MoE layer that vLLM runs through its MoE runner: nothing to record"]


def test_what_a_known_layer_holds_or_is_in_is_not_unknown() -> None:
    class RoutedExperts(Module): ...

    class SharedExperts(Module): ...

    class SparseMoeBlock(Module):
        num_experts, top_k = 8, 2

    class Gate(Module):
        num_experts, top_k = 8, 2

    routed = RoutedExperts()
    runner = MoERunner(routed_experts=routed)
    other = SparseMoeBlock(shared=SharedExperts())
    known = SparseMoeBlock(experts=runner, gate=Gate(), shared=SharedExperts())
    model = SparseMoeBlock(layers=Module(known=Module(mlp=known), unknown=Module(mlp=other)))
    found = [layer_of(runner, routed)]
    assert unknown_experts(model, found) == {"SparseMoeBlock": 1}
    assert unknown_experts(Module(mlp=known), found) == {}
    other.children["gate"] = Gate()
    assert unknown_experts(model, found) == {"Gate": 1}
    other.children["experts"] = MuseSparkMegaMoEExperts()
    assert unknown_experts(model, found) == {"MuseSparkMegaMoEExperts": 1}
    assert unknown_experts(object(), found) == {}


def layer_of(runner: Any, experts: Any, layer_id: int = 0, router: Any = None) -> MoeLayer:
    config = SimpleNamespace(
        num_logical_experts=8, num_experts=8, num_local_experts=8,
        moe_parallel_config=SimpleNamespace(use_ep=False, ep_rank=0, ep_size=1),
    )  # fmt: skip
    runner.moe_config = config
    router = router or SimpleNamespace(top_k=2)
    return MoeLayer(runner, layer_id, f"layers.{layer_id}", config, router, experts, None, False)


# Drafts --------------------------------------------------------------------------------------------------------------


def test_a_drafts_layers_are_named_and_the_targets_keep_their_numbers() -> None:
    """An MTP module may have a block 0 of its own, and stand first."""
    target, draft = MoERunner(), MoERunner()
    found = [layer_of(draft, Module(), 0), layer_of(target, Module(), 0)]
    identity, infos, hidden = identify(worker(Module(experts=target)), found)
    assert [info.layer for info in infos] == [1, 0]
    assert hidden == {1: DRAFT}
    assert identity.layers == tuple(infos)


# Routers that vLLM replaces -----------------------------------------------------------------------------------------


class FusedTopKBiasRouter:
    """As vLLM 0.33's."""

    def __init__(self, hashed: bool = False) -> None:
        self.top_k, self.scoring_func = 2, "sqrtsoftplus"
        self.capture_fn: Any = None
        self._hash_indices_table = object() if hashed else None

    def set_capture_fn(self, capture_fn: Any) -> None:
        self.capture_fn = capture_fn


def test_a_fused_front_is_left_alone_and_its_layers_are_hidden() -> None:
    fused, hashed = FusedTopKBiasRouter(), FusedTopKBiasRouter(hashed=True)
    found = [layer_of(MoERunner(), Module(), n, router) for n, router in enumerate((fused, hashed))]
    model = Module(a=found[0].key, b=found[1].key)
    identity, _, hidden = identify(worker(model, decode_backend="latency_specialized"), found)
    assert hidden == {0: fused_front.HIDDEN}
    assert fused.capture_fn is None
    assert identity.extra["changed_program"] is None
    assert identify(worker(model), found)[2] == {}


def test_the_router_is_kept_where_the_setting_asks_for_it(heard: pytest.LogCaptureFixture) -> None:
    fused, taken = FusedTopKBiasRouter(), FusedTopKBiasRouter()
    taken.capture_fn = theirs = lambda ids: None
    found = [layer_of(MoERunner(), Module(), n, router) for n, router in enumerate((fused, taken))]
    one = worker(Module(a=found[0].key, b=found[1].key), decode_backend="latency_specialized")
    capture = Capture(recorder := Hearing(), None, keep_router=True)
    hook = worker_hooks.load_hook(capture, lambda _: found)
    one.vllm_config.compilation_config = SimpleNamespace(static_forward_context={})
    loaded = type("Worker", (), {**vars(one), "compile_or_warm_up_model": lambda self: None})()
    hook.leave(loaded, None)
    assert fused.capture_fn is not None
    assert taken.capture_fn is theirs
    assert recorder.hidden == {}
    assert recorder.sink.metas[-1]["changed_program"] == fused_front.CHANGED
    assert any("the program that runs is another one" in text for text in heard.messages)


# Ranks that change ---------------------------------------------------------------------------------------------------


def test_nothing_is_recorded_after_ranks_have_changed(heard: pytest.LogCaptureFixture) -> None:
    """Elastic expert parallelism changes parallel_config in place and each layer's moe_config, without a load."""
    runner = MoERunner()
    found = [layer_of(runner, Module())]
    one = worker(Module(a=runner))
    capture = Capture(recorder := Hearing(), None)
    capture.place = Place(one, found)
    recorder.model_loaded(Identity(layers=tuple(identify(one, found)[1])))
    hook = worker_hooks.step_hook(capture)

    def step() -> None:
        scheduled = SimpleNamespace(
            finished_req_ids=set(), total_num_scheduled_tokens=2, num_scheduled_tokens={"a": 2}, scheduled_new_reqs=[],
            scheduled_cached_reqs=SimpleNamespace(req_ids=[], num_computed_tokens=[]),
        )  # fmt: skip
        hook.leave(hook.enter(runner_of, scheduled), "result")

    class Anything: ...

    runner_of = Anything()
    step()
    runner.moe_config = SimpleNamespace(**vars(runner.moe_config))  # the same numbers: another object is no change
    step()
    one.vllm_config.parallel_config.data_parallel_size = 4
    runner.moe_config.num_experts = 16
    runner.moe_config.moe_parallel_config = SimpleNamespace(use_ep=True, ep_rank=0, ep_size=4)
    for _ in range(3):
        step()
    recorder.skip_step()
    recorder.close()
    assert recorder.sink.steps == [0, 1]
    assert recorder.steps == 2
    what = "data_parallel_size 1 -> 4, num_experts 8 -> 16, ep_size 1 -> 4"
    lost = recorder.sink.metas[-1]["capture"]["lost"]
    assert lost[f"steps after ranks or experts changed ({what})"] == 3
    assert recorder.sink.metas[-1].get("dp_size") is None  # moe.meta is that of the steps recorded
    assert heard.messages.count(f"nothing is recorded from here on: ranks or experts have changed ({what})") == 1
    assert {hook.failure for hook in REGISTRY.values()} <= {None}
