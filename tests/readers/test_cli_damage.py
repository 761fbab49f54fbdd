"""Damaged exports: what they lost is named in one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from nvtxmoe_analysis.outputs.capture_validation import validate
from tests.support.cli import RESULTS, TWO_GPUS, analyze, everything, refuses, run
from tests.support.constructed_runs import simple
from tests.support.export_builder import Export, Process, simple_run
from tests.support.metrics_of_inputs import metrics_of

PAGE = 4096


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export whose tables of events and CUDA calls are above what is read row by row."""
    return simple(steps=2100, layers=1, kernels=4).save(tmp_path_factory.mktemp("large") / "large.sqlite")


@pytest.mark.parametrize("kept", [1, 15, 16, 50, 99, 100, 512, PAGE - 1, PAGE, 0.1, 0.5, 0.9, -1])
def test_truncated(tmp_path: Path, golden_1gpu: Path, kept: float) -> None:
    for whole in (simple().save(tmp_path / "built.sqlite").read_bytes(), golden_1gpu.read_bytes()):
        length = int(kept * len(whole)) if 0 < kept < 1 else int(kept) % len(whole)
        (tmp_path / "cut.sqlite").write_bytes(whole[:length])
        said = {
            "no header": "not a SQLite database. Expected a .nsys-rep, a SQLite export, or a folder of Parquet files",
            "part of a header": "truncated within the SQLite header. Copy or export it again",
            "header": f"truncated: {length} bytes of the {len(whole)} that its header says. Copy or export it again",
        }
        refuses(
            tmp_path / "cut.sqlite",
            said["no header" if length < 16 else "part of a header" if length < 100 else "header"],
        )


