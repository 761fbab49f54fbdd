"""Whatever a byte or a value of an export becomes: results, or one line that says what is wrong."""

from __future__ import annotations

import sqlite3
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from nvtxmoe.formats import schema
from tests.support.cli import RESULTS, files, refused, run
from tests.support.constructed_runs import make_nodes, replay
from tests.support.export_builder import Export, Process
from tests.support.written_results import file_set

pytestmark = pytest.mark.slow

ENCODINGS = ("binary", "words")
FUZZ = settings(
    max_examples=20,
    database=None,
    phases=(Phase.explicit, Phase.generate),
)


@cache
def capture(encoding: str) -> bytes:
    """An export that has every table: eager work, graphs, samples, pairs, diagnostics. No column is NOT NULL."""
    export = Export()
    worker = Process(export, encoding=encoding)
    worker.send_meta()
    make_nodes(worker, 2)
    for step in range(3):
        with worker.step(step):
            worker.kernel(name="attention")
            replay(worker, [100, 101])
            for layer in range(worker.layers):
                with worker.layer(layer), worker.phase("experts", layer):
                    worker.kernel(name="fused_moe")
                    worker.memcpy()
                    worker.memset()
        for layer in range(worker.layers):
            tokens = [[(token + layer) % 4, (token + layer + 1) % 4] for token in range(3)]
            worker.counts(step, layer, np.bincount(np.ravel(tokens), minlength=4).tolist())
            worker.topk(step, layer, tokens)
    for layer in range(worker.layers):
        worker.mark("pairs", np.array((0, 2, layer, 0, 9, range(6)), dtype=schema.pairs_dtype(4)))
    whole = {"start": 5, "end": 6, "deviceId": 0, "streamId": 0, "correlationId": 1, "globalPid": worker.global_pid}
    export.add("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", **whole, graphId=1)
    export.add("DIAGNOSTIC_EVENT", timestamp=1, severity=1, text="Not all NVTX events might have been collected.")
    export.add("META_DATA_CAPTURE", name="A", value="b")
    export.add("TARGET_INFO_GPU", id=0, name="a GPU")
    with TemporaryDirectory() as folder:
        path = export.save(Path(folder) / "built.sqlite")
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
        connection.close()
        return path.read_bytes()


@cache
def layout(encoding: str) -> list[tuple[str, list[str], int]]:
    """Tables, their columns, and how many rows they have."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "built.sqlite"
        path.write_bytes(capture(encoding))
        connection = sqlite3.connect(path)
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = [
            (
                name,
                [row[1] for row in connection.execute(f"PRAGMA table_info({name})")],
                connection.execute(f"SELECT max(rowid) FROM {name}").fetchone()[0],
            )
            for name in names
        ]
        connection.close()
        return found


def survives(path: Path) -> int:
    """Analyse the file; whatever is in it, that ends well, or with one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ran = run("analyze", path, "-o", path.parent / "results", "--json")
    if ran.code == 0:
        assert ran.err == ""
        assert ran.json["verdict"] in ("complete", "incomplete")
        assert files(path.parent / "results" / RESULTS) == file_set("csv")
    else:
        line = refused(ran, path)
        assert ". " in line
        assert files(path.parent / "results") == set()
    return ran.code


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_undamaged(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "built.sqlite"
    path.write_bytes(capture(encoding))
    assert survives(path) == 0


BYTES = st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 127, 128, 255]))


@FUZZ
@given(
    encoding=st.sampled_from(ENCODINGS),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), BYTES), min_size=1, max_size=6),
    beginnings=st.booleans(),
)
def test_bytes_of_the_file(encoding: str, flips: list[tuple[float, int]], beginnings: bool) -> None:
    data = bytearray(capture(encoding))
    for place, value in flips:
        at = int(place * len(data))
        if beginnings:  # of pages, where SQLite keeps what it goes by
            at = at // 4096 * 4096 + at % 16
        data[at] = value
    with TemporaryDirectory() as folder:
        path = Path(folder) / "built.sqlite"
        path.write_bytes(data)
        survives(path)


VALUES = st.one_of(
    st.none(),
    st.integers(-3, 40),
    st.sampled_from([2**31 - 1, 2**32, 2**40, 2**62, 2**63 - 1, -(2**31), -(2**63)]),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.binary(max_size=60),
)


@FUZZ
@given(
    encoding=st.sampled_from(ENCODINGS),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), st.integers(0), VALUES),
        min_size=1,
        max_size=3,
    ),
)
def test_values_of_rows(encoding: str, changes: list[tuple[float, float, int, object]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "built.sqlite"
        path.write_bytes(capture(encoding))
        connection = sqlite3.connect(path)
        with connection:
            for table_at, column_at, row, value in changes:
                name, columns, rows = layout(encoding)[int(table_at * len(layout(encoding)))]
                column = columns[int(column_at * len(columns))]
                with suppress(sqlite3.IntegrityError):  # the id of StringIds
                    connection.execute(f'UPDATE {name} SET "{column}" = ? WHERE rowid = ?', [value, row % rows + 1])
        connection.close()
        survives(path)


@FUZZ
@given(
    event=st.sampled_from(["meta", "step", "counts", "topk", "pairs"]),
    which=st.integers(0, 5),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), BYTES), min_size=1, max_size=3),
)
@example("topk", 0, [(0.55, 255), (0.56, 255)])
def test_bytes_of_payloads(event: str, which: int, flips: list[tuple[float, int]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "built.sqlite"
        path.write_bytes(capture("binary"))
        connection = sqlite3.connect(path)
        with connection:
            query = (
                "SELECT e.rowid, e.binaryData FROM NVTX_EVENTS e JOIN StringIds s ON s.id = e.textId WHERE s.value = ?"
            )
            rows = connection.execute(query, [f"moe.{event}"]).fetchall()
            row, blob = rows[which % len(rows)]
            changed = bytearray(blob)
            for place, value in flips:
                changed[int(place * len(changed))] = value
            connection.execute("UPDATE NVTX_EVENTS SET binaryData = ? WHERE rowid = ?", [bytes(changed), row])
        connection.close()
        survives(path)
