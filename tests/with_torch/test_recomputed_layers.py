"""Layers of monolithic kernels, with stand-ins for the device and for vLLM's classes: held logits, sinks."""

from __future__ import annotations

import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nvtxmoe.capture.hooks import REGISTRY, wrap
from nvtxmoe.capture.recording import cuda_graphs
from nvtxmoe.capture.recording.cpu_counter import CpuCounter
from nvtxmoe.capture.recording.cuda_counter import CudaCounter
from nvtxmoe.capture.recording.logits_launch import LogitsLaunch
from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.router_logits import RouterLogits
from nvtxmoe.capture.recording.routing_rule import RoutingRule
from nvtxmoe.capture.run_identity import Identity, LayerInfo
from nvtxmoe.capture.vllm.layer_hooks import Capture
from nvtxmoe.capture.vllm.monolithic import kernel_of, way_of
from nvtxmoe.capture.vllm.monolithic_hooks import MonolithicLayers, SinkChain
from tests.with_torch import device as stand_ins
from tests.with_torch.device import Event, Graph, histogram, replay, routed
from tests.with_torch.events import EXPERTS, Kept

device = stand_ins.device  # the fixture
EXACT = RoutingRule(exact=True)


def recording(*ways: str, emit: str = "counts,topk,pairs", sample_every: int = 1) -> tuple[Recorder, Kept]:
    """A recorder of layers that are recorded in these ways."""
    sink = Kept()
    made = Recorder(lambda _: [sink], sample_every=sample_every, emit=frozenset(emit.split(",")))
    layers = tuple(LayerInfo(n, f"layers.{n}", EXPERTS, 2, recording=way) for n, way in enumerate(ways))
    made.model_loaded(Identity(layers=layers))
    return made, sink


def logits_for(*pairs: tuple[int, int]) -> torch.Tensor:
    """Logits of which these experts are the best two, the first the best."""
    found = torch.zeros(len(pairs), EXPERTS)
    for row, (first, second) in zip(found, pairs, strict=True):
        row[first], row[second] = 3.0, 2.0
    return found


def held(layer: int, logits: torch.Tensor, **more: Any) -> RouterLogits:
    return RouterLogits(layer, EXPERTS, 2, logits, EXACT, **more)


def test_held_logits_of_a_graph_are_counted_after_each_replay() -> None:
    made, sink = recording("recomputed", "recomputed", emit="counts", sample_every=0)
    launched: list[tuple[int, ...]] = []

    def recompute(launch: LogitsLaunch, table: Any, out: torch.Tensor, num_tokens: int) -> None:
        """What the kernel does, on the memory at the table's addresses."""
        launched.append(launch.layers)
        flat = out.numpy().reshape(launch.shape)
        flat[:] = 0
        for row, tensor, address in zip(flat, tensors, table.numpy()[:, 0].tolist(), strict=True):
            assert address == tensor.data_ptr()
            found = held(0, tensor).chosen(num_tokens)
            for expert in found.ids.numpy().ravel():
                row[0, expert] += 1
            row[0, -1] = found.ambiguous.numpy().sum()

    made._counter = CudaCounter(histogram, recompute=recompute)
    Event.ready = True
    graph, tensors = Graph(), [torch.zeros(4, EXPERTS), torch.zeros(4, EXPERTS)]
    made.graphs.begin(graph)
    for layer, tensor in enumerate(tensors):
        made.routed(held(layer, tensor))
    made.graphs.end(graph)
    assert made.graphs.held_bytes == made.graphs.logits_bytes == 2 * 4 * EXPERTS * 4
    for pairs in ([(0, 1), (2, 1)], [(5, 6)]):
        made.begin_step(len(pairs), 1, 0, len(pairs))
        made.replayed(id(graph))
        for tensor in tensors:
            tensor[: len(pairs)] = logits_for(*pairs)
        made.forward_done()
        made.end_step()
    made.send_arrived()
    assert launched == [(0, 1)] * 2  # one launch a step counts all layers
    counts = sink.counts()
    assert counts[0, 0] == counts[0, 1] == [1, 2, 1, 0, 0, 0, 0, 0]
    assert counts[1, 1] == [0, 0, 0, 0, 0, 1, 1, 0]
    assert made.lost == {}
    assert len(made._counter._plans) == 1
    del graph
    assert made.graphs.held_bytes == made.graphs.logits_bytes == 0