def pages_of(path: Path, table: str) -> list[int]:
    """Numbers, from 0, of the pages that hold a table's rows, in their order."""
    data = path.read_bytes()
    connection = sqlite3.connect(path)
    ((root,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [table]).fetchall()
    connection.close()

    def leaves(number: int) -> list[int]:
        page = data[(number - 1) * PAGE : number * PAGE]
        if page[0] == 13:
            return [number - 1]
        assert page[0] == 5, page[0]
        cells, right = struct.unpack(">H3xI", page[3:12])
        places = struct.unpack(f">{cells}H", page[12 : 12 + 2 * cells])
        children = [struct.unpack(">I", page[at : at + 4])[0] for at in places]
        return [leaf for child in (*children, right) for leaf in leaves(child)]

    return leaves(root)


@pytest.mark.parametrize("table", ["NVTX_EVENTS", "CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_KERNEL"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_page_of_garbage(tmp_path: Path, large: Path, size: str, table: str) -> None:
    path = tmp_path / "built.sqlite"
    shutil.copy(large, path) if size == "large" else simple(steps=120).save(path)
    pages = pages_of(path, table)
    assert len(pages) > 2
    data = bytearray(path.read_bytes())
    noise = random.Random(1).randbytes(PAGE)
    at = pages[len(pages) // 2] * PAGE
    data[at : at + PAGE] = noise
    path.write_bytes(data)
    refuses(
        path,
        f"table {table}: SQLite cannot read it: ",
        "malformed",
        "Export the report again, or copy the file again",
    )


def test_a_schema_page_of_garbage(tmp_path: Path, large: Path) -> None:
    path = tmp_path / "built.sqlite"
    data = bytearray(large.read_bytes())
    data[100:PAGE] = random.Random(2).randbytes(PAGE - 100)
    path.write_bytes(data)
    refuses(path, "SQLite cannot read it: ", "Export the report again, or copy the file again")


@pytest.mark.parametrize(
    ("table", "column", "value", "said"),
    [
        ("NVTX_EVENTS", "start", "soon", "column start holds String where integers belong"),
        ("NVTX_EVENTS", "start", 1.5, "column start holds Float64 where integers belong"),
        ("NVTX_EVENTS", "start", 1 << 62 | 1, "column start has times beyond any capture's"),
        ("NVTX_EVENTS", "end", b"\xff", "SQLite cannot read it: failed to determine supertype"),
        ("CUPTI_ACTIVITY_KIND_KERNEL", "start", -(1 << 63), "column start has times beyond any capture's"),
        ("CUPTI_ACTIVITY_KIND_KERNEL", "end", None, "column end lacks a value in 1 of "),
        ("CUPTI_ACTIVITY_KIND_KERNEL", "demangledName", None, "column demangledName lacks a value in 1 of "),
        ("CUPTI_ACTIVITY_KIND_RUNTIME", "nameId", None, "column nameId lacks a value in 1 of "),
        ("CUPTI_ACTIVITY_KIND_RUNTIME", "start", "soon", "column start holds String where integers belong"),
        ("StringIds", "value", None, "column value lacks a value in 1 of "),
        ("StringIds", "value", b"\xff", "column value holds Binary where text belongs"),
    ],
)
@pytest.mark.parametrize("size", ["small", "large"])
def test_values_that_cannot_be(
    tmp_path: Path, large: Path, size: str, table: str, column: str, value: object, said: str
) -> None:
    path = tmp_path / "built.sqlite"
    shutil.copy(large, path) if size == "large" else simple().save(path)
    connection = sqlite3.connect(path)
    with connection:  # nsys declares these NOT NULL; damage asks nobody
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
    connection.close()
    connection = sqlite3.connect(path)
    with connection:
        middle = f"SELECT max(rowid) / 2 + 1 FROM {table}"
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ({middle})", [value])
    connection.close()
    # Of large tables connectorx tells what it found in its own words.
    refuses(path, f"table {table}: ", said if size == "small" or table == "StringIds" else "")


def test_a_panic_of_polars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*_: object, **__: object) -> None:
        raise pl.exceptions.PanicException("called `unwrap()`\n on an `Err`")

    monkeypatch.setattr(pl, "scan_parquet", panic)
    folder = tmp_path / "capture"
    shutil.copytree(TWO_GPUS, folder)
    refuses(
        folder, folder / "NVTX_EVENTS.parquet", "Parquet cannot be read: called `unwrap()`. Export the report again"
    )


def built(folder: Path, **process: Any) -> tuple[Export, Path]:
    export = Export()
    simple_run(export, **process)
    return export, folder / "built.sqlite"


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        (b"\x00\x01\x02", "damaged payload: not JSON ("),
        (b"", "damaged payload: not JSON ("),
        (b'{"schema": 1', "damaged payload: not JSON ("),
        (b"[" * 100_000, "damaged payload: not JSON ("),
        (b"[1, 2]", "damaged payload: a JSON object is wanted, found list"),
        (b'"text"', "damaged payload: a JSON object is wanted, found str"),
        ({"schema": 7}, "payload schema 7, and this nvtxmoe reads 1. Analyse it with the version of nvtxmoe that"),
        ({"schema": "1"}, "payload schema '1', and this nvtxmoe reads 1"),
        ({"schema": True}, "payload schema True, and this nvtxmoe reads 1"),
        ({"schema": ...}, "payload schema None, and this nvtxmoe reads 1"),
        ({"rank": ...}, "damaged payload: rank is absent, not a number from 0 to 65536"),
        ({"rank": "0"}, 'damaged payload: rank is "0", not a number'),
        ({"rank": -1}, "damaged payload: rank is -1, not a number"),
        ({"rank": 10**30}, f"damaged payload: rank is {10**30}, not a number"),
        ({"rank": 0.5}, "damaged payload: rank is 0.5, not a number"),
        ({"world_size": ...}, "damaged payload: world_size is absent"),
        ({"world_size": 0}, "damaged payload: world_size is 0, not a number from 1 to 65536"),
        ({"world_size": 10**12}, "damaged payload: world_size is 1000000000000"),
        ({"tp_size": [2]}, "damaged payload: tp_size is [2], not a number"),
        ({"layers": ...}, "damaged payload: layers is no list of objects, but null"),
        ({"layers": {"0": 1}}, 'damaged payload: layers is no list of objects, but {"0": 1}'),
        ({"layers": [[1]]}, "damaged payload: layers is no list of objects, but [[1]]"),
        ({"layers": [{"layer": 0, "top_k": 2}]}, "damaged payload: num_experts is absent"),
        ({"layers": [{"layer": 0, "num_experts": 4}]}, "damaged payload: top_k is absent"),
        ({"layers": [{"num_experts": 4, "top_k": 2}]}, "damaged payload: layer is absent"),
        (
            {"layers": [{"layer": 0, "num_experts": 10**9, "top_k": 2}]},
            "damaged payload: num_experts is 1000000000, not a number from 1 to 65536",
        ),
        (
            {"layers": [{"layer": 0, "num_experts": 4, "top_k": 2, "local_experts": 3}]},
            "damaged payload: local_experts is 3, not a list of numbers",
        ),
        (
            {"layers": [{"layer": 0, "num_experts": 4, "top_k": 2, "block_m": "16"}]},
            'damaged payload: block_m is "16", not a number',
        ),
    ],
)
@pytest.mark.parametrize("encoding", ["binary", "words"])
def test_metadata(tmp_path: Path, encoding: str, meta: bytes | dict[str, Any], said: str) -> None:
    export = Export()
    worker = Process(export, encoding=encoding)
    if isinstance(meta, dict):
        meta = json.dumps({k: v for k, v in (worker.meta | meta).items() if v is not ...}).encode()
    worker.mark("meta", np.frombuffer(meta, np.uint8))
    path = export.save(tmp_path / "built.sqlite")
    refuses(path, f"{path}, moe.meta of process 100: {said}")


@pytest.mark.parametrize("event", ["moe.meta", "moe.step", "moe.counts", "moe.topk"])
def test_damaged_blobs(tmp_path: Path, event: str) -> None:
    export, path = built(tmp_path)
    name = export.strings[event]
    row = next(r for r in export.rows["NVTX_EVENTS"] if r["textId"] == name)
    whole: bytes = row["binaryData"]
    head, data = whole[:32], whole[32:]
    dynamic = event in ("moe.meta", "moe.topk")

    def header(version: int = 1, schema: int | None = None, size: int | None = None, offset: int = 32) -> bytes:
        known = struct.unpack("<4Q", head)
        return struct.pack(
            "<4Q", version, known[1] if schema is None else schema, known[2] if size is None else size, offset
        )

    length = len(data)
    damaged = {
        b"": "0 bytes, shorter than a payload's header",
        whole[:31]: "31 bytes, shorter than a payload's header",
        whole[:32]: f"header says version 1, {length} bytes of data at 32, but 32 bytes are there",
        whole[:-1]: f"header says version 1, {length} bytes of data at 32, but {len(whole) - 1} bytes are there",
        whole + b"\0": f"header says version 1, {length} bytes of data at 32, but {len(whole) + 1} bytes are there",
        header(version=2) + data: f"header says version 2, {length} bytes of data at 32",
        header(size=length + 8) + data: f"header says version 1, {length + 8} bytes of data at 32",
        header(size=2**64 - 8, offset=length + 40)
        + data: f"header says version 1, {2**64 - 8} bytes of data at {length + 40}",
        header(schema=12345) + data: "payload schema 12345 is not among NVTX_PAYLOAD_SCHEMAS of its domain",
        header(size=length - 3) + data[:-3]: f"{length - 3} bytes fit no definition of payload schema",
    }
    if dynamic:
        # Alone in its size it fits no definition; beside others its own number of elements is wrong.
        said = "bytes fit no definition" if event == "moe.meta" else "elements where 3 are"
        damaged[head + struct.pack("<Q", 2**63) + data[8:]] = said
        damaged[head + bytes(8) + data[8:]] = said
    for blob, said in damaged.items():
        row["binaryData"] = blob
        export.save(path)
        _, document = validate(metrics_of(path))
        assert document["verdict"] == "incomplete"
        (reason,) = [text for text in document["reasons"] if "can't be read" in text]
        assert f"1 payload can't be read, and the results lack what they said ({event} at {row['start']} ns: " in reason
        assert said in reason
        assert "if the payload is damaged there too, capture again" in reason
        assert not any("began after the process" in text for text in document["reasons"])
        path.unlink()
    export.save(path)
    output = tmp_path / "results"
    assert run("analyze", path, "-o", output).code == 0
    assert run("analyze", path, "-o", output, "--strict").code == 3
    file = output / "moe_expert_tracking" / "moe_capture_validation.json"
    assert json.loads(file.read_text())["reasons"] == document["reasons"]


def test_the_other_payloads_are_analysed(tmp_path: Path) -> None:
    export, path = built(tmp_path)
    rows = [r for r in export.rows["NVTX_EVENTS"] if r["textId"] == export.strings["moe.counts"]]
    export.save(path)
    output = tmp_path / "results" / "moe_expert_tracking" / "moe_step_activations.parquet"
    assert run("analyze", path, "-o", tmp_path / "results").code == 0
    whole = pl.read_parquet(output)
    rows[1]["binaryData"] = rows[1]["binaryData"][:-3]
    path.unlink()
    export.save(path)
    assert run("analyze", path, "-o", tmp_path / "results").code == 0
    left = pl.read_parquet(output)
    lost = whole.join(left, on=whole.columns, how="anti")
    assert len(left) == len(whole) - len(lost)
    assert len(lost.select("step", "layer_idx").unique()) == 1
    inspected = run("inspect", path)
    assert "1 payload can't be read, the first is moe.counts at" in " ".join(inspected.out.split())


def test_an_export_without_a_readable_payload_is_refused(tmp_path: Path) -> None:
    export, path = built(tmp_path)
    for row in export.rows["NVTX_EVENTS"]:
        if row.get("binaryData"):
            row["binaryData"] = row["binaryData"][:31]
    export.save(path)
    assert "capture again" in refuses(path, "31 bytes, shorter than a payload's header")


def test_a_list_that_lies_beside_one_that_does_not(tmp_path: Path) -> None:
    export, path = built(tmp_path)
    rows = [r for r in export.rows["NVTX_EVENTS"] if r["textId"] == export.strings["moe.topk"]]
    blob = rows[1]["binaryData"]
    rows[1]["binaryData"] = blob[:32] + struct.pack("<Q", 7) + blob[40:]
    export.save(path)
    ran = run("analyze", path, "-o", tmp_path / "results")
    assert ran.code == 0
    assert f"(moe.topk at {rows[1]['start']} ns: says 7 elements where 3 are)" in " ".join(ran.out.split())


COUNTS: dict[str, Any] = {"step": "<i8", "layer": "<i4", "rank": "<i4", "num_tokens": "<i4", "top_k": "<i4"}


@pytest.mark.parametrize("missing", [*COUNTS, "counts"])
def test_counts_without_a_field(tmp_path: Path, missing: str) -> None:
    fields: list[Any] = [(n, t) for n, t in COUNTS.items() if n != missing]
    fields += [] if missing == "counts" else [("counts", "<u4", (4,))]
    export, path = built(tmp_path)
    Process(export, pid=7, rank=1, schema_base=1 << 33).mark("counts", np.zeros((), dtype=fields))
    export.save(path)
    refuses(path, f"the payload of moe.counts lacks {missing} (it has ", "Capture again, or export the report again")


@pytest.mark.parametrize(
    ("event", "payload", "said"),
    [
        (
            "counts",
            np.zeros((), [*COUNTS.items(), ("counts", "<u4")]),
            "moe.counts has counts of shape (), not one row",
        ),
        ("counts", np.zeros((), [*COUNTS.items(), ("counts", "<f4", (4,))]), "moe.counts has counts of type "),
        (
            "counts",
            np.zeros((), [*({**COUNTS, "layer": "<f4"}).items(), ("counts", "<u4", (4,))]),
            "has layer of type ",
        ),
        ("counts", np.zeros(3, "<i8"), "moe.counts lacks step, layer, rank, num_tokens, top_k, counts (it has int64)"),
        ("topk", np.zeros(2, [("step", "<i8"), ("layer", "<i4")]), "moe.topk lacks token, experts, weights"),
        (
            "pairs",
            np.zeros(
                (),
                [(n, "<i8") for n in ("first_step", "last_step", "layer", "rank", "num_tokens")]
                + [("pairs", "<u4", (4,))],
            ),
            "damaged payload: moe.pairs of 4 entries, which is no E(E-1)/2",
        ),
    ],
)
def test_payloads_of_another_shape(tmp_path: Path, event: str, payload: np.ndarray[Any, Any], said: str) -> None:
    export, path = built(tmp_path)
    Process(export, pid=7, rank=1, schema_base=1 << 33).mark(event, payload)
    export.save(path)
    refuses(path, said, "Capture again, or export the report again")


# Damage that is not refused: what can be had is, in time and memory that the file justifies.


@pytest.mark.slow
def test_row_numbers_with_gaps(tmp_path: Path, large: Path) -> None:
    analyze(large, tmp_path / "plain")
    path = tmp_path / "built.sqlite"
    shutil.copy(large, path)
    connection = sqlite3.connect(path)
    with connection:
        for table in ("CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_KERNEL", "NVTX_EVENTS"):
            ((last,),) = connection.execute(f"SELECT max(rowid) FROM {table}").fetchall()
            connection.execute(f"UPDATE {table} SET rowid = {1 << 60} WHERE rowid = {last}")
    connection.close()
    analyze(path, tmp_path / "results")
    plain, found = (everything(tmp_path / name / RESULTS) for name in ("plain", "results"))
    for name in plain.keys() - {"moe_capture_validation.json"}:
        assert found[name] == plain[name], name


def test_a_sampled_token_with_an_expert_that_is_not(tmp_path: Path) -> None:
    export = Export()
    worker = simple_run(export, steps=1)
    with worker.step(1):
        worker.kernel()
    for layer in range(worker.layers):
        worker.counts(1, layer, [3, 3, 0, 0])
        worker.topk(1, layer, [[0, 1], [0, 1], [0, 65535]])
    output = tmp_path / "results"
    analyze(export.save(tmp_path / "built.sqlite"), output)
    validation = json.loads((output / RESULTS / "moe_capture_validation.json").read_text())
    assert [check["name"] for check in validation["checks"] if check["status"] == "fail"] == [
        "topk_agrees",
        "layers_have_work",
    ]
    pairs = (output / RESULTS / "moe_expert_coselection.csv").read_text().splitlines()
    assert {"0,0,1,3,6", "0,0,65535,1,6", "1,0,65535,1,6"} <= set(pairs)


@pytest.mark.parametrize("number", [65_536, 2**31 - 1, 2**31, 2**40, 2**63 - 1])
def test_a_layer_that_is_not(tmp_path: Path, number: int) -> None:
    export = Export()
    worker = simple_run(export, steps=2)
    with worker.step(2), worker.range("moe.layer.1", number):
        worker.kernel(77)
    output = tmp_path / "results"
    analyze(export.save(tmp_path / "built.sqlite"), output)
    rows = (output / RESULTS / "moe_layer_timings.csv").read_text().splitlines()
    assert [row.split(",")[7] for row in rows if row.startswith(f"0,2,{min(number, 2**31 - 1)},")] == ["77"]
