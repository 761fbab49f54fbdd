"""The payload decoder against a real export of every numpy type, and against damaged ones."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe_analysis.events.binary_payloads import Decoder
from nvtxmoe_analysis.events.decode import read_events
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.open import open_export
from nvtxmoe_analysis.readers.sqlite import SqliteExport
from tests.support.export_builder import Export, Process, send_meta_as_bytes, simple_run

DOMAIN = 1
STRUCT = np.dtype([("layer", "<i4"), ("step", "<i8"), ("n", "<i4")])
NESTED = np.dtype([("layer", "<i4"), ("step", "<i8"), ("counts", "<u4", (16,))])

#: What each event of the export was given, as its name says. Arrays arrive flat.
SENT: dict[str, npt.NDArray[Any]] = {
    **{f"u32[{n}]": np.arange(n, dtype="<u4") for n in (8, 256, 2048, 65536, 1 << 20)},
    "struct0d": np.array((3, 77, 5), dtype=STRUCT),
    "rng": np.array((3, 77, 5), dtype=STRUCT),
    "struct1d": np.array([(3, 77, 5), (4, 78, 6)], dtype=STRUCT),
    "nest0d": np.array((2, 9, range(16)), dtype=NESTED),
    "nest1d": np.array([(2, 9, range(16))], dtype=NESTED),
    "i16_2d": np.arange(32, dtype="<i2"),
    "u8": np.arange(9, dtype="u1"),
    "bytes": np.array(b"\x01\x02abc"),
    "f16": np.ones(5, dtype="<f2"),
    "list": np.array([1, 2, 3], dtype="<i8"),
}


def blobs_of(export: SqliteExport) -> pl.DataFrame:
    """Every payload with its event's name."""
    rows = export.read(nsys_tables.NVTX, ("start", "domainId", "textId"), row=True)
    names = export.strings(rows["textId"].drop_nulls().to_list())
    named = rows.with_columns(name=pl.col("textId").replace_strict(names, default=None, return_dtype=pl.String))
    return export.read_blobs([DOMAIN]).join(named, on="row", how="inner", maintain_order="left")


def decoded(path: Path) -> dict[str, npt.NDArray[Any]]:
    export = SqliteExport(path)
    found: dict[str, npt.NDArray[Any]] = {}
    for rows, arrays in Decoder(export).groups(blobs_of(export)):
        found |= dict(zip(rows["name"].to_list(), arrays, strict=True))
    return found


def test_every_type_decodes_to_what_was_sent(payload_encodings: Path) -> None:
    found = decoded(payload_encodings)
    assert found.keys() == SENT.keys()
    for name, value in SENT.items():
        assert found[name].dtype == value.dtype, name
        assert np.array_equal(found[name], value), name


def test_payloads_of_one_schema_decode_together(payload_encodings: Path) -> None:
    export = SqliteExport(payload_encodings)
    groups = {tuple(rows["name"]): array.shape for rows, array in Decoder(export).groups(blobs_of(export))}
    assert groups["struct0d", "rng"] == (2,)
    assert groups[("struct1d",)] == (1, 2)
    assert groups[("u32[1048576]",)] == (1, 1 << 20)


def test_int_and_float_payloads_have_no_blob(payload_encodings: Path) -> None:
    rows = SqliteExport(payload_encodings).read(nsys_tables.NVTX, ("int64Value", "textId"), row=True)
    export = SqliteExport(payload_encodings)
    texts = export.strings(rows["textId"].drop_nulls().to_list())
    (ident,) = (i for i, text in texts.items() if text == "int")
    assert rows.filter(textId=ident)["int64Value"].to_list() == [7]
    assert not {"int", "float"} & set(blobs_of(export)["name"])


Edit = Callable[[bytes], bytes]


@pytest.fixture
def edited(payload_encodings: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the export: one event's payload changed by a function, and SQL statements run."""

    def edit(name: str | None = None, change: Edit | None = None, *statements: str) -> Path:
        path = tmp_path / "edited.sqlite"
        shutil.copy(payload_encodings, path)
        with sqlite3.connect(path) as connection:
            if name is not None and change is not None:
                query = "FROM NVTX_EVENTS WHERE textId = (SELECT id FROM StringIds WHERE value = ?)"
                (blob,) = connection.execute(f"SELECT CAST(binaryData AS BLOB) {query}", (name,)).fetchone()
                where = query.removeprefix("FROM NVTX_EVENTS ")
                connection.execute(f"UPDATE NVTX_EVENTS SET binaryData = ? {where}", (change(blob), name))
            for statement in statements:
                connection.execute(statement)
        return path

    return edit


def with_header(position: int, value: int) -> Edit:
    return lambda blob: blob[: 8 * position] + struct.pack("<Q", value) + blob[8 * position + 8 :]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("u8", with_header(0, 2), "header says version 2"),
        ("u8", with_header(2, 99), "99 bytes of data at 32, but 49 bytes are there"),
        ("u8", with_header(3, 16), "17 bytes of data at 16"),
        ("u8", with_header(3, 1 << 63), "but 49 bytes are there"),
        ("u8", lambda blob: blob[:31], "31 bytes, shorter than a payload's header"),
        ("u8", lambda blob: b"", "0 bytes, shorter than a payload's header"),
        ("u8", lambda blob: blob[:-1], "but 48 bytes are there"),
        ("u8", lambda blob: blob + b"x", "but 50 bytes are there"),
        ("u8", with_header(1, 12345), "payload schema 12345 is not among NVTX_PAYLOAD_SCHEMAS"),
        ("u8", with_header(4, 8), "17 bytes fit no definition of payload schema"),
        ("u8", with_header(4, 1 << 63), "17 bytes fit no definition of payload schema"),
        ("struct0d", with_header(1, (1 << 32) + 7), "16 bytes fit no definition of payload schema"),
    ],
)
def test_damage_is_named(edited: Callable[..., Path], name: str, change: Edit, message: str) -> None:
    with pytest.raises(NvtxmoeError, match=message) as caught:
        decoded(edited(name, change))
    assert f"damaged payload of {name} at 363" in str(caught.value)
    assert caught.value.remedy is not None