def test_without_a_kernel_pytorch_counts_and_samples() -> None:
    made, sink = recording("recomputed", "references")
    made._counter = CudaCounter(histogram)
    Event.ready = Event.may_wait = True
    made.begin_step(2, 1, 0, 2)
    tied = logits_for((0, 1), (3, 4))
    tied[1, 5] = 2.0  # experts 4 and 5 are equal
    made.routed(held(0, torch.cat([torch.zeros(3, EXPERTS), tied]), start=3))
    made.routed(routed(1, torch.tensor([[1, 2], [2, 3]], dtype=torch.int32)))
    made.forward_done()
    made.close()
    assert sink.counts() == {(0, 0): [1, 1, 0, 1, 1, 0, 0, 0], (0, 1): [0, 1, 2, 1, 0, 0, 0, 0]}
    rows = {int(rows["layer"][0]): rows for rows in sink.of("moe.topk")}
    assert rows[0]["experts"].tolist() == [[0, 1], [3, 4]]
    assert rows[0]["weights"].tolist()[0] == pytest.approx([0.7310586, 0.2689414])
    assert sorted(int(row["layer"]) for row in sink.of("moe.pairs")) == [0, 1]
    meta = sink.of("meta")[-1]
    assert meta["recording"] == {"recomputed": "0", "references": "1"}
    assert (meta["recomputed_tokens"], meta["ambiguous_tokens"]) == (2, {"0": 1})


def test_on_a_cpu() -> None:
    made, sink = recording("recomputed")
    made._counter = CpuCounter()
    made.begin_step(2, 1, 0, 2)
    table = torch.tensor([[6, 7], [1, 0]])
    made.routed(held(0, torch.zeros(2, EXPERTS), table=table, input_ids=torch.tensor([1, 0])))
    made.forward_done()
    made.close()
    assert sink.counts() == {(0, 0): [1, 1, 0, 0, 0, 0, 1, 1]}
    assert sink.of("meta")[-1]["recording"] == "recomputed"
    assert sink.of("moe.topk")[0]["experts"].tolist() == [[1, 0], [6, 7]]


def test_logits_whose_memory_is_used_again_are_not_counted() -> None:
    made, sink = recording("recomputed", "recomputed", "recomputed", emit="counts")
    made._counter = CpuCounter()
    made.begin_step(1, 1, 0, 1)
    memory = logits_for((0, 1))
    made.routed(held(0, memory))
    made.routed(held(1, memory))  # what a compiled program may do when it has done with the first
    made.routed(held(2, logits_for((2, 3))))
    made.forward_done()
    made.close()
    assert list(sink.counts()) == [(0, 2)]
    assert sorted(made.hidden) == [0, 1]
    assert "uses the memory of its router logits again" in made.hidden[0]
    assert sink.of("meta")[-1]["recording"] == "recomputed"


def test_graphs_hold_no_more_logits_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = recording("recomputed", "recomputed")
    monkeypatch.setattr(cuda_graphs, "MOST_LOGITS_BYTES", 4 * EXPERTS * 4)
    graph = Graph()
    made.graphs.begin(graph)
    for layer in (0, 1):
        made.routed(held(layer, torch.zeros(4, EXPERTS)))
    made.graphs.end(graph)
    assert [one.layer for one in made.graphs.routed(id(graph))] == [0]
    assert made.graphs.without_ids == 1


# Sinks ---------------------------------------------------------------------------------------------------------------


class Sinking:
    """A kernel that writes the ids that it chose, as vLLM calls one."""

    moe_config = SimpleNamespace(name="the layer's")
    supported = True

    def supports_routing_replay_capture(self) -> bool:
        return self.supported


