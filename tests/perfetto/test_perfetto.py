"""The trace against the tables that `analyze` writes, read back with Perfetto's own classes."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nvtxmoe_analysis.core.text import short_name
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.perfetto.export import Exported, export_trace
from tests.metrics.test_straggler_golden import taken_apart
from tests.support.metrics_of_inputs import table_of
from tests.support.perfetto_reader import Slice, Trace, read
from tests.support.written_results import Written, written

CAPTURES = ("1gpu", "1gpu_parquet", "2gpu", "program", "vllm", "tp2", "eplb", "dp2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("perfetto")


def capture(name: str, request: pytest.FixtureRequest) -> Path:
    """A golden capture."""
    if name in {"tp2", "eplb", "dp2"}:
        ranks: dict[str, Path] = request.getfixturevalue("golden_vllm_ranks")
        return ranks[name]
    found: Path = request.getfixturevalue(f"golden_{name}")
    return found


def both(folder: Path, *inputs: Path, selection: Selection | None = None, **options: Any) -> tuple[Trace, Written]:
    """The trace of some inputs, and their tables."""
    tables = written(folder, *inputs, formats=("parquet",), selection=selection)
    out = folder / "trace.pftrace.gz"
    export_trace(inputs, out, selection=selection, **options)
    return read(out), tables


def operations(trace: Trace) -> list[Slice]:
    """Slices of all streams."""
    return trace.on("*", "GPU * stream *") + [s for s in trace.slices if " stream " in trace.path(s.track)[-1]]


def as_kernels(trace: Trace) -> dict[tuple[Any, ...], tuple[int, int, int, int]]:
    """Count, sum, least and most of the durations of operations, as moe_kernel_timings groups them."""
    found: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for one in trace.slices:
        process, track = trace.path(one.track)[0], trace.path(one.track)[-1]
        if " stream " in track:
            args = one.args
            key = (process, args.get("layer"), args["phase"], args["kernel_name"], args["launched_by"])
            found[key].append(one.end - one.start)
            assert one.name == short_name(args["kernel_name"])
            assert (one.category == "moe") == ("layer" in args)
    return {key: (len(ns), sum(ns), min(ns), max(ns)) for key, ns in found.items()}


def in_tables(kernels: pl.DataFrame, *, everything: bool) -> dict[tuple[Any, ...], tuple[int, int, int, int]]:
    """The same of the table."""
    rows = kernels if everything else kernels.filter(pl.col("layer_idx").is_not_null())
    return {
        (f"rank {row['rank']}", row["layer_idx"], row["phase"], row["kernel_name"], row["launched_by"]): (
            row["count"],
            row["total_ns"],
            row["min_ns"],
            row["max_ns"],
        )
        for row in rows.iter_rows(named=True)
    }


@pytest.mark.golden
@pytest.mark.parametrize("name", CAPTURES)
def test_operations_are_those_of_the_table(name: str, request: pytest.FixtureRequest, folder: Path) -> None:
    source = capture(name, request)
    tables = table_of("moe_kernel_timings", source)
    for everything in (False, True):
        out = folder / f"{name}.pftrace"
        done = export_trace([source], out, everything=everything)
        trace = read(out)
        expected = in_tables(tables, everything=everything)
        assert as_kernels(trace) == expected
        assert done.totals.slices["operations"] == sum(row[0] for row in expected.values()) > 0


@pytest.fixture(scope="module")
def two(golden_2gpu: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, Written, Exported]:
    folder = tmp_path_factory.mktemp("two")
    out = folder / "trace.pftrace"
    done = export_trace([golden_2gpu], out, experts=6)
    return read(out), written(folder, golden_2gpu, formats=("parquet",)), done


def test_the_known_figures(two: tuple[Trace, Written, Exported]) -> None:
    """Of the capture's own table in tests/golden/README.md: 2 ranks, 47 steps, 4 layers."""
    trace, _, done = two
    assert {trace.path(uuid) for uuid, t in trace.tracks.items() if t.HasField("process")} == {("rank 0",), ("rank 1",)}
    for rank in ("rank 0", "rank 1"):
        steps = [one for one in trace.on(rank, "host") if one.depth == 0]
        assert [one.args["step"] for one in steps] == list(range(47))
        assert len(trace.on(rank, "GPU layers")) == 47 * 4
    assert done.totals.slices == {"host": 318, "GPU layers": 376, "GPU phases": 1128, "collectives": 2350,
                                  "operations": 4536}  # fmt: skip


def test_processes(two: tuple[Trace, Written, Exported], golden_2gpu: Path) -> None:
    trace, _, done = two
    processes = [t.process for t in trace.tracks.values() if t.HasField("process")]
    pids = [pid & 0xFFFFFF for report in done.results.reports for pid in report.metas]
    assert sorted(p.pid for p in processes) == sorted(pids)
    assert all(golden_2gpu.name in p.process_labels for p in processes)
    assert all("NVIDIA H100 80GB HBM3" in p.process_labels for p in processes)