def test_an_element_count_that_lies_among_honest_ones(tmp_path: Path) -> None:
    export = Export()
    worker = simple_run(export, steps=2)
    worker.topk(2, 0, [[1, 2], [2, 3], [3, 0]])
    row = export.rows["NVTX_EVENTS"][-1]
    row["binaryData"] = with_header(4, 2)(row["binaryData"])
    events = read_events(open_export(export.save(tmp_path / "lie.sqlite")))
    assert events.damaged == [f"moe.topk at {row['start']} ns: says 2 elements where 3 are"]
    assert len(events.steps) == 2


def test_no_schema_tables_at_all(edited: Callable[..., Path]) -> None:
    statements = ("DROP TABLE NVTX_PAYLOAD_SCHEMAS", "DROP TABLE NVTX_PAYLOAD_SCHEMA_ENTRIES")
    with pytest.raises(NvtxmoeError, match="is not among NVTX_PAYLOAD_SCHEMAS"):
        decoded(edited(None, None, *statements))


def test_a_schema_that_contains_itself(edited: Callable[..., Path]) -> None:
    loop = f"UPDATE NVTX_PAYLOAD_SCHEMA_ENTRIES SET type = {(1 << 32) + 4} WHERE schemaId = {(1 << 32) + 4}"
    with pytest.raises(NvtxmoeError, match=r"is not among NVTX_PAYLOAD_SCHEMAS|fit no definition"):
        decoded(edited(None, None, loop))


# One (domainId, schemaId) defined by two processes ----------------------------------------------------------------

STRUCT_ID = (1 << 32) + 4
INT32_ID, INT64_ID = (1 << 32) + 2, (1 << 32) + 3


def schema_row(ident: int, size_bytes: int, entries: int) -> str:
    return (
        "INSERT INTO NVTX_PAYLOAD_SCHEMAS (domainId, schemaId, type, numEntries, payloadSize) "
        f"VALUES ({DOMAIN}, {ident}, 1, {entries}, {size_bytes})"
    )


def entry_row(ident: int, index: int, kind: int, name: str, offset: int | None) -> str:
    return (
        "INSERT INTO NVTX_PAYLOAD_SCHEMA_ENTRIES (domainId, schemaId, idx, type, name, offset) "
        f"VALUES ({DOMAIN}, {ident}, {index}, {kind}, '{name}', {'NULL' if offset is None else offset})"
    )


def test_identical_definitions_count_once(edited: Callable[..., Path]) -> None:
    again = (
        "INSERT INTO NVTX_PAYLOAD_SCHEMAS SELECT * FROM NVTX_PAYLOAD_SCHEMAS",
        "INSERT INTO NVTX_PAYLOAD_SCHEMA_ENTRIES SELECT * FROM NVTX_PAYLOAD_SCHEMA_ENTRIES",
    )
    found = decoded(edited(None, None, *again))
    assert all(np.array_equal(found[name], value) for name, value in SENT.items())


def test_sizes_decide_between_definitions(edited: Callable[..., Path]) -> None:
    other = (
        schema_row(STRUCT_ID, 8, 2),
        entry_row(STRUCT_ID, 0, 15, "a", None),
        entry_row(STRUCT_ID, 1, 15, "b", 4),
    )
    found = decoded(edited(None, None, *other))
    assert np.array_equal(found["struct0d"], SENT["struct0d"])
    assert np.array_equal(found["struct1d"], SENT["struct1d"])
    # And the other process's payload, of 8 bytes.
    data = struct.pack("<4Q", 1, STRUCT_ID, 8, 32) + struct.pack("<2i", 6, 7)
    found = decoded(edited("struct0d", lambda _: data, *other))
    assert found["struct0d"].item() == (6, 7)
    assert np.array_equal(found["rng"], SENT["rng"])


