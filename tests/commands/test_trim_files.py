"""`nvtxmoe trim`: the tables and types of what it writes, and moe.meta in it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.events.decode import read_events
from nvtxmoe_analysis.readers.open import open_export
from nvtxmoe_analysis.trimming.scrub_meta import scrub_text
from tests.support.export_builder import Export, send_meta_as_bytes, simple_run
from tests.support.trimmed_exports import MARKER, content, figures, holds, private_meta, trimmed

# The files ------------------------------------------------------------------------------------------------------------


def test_sqlite_has_nsys_own_declarations(golden_2gpu: Path, tmp_path: Path) -> None:
    trimmed(golden_2gpu, tmp_path / "out.db")
    connection = sqlite3.connect(tmp_path / "out.db")

    def declared(table: str) -> dict[str, str]:
        rows = connection.execute(f"PRAGMA table_info({table})").fetchall()
        return {r[1]: r[2] + (" NOT NULL" if r[3] else "") + (" KEY" if r[5] else "") for r in rows}

    assert declared("NVTX_EVENTS") == {
        "start": "INTEGER NOT NULL", "end": "INTEGER", "eventType": "INTEGER NOT NULL", "text": "TEXT",
        "globalTid": "INTEGER", "textId": "INTEGER", "domainId": "INTEGER", "int64Value": "INTEGER",
        "category": "INTEGER", "binaryData": "TEXT",
    }  # fmt: skip
    assert declared("StringIds") == {"id": "INTEGER NOT NULL KEY", "value": "TEXT NOT NULL"}
    assert declared("CUPTI_ACTIVITY_KIND_KERNEL")["correlationId"] == "INTEGER"
    assert declared("CUPTI_ACTIVITY_KIND_KERNEL")["demangledName"] == "INTEGER NOT NULL"
    kinds = connection.execute("SELECT DISTINCT typeof(binaryData) FROM NVTX_EVENTS").fetchall()
    assert sorted(kinds) == [("blob",), ("null",)]
    names = [n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for name in set(names) - {"StringIds", "ENUM_CUDA_MEMCPY_OPER"}:
        count, low, high = connection.execute(f"SELECT count(*), min(rowid), max(rowid) FROM {name}").fetchone()
        assert (low, high) == (1, count), name
    starts = [s for (s,) in connection.execute("SELECT start FROM CUPTI_ACTIVITY_KIND_RUNTIME ORDER BY rowid")]
    source = sqlite3.connect(golden_2gpu).execute("SELECT start FROM CUPTI_ACTIVITY_KIND_RUNTIME ORDER BY rowid")
    assert starts == [s for (s,) in source]


def test_parquet_has_nsys_own_types(golden_2gpu: Path, tmp_path: Path) -> None:
    trimmed(golden_2gpu, tmp_path / "out")

    def types(table: str) -> dict[str, str]:
        return {f.name: str(f.type) for f in pq.read_schema(tmp_path / "out" / f"{table}.parquet")}

    assert types("NVTX_EVENTS") == {
        "start": "int64", "end": "int64", "eventType": "uint32", "text": "large_string", "globalTid": "uint64",
        "textId": "uint32", "domainId": "uint64", "int64Value": "int64", "category": "uint64",
        "binaryData": "string",
    }  # fmt: skip
    assert types("CUPTI_ACTIVITY_KIND_KERNEL") == {
        "start": "int64", "end": "int64", "deviceId": "uint32", "streamId": "uint64", "correlationId": "uint32",
        "globalPid": "uint64", "demangledName": "uint64", "graphNodeId": "uint64",
    }  # fmt: skip
    assert types("CUPTI_ACTIVITY_KIND_RUNTIME")["returnValue"] == "uint32"
    assert types("StringIds") == {"id": "int32", "value": "large_string"}
    assert types("PROCESSES") == {"globalPid": "uint64", "pid": "uint64"}
    assert types("DIAGNOSTIC_EVENT") == {"timestamp": "int64", "severity": "int32", "text": "large_string"}


def test_ids_with_the_highest_bit(tmp_path: Path) -> None:
    """SQLite stores ids signed, Parquet unsigned."""
    export = Export()
    worker = simple_run(export)
    worker.create_node(-5)
    worker.clone_node(-6, -5)
    with worker.step(3):
        worker.kernel(correlation=worker.call("cudaGraphLaunch_v10000"), node=-6)
    source = export.save(tmp_path / "built.sqlite")
    trimmed(source, tmp_path / "out")
    assert (
        pq.read_table(tmp_path / "out" / "CUPTI_ACTIVITY_KIND_KERNEL.parquet")["graphNodeId"][-1].as_py() == 2**64 - 6
    )
    trimmed(tmp_path / "out", tmp_path / "back.sqlite")
    assert figures(source) == figures(tmp_path / "out") == figures(tmp_path / "back.sqlite")


def test_an_older_export_without_payload_columns(tmp_path: Path) -> None:
    export = Export()
    simple_run(export, encoding="words")
    source = export.save(tmp_path / "built.sqlite")
    with sqlite3.connect(source) as connection:
        connection.execute("ALTER TABLE NVTX_EVENTS DROP COLUMN binaryData")
        connection.execute("ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL DROP COLUMN graphNodeId")
    for name in ("out.sqlite", "out"):
        trimmed(source, tmp_path / name)
        assert figures(tmp_path / name) == figures(source)
        assert not open_export(tmp_path / name).has_blob_column()


# moe.meta -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.sqlite", "out"])
def test_meta_spelled_in_words(tmp_path: Path, name: str) -> None:
    export = Export()
    private = json.loads(private_meta(b"{}", 1))
    for pid in (100, 200):
        simple_run(export, pid=pid, rank=pid // 100 - 1, world_size=2, encoding="words", meta=private)
    source = export.save(tmp_path / "built.sqlite")
    assert holds(source, MARKER)
    trimmed(source, tmp_path / name)
    assert not holds(tmp_path / name, MARKER)
    assert figures(tmp_path / name) == figures(source)
    raw = [meta.raw for meta in read_events(open_export(tmp_path / name)).metas.values()]
    assert [(r["model"], r["pid"], r["seed"], "host" in r) for r in raw] == [("Qwen3", 1, 17, False)] * 2
    assert raw[0]["run_id"] == raw[1]["run_id"]
    trimmed(tmp_path / name, tmp_path / f"again-{name}")
    assert list(content(tmp_path / name).values()) == list(content(tmp_path / f"again-{name}").values())


@pytest.mark.parametrize("lost", ["the end", "the middle", "the length", "all but the text"])
def test_words_of_a_broken_meta_are_blanked(tmp_path: Path, lost: str) -> None:
    export = Export()
    for pid in (100, 200):
        worker = simple_run(export, pid=pid, rank=pid // 100 - 1, world_size=2, encoding="words")
        worker.meta = {"host": MARKER * 3, **worker.meta}
        before = len(export.rows["NVTX_EVENTS"])
        worker.send_meta()
        rows = export.rows["NVTX_EVENTS"]
        if lost == "the end":
            del rows[-3:]
        elif lost == "the middle":
            del rows[before + 5]
            worker.counts(9, 0, [1, 2, 0, 3])
        elif lost == "the length":
            del rows[before]
        else:
            del rows[before : before + 2]
            worker.counts(9, 0, [1, 2, 0, 3])
    source = export.save(tmp_path / "built.sqlite")
    assert holds(source, MARKER)
    trimmed(source, tmp_path / "out.sqlite")
    assert not holds(tmp_path / "out.sqlite", MARKER)
    assert figures(tmp_path / "out.sqlite") == figures(source)
    assert sum(figures(source)["problems"].values()) == 2


def test_meta_as_bytes_payload(tmp_path: Path) -> None:
    export = Export()
    simple_run(export, steps=1, meta={"host": MARKER})
    send_meta_as_bytes(export)
    source = export.save(tmp_path / "built.sqlite")
    trimmed(source, tmp_path / "out.sqlite")
    assert not holds(tmp_path / "out.sqlite", MARKER)
    assert figures(tmp_path / "out.sqlite") == figures(source)


def scrubbed(**raw: Any) -> dict[str, Any]:
    text = json.dumps(raw).encode()
    clean = scrub_text(text, "here")
    assert len(clean) == len(text)
    assert scrub_text(clean, "here") == clean
    found: dict[str, Any] = json.loads(clean)
    return found


def test_what_leaves_meta() -> None:
    assert scrubbed(host="h", rank=1) == {"rank": 1}
    assert scrubbed(model="/a/b/c") == {"model": "c"}
    assert scrubbed(model="/a/b/c/") == {"model": "c"}
    assert scrubbed(model="C:\\Users\\me\\c") == {"model": "c"}
    assert scrubbed(model="Qwen/Qwen3-30B-A3B") == {"model": "Qwen3-30B-A3B"}
    assert scrubbed(model=None) == {"model": None}
    assert scrubbed(run_id="0f3e-77", pid=3) == {"run_id": "0f3e-77", "pid": 3}
    assert len(scrubbed(run_id="bob-1")["run_id"]) == 5
    assert "b" + "ob" not in scrubbed(run_id="bob-1")["run_id"]
    assert scrubbed(layers=[{"layer": 0, "name": "a.b", "x": "/p/q"}]) == {
        "layers": [{"layer": 0, "name": "a.b", "x": "q"}]
    }
    assert scrubbed(unknown="text", other=[1, 2], more=[["x"]], last={"k": 1}, flag=True) == {
        "other": [1, 2],
        "flag": True,
    }


def test_meta_without_secrets_stays_byte_for_byte() -> None:
    text = b'{ "rank" : 1,  "vllm": "0.26.0" }   \0\0'
    assert scrub_text(text, "here") == text


@pytest.mark.parametrize("text", [b"", b"not json", b"[1]", b"\xff\xfe", b'{"host": "xy'])
def test_meta_that_nobody_can_read_is_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(NvtxmoeError, match=r"moe\.meta isn't"):
        scrub_text(text, "here")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["host", "model", "run_id", "pid", "layers", "rank", "other"]) | st.text(max_size=6)


@pytest.mark.slow
@given(st.dictionaries(keys, json_values, max_size=6), st.integers(0, 9))
def test_any_meta_keeps_its_length(raw: dict[str, Any], zeros: int) -> None:
    text = json.dumps(raw).encode() + b"\0" * zeros
    clean = scrub_text(text, "here")
    assert len(clean) == len(text)
    found = json.loads(clean.rstrip(b"\0"))
    assert "host" not in found
    assert found.get("pid") == raw.get("pid") or isinstance(raw.get("pid"), str | list | dict)
    assert scrub_text(clean, "here") == clean