def test_layers(two: tuple[Trace, Written, Exported]) -> None:
    trace, tables, _ = two
    rows = tables.frame("moe_layer_timings").filter(pl.col("gpu_start_ns").is_not_null())
    names = ("step", "layer_idx", "launched_by", "kernel_count", "kernel_time_ns", "busy_ns", "num_tokens")
    expected = Counter(
        (f"rank {row['rank']}", f"layer {row['layer_idx']}", row["gpu_start_ns"], row["gpu_end_ns"],
         *(row[name] for name in names))
        for row in rows.iter_rows(named=True)
    )  # fmt: skip
    found = Counter(
        (trace.path(one.track)[0], one.name, one.start, one.end,
         *(one.args["layer" if name == "layer_idx" else name] for name in names))
        for one in trace.on("*", "GPU layers")
    )  # fmt: skip
    assert found == expected
    features = {
        (row["rank"], row["step"], row["layer_idx"]): (row["active_experts"], row["max_count"], row["max_mean_ratio"])
        for row in tables.frame("moe_layer_correlation").iter_rows(named=True)
    }
    for one in trace.on("*", "GPU layers"):
        key = (int(trace.path(one.track)[0].split()[1]), one.args["step"], one.args["layer"])
        assert (one.args["active_experts"], one.args["max_count"], one.args["max_mean_ratio"]) == features[key]


def test_phases(two: tuple[Trace, Written, Exported]) -> None:
    """The extent of each phase is that of its operations."""
    trace, _, _ = two
    extents: dict[tuple[Any, ...], list[Slice]] = defaultdict(list)
    for one in trace.slices:
        path = trace.path(one.track)
        if " stream " in path[-1]:
            extents[path[0], one.args["step"], one.args["layer"], one.args["phase"]].append(one)
    expected = {
        (*key, min(s.start for s in inside), max(s.end for s in inside), len(inside),
         sum(s.end - s.start for s in inside))
        for key, inside in extents.items()
    }  # fmt: skip
    slices = trace.on("*", "GPU phases")
    found = {
        (trace.path(s.track)[0], s.args["step"], s.args["layer"], s.name, s.start, s.end, s.args["operations"],
         s.args["time_ns"])
        for s in slices
    }  # fmt: skip
    assert found == expected
    assert len(slices) == len(expected)


def test_collectives(two: tuple[Trace, Written, Exported]) -> None:
    trace, tables, _ = two
    rows = tables.frame("moe_collectives")
    names = ("step", "kernel_name", "inferred", "ordinal", "wait_ns", "transfer_ns", "last_rank", "group_kind", "group",
             "ranks", "reason", "phase")  # fmt: skip
    expected = Counter(
        (f"rank {row['rank']}", row["layer_idx"], row["start_ns"], row["duration_ns"], *(row[name] for name in names))
        for row in rows.iter_rows(named=True)
    )
    slices = trace.on("*", "collectives")
    outer = [one for one in slices if one.depth == 0]
    found = Counter(
        (trace.path(one.track)[0], one.args.get("layer"), one.start, one.end - one.start,
         *(one.args.get(name) for name in names))
        for one in outer
    )  # fmt: skip
    assert found == expected
    inner: dict[str, int] = defaultdict(int)
    for one in slices:
        if one.depth:
            inner[one.name] += one.end - one.start
    assert inner == {"wait": rows["wait_ns"].sum(), "transfer": rows["transfer_ns"].sum()}


def test_counters_are_the_rows_of_load_imbalance(two: tuple[Trace, Written, Exported]) -> None:
    trace, tables, done = two
    rows = tables.frame("moe_load_imbalance")
    origin = done.results.origin_ns
    for column, title in (("max_mean_ratio", "max/mean"), ("num_tokens", "tokens")):
        for layer in range(4):
            (track,) = trace.named("rank 0", "expert load", f"layer {layer} {title}")
            found = [((time - origin) / 1e9, value) for time, value in trace.counters[track]]
            own = rows.filter(pl.col("layer_idx") == layer).sort("step")
            assert found == own.select("timestamp_sec", pl.col(column).cast(pl.Float64)).rows()
    assert not trace.named("rank 1", "expert load")


def test_experts_are_the_hottest_and_their_counts_those_of_the_steps(two: tuple[Trace, Written, Exported]) -> None:
    trace, tables, _ = two
    totals = tables.frame("moe_expert_activations")
    steps = tables.frame("moe_step_activations").sort("step")
    for layer in range(4):
        hottest = totals.filter(pl.col("layer_idx") == layer).sort(
            "activation_count", "expert_id", descending=[True, False]
        )
        experts = hottest["expert_id"].head(6).to_list()
        tracks = trace.named("rank 0", "expert load", f"layer {layer} expert *")
        ordered = sorted(tracks, key=lambda uuid: trace.tracks[uuid].sibling_order_rank)
        assert [trace.tracks[uuid].name for uuid in ordered] == [f"layer {layer} expert {e}" for e in experts]
        assert {trace.tracks[uuid].counter.unit_name for uuid in ordered} == {"assignments"}
        counts = steps.filter(pl.col("layer_idx") == layer)["counts"].to_list()
        for expert, uuid in zip(experts, ordered, strict=True):
            assert [value for _, value in trace.counters[uuid]] == [row[expert] for row in counts]