def test_definitions_of_one_size_are_ambiguous(edited: Callable[..., Path]) -> None:
    other = (
        schema_row(STRUCT_ID, 16, 2),
        entry_row(STRUCT_ID, 0, 17, "a", None),
        entry_row(STRUCT_ID, 1, 17, "b", 8),
    )
    with pytest.raises(NvtxmoeError, match=r"is defined in 2 ways that fit (16|40) bytes"):
        decoded(edited(None, None, *other))


def test_nested_ids_that_two_processes_hand_out_in_another_order(edited: Callable[..., Path]) -> None:
    """One process calls int32 what the other calls int64: the fields that fill the struct without holes are right."""
    swapped = (
        schema_row(INT32_ID, 8, 1),
        entry_row(INT32_ID, 0, 17, "int64", None),
        schema_row(INT64_ID, 4, 1),
        entry_row(INT64_ID, 0, 15, "int32", None),
        schema_row(STRUCT_ID, 16, 3),
        entry_row(STRUCT_ID, 0, INT64_ID, "layer", None),
        entry_row(STRUCT_ID, 1, INT32_ID, "step", 4),
        entry_row(STRUCT_ID, 2, INT64_ID, "n", 12),
    )
    found = decoded(edited(None, None, *swapped))
    assert np.array_equal(found["struct0d"], SENT["struct0d"])
    assert np.array_equal(found["struct1d"], SENT["struct1d"])


def test_two_workers_with_other_schema_numbers(tmp_path: Path) -> None:
    """Ranks that began to send in another order number their schemas differently; their sizes tell them apart."""
    export = Export()
    simple_run(export, pid=100, rank=0, world_size=2, experts=4)
    late = Process(export, pid=200, rank=1, world_size=2, experts=6)
    with late.step(0):
        pass
    late.send_meta()
    late.topk(0, 0, [[0, 5], [1, 2]])
    late.counts(0, 0, [1, 1, 1, 0, 0, 1], tokens=2)
    events = read_events(open_export(export.save(tmp_path / "two.sqlite")))
    assert events.counts.cells.filter(pid=late.tid >> 24)["num_experts"].to_list() == [6]
    assert events.topk.experts[events.topk.tokens["pid"] == late.tid >> 24].tolist() == [[0, 5], [1, 2]]
    assert sorted(meta.rank for meta in events.metas.values()) == [0, 1]


# moe events ---------------------------------------------------------------------------------------------------------


def test_no_sampled_token_is_no_token(tmp_path: Path) -> None:
    export = Export()
    worker = simple_run(export, steps=1)
    worker.mark("topk", np.zeros(0, dtype=schema.topk_dtype(2)))
    events = read_events(open_export(export.save(tmp_path / "empty.sqlite")))
    assert len(events.topk) == 6
    assert events.problems["blobs_missing"] == 0


def test_meta_as_bytes(tmp_path: Path) -> None:
    """`bytes` payloads are a fixed-length string, arrays have a length before the text: both are read."""
    export = Export()
    worker = simple_run(export, steps=1)
    send_meta_as_bytes(export)
    (meta,) = read_events(open_export(export.save(tmp_path / "bytes.sqlite"))).metas.values()
    assert meta.raw == worker.meta


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "payload schema 2, and this nvtxmoe reads 1"),
        ({"schema": [1]}, r"payload schema \[1\], and this nvtxmoe reads 1"),
        ({"schema": None}, "payload schema None"),
        ({"rank": None}, "damaged payload: rank is null, not a number from 0 to 65536"),
        ({"rank": float("inf")}, "damaged payload: rank is null"),
        ({"layers": [3]}, r"damaged payload: layers is no list of objects, but \[3\]"),
        ({"layers": [{"layer": 0}]}, "damaged payload: num_experts is absent, not a number from 1 to 65536"),
    ],
)
def test_meta_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    export = Export()
    simple_run(export, steps=1, meta=change)
    with pytest.raises(NvtxmoeError, match=message):
        read_events(open_export(export.save(tmp_path / "meta.sqlite")))


def test_a_payload_of_another_layout_is_named(tmp_path: Path) -> None:
    export = Export()
    worker = simple_run(export, steps=1)
    worker.mark("counts", np.array((1, 2), dtype=[("step", "<i8"), ("layer", "<i4")]))
    with pytest.raises(NvtxmoeError, match=r"payload of moe\.counts lacks rank, num_tokens, top_k, counts"):
        read_events(open_export(export.save(tmp_path / "other.sqlite")))


@pytest.mark.slow
@settings(max_examples=80)
@given(st.integers(0, 10_000), st.binary(max_size=12), st.booleans())
def test_changed_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, new: bytes, cut: bool
) -> None:
    export = Export()
    simple_run(export, steps=2)
    rows = [row for row in export.rows["NVTX_EVENTS"] if row.get("binaryData")]
    row = rows[at % len(rows)]
    blob, place = row["binaryData"], at // len(rows) % 48
    row["binaryData"] = blob[:place] + new + (b"" if cut else blob[place + len(new) :])
    try:
        read_events(open_export(export.save(tmp_path_factory.mktemp("changed") / "x.sqlite")))
    except NvtxmoeError as error:
        assert str(error)
