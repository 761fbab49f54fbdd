"""Series of live metrics: their values, their number, and what is gone when it is gone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvtxmoe.capture.live import snapshot
from nvtxmoe.capture.live.last_steps import MOST_STEPS
from nvtxmoe.capture.live.samples import MOST_LAYER_RANKS, Options
from nvtxmoe.capture.live.series import SERIES, Shape, most_series
from nvtxmoe.capture.live.totals import RECENT_S
from nvtxmoe.capture.sinks import metrics
from nvtxmoe.formats import schema
from tests.support.kept_warnings import kept_warnings
from tests.support.live_ranks import Model, Rank, number_of_series, scraped, view_of

CHANCE = np.random.default_rng(7)


def counts_of(model: Model, steps: int, mean: float = 2.0) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return CHANCE.poisson(mean, (steps, model.layers, model.experts))


def test_the_numbers_of_one_rank(tmp_path: Path) -> None:
    """Against sums made the plain way."""
    model = Model()
    rank, counts = Rank(tmp_path, model), counts_of(model, 100)
    counts[:, 1, 5] = 0
    for number, one in enumerate(counts):
        rank.step(number, one, tokens=7, prefill=3 if number % 2 else 0)
        if number % 30 == 0:
            rank.publish()
    rank.publish()
    found = scraped(view_of(tmp_path))
    layers = [str(model.first_layer + layer) for layer in range(model.layers)]
    assert found["nvtxmoe_steps_total"] == {("0",): 100}
    assert found["nvtxmoe_tokens_total"] == {("0", "prefill"): 150, ("0", "decode"): 550}
    assert found["nvtxmoe_assignments_total"] == {("0",): counts.sum()}
    assert found["nvtxmoe_layer_assignments_total"] == {
        (layer,): counts[:, place].sum() for place, layer in enumerate(layers)
    }
    assert found["nvtxmoe_layer_experts_never_hit"] == {("1",): 0, ("2",): 1, ("3",): 0}
    for place, layer in enumerate(layers):
        steps = counts[:, place]
        ratio = np.mean([one.max() / one.mean() for one in steps if one.sum()])
        assert found["nvtxmoe_layer_expert_max_over_mean"][(layer,)] == pytest.approx(ratio)
        active = np.mean([np.count_nonzero(one) for one in steps if one.sum()])
        assert found["nvtxmoe_layer_active_experts"][(layer,)] == pytest.approx(active)
        shares = steps.sum(axis=0) / steps.sum()
        hottest = np.argsort(-shares, kind="stable")[:3]
        assert {key: value for key, value in found["nvtxmoe_hottest_expert_share"].items() if key[0] == layer} == {
            (layer, str(expert)): shares[expert] for expert in hottest.tolist()
        }
        coldest = np.argsort(shares, kind="stable")[:3]
        assert [key[1] for key in found["nvtxmoe_coldest_expert_share"] if key[0] == layer] == [
            str(expert) for expert in coldest.tolist()
        ]
    assert not [name for name in found if "ep_rank" in name or "eplb" in name or "estimated" in name]


def test_detail_by_expert_adds_up_to_the_layer(tmp_path: Path) -> None:
    model, options = Model(), Options(experts=True)
    rank, counts = Rank(tmp_path, model, options=options), counts_of(model, 9)
    for number, one in enumerate(counts):
        rank.step(number, one)
    rank.publish()
    found = scraped(view_of(tmp_path), options)["nvtxmoe_expert_assignments_total"]
    sums = counts.sum(axis=0)
    assert found == {(str(1 + layer), str(expert)): sums[layer, expert] for layer, expert in np.ndindex(sums.shape)}


@pytest.mark.parametrize("expert_parallel", [False, True])
def test_the_number_of_series_of_a_large_model(tmp_path: Path, expert_parallel: bool) -> None:
    """61 layers of 256 experts on the eight ranks of a machine: what keeps others from having such metrics at all."""
    model = Model(layers=61, experts=256, top_k=8, tp_size=8, expert_parallel=expert_parallel)
    counts = counts_of(model, 3)
    for number in range(model.ranks):
        rank = Rank(tmp_path, model, number)
        for step, one in enumerate(counts):
            rank.step(step, one)
        rank.publish()
    found = scraped(view_of(tmp_path))
    shape = Shape(61, 256, model.ranks, model.ranks if expert_parallel else 1)
    assert 500 < number_of_series(found) <= most_series(shape) < 1000
    for one in SERIES:
        assert len(found.get(one.full_name, ())) <= one.most(shape), one.name


@settings(max_examples=30)
@given(
    layers=st.integers(1, 70), experts=st.integers(1, 300), top_k=st.integers(0, 64), detail=st.booleans(),
    tp_size=st.integers(1, 4),
)  # fmt: skip
def test_the_bound_holds_for_any_shape(
    tmp_path_factory: pytest.TempPathFactory, layers: int, experts: int, top_k: int, detail: bool, tp_size: int
) -> None:
    folder = tmp_path_factory.mktemp("live")
    model = Model(layers, experts, 1, tp_size, expert_parallel=experts >= tp_size)
    options = Options(top_k, detail)
    for number in range(model.ranks):
        rank = Rank(folder, model, number, options)
        rank.step(0, np.ones((layers, experts), np.int64))
        rank.publish()
    found = scraped(view_of(folder), options)
    ep_size = tp_size if model.expert_parallel else 1
    shape = Shape(layers, experts, model.ranks, ep_size, options)
    for one in SERIES:
        assert len(found.get(one.full_name, ())) <= one.most(shape), one.name
    assert ("nvtxmoe_layer_ep_rank_assignments_total" in found) == (
        ep_size > 1 and (detail or layers * ep_size <= MOST_LAYER_RANKS)
    )


def test_an_expert_that_leaves_the_top_takes_its_series_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(layers=1)
    rank = Rank(tmp_path, model, options=Options(top_k=1))
    now = 1000.0
    monkeypatch.setattr("nvtxmoe.capture.sinks.metrics.time.monotonic", lambda: now)

    def hottest(number: int, expert: int) -> dict[tuple[str, ...], float]:
        counts = np.ones((1, 8), np.int64)
        counts[0, expert] = 10
        rank.step(number, counts)
        rank.publish()
        return scraped(view_of(tmp_path), Options(top_k=1))["nvtxmoe_hottest_expert_share"]

    assert hottest(0, 3) == {("1", "3"): 10 / 17}
    now += RECENT_S
    assert list(hottest(1, 6)) == [("1", "3")]  # both in the last minute: the lower one of two that are alike
    now += RECENT_S
    assert hottest(2, 6) == {("1", "6"): 20 / 34}
    assert scraped(view_of(tmp_path))["nvtxmoe_layer_assignments_total"] == {("1",): 51}


def test_ranks_that_see_the_same_tokens_count_once(tmp_path: Path) -> None:
    model = Model(tp_size=4)
    counts = counts_of(model, 5)
    for number in range(4):
        rank = Rank(tmp_path, model, number)
        for step, one in enumerate(counts):
            rank.step(step, one)
        rank.publish()
    found = scraped(view_of(tmp_path))
    assert found["nvtxmoe_ranks"] == {(): 4}
    assert found["nvtxmoe_steps_total"] == {(str(number),): 5 for number in range(4)}
    assert found["nvtxmoe_tokens_total"] == {("0", "prefill"): 0, ("0", "decode"): 20}
    assert sum(found["nvtxmoe_layer_assignments_total"].values()) == counts.sum()
    assert found["nvtxmoe_assignments_total"] == {("0",): counts.sum()}


def test_balance_of_ranks_that_share_experts(tmp_path: Path) -> None:
    """Step by step, as SGLang defines it; also the loads of each rank."""
    model = Model(experts=10, tp_size=4, expert_parallel=True)
    counts = counts_of(model, MOST_STEPS + 6)
    for number in range(4):
        rank = Rank(tmp_path, model, number)
        for step, one in enumerate(counts):
            rank.step(step, one)
        rank.publish()
    found = scraped(view_of(tmp_path))
    blocks = np.array_split(np.arange(10), 4)
    loads = np.stack([counts[:, :, block].sum(axis=2) for block in blocks], axis=2)
    assert found["nvtxmoe_ep_rank_assignments_total"] == {
        (str(number),): loads[:, :, number].sum() for number in range(4)
    }
    assert found["nvtxmoe_layer_ep_rank_assignments_total"][("2", "3")] == loads[:, 1, 3].sum()
    last = loads[-MOST_STEPS:]
    utilization = (last.mean(axis=2) + 1e-5) / (last.max(axis=2) + 1e-5)
    assert found["nvtxmoe_eplb_balancedness"][()] == pytest.approx(utilization.mean())
    for place, layer in enumerate(("1", "2", "3")):
        assert found["nvtxmoe_layer_eplb_balancedness"][(layer,)] == pytest.approx(utilization[:, place].mean())


def test_data_parallel_ranks_are_added_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees tokens of its own, and one is idle in every third step."""
    monkeypatch.setattr(
        "nvtxmoe.capture.sinks.metrics.time.time_ns", lambda: 0
    )  # long ago: each had the time to publish it
    model = Model(dp_size=2, expert_parallel=True)
    counts = [counts_of(model, 12) for _ in range(2)]
    counts[1][::3] = 0
    for number in range(2):
        rank = Rank(tmp_path, model, number)
        for step, one in enumerate(counts[number]):
            if one.any():
                rank.step(step, one)
        rank.publish()
    found = scraped(view_of(tmp_path))
    both = counts[0] + counts[1]
    assert found["nvtxmoe_steps_total"] == {("0",): 12, ("1",): 8}
    assert sum(found["nvtxmoe_tokens_total"].values()) == 20 * 4
    assert sum(found["nvtxmoe_layer_assignments_total"].values()) == both.sum()
    loads = np.stack([both[:, :, :4].sum(axis=2), both[:, :, 4:].sum(axis=2)], axis=2)
    assert found["nvtxmoe_ep_rank_assignments_total"] == {(str(n),): loads[:, :, n].sum() for n in range(2)}
    utilization = (loads.mean(axis=2) + 1e-5) / (loads.max(axis=2) + 1e-5)
    assert found["nvtxmoe_eplb_balancedness"][()] == pytest.approx(utilization.mean())
    (tmp_path / "rank1-made-up.live").unlink()  # on another machine
    assert not any("eplb" in name for name in scraped(view_of(tmp_path)))


