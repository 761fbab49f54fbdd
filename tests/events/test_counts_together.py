"""Counts of all layers in one mark: the same tables as one mark per layer, in every reader; damage is named."""

from __future__ import annotations

import re
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe_analysis.events.decode import read_events
from nvtxmoe_analysis.events.tables import CountTable
from nvtxmoe_analysis.inspection.inspect import inspect
from nvtxmoe_analysis.perfetto.export import export_trace
from nvtxmoe_analysis.readers.open import open_export
from nvtxmoe_analysis.trimming.trim import trim
from scripts.bench.brute_capture import read_capture
from scripts.bench.capture_rows import activity
from tests.support.counts_together import with_counts_together
from tests.support.export_builder import Export, Process, simple_run
from tests.support.perfetto_reader import read
from tests.support.written_results import written

#: Layers of a step that are alike: number of experts, and the counts of each layer.
Group = tuple[int, list[list[int]]]


@st.composite
def groups(draw: st.DrawFn) -> Group:
    """Some layers of one number of experts."""
    experts = draw(st.integers(1, 6))
    counts = st.lists(st.integers(0, (1 << 32) - 1), min_size=experts, max_size=experts)
    return experts, draw(st.lists(counts, min_size=1, max_size=4))


def table(event: str, counts: CountTable) -> list[tuple[Any, ...]]:
    """Cells and their counts, without the place in the file."""
    rows = counts.cells.drop("row", "start").rows()
    return sorted((event, *row, *line) for row, line in zip(rows, counts.matrix.tolist(), strict=True))


def tables(path: Path) -> list[tuple[Any, ...]]:
    events = read_events(open_export(path))
    assert events.problems["blobs_missing"] == 0
    return table("counts", events.counts) + table("physical", events.physical)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.lists(groups(), min_size=1, max_size=3), min_size=1, max_size=3),
    event=st.sampled_from(["counts", "physical"]),
    mixed=st.booleans(),
)
def test_both_forms_give_equal_tables(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[Group]], event: str, mixed: bool
) -> None:
    folder = tmp_path_factory.mktemp("forms")
    for form in ("apart", "together"):
        export = Export()
        worker = Process(export, layers=12, experts=6)
        worker.send_meta()
        for step, alike in enumerate(steps):
            with worker.step(step):
                pass
            layer = 0
            for _, counts in alike:
                if form == "together" and not (mixed and step % 2):
                    worker.counts_of_layers(step, counts, event=event, first=layer)
                else:
                    for at, one in enumerate(counts):
                        worker.counts(step, layer + at, one, event=event)
                layer += len(counts)
        export.save(folder / f"{form}.sqlite")
    assert tables(folder / "together.sqlite") == tables(folder / "apart.sqlite")


def test_the_rows_of_a_mark_have_its_row_and_time(tmp_path: Path) -> None:
    export = Export()
    simple_run(export, steps=2, layers=3, counts_together=True)
    cells = read_events(open_export(export.save(tmp_path / "x.sqlite"))).counts.cells
    marks = [row for row in export.rows["NVTX_EVENTS"] if row["textId"] == export.string("moe.counts")]
    assert len(marks) == 2
    assert cells["layer"].to_list() == [0, 1, 2] * 2
    assert cells["start"].to_list() == [mark["start"] for mark in marks for _ in range(3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: struct.pack("<Q", 3) + body[8:], r"says 3 elements where 2 are|fit no definition"),
        (lambda body: struct.pack("<Q", 1) + body[8:], r"says 1 elements where 2 are|fit no definition"),
        (lambda body: body[:-4], "fit no definition of payload schema"),
        (lambda body: body + bytes(8), "fit no definition of payload schema"),
        (lambda body: body[:4], "4 bytes fit no definition of payload schema"),
    ],
)
def test_an_array_of_a_wrong_length_is_named(tmp_path: Path, change: Any, message: str) -> None:
    export = Export()
    simple_run(export, steps=1, counts_together=True)
    (mark,) = (row for row in export.rows["NVTX_EVENTS"] if row["textId"] == export.string("moe.counts"))
    body = change(mark["binaryData"][32:])
    mark["binaryData"] = mark["binaryData"][:16] + struct.pack("<2Q", len(body), 32) + body
    events = read_events(open_export(export.save(tmp_path / "wrong.sqlite")))
    (damaged,) = events.damaged
    assert damaged.startswith(f"moe.counts at {mark['start']} ns: ")
    assert re.search(message, damaged)
    assert (len(events.counts), len(events.steps)) == (0, 1)


