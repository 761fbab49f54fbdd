"""The recorder on CPU tensors: what is counted, what never is, and what is said of the rest."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvtxmoe.capture.hooks import unhook_all
from nvtxmoe.capture.recording import sending
from nvtxmoe.capture.recording.cpu_counter import CpuCounter
from nvtxmoe.capture.recording.pair_counter import PairCounts
from nvtxmoe.capture.recording.recorder import META_EVERY, PAIRS_EVERY, Recorder
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors, StepCounts
from nvtxmoe.capture.run_identity import Step
from tests.with_torch.events import EXPERTS, TOP_K, Kept, identity


def made(**options: object) -> tuple[Recorder, Kept]:
    """A recorder that knows its model, and its sink."""
    unhook_all()
    sink = Kept()
    recorder = Recorder(lambda _: [sink], **options)  # type: ignore[arg-type]
    recorder.model_loaded(identity())
    return recorder, sink


def ids(*tokens: tuple[int, int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """Routing of tokens."""
    return torch.tensor(tokens, dtype=dtype)


def routed(layer: int, chosen: torch.Tensor, **more: object) -> RoutingTensors:
    """What layer chose, with weights that tell tokens apart."""
    weights = torch.arange(chosen.numel(), dtype=torch.float32).view(chosen.shape)
    return RoutingTensors(layer, EXPERTS, chosen, weights, **more)  # type: ignore[arg-type]


def run_step(recorder: Recorder, tokens: int, *those: RoutingTensors) -> None:
    """One step from begin to end."""
    recorder.begin_step(tokens, 1, tokens, 0)
    for one in those:
        recorder.routed(one)
    recorder.forward_done()
    recorder.end_step()


def test_counts_by_hand() -> None:
    recorder, sink = made()
    run_step(recorder, 2, routed(0, ids((0, 1), (1, 7))), routed(1, ids((3, 2), (3, 5))))
    assert sink.counts() == {(0, 0): [1, 2, 0, 0, 0, 0, 0, 1], (0, 1): [0, 0, 1, 2, 0, 1, 0, 0]}
    row = sink.of("moe.counts")[0]
    assert (row["num_tokens"], row["top_k"], row["rank"]) == (2, 2, 0)
    assert [name for name, _ in sink.events] == ["meta", "step", "end", *["moe.counts"] * 2, *["moe.topk"] * 2]


def test_padding_and_other_ranks_rows_are_not_counted() -> None:
    recorder, sink = made()
    garbage = ids((6, 7), (0, 1), (0, 2), (7, 7))
    run_step(recorder, 2, routed(0, garbage, start=1), routed(1, garbage[1:]))
    assert sink.counts() == {(0, layer): [2, 1, 1, 0, 0, 0, 0, 0] for layer in (0, 1)}
    assert sink.of("moe.topk")[0]["experts"].tolist() == [[0, 1], [0, 2]]
    assert sink.of("moe.topk")[0]["weights"].tolist() == [[2, 3], [4, 5]]
    assert recorder.lost == {}


def test_what_comes_outside_of_a_forward_is_not_counted() -> None:
    recorder, sink = made()
    recorder.routed(routed(0, ids((0, 1))))  # warm-up
    recorder.begin_step(1, 1, 1, 0)
    for layer in (0, 1):
        recorder.routed(routed(layer, ids((2, 3))))
    recorder.forward_done()
    recorder.routed(routed(0, ids((0, 1))))  # a draft model while sampling
    recorder.end_step()
    recorder.routed(routed(0, ids((0, 1))))
    assert sink.counts() == {(0, layer): [0, 0, 1, 1, 0, 0, 0, 0] for layer in (0, 1)}


def test_a_layer_that_runs_twice_a_step_is_hidden_and_never_zero() -> None:
    recorder, sink = made()
    run_step(recorder, 1, routed(0, ids((0, 1))), routed(1, ids((0, 1))), routed(1, ids((4, 5))))
    run_step(recorder, 1, routed(0, ids((0, 1))), routed(1, ids((0, 1))))
    assert {layer for _, layer in sink.counts()} == {0}
    told = sink.of("meta")[-1]["capture"]
    assert list(told["hidden_layers"]) == ["1"]
    assert "more than once per step" in told["hidden_layers"]["1"]
    assert recorder.lost == {}


def test_a_layer_that_was_not_seen_is_a_loss() -> None:
    recorder, sink = made()
    run_step(recorder, 1, routed(0, ids((0, 1))))
    assert recorder.lost == {"steps in which a layer's routing was not seen": 1}
    assert sink.of("meta")[-1]["capture"]["lost"] == dict(recorder.lost)
    run_step(recorder, 2, routed(0, ids((0, 1), (1, 2))), routed(1, ids((0, 1))))
    assert recorder.lost["layers with fewer rows than tokens"] == 1
    assert (1, 1) not in sink.counts()


def test_a_forward_that_raises_leaves_no_counts() -> None:
    recorder, sink = made()
    recorder.begin_step(1, 1, 1, 0)
    recorder.routed(routed(0, ids((0, 1))))
    recorder.abandon_step()
    assert (sink.counts(), sink.events[-2][0]) == ({}, "end")
    assert recorder.lost == {"steps whose forward failed": 1}
    run_step(recorder, 1, routed(0, ids((0, 1))), routed(1, ids((0, 1))))
    assert set(sink.counts()) == {(1, 0), (1, 1)}


def test_idle_batches_take_numbers() -> None:
    recorder, sink = made()
    recorder.skip_step()
    run_step(recorder, 1, routed(0, ids((0, 1))), routed(1, ids((0, 1))))
    recorder.skip_step()
    run_step(recorder, 1, routed(0, ids((0, 1))), routed(1, ids((0, 1))))
    assert [step.number for step in sink.of("step")] == [1, 3]


def test_layers_and_events_that_are_not_wanted() -> None:
    recorder, sink = made(layers=frozenset({1}), emit=frozenset({"counts"}))
    run_step(recorder, 1, routed(0, ids((0, 1))), routed(1, ids((0, 1))))
    assert set(sink.counts()) == {(0, 1)}
    assert [layer["layer"] for layer in sink.of("meta")[-1]["layers"]] == [1]
    assert sink.of("moe.topk") == []
    assert recorder.lost == {}


def test_physical_experts_beside_logical_ones() -> None:
    recorder, sink = made()
    run_step(
        recorder, 1,
        *(routed(n, ids((0, 1)), physical=ids((9, 1)), num_physical=10) for n in (0, 1)),
    )  # fmt: skip
    assert sink.counts()[0, 0] == [1, 1, 0, 0, 0, 0, 0, 0]
    assert [row["counts"].tolist() for row in sink.of("moe.physical")] == [[0, 1, *[0] * 7, 1]] * 2


def test_samples_every_so_many_steps() -> None:
    for every, wanted in ((0, []), (1, [0, 1, 2, 3, 4]), (3, [0, 3])):
        recorder, sink = made(sample_every=every)
        for _ in range(5):
            run_step(recorder, 1, routed(0, ids((0, 1))), routed(1, ids((0, 1))))
        assert sorted({int(rows["step"][0]) for rows in sink.of("moe.topk")}) == wanted
        assert sink.of("meta")[0]["sample_every"] == every


def test_weights_that_are_not_known_are_nan() -> None:
    recorder, sink = made()
    run_step(recorder, 1, *(RoutingTensors(n, EXPERTS, ids((0, 1)), None) for n in (0, 1)))
    assert np.isnan(sink.of("moe.topk")[0]["weights"]).all()


def test_an_expert_out_of_range_is_an_error() -> None:
    recorder, _ = made()
    recorder.begin_step(1, 1, 1, 0)
    recorder.routed(routed(0, ids((0, 8))))
    with pytest.raises(ValueError, match="expert 8 of 8"):
        recorder.forward_done()


def test_meta_comes_again_for_captures_that_begin_later() -> None:
    recorder, sink = made(sample_every=0)
    for _ in range(META_EVERY + 1):
        run_step(recorder, 1, routed(0, ids((0, 1))), routed(1, ids((0, 1))))
    assert len(sink.of("meta")) == 2


def test_the_end_says_how_it_went() -> None:
    recorder, sink = made()
    run_step(recorder, 1, routed(0, ids((0, 1))), routed(1, ids((0, 1))))
    recorder.begin_step(1, 1, 1, 0)
    recorder.close()
    assert sink.closed == {"steps": 2, "idle_steps": 0, "lost": {}, "failures": {}}
    assert sink.events[-1][0] != "step"


@settings(max_examples=40)
@given(st.data())
def test_counts_and_pairs_equal_plain_python(data: st.DataObject) -> None:
    recorder, sink = made(emit=frozenset({"counts", "pairs"}), sample_every=0)
    dtype = data.draw(st.sampled_from([torch.int32, torch.int64, torch.int16, torch.uint8]))
    wanted: dict[tuple[int, int], list[int]] = {}
    pairs = np.zeros((2, EXPERTS, EXPERTS), dtype=np.int64)
    total = 0
    for step in range(data.draw(st.integers(1, 4))):
        tokens, padding = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 3))
        total += tokens
        those = []
        for layer in (0, 1):
            rows = [data.draw(st.permutations(range(EXPERTS)))[:TOP_K] for _ in range(tokens + padding)]
            those.append(routed(layer, torch.tensor(rows, dtype=dtype)))
            flat = [expert for row in rows[:tokens] for expert in row]
            wanted[step, layer] = [flat.count(expert) for expert in range(EXPERTS)]
            for one, other in rows[:tokens]:
                pairs[layer, min(one, other), max(one, other)] += 1
        run_step(recorder, tokens, *those)
    recorder.close()
    assert sink.counts() == wanted
    for row in sink.of("moe.pairs"):
        triangle = pairs[int(row["layer"])][np.triu_indices(EXPERTS, 1)]
        assert row["pairs"].tolist() == triangle.tolist()
        assert row["num_tokens"] == total


def test_spans_of_pairs() -> None:
    recorder, sink = made(emit=frozenset({"pairs"}), sample_every=0)
    for _ in range(PAIRS_EVERY + 5):
        run_step(recorder, 1, routed(0, ids((0, 1))), routed(1, ids((0, 1))))
    recorder.close()
    spans = [(int(r["layer"]), int(r["first_step"]), int(r["last_step"])) for r in sink.of("moe.pairs")]
    assert spans == [(0, 0, 99), (1, 0, 99), (0, 100, 104), (1, 100, 104)]


def test_counts_that_arrive_in_a_pause_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "IDLE_S", 0.01)

    class Late(CpuCounter):
        """Nothing has arrived while the step runs."""

        late = True

        def drain(self, wait: bool = False) -> Iterator[StepCounts]:
            if not self.late or wait:
                yield from super().drain(wait)

    recorder, sink = made()
    counter = Late()
    recorder._counter = counter
    run_step(recorder, 1, routed(0, ids((0, 1))), routed(1, ids((0, 1))))
    assert sink.counts() == {}
    counter.late = False
    for _ in range(500):
        if len(sink.counts()) == 2:
            break
        time.sleep(0.01)
    assert set(sink.counts()) == {(0, 0), (0, 1)}
    recorder.close()
    recorder._sending.thread.join(5)
    assert not recorder._sending.thread.is_alive()


def test_a_second_model_in_the_process_is_recorded_too() -> None:
    recorder, sink = made()
    run_step(recorder, 1, routed(0, ids((0, 1))), routed(1, ids((0, 1))))
    recorder.flush()  # the first worker shuts down
    assert sink.of("conclude") == [None]
    recorder.model_loaded(identity(layers=1))
    run_step(recorder, 1, routed(0, ids((2, 3))))
    recorder.close()
    recorder.close()
    assert set(sink.counts()) == {(0, 0), (0, 1), (1, 0)}
    assert recorder.lost == {}
    assert sink.closed is not None


def test_the_engines_own_steps_are_not_counted() -> None:
    recorder, sink = made()
    recorder.warming_up = True
    run_step(recorder, 1, routed(0, ids((0, 1))), routed(1, ids((0, 1))))
    recorder.warming_up = False
    run_step(recorder, 1, routed(0, ids((2, 3))), routed(1, ids((2, 3))))
    assert set(sink.counts()) == {(0, 0), (0, 1)}
    assert sink.counts()[0, 0] == [0, 0, 1, 1, 0, 0, 0, 0]
    assert recorder.lost == {}


def test_another_model_in_the_process_is_refused_and_said() -> None:
    recorder, sink = made()
    assert recorder.same_layers(identity())
    assert not recorder.same_layers(identity(layers=3))
    recorder.refuse_second_model()
    assert list(sink.of("meta")[-1]["capture"]["lost"]) == ["steps of another model in the process, from its load on"]


def test_pairs_of_experts_out_of_range_are_left_out() -> None:
    pairs = PairCounts()
    step = Step(0, 0, 2, 1, 2, 0)
    pairs.add(step, (RoutingTensors(0, 4, torch.tensor([[0, 1], [-1, 9]]), None),))
    pairs.begin()
    (payload,) = pairs.arrived(0)
    assert payload["pairs"].tolist() == [1, 0, 0, 0, 0, 0]


def test_a_forked_child_records_nothing_and_does_not_hang() -> None:
    recorder, _ = made()
    with recorder._lock:  # as a thread would hold it
        child = os.fork()
        if child == 0:
            run_step(recorder, 1, routed(0, ids((0, 1))), routed(1, ids((0, 1))))
            recorder.close()
            os._exit(0)
    for _ in range(500):
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        pytest.fail("the child hangs")