class OAITritonMxfp4ExpertsMonolithic:
    """Named as vLLM's."""

    renormalize = True

    def supports_routing_replay_capture(self) -> bool:
        return False


class Experts:
    """As vLLM's RoutedExperts: calls its kernel with a view of the sink's buffer."""

    def __init__(self, kernel: Any) -> None:
        self.routing_sink: Any = None
        self.load(kernel)

    def load(self, kernel: Any) -> None:
        """Weights are loaded: another kernel."""
        impl = SimpleNamespace(fused_experts=kernel)
        self.quant_method = SimpleNamespace(moe_kernel=SimpleNamespace(impl=impl))

    def forward_monolithic(self, x: Any, router_logits: Any = None, input_ids: Any = None) -> str:
        if self.routing_sink is not None:
            if not kernel_of(self).supports_routing_replay_capture():
                raise ValueError("this kernel takes no sink")
            ids = self.routing_sink.buffer[: len(x)]
            ids[:] = x
            self.routing_sink.capture_fn(ids)
        return "result"


class Sink:
    """As vLLM's RoutedExpertsSink."""

    def __init__(self, moe_config: Any, capture_fn: Any) -> None:
        self.moe_config, self.capture_fn = moe_config, capture_fn
        self.buffer = torch.zeros(8, 2, dtype=torch.int16)


