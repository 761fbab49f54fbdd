"""The adapters' parts on invented objects: rows, numbers, prefill, needs, and the hooks inside a layer."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe.capture.hooks import REGISTRY, unhook_all, wrap
from nvtxmoe.capture.recording.measured_overhead import NOT_MEASURED, overhead
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from nvtxmoe.capture.run_identity import LayerInfo
from nvtxmoe.capture.vllm.adapters import ADAPTERS, choose
from nvtxmoe.capture.vllm.identity import numbering
from nvtxmoe.capture.vllm.layer_hooks import Capture
from nvtxmoe.capture.vllm.own_rows import UnknownLayoutError, own_start, token_offset_of_thread
from nvtxmoe.capture.vllm.prefill_tokens import RequestLengths
from nvtxmoe.capture.vllm.requirements import Need, missing
from tests.support.paths import ROOT


def parallel(*tokens: int, shards: list[int] | None = None) -> Any:
    """A DPMetadata: tokens by data-parallel rank."""
    return SimpleNamespace(num_tokens_across_dp_cpu=np.array(tokens), local_sizes=shards)


@pytest.mark.parametrize(
    ("rows", "metadata", "rank", "start"),
    [
        (17, None, 0, 0),
        (9, parallel(4, 5), 0, 0),
        (9, parallel(4, 5), 1, 4),
        (5, parallel(4, 5), 1, 0),
        (8, parallel(4, 4), 1, 4),
        (12, parallel(5, 5, shards=[3, 3, 3, 3]), 1, 6),  # padded sequence-parallel shards of all ranks together
    ],
)
def test_own_rows(rows: int, metadata: Any, rank: int, start: int) -> None:
    assert own_start(rows, metadata, rank) == start


@pytest.mark.parametrize("rows", [2, 3, 11])
def test_rows_that_cannot_be_told_apart(rows: int) -> None:
    with pytest.raises(UnknownLayoutError, match=rf"{rows} rows, \[4, 5\] tokens"):
        own_start(rows, parallel(4, 5), 0)


@given(st.lists(st.integers(0, 6), max_size=12))
def test_numbers_are_vllms_own_and_unique(ids: list[int]) -> None:
    numbers = numbering(ids)
    assert len(set(numbers)) == len(ids)
    for place, number in enumerate(ids):
        if number not in ids[:place]:
            assert numbers[place] == number
        else:
            assert numbers[place] > max(ids)


def scheduled(new: dict[str, tuple[int, int]], cached: dict[str, int], tokens: dict[str, int]) -> Any:
    """A SchedulerOutput: new requests by (prompt length, computed), cached ones by computed."""
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=r, prompt_token_ids=[0] * length, prompt_embeds=None, num_computed_tokens=computed)
            for r, (length, computed) in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(req_ids=list(cached), num_computed_tokens=list(cached.values())),
        num_scheduled_tokens=tokens,
    )


def test_prefill_tokens_by_hand() -> None:
    lengths = RequestLengths()
    # a: 10 of 25 prompt tokens; b: a prefix of 8 is cached, 4 left; then a goes on while b decodes.
    assert lengths.prefill_tokens(scheduled({"a": (25, 0), "b": (12, 8)}, {}, {"a": 10, "b": 4})) == 14
    assert lengths.prefill_tokens(scheduled({}, {"a": 10, "b": 12}, {"a": 10, "b": 1})) == 10
    assert lengths.prefill_tokens(scheduled({}, {"a": 20, "b": 13}, {"a": 5, "b": 3})) == 5  # b: speculative tokens
    assert lengths.prefill_tokens(scheduled({}, {"a": 25, "b": 16}, {"a": 1, "b": 1})) == 0
    lengths.forget({"a"})
    assert lengths.prefill_tokens(scheduled({}, {"a": 0}, {"a": 4})) == 0


def test_embedded_prompts_have_lengths_too() -> None:
    new = scheduled({"a": (1, 0)}, {}, {"a": 6})
    new.scheduled_new_reqs[0].prompt_token_ids = None
    new.scheduled_new_reqs[0].prompt_embeds = np.zeros((6, 4))
    assert RequestLengths().prefill_tokens(new) == 6


def test_needs_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("invented_vllm_part")

    class Runner:
        def forward(self, hidden_states: int) -> None:
            """A method."""

    module.Runner = Runner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "invented_vllm_part", module)
    met = Need("invented_vllm_part", "Runner.forward", ("hidden_states",))
    lacking = [
        Need("invented_vllm_part", "Runner.forward", ("layer",)),
        Need("invented_vllm_part", "Runner.layer_id"),
        Need("invented_vllm_part.deeper", "Runner"),
    ]
    assert missing([met]) == []
    found = missing([met, *lacking])
    assert found[0] == "invented_vllm_part.Runner.forward has no parameter layer"
    assert found[1] == "invented_vllm_part.Runner.layer_id"
    assert found[2].startswith("module invented_vllm_part.deeper (")


def test_without_vllm_nothing_fits() -> None:
    adapter, lacking = choose()
    assert adapter is None
    assert set(lacking) == {one.NAME for one in ADAPTERS}


# Hooks inside a layer ------------------------------------------------------------------------------------------------


class Ranges:
    """An emitter that keeps the open ranges and all that was opened."""

    encoding = "kept"
    steps_a_send = 1

    def __init__(self) -> None:
        self.open: list[str] = []
        self.seen: list[str] = []

    def push(self, name: str, layer: int, category: str) -> None:
        self.open.append(name)
        self.seen.append(f"{name}={layer}")

    def push_step(self, payload: Any) -> None:
        raise AssertionError

    def pop(self) -> None:
        self.open.pop()

    def mark(self, event: str, payload: Any) -> None:
        raise AssertionError

    def depth(self) -> int:
        return len(self.open)


class Recorder:
    """Keeps what it is told."""

    quiet = False

    def __init__(self) -> None:
        self.got: list[RoutingTensors] = []
        self.hidden: dict[int, str] = {}

    def listens(self, layer: int) -> bool:
        return layer not in self.hidden

    def hide(self, layer: int, reason: str) -> None:
        self.hidden[layer] = reason

    def routed(self, one: RoutingTensors) -> None:
        self.got.append(one)


class Router:
    """Routes as BaseRouter does: logical ids, then EPLB's mapping."""

    top_k = 2

    def __init__(self, mapping: dict[int, int] | None = None) -> None:
        self.mapping = mapping

    def map_ids(self, topk_ids: Any) -> Any:
        return topk_ids if self.mapping is None else np.vectorize(self.mapping.get)(topk_ids)

    def select(self, ids: Any) -> Any:
        return np.ones(ids.shape), self.map_ids(ids)


