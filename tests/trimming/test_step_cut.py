"""`nvtxmoe trim --steps`: what is kept gives every figure that those steps have in the whole capture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe_analysis.analyze import analyze
from nvtxmoe_analysis.events.decode import Events, read_events
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.outputs.spec import FOLDER
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.open import open_export
from nvtxmoe_analysis.trimming.trim import trim
from tests.support.cli import refused, run
from tests.support.export_builder import Export, Process, simple_run
from tests.support.written_results import PARQUET_ONLY, TABLES

#: Captures: what gives their path, the steps to keep, the form of the output.
CAPTURES: dict[str, tuple[Callable[[Any], Path], tuple[int | None, int | None], str]] = {
    "one GPU, SQLite": (lambda golden: golden("golden_1gpu"), (10, 20), "cut.sqlite"),
    "one GPU, Parquet": (lambda golden: golden("golden_1gpu_parquet"), (None, 5), "cut"),
    "two GPUs, to Parquet": (lambda golden: golden("golden_2gpu"), (40, None), "cut"),
    "two H200s of vLLM": (lambda golden: golden("golden_h200_ranks"), (3, 8), "cut.sqlite"),
    "idle batches": (lambda golden: golden("golden_vllm_ranks")["dp2"], (5, 12), "cut.sqlite"),
    "EPLB": (lambda golden: golden("golden_vllm_ranks")["eplb"], (4, 9), "cut"),
}


def cut(source: Path, out: Path, first: int | None = None, last: int | None = None) -> Path:
    return trim(open_export(source), out, first_step=first, last_step=last).out


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    """All tables of results; times without the moment from which they count."""
    stems = {*TABLES, *PARQUET_ONLY}
    found = {stem: pl.read_parquet(folder / FOLDER / f"{stem}.parquet") for stem in stems}
    begin = pl.col("timestamp_sec") - pl.col("timestamp_sec").min()
    found["moe_load_imbalance"] = found["moe_load_imbalance"].with_columns(begin.round(9))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CAPTURES)
def test_tables_of_a_cut_are_those_of_the_whole_with_that_selection(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path, (first, last), form = CAPTURES[name]
    source = path(request.getfixturevalue)
    piece = cut(source, tmp_path / form, first, last)
    whole = analyze(
        [source], tmp_path / "whole", formats=("parquet",), selection=Selection(first_step=first, last_step=last)
    )
    alone = analyze([piece], tmp_path / "alone", formats=("parquet",))
    expected, found = tables(tmp_path / "whole"), tables(tmp_path / "alone")
    for stem, table in expected.items():
        assert found[stem].equals(table), stem
    assert len(expected["moe_layer_timings"]) and len(expected["moe_layer_timings"]) < len(
        read_events(open_export(source)).counts
    )
    for document in ("moe_summary", "moe_layer_model", "moe_roofline"):
        texts = [(tmp_path / which / FOLDER / f"{document}.json").read_text() for which in ("whole", "alone")]
        assert texts[0] == texts[1], document
    assert whole.complete and alone.complete, alone.validation["reasons"]
    consecutive = next(check for check in alone.validation["checks"] if check["name"] == "steps_consecutive")
    assert consecutive["figures"]["begins_at"] == first
    assert piece.is_dir() or piece.stat().st_size < source.stat().st_size / 10


@pytest.mark.parametrize(("first", "last"), [(2, 3), (None, 1), (4, None), (3, 3)])
@pytest.mark.parametrize("encoding", ["binary", "words"])
@pytest.mark.parametrize("form", ["cut.sqlite", "cut"])
def test_only_rows_of_those_steps_are_left(
    first: int | None, last: int | None, encoding: str, form: str, tmp_path: Path
) -> None:
    export = Export()
    for rank in range(2):
        worker = simple_run(
            export, steps=0, pid=100 + rank, rank=rank, world_size=2, tp_size=2, encoding=encoding,
            meta={"sample_every": 1},
        )  # fmt: skip
        worker.kernel(name="warm-up")
        for step in range(6):
            with worker.step(step), worker.layer(0):
                worker.kernel(name="fused_moe")
            worker.kernel(name=f"after {step}")
            for layer in range(2):
                worker.counts(step, layer, [3, 3, 0, 0])
                worker.topk(step, layer, [[0, 1]] * 3)
    source = export.save(tmp_path / "built.sqlite")
    events = read_events(open_export(cut(source, tmp_path / form, first, last)))
    wanted = list(range(0 if first is None else first, 6 if last is None else last + 1))
    assert sorted(set(events.steps["step"])) == wanted and len(events.steps) == 2 * len(wanted)
    assert sorted(events.counts.cells["step"]) == sorted(wanted * 4)
    assert sorted(events.topk.runs["step"]) == sorted(wanted * 4)
    assert not any(events.problems.values()) and len(events.metas) == 2
    kept = open_export(tmp_path / form)
    assert names(kept) == sorted(["fused_moe", *(f"after {step}" for step in wanted)])
    assert kept.rows(nsys_tables.RUNTIME) == kept.rows(nsys_tables.KERNEL) == 4 * len(wanted)


def names(export: Any) -> list[str]:
    """Names of the kernels, without repeats."""
    return sorted(set(export.strings(export.read(nsys_tables.KERNEL)["demangledName"].to_list()).values()))


def test_ranges_of_graph_captures_stay_for_the_nodes_that_are_replayed(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export, layers=2)
    worker.send_meta()
    for graph in range(2):
        for layer in range(2):
            with worker.layer(layer), worker.phase("experts", layer):
                worker.create_node(10 * graph + layer + 1)
    for graph in range(2):
        for layer in range(2):
            worker.clone_node(100 + 10 * graph + layer + 1, 10 * graph + layer + 1)
    for step in range(4):
        with worker.step(step):
            launch = worker.call("cudaGraphLaunch_v10000")
            for layer in range(2):
                worker.kernel(correlation=launch, node=100 + 10 * (step % 2) + layer + 1)
        worker.counts_of_layers(step, [[3, 3, 0, 0]] * 2)
    source = export.save(tmp_path / "built.sqlite")
    for first, last, graphs in ((1, 1, 1), (1, 2, 2)):
        piece = cut(source, tmp_path / f"{graphs}.sqlite", first, last)
        events = read_events(open_export(piece))
        assert len(events.ranges.filter(pl.col("name").str.starts_with(schema.LAYER_PREFIX))) == 2 * graphs
        assert open_export(piece).rows(nsys_tables.GRAPH_NODES) == 3 * 2 * graphs
        done = analyze([piece], tmp_path / f"results{graphs}")
        assert done.complete, done.validation["reasons"]
        assert done.results.layers["kernel_count"].to_list() == [1] * 2 * (last - first + 1)


def with_idle_batches(path: Path) -> Path:
    """Two data-parallel ranks; the second is idle in steps 2 and 3."""
    export = Export()
    for rank in range(2):
        worker = Process(
            export, pid=100 + rank, rank=rank, world_size=2, tp_size=1, meta={"dp_rank": rank, "dp_size": 2}
        )
        worker.send_meta()
        for step in range(6):
            if rank and step in (2, 3):
                with worker.range(schema.IDLE):
                    worker.kernel(name=f"idle {step}")
                continue
            with worker.step(step):
                for layer in range(2):
                    with worker.layer(layer):
                        worker.kernel(name="fused_moe")
            worker.kernel(name=f"after {step}")
            for layer in range(2):
                worker.counts(step, layer, [3, 3, 0, 0])
    return export.save(path)


@pytest.mark.parametrize(
    ("first", "last", "idle"), [(None, 1, []), (None, 2, [2]), (2, 4, [2, 3]), (3, 3, [3]), (4, None, [])]
)
def test_idle_batches_are_steps_too(first: int | None, last: int | None, idle: list[int], tmp_path: Path) -> None:
    source = with_idle_batches(tmp_path / "built.sqlite")
    piece = cut(source, tmp_path / "cut.sqlite", first, last)
    found = names(open_export(piece))
    assert [name for name in found if name.startswith("idle")] == [f"idle {step}" for step in idle]
    done = analyze([piece], tmp_path / "results")
    assert done.complete, done.validation["reasons"]
    assert len(done.results.reports[0].events.ranges.filter(name=schema.IDLE)) == len(idle)


def test_pairs_stay_where_all_their_steps_do(tmp_path: Path) -> None:
    export = Export()
    worker = simple_run(export, steps=6)
    for first in (0, 2, 4):
        pairs = np.array([(first, first + 1, 0, 0, 6, [1] * 6)], dtype=schema.pairs_dtype(4))[0]
        worker.mark("pairs", pairs)
    source = export.save(tmp_path / "built.sqlite")

    def spans(first: int | None, last: int | None) -> list[int]:
        events: Events = read_events(open_export(cut(source, tmp_path / "cut.sqlite", first, last)))
        return events.pairs.spans["first_step"].to_list()

    assert [spans(1, 5), spans(2, 3), spans(None, 4), spans(3, 4)] == [[2, 4], [2], [0, 2], []]


def test_an_operation_without_its_launch_stays_while_kept_steps_run(tmp_path: Path) -> None:
    """The verdict of the piece is that of its own steps."""
    export = Export()
    worker = simple_run(export, steps=2)
    with worker.step(2), worker.layer(0):
        worker.kernel()
        worker.kernel(name="lost", correlation=9999)
    for layer in range(2):
        worker.counts(2, layer, [3, 3, 0, 0])
        worker.topk(2, layer, [[0, 1]] * 3)
    source = export.save(tmp_path / "built.sqlite")
    assert "lost" in names(open_export(cut(source, tmp_path / "with.sqlite", 2, 2)))
    without = cut(source, tmp_path / "without.sqlite", None, 0)
    assert "lost" not in names(open_export(without))
    assert analyze([without], tmp_path / "results").complete
    assert not analyze([tmp_path / "with.sqlite"], tmp_path / "results").complete


def test_calls_are_found_whatever_their_names(tmp_path: Path) -> None:
    export = Export()
    worker = simple_run(export, steps=3)
    for kept in (0, 1):
        with worker.step(3 + kept), worker.layer(0):
            worker.kernel(name=f"odd {kept}", correlation=worker.call("somethingThatLaunches"))
    assert names(open_export(cut(export.save(tmp_path / "built.sqlite"), tmp_path / "cut.sqlite", 4, 4))) == ["odd 1"]


def test_all_steps_twice_is_once(golden_1gpu: Path, tmp_path: Path) -> None:
    once = cut(golden_1gpu, tmp_path / "once.sqlite", 3, 9)
    again = cut(once, tmp_path / "again.sqlite", 0, 99)
    assert once.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        ("9:", "none of its 3 steps (0 to 2) is in 9:. Name other steps with --steps FIRST:LAST"),
        ("5:7", "none of its 3 steps (0 to 2) is in 5:7"),
        ("2:1", "'2:1' ends before it begins"),
        ("a:b", "'a:b' is no range; write A:B, A: or :B"),
        ("-1:2", "'-1:2' is no range"),
        ("1", "'1' is no range"),
        (":", "':' is no range"),
    ],
)
def test_steps_that_are_refused(steps: str, what: str, tmp_path: Path) -> None:
    export = Export()
    simple_run(export)
    source = export.save(tmp_path / "built.sqlite")
    refused(run("trim", source, tmp_path / "out.sqlite", "--steps", steps), what)
    assert not (tmp_path / "out.sqlite").exists()


def test_an_export_without_steps_is_refused(tmp_path: Path) -> None:
    export = Export()
    simple_run(export, steps=0)
    with pytest.raises(NvtxmoeError, match="the export has no step"):
        cut(export.save(tmp_path / "built.sqlite"), tmp_path / "out.sqlite", 1)


def test_the_command_keeps_one_step(tmp_path: Path) -> None:
    export = Export()
    simple_run(export)
    source = export.save(tmp_path / "built.sqlite")
    ran = run("trim", source, tmp_path / "out.sqlite", "--steps", "1:1", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["tables"]["CUPTI_ACTIVITY_KIND_KERNEL"] == {"before": 9, "after": 3}