def test_ranges_of_the_host(two: tuple[Trace, Written, Exported]) -> None:
    """Steps with what was scheduled; in eager steps layers, and in these their phases."""
    trace, tables, done = two
    timings = tables.frame("moe_layer_timings").filter(pl.col("rank") == 0)
    eager = set(timings.filter(pl.col("launched_by") == "eager")["step"].to_list())
    slices = trace.on("rank 0", "host")
    for one in slices:
        if one.depth == 0:
            row = timings.filter(pl.col("step") == one.args["step"]).row(0, named=True)
            tokens = ("num_tokens", "prefill_tokens", "decode_tokens")
            assert [one.args[name] for name in tokens] == [row[name] for name in tokens]
    layers = [one for one in slices if one.depth == 1]
    assert {(one.args["step"], one.name) for one in layers} == {(s, f"layer {n}") for s in eager for n in range(4)}
    ranges = done.results.reports[0].events.ranges
    begins = set(ranges.filter(pl.col("name") == "moe.experts")["start"].to_list())
    experts = [one for one in slices if one.name == "experts"]
    assert len(experts) == 4 * len(eager)
    assert all(one.start in begins and one.depth == 2 for one in experts)


def test_the_clock_tells_unix_time(two: tuple[Trace, Written, Exported]) -> None:
    """One report: the trace has its times, and a snapshot says what unix time its 0 was."""
    trace, _, done = two
    assert done.axis.offsets_ns == (0,)
    assert trace.clocks == {6: 0, 1: done.results.reports[0].epoch_ns}


@pytest.mark.parametrize(
    "selection",
    [
        Selection(first_step=10, last_step=20),
        Selection(layers=frozenset({1, 3})),
        Selection(ranks=frozenset({1})),
        Selection(only="decode", skip_first=10, layers=frozenset({0}), ranks=frozenset({0})),
    ],
)
def test_filters_are_those_of_the_tables(selection: Selection, golden_2gpu: Path, tmp_path: Path) -> None:
    trace, tables = both(tmp_path, golden_2gpu, selection=selection, everything=True)
    assert as_kernels(trace) == in_tables(tables.frame("moe_kernel_timings"), everything=True)
    timings = tables.frame("moe_layer_timings")
    assert len(trace.on("*", "GPU layers")) == len(timings)
    steps = set(timings["step"].to_list())
    assert {one.args["step"] for one in trace.on("*", "host")} == steps
    assert {one.args["step"] for one in trace.on("*", "collectives")} <= steps
    outer = [one for one in trace.on("*", "collectives") if one.depth == 0]
    assert len(outer) == len(tables.frame("moe_collectives"))
    values = sum(len(values) for uuid, values in trace.counters.items() if trace.tracks[uuid].name.endswith("tokens"))
    assert values == len(tables.frame("moe_load_imbalance"))
    processes = {trace.path(uuid)[0] for uuid in trace.tracks}
    assert processes == {f"rank {rank}" for rank in timings["rank"].unique()}
    layers = set(timings["layer_idx"].to_list())
    assert {one.args["layer"] for one in trace.slices if one.name.startswith("layer ")} <= layers


def test_data_parallel_ranks_have_counters_of_their_own(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    trace, tables = both(tmp_path, capture("dp2", request))
    rows = tables.frame("moe_load_imbalance").filter(pl.col("timestamp_sec").is_not_null())
    for rank, layer in rows.select("rank", "layer_idx").unique().rows():
        own = rows.filter(pl.col("rank") == rank, pl.col("layer_idx") == layer).sort("timestamp_sec")
        (track,) = trace.named(f"rank {rank}", "expert load", f"layer {layer} tokens")
        assert [value for _, value in trace.counters[track]] == own["num_tokens"].to_list()
    assert rows["rank"].n_unique() == 2


def test_a_capture_in_two_reports(two: tuple[Trace, Written, Exported], golden_2gpu: Path, tmp_path: Path) -> None:
    """Taken apart, with clocks that are a second apart and say so: nothing moves but the axis as a whole."""
    reports = taken_apart(golden_2gpu, tmp_path, 10**9, 0.0, 10**9)
    out = tmp_path / "out.pftrace"
    done = export_trace(reports, out, experts=6)
    assert (done.axis.clock, done.axis.offsets_ns) == ("recorded", (0, 10**9))

    def shown(trace: Trace) -> Counter[tuple[Any, ...]]:
        return Counter(
            (*trace.path(one.track), one.name, one.start, one.end, *sorted(map(str, one.args.items())))
            for one in trace.slices
        )

    assert shown(read(out)) == shown(two[0])