class Layer:
    """A layer with a router, reduced by a group afterwards."""

    def __init__(self, router: Router, reduced: bool = True) -> None:
        self.router, self.reduced = router, reduced

    def forward(self, ids: Any) -> Any:
        return self.router.select(ids)


class Group:
    """A process group."""

    def __init__(self, name: str) -> None:
        self.unique_name = name

    def reduce(self, value: int) -> int:
        return value


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Capture]:
    """Layer, Router and Group with hooks."""
    unhook_all()
    forward_context = ModuleType("vllm.forward_context")
    forward_context.get_forward_context = lambda: SimpleNamespace(dp_metadata=None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.forward_context", forward_context)
    capture = Capture(Recorder(), Ranges())  # type: ignore[arg-type]
    wrap(Layer, "forward", capture.layer_hook(lambda layer, *_: layer, lambda layer: layer.reduced))
    wrap(Router, "select", capture.router_hook())
    wrap(Router, "map_ids", capture.eplb_hook())
    wrap(Group, "reduce", capture.collective_hook())
    yield capture
    unhook_all()


def known(capture: Capture, layer: Layer, number: int, physical: int = 4) -> Layer:
    """The layer, with a number."""
    capture.layers[id(layer)] = LayerInfo(number, f"layers.{number}", 4, 2, num_physical=physical)
    return layer


IDS = np.array([[0, 1], [2, 3]])


def test_a_layer_routes(hooked: Capture) -> None:
    known(hooked, layer := Layer(Router()), 5)
    layer.forward(IDS)
    (one,) = hooked.recorder.got  # type: ignore[attr-defined]
    assert (one.layer, one.num_experts, one.physical, one.start) == (5, 4, None, 0)
    assert one.ids is IDS
    assert hooked.ranges.seen == ["moe.layer.5=5", "moe.route=5"]  # type: ignore[union-attr]
    assert hooked.ranges.depth() == 0  # type: ignore[union-attr]


def test_eplb_gives_logical_and_physical_ids(hooked: Capture) -> None:
    known(hooked, layer := Layer(Router({0: 4, 1: 1, 2: 2, 3: 0})), 0, physical=5)
    layer.forward(IDS)
    (one,) = hooked.recorder.got  # type: ignore[attr-defined]
    assert one.ids.tolist() == IDS.tolist()
    assert one.physical.tolist() == [[4, 1], [2, 0]]
    assert one.num_physical == 5


def test_a_router_outside_of_a_known_layer_is_nobodys(hooked: Capture) -> None:
    Router().select(IDS)
    Layer(Router()).forward(IDS)
    assert hooked.recorder.got == []  # type: ignore[attr-defined]
    assert hooked.ranges.seen == []  # type: ignore[union-attr]


def test_a_router_with_more_columns_than_its_top_k_is_hidden(hooked: Capture) -> None:
    known(hooked, layer := Layer(Router()), 1)
    layer.forward(np.zeros((3, 3), int))
    assert hooked.recorder.got == []  # type: ignore[attr-defined]
    assert hooked.recorder.hidden == {1: "its router gives [3, 3], not [tokens, 2]"}


def test_the_first_reduction_after_a_layer_is_its_own(hooked: Capture) -> None:
    known(hooked, layer := Layer(Router()), 3)
    tensor_parallel, other = Group("tp:0"), Group("dp:0")
    tensor_parallel.reduce(1)  # attention's, before any layer
    layer.forward(IDS)
    other.reduce(1)
    assert tensor_parallel.reduce(7) == 7
    tensor_parallel.reduce(1)  # the next attention's
    collectives = [name for name in hooked.ranges.seen if "collective" in name]  # type: ignore[union-attr]
    assert collectives == ["moe.collective=3"]


def test_a_layer_that_is_not_reduced_leaves_the_next_reduction_alone(hooked: Capture) -> None:
    known(hooked, layer := Layer(Router(), reduced=False), 3)
    layer.forward(IDS)
    Group("tp:0").reduce(1)
    assert not any("collective" in name for name in hooked.ranges.seen)  # type: ignore[union-attr]


def test_an_exception_of_the_layer_passes_and_closes_its_ranges(hooked: Capture) -> None:
    known(hooked, layer := Layer(Router()), 2)
    with pytest.raises(AttributeError):
        layer.forward(None)
    assert hooked.ranges.depth() == 0  # type: ignore[union-attr]
    assert hooked.thread.layer is None
    assert {hook.failure for hook in REGISTRY.values()} == {None}


def test_each_threads_rows_begin_at_its_micro_batchs_first_token(
    hooked: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ubatching = ModuleType("vllm.v1.worker.ubatching")
    offsets: dict[int, int] = {}
    ubatching.dbo_current_ubatch_token_offset = lambda: offsets.get(threading.get_ident(), 0)  # type: ignore[attr-defined]
    assert token_offset_of_thread() is None  # vLLM before 0.33
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.ubatching", ubatching)
    for parent in ("vllm.v1", "vllm.v1.worker"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    hooked.token_offset = Capture(hooked.recorder, None).token_offset
    known(hooked, layer := Layer(Router()), 5)

    def run(offset: int) -> None:
        offsets[threading.get_ident()] = offset
        layer.forward(IDS)

    for offset in (0, 2):
        thread = threading.Thread(target=run, args=(offset,))
        thread.start()
        thread.join()
    layer.forward(IDS)  # a step that is not divided
    assert [one.token_offset for one in hooked.recorder.got] == [0, 2, 0]  # type: ignore[attr-defined]
    assert {hook.failure for hook in REGISTRY.values()} == {None}


# What it costs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "vllm", "row_of"),
    [
        ("NVIDIA H100 80GB HBM3", "0.26.0", "| counts (mode moe) |"),
        ("NVIDIA H200", "0.33.0", "| counts, mode moe, no nsys |"),
    ],
)
def test_the_overhead_of_a_set_up_is_that_of_the_benchmarks(device: str, vllm: str, row_of: str) -> None:
    layers = [LayerInfo(n, f"layers.{n}", 128, 8) for n in range(48)]
    found = overhead(device, vllm, layers)
    assert not isinstance(found, str)
    pages = [page.read_text() for page in sorted((ROOT / "docs" / "development").glob("benchmarks-recording*.md"))]
    row = next(line for text in pages for line in text.splitlines() if row_of in line)
    low, high = found["gpu_us_a_step_ci95"]
    for figure in (found["gpu_us_a_step"], f"{low} to {high}", f"+{found['gpu_pct']}", found["cpu_us_a_step"]):
        assert f"{figure} |" in row


@pytest.mark.parametrize("layers", [[], [LayerInfo(0, "a", 8, 2)], [LayerInfo(0, "a", 8, 2), LayerInfo(1, "b", 4, 2)]])
def test_any_other_set_up_says_that_it_was_not_measured(layers: list[LayerInfo]) -> None:
    assert overhead("NVIDIA H100 80GB HBM3", "0.26.0", layers) == NOT_MEASURED