def test_stages_of_a_pipeline_have_other_layers_and_the_same_tokens(tmp_path: Path) -> None:
    model = Model(layers=2, pp_size=2)
    counts = [counts_of(model, 6), counts_of(model, 6)]
    for stage in range(2):
        rank = Rank(tmp_path, model, stage)
        for step, one in enumerate(counts[stage]):
            rank.step(step, one)
        rank.publish()
    found = scraped(view_of(tmp_path))
    assert found["nvtxmoe_tokens_total"] == {("0", "prefill"): 0, ("0", "decode"): 24}
    assert found["nvtxmoe_layer_assignments_total"] == {
        (str(1 + layer),): counts[layer // 2][:, layer % 2].sum() for layer in range(4)
    }
    assert len(found["nvtxmoe_hottest_expert_share"]) == 4 * 3


def test_with_eplb_ranks_are_compared_by_their_physical_experts(tmp_path: Path) -> None:
    """Eight experts on ten slots; experts are still shown by their logical number."""
    model = Model(tp_size=2, expert_parallel=True, physical=10)
    logical, physical = counts_of(model, 7), CHANCE.poisson(2.0, (7, 3, 10))
    for number in range(2):
        rank = Rank(tmp_path, model, number)
        for step in range(7):
            rank.begin(step)
            rank.counts(step, logical[step])
            rank.counts(step, physical[step], event=schema.PHYSICAL)
        rank.publish()
    found = scraped(view_of(tmp_path))
    assert sum(found["nvtxmoe_layer_assignments_total"].values()) == logical.sum()
    assert found["nvtxmoe_ep_rank_assignments_total"] == {
        ("0",): physical[:, :, :5].sum(), ("1",): physical[:, :, 5:].sum()
    }  # fmt: skip
    assert found["nvtxmoe_steps_total"] == {("0",): 7, ("1",): 7}


def test_experts_that_are_placed_in_another_way_have_no_balance_of_ranks(tmp_path: Path) -> None:
    """Round-robin: which rank holds what is not known here, so that nothing is said of ranks."""
    model = Model(tp_size=2, expert_parallel=True)
    counts = counts_of(model, 3)
    for number in range(2):
        rank = Rank(tmp_path, model, number)
        identity = model.identity(number)
        layers = tuple(replace(one, local_experts=tuple(range(number, 8, 2))) for one in identity.layers)
        rank.tell(identity=replace(identity, layers=layers))
        for step, one in enumerate(counts):
            rank.step(step, one)
        rank.publish()
    found = scraped(view_of(tmp_path))
    assert sum(found["nvtxmoe_layer_assignments_total"].values()) == counts.sum()
    assert not [name for name in found if "ep_rank" in name or "eplb" in name]


PUBLISHES = """
import sys
from pathlib import Path
import numpy as np
from tests.support.kept_warnings import kept_warnings
from tests.support.live_ranks import Model, Rank
rank = Rank(Path(sys.argv[1]), Model(dp_size=2), int(sys.argv[2]))
for number in range(5):
    rank.step(number, np.full((3, 8), 1 + rank.rank))
rank.publish()
print("published", flush=True)
sys.stdin.read()
"""


def test_a_worker_that_dies_takes_its_series_along(tmp_path: Path) -> None:
    """Two real processes. What is labelled with a rank goes with it; sums over ranks never fall."""
    from tests.support.paths import ROOT  # noqa: PLC0415

    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHES, str(tmp_path), str(rank)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "published\n"
        before = scraped(view_of(tmp_path))
        assert before["nvtxmoe_assignments_total"] == {("0",): 120, ("1",): 240}
        assert before["nvtxmoe_layer_assignments_total"] == {(layer,): 120 for layer in "123"}
        workers[1].kill()
        workers[1].wait()
        after = scraped(view_of(tmp_path))
        assert after["nvtxmoe_ranks"] == {(): 1}
        assert {key[0] for name, samples in after.items() for key in samples if "rank" in _labels(name)} == {"0"}
        assert after["nvtxmoe_layer_assignments_total"] == before["nvtxmoe_layer_assignments_total"]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _labels(name: str) -> tuple[str, ...]:
    return next(one.labels for one in SERIES if one.full_name == name)


def test_steps_without_counts_are_dropped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the recorder, which began them; or here, where more waits than may."""
    model = Model()
    rank = Rank(tmp_path, model)
    for number in range(6):
        rank.begin(number)
        if number not in (1, 2):
            rank.counts(number, np.ones((3, 8), np.int64))
    rank.publish()
    monkeypatch.setattr(metrics, "MOST_BYTES", 0)
    rank.step(6, np.ones((3, 8), np.int64))
    rank.step(7, np.ones((3, 8), np.int64))
    monkeypatch.undo()
    rank.publish()
    rank.step(8, np.ones((3, 8), np.int64))
    rank.publish()
    found = scraped(view_of(tmp_path))
    assert found["nvtxmoe_dropped_steps_total"] == {("0", "metrics"): 1, ("0", "recorder"): 2}
    assert found["nvtxmoe_steps_total"] == {("0",): 6}


def test_layers_of_other_widths_and_steps_in_parts(tmp_path: Path) -> None:
    """Counts of a step come as one array a shape; a layer that moe.meta does not list is left out."""
    rank = Rank(tmp_path, Model(layers=2))
    rank.begin(0)
    rank.counts(0, np.full((1, 8), 2), [1])
    rank.counts(0, np.full((1, 4), 3), [2])
    rank.counts(0, np.full((1, 8), 9), [77])
    rank.publish()
    found = scraped(view_of(tmp_path))
    assert found["nvtxmoe_layer_assignments_total"] == {("1",): 16, ("2",): 12}
    assert found["nvtxmoe_steps_total"] == {("0",): 1}


def test_health_is_what_meta_says(tmp_path: Path) -> None:
    rank = Rank(tmp_path, Model())
    rank.tell({"failures": {"send": "x"}, "hidden_layers": {"1": "y", "2": "y"}, "lost": {}})
    rank.publish()
    found = scraped(view_of(tmp_path))
    assert found["nvtxmoe_hidden_layers"] == {("0",): 2}
    assert found["nvtxmoe_failed_hooks"] == {("0",): 1}


def test_a_half_written_file_is_no_snapshot(tmp_path: Path) -> None:
    rank = Rank(tmp_path, Model())
    rank.step(0, np.ones((3, 8), np.int64))
    rank.publish()
    whole = rank.sink.path.read_bytes()
    for length in (0, 5, 20, len(whole) // 2, len(whole) - 1):
        rank.sink.path.write_bytes(whole[:length])
        assert snapshot.read(rank.sink.path) is None, length
    rank.sink.path.write_bytes(whole)
    assert snapshot.read(rank.sink.path) is not None


def test_what_cannot_be_published_is_one_warning(tmp_path: Path) -> None:
    """The folder is gone: the sink stops, and keeps nothing any more."""
    rank = Rank(tmp_path / "gone", Model())
    with kept_warnings() as warnings:
        for number in range(3):
            rank.step(number, np.ones((3, 8), np.int64))
            rank.sink.work(publish=True)
    assert rank.sink.failure is not None
    assert [line.partition(":")[0] for line in warnings] == ["live metrics stop"]
    rank.sink.payload(schema.TOPK, np.zeros(1))
    rank.sink.close({})
    assert not rank.sink._rows
    assert not rank.sink._pending_steps


def test_the_thread_publishes_by_itself_and_ends_with_the_sink(tmp_path: Path) -> None:
    """The sink as a worker has it: nobody calls ``work``."""
    rank = Rank(tmp_path, Model(), options=Options())
    rank.sink = metrics.MetricsSink(tmp_path, 0, Options())
    (thread,) = (one for one in threading.enumerate() if one.name == "nvtxmoe-metrics")
    rank.tell()
    for number in range(3):
        rank.step(number, np.ones((3, 8), np.int64))
    until = time.monotonic() + 60
    while scraped(view_of(tmp_path)).get("nvtxmoe_steps_total") != {("0",): 3}:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert ("0", "metrics") in scraped(view_of(tmp_path))["nvtxmoe_thread_cpu_seconds_total"]
    rank.step(3, np.ones((3, 8), np.int64))
    rank.sink.close({})
    assert scraped(view_of(tmp_path))["nvtxmoe_steps_total"] == {("0",): 4}
    thread.join(60)
    assert not thread.is_alive()