def test_one_array_of_several_says_another_length(tmp_path: Path) -> None:
    export = Export()
    simple_run(export, steps=3, counts_together=True)
    mark = [row for row in export.rows["NVTX_EVENTS"] if row["textId"] == export.string("moe.counts")][1]
    mark["binaryData"] = mark["binaryData"][:32] + struct.pack("<Q", 5) + mark["binaryData"][40:]
    events = read_events(open_export(export.save(tmp_path / "wrong.sqlite")))
    assert events.damaged == [f"moe.counts at {mark['start']} ns: says 5 elements where 2 are"]
    assert sorted(set(events.counts.cells["step"].to_list())) == [0, 2]


def test_an_array_of_numbers_is_no_counts(tmp_path: Path) -> None:
    export = Export()
    worker = simple_run(export, steps=1)
    worker.mark("counts", np.arange(4, dtype="<u4"))
    with pytest.raises(NvtxmoeError, match=r"payload of moe\.counts lacks step"):
        read_events(open_export(export.save(tmp_path / "numbers.sqlite")))


def test_an_array_without_layers_is_no_counts(tmp_path: Path) -> None:
    export = Export()
    worker = simple_run(export, steps=1)
    empty = np.zeros(0, schema.counts_dtype(4))
    worker.mark("counts", empty)
    events = read_events(open_export(export.save(tmp_path / "empty.sqlite")))
    assert len(events.counts) == 2


# Real captures, rewritten ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forms(golden_vllm_ranks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A capture of vLLM on two GPUs with EPLB, and the same with counts (logical and physical) together."""
    folder = tmp_path_factory.mktemp("together")
    apart, together = folder / "apart" / "run.sqlite", folder / "together" / "run.sqlite"
    for path in (apart, together):
        path.parent.mkdir()
    before, after = with_counts_together(golden_vllm_ranks["eplb"], together)
    assert before == 4 * after > 0  # of four layers
    apart.write_bytes(golden_vllm_ranks["eplb"].read_bytes())
    return apart, together


def test_a_real_capture_gives_the_same_files(forms: tuple[Path, Path], tmp_path: Path) -> None:
    found = []
    for number, path in enumerate(forms):
        (tmp_path / str(number)).mkdir()
        folder = written(tmp_path / str(number), path).folder
        found.append({file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in {".csv", ".parquet"}})
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []


def test_a_real_capture_is_inspected_and_traced_alike(forms: tuple[Path, Path], tmp_path: Path) -> None:
    contents, counters = [], []
    for path in forms:
        (looked,) = inspect([open_export(path)]).as_dict()["inputs"]
        del looked["contents"]["span_ns"]  # the last mark is gone
        contents.append(looked["contents"])
        export_trace([path], tmp_path / "trace.pftrace.gz")
        counters.append(read(tmp_path / "trace.pftrace.gz").counters)
    assert contents[0] == contents[1]
    assert counters[0] == counters[1]
    assert counters[0]


def test_a_real_capture_is_trimmed_alike(forms: tuple[Path, Path], tmp_path: Path) -> None:
    trim(open_export(forms[1]), tmp_path / "trimmed.sqlite")
    trim(open_export(forms[1]), tmp_path / "trimmed")
    assert tables(tmp_path / "trimmed.sqlite") == tables(tmp_path / "trimmed") == tables(forms[0])


def test_the_independent_readers_take_both(forms: tuple[Path, Path]) -> None:
    cells = []
    for path in forms:
        with closing(sqlite3.connect(path)) as database:
            cells.append(read_capture(database).cells)
    assert cells[0] == cells[1]
    assert cells[0]
    assert activity(forms[0]) == activity(forms[1])