@pytest.fixture
def stand_in_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that the hooks import."""
    capturer = ModuleType("vllm.model_executor.layers.fused_moe.routed_experts_capturer")
    capturer.RoutedExpertsSink = Sink  # type: ignore[attr-defined]
    context = ModuleType("vllm.forward_context")
    context.get_forward_context = lambda: SimpleNamespace(dp_metadata=None)  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.layers", "vllm.model_executor.layers.fused_moe"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, capturer.__name__, capturer)
    monkeypatch.setitem(sys.modules, context.__name__, context)


@pytest.fixture
def hooked(stand_in_vllm: None) -> Any:
    """Makes a layer: the recorder, its sink, the experts."""

    def make(kernel: Any, way: str) -> tuple[Recorder, Kept, Experts]:
        class Own(Experts):
            pass

        made, sink = recording(way, emit="counts,topk")
        made._counter = CpuCounter()
        capture = Capture(made, None)
        experts = Own(kernel)
        assert made.identity is not None
        capture.thread.layer, capture.thread.info = 0, made.identity.layers[0]
        wrap(Own, "forward_monolithic", MonolithicLayers(capture, {id(experts): SimpleNamespace()}).hook())
        return made, sink, experts

    return make


def step(made: Recorder, experts: Experts, ids: torch.Tensor, logits: Any = None) -> None:
    """A step of which this forward is all."""
    made.begin_step(len(ids), 1, 0, len(ids))
    assert experts.forward_monolithic(x=ids, router_logits=logits, input_ids=None) == "result"
    made.forward_done()
    made.end_step()


IDS = torch.tensor([[1, 2], [2, 3]], dtype=torch.int16)


def test_a_sink_gives_the_kernels_ids_without_weights(hooked: Any) -> None:
    made, sink, experts = hooked(Sinking(), "sink")
    step(made, experts, IDS)
    assert experts.routing_sink.moe_config is Sinking.moe_config
    assert sink.counts() == {(0, 0): [0, 1, 2, 1, 0, 0, 0, 0]}
    rows = sink.of("moe.topk")[0]
    assert rows["experts"].tolist() == [[1, 2], [2, 3]]
    assert bool(np.isnan(rows["weights"]).all())  # nobody knows them
    assert sink.of("meta")[-1]["recording"] == "sink"


def test_vllms_own_sink_still_gets_its_ids(hooked: Any) -> None:
    made, sink, experts = hooked(Sinking(), "sink")
    theirs: list[list[list[int]]] = []
    experts.routing_sink = own = Sink(None, lambda ids: theirs.append(ids.numpy().tolist()))
    step(made, experts, IDS)
    step(made, experts, IDS)
    assert theirs == [[[1, 2], [2, 3]]] * 2
    assert experts.routing_sink is own
    assert len(sink.counts()) == 2
    later: list[int] = []
    experts.routing_sink = Sink(None, lambda ids: later.append(len(ids)))  # vLLM binds another one
    step(made, experts, IDS)
    assert later == [2]
    assert len(sink.counts()) == 3


def test_a_reload_of_the_weights(hooked: Any) -> None:
    made, sink, experts = hooked(Sinking(), "sink")
    step(made, experts, IDS)
    experts.load(Sinking())
    step(made, experts, IDS)
    assert len(sink.counts()) == 2
    refusing = Sinking()
    refusing.supported = False
    experts.load(refusing)
    step(made, experts, IDS)  # the program runs on
    assert experts.routing_sink is None
    assert len(sink.counts()) == 2
    assert made.hidden == {0: "its routing runs inside a monolithic kernel (Sinking)"}


def test_a_sink_of_vllms_stays_when_ours_goes(hooked: Any) -> None:
    made, _, experts = hooked(Sinking(), "sink")
    theirs: list[int] = []
    own = experts.routing_sink = Sink(None, lambda ids: theirs.append(len(ids)))
    step(made, experts, IDS)
    before = own.capture_fn
    made.hide(0, "another reason")
    step(made, experts, IDS)
    assert experts.routing_sink is own
    assert (type(before), own.capture_fn) == (SinkChain, before.before)
    assert theirs == [2, 2]


def test_a_failure_of_ours_does_not_reach_the_program(hooked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, experts = hooked(Sinking(), "sink")
    step(made, experts, IDS)

    def fails(_: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(made, "routed", fails)
    step(made, experts, IDS)
    assert REGISTRY["sink"].failure == "RuntimeError: ours"
    step(made, experts, IDS)


def test_a_kernel_without_a_sink_is_recomputed(hooked: Any) -> None:
    made, sink, experts = hooked(OAITritonMxfp4ExpertsMonolithic(), "recomputed")
    step(made, experts, IDS, logits_for((4, 5), (5, 6)))
    assert experts.routing_sink is None
    assert sink.counts() == {(0, 0): [0, 0, 0, 0, 1, 2, 1, 0]}
    step(made, experts, IDS, torch.zeros(2, 3))
    assert made.hidden == {0: "its kernel is given logits [2, 3], not [tokens, 8]"}


@pytest.mark.parametrize(
    ("kernel", "router", "said"),
    [
        (type("Unknown", (), {})(), SimpleNamespace(), r"monolithic kernel \(Unknown\)$"),
        (Sinking(), SimpleNamespace(eplb_state=object()), "with EPLB"),
        (None, SimpleNamespace(), "SimpleNamespace, which does not show its kernel"),
        (OAITritonMxfp4ExpertsMonolithic(), SimpleNamespace(num_expert_group=4), "more than the best logits"),
        (type("CPUExpertsInt4", (), {})(), SimpleNamespace(), "its router is a SimpleNamespace"),
    ],
)
def test_what_cannot_be_recorded_says_why(kernel: Any, router: Any, said: str) -> None:
    reason = way_of(Experts(kernel), router, 8).reason
    assert reason is not None
    assert re.search(said, reason), reason


def test_a_replay_of_a_graph_with_a_sink(hooked: Any) -> None:
    """The kernel writes into the sink's buffer at each replay: its view is held, and costs no memory of the graph."""
    made, sink, experts = hooked(Sinking(), "sink")
    made._counter = CudaCounter(histogram)
    Event.ready = True
    graph = Graph()
    made.graphs.begin(graph)
    experts.forward_monolithic(x=torch.zeros(4, 2, dtype=torch.int16))
    made.graphs.end(graph)
    assert made.graphs.held_bytes == 0
    replay(made, graph, [experts.routing_sink.buffer], (1, 2), (3, 4))
    assert sink.counts() == {(0, 0): [0, 1, 1, 1, 1, 0, 0, 0]}
