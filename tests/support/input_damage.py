"""Damage to whole inputs of any kind: bytes, tables, values, payloads, schemas, names. Each draw has a number."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nvtxmoe.formats import schema
from nvtxmoe.formats.journal import EVENTS, MAGIC, block, record
from tests.support.cli import TWO_GPUS
from tests.support.edited_meta import edited_meta
from tests.support.export_builder import Export, simple_run
from tests.support.sessions import BEGUN_NS, ENDED, run_of

Random = np.random.Generator

EXTREMES: Sequence[Any] = (
    *(0, 1, -1, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**40, 2**53 + 1, 2**62, 2**63 - 1, -(2**31), -(2**63)),
    *(None, 0.5, 1e300, "", "text", b"", b"\xff\xfe", "9" * 40),
)
HOSTILE = (
    *("=cmd|' /C calc'!A0", "@SUM(1+1)", "+1", "-1", "\t=1", "'=1", "\x1b[2J\x1b]0;owned\x07", "a\nb", "a\rb", "\0"),
    *("<script>alert(1)</script>", "</style><img src=x onerror=alert(1)>", "{{7*7}}", "%s%n", "../../etc/passwd"),
    *("\u202egnirts", "\ufeff", "x" * 100_000, "moe.layer.", "moe.layer.99999999999999999999", "moe.step", "é" * 300),
)
#: What a bomb unpacks to.
BOMB_BYTES = 48 << 20


def draw(seed: int, folder: Path) -> tuple[str, Path]:
    """Make a damaged input in a folder; return the kind of damage and the input."""
    random = np.random.default_rng(seed)
    name = list(KINDS)[seed % len(KINDS)]
    return name, KINDS[name](folder, random)


def good(folder: Path) -> Path:
    """An input without damage."""
    return _export(folder)


def _export(folder: Path) -> Path:
    export = Export()
    simple_run(export)
    export.add("META_DATA_CAPTURE", name="A", value="b")
    export.add("TARGET_INFO_GPU", id=0, name="a GPU")
    path = export.save(folder / "x.sqlite")
    with closing(sqlite3.connect(path)) as database, database:  # so that any value can be null
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
    return path


def _flip(data: bytearray, random: Random, *, last: int | None = None) -> None:
    """Change bytes: anywhere, or among the last ones."""
    for _ in range(random.integers(1, 9)):
        at = int(random.integers(len(data))) if last is None else len(data) - 1 - int(random.integers(last))
        data[at] = int(random.choice([0, 1, 127, 128, 255, int(random.integers(256))]))


def _sqlite_bytes(folder: Path, random: Random) -> Path:
    path = _export(folder)
    data = bytearray(path.read_bytes())
    if random.random() < 0.5:  # the head of a page, where SQLite keeps what it goes by
        for _ in range(random.integers(1, 5)):
            data[int(random.integers(len(data) // 4096)) * 4096 + int(random.integers(16))] = int(random.integers(256))
    else:
        _flip(data, random)
    path.write_bytes(data[: int(random.integers(len(data)))] if random.random() < 0.1 else data)
    return path


def _tables(database: sqlite3.Connection) -> list[str]:
    return [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]


def _sqlite_schema(folder: Path, random: Random) -> Path:
    path = _export(folder)
    with closing(sqlite3.connect(path)) as database, database:
        table = str(random.choice(_tables(database)))
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        column = str(random.choice(columns))
        retyped = ", ".join(f'CAST("{c}" AS {"TEXT" if c == column else "BLOB"}) AS "{c}"' for c in columns)
        ways = (
            [f"DROP TABLE {table}"],
            [f"ALTER TABLE {table} RENAME TO {table}_V2"],
            [f'ALTER TABLE {table} RENAME COLUMN "{column}" TO other'],
            [f"CREATE TABLE t AS SELECT {retyped} FROM {table}", f"DROP TABLE {table}",
             f"ALTER TABLE t RENAME TO {table}"],
            [f"DELETE FROM {table}"],
            [f"ALTER TABLE {table} RENAME TO t", f"CREATE VIEW {table} AS SELECT * FROM t"],
            [f'UPDATE {table} SET "{column}" = NULL'],
            [f'INSERT INTO {table} SELECT * FROM {table}'],
        )  # fmt: skip
        with suppress(sqlite3.Error):
            for statement in ways[random.integers(len(ways))]:
                database.execute(statement)
    return path


def _sqlite_values(folder: Path, random: Random) -> Path:
    path = _export(folder)
    with closing(sqlite3.connect(path)) as database, database:
        for _ in range(random.integers(1, 4)):
            table = str(random.choice(_tables(database)))
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            value = EXTREMES[int(random.integers(len(EXTREMES)))]
            rows = "TRUE" if random.random() < 0.3 else f"rowid = {random.integers(1, 20)}"
            with suppress(sqlite3.Error):
                database.execute(f'UPDATE {table} SET "{random.choice(columns)}" = ? WHERE {rows}', [value])
    return path


def _payloads(folder: Path, random: Random) -> Path:
    path = _export(folder)
    with closing(sqlite3.connect(path)) as database, database:
        found = database.execute("SELECT rowid, binaryData FROM NVTX_EVENTS WHERE binaryData IS NOT NULL").fetchall()
        for at in random.integers(len(found), size=random.integers(1, 4)).tolist():
            row, blob = found[at]
            data = bytearray(blob)
            how = random.integers(4)
            if how == 0:  # sizes that lie
                place = int(random.choice([0, 8, 16, 24, 32]))
                data[place : place + 8] = int(random.choice([0, 1, 2**16, 2**31, 2**63 - 1])).to_bytes(8, "little")
            elif how == 1:
                _flip(data, random)
            elif how == 2:
                data = data[: int(random.integers(len(data) + 1))]
            else:
                data = bytearray(bytes(data[:32]) + bytes(BOMB_BYTES // 8))
            database.execute("UPDATE NVTX_EVENTS SET binaryData = ? WHERE rowid = ?", [bytes(data), row])
    return path


def _schema_loops(folder: Path, random: Random) -> Path:
    path = _export(folder)
    with closing(sqlite3.connect(path)) as database, database:
        ids = [row[0] for row in database.execute("SELECT schemaId FROM NVTX_PAYLOAD_SCHEMAS")]
        for _ in range(random.integers(1, 30)):
            values = {
                "one": int(random.choice(ids)),
                "two": int(random.choice([*ids, 5, 7, 99])),
                "three": int(random.integers(3)),
            }
            statement = random.choice(
                [
                    "UPDATE NVTX_PAYLOAD_SCHEMA_ENTRIES SET type = :two WHERE schemaId = :one AND idx = :three",
                    "INSERT INTO NVTX_PAYLOAD_SCHEMA_ENTRIES (domainId, schemaId, idx, flags, type, name) "
                    "VALUES (1, :one, :three, 0, :two, 'f')",
                    "INSERT INTO NVTX_PAYLOAD_SCHEMAS (domainId, schemaId, type, payloadSize) "
                    "VALUES (1, :one, 1, :two % 64)",
                    "UPDATE NVTX_PAYLOAD_SCHEMA_ENTRIES SET flags = 16, arrayOrUnionDetail = :two % 4096 "
                    "WHERE schemaId = :one",
                ]
            )
            database.execute(str(statement), values)
    return path


def _names(folder: Path, random: Random) -> Path:
    path = _export(folder)
    with closing(sqlite3.connect(path)) as database, database:
        for _ in range(random.integers(1, 5)):
            text = HOSTILE[random.integers(len(HOSTILE))]
            table, column = [("StringIds", "value"), ("TARGET_INFO_GPU", "name"), ("META_DATA_EXPORT", "value")][
                random.integers(3)
            ]
            database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = {random.integers(1, 14)}", [text])
    return path


def _meta(folder: Path, random: Random) -> Path:
    def edit(meta: dict[str, Any]) -> None:
        for _ in range(random.integers(1, 4)):
            layers = meta.get("layers")
            inside = layers[0] if isinstance(layers, list) and layers and random.random() < 0.4 else meta
            within = inside if isinstance(inside, dict) else meta
            key = str(random.choice([*within, "ep_size", "dp_size", "clock", "capture", "eplb", "run_id", "recording"]))
            value = values[random.integers(len(values))]
            within[key] = repr(value) if isinstance(value, bytes) else value

    values = [*EXTREMES, *HOSTILE, [], {}, [[]], {"a": 1}, "\ud800", True]
    return edited_meta(_export(folder), folder / "edited.sqlite", edit)


def _beside(folder: Path, random: Random) -> Path:
    path = _export(folder)
    ending = str(random.choice(["-journal", "-wal", "-shm"]))
    path.with_name(path.name + ending).write_bytes(random.bytes(int(random.choice([0, 1, 32, 4096]))))
    if random.random() < 0.5:
        data = bytearray(path.read_bytes())
        data[18:20] = b"\x02\x02"  # in WAL mode
        path.write_bytes(data)
    return path


def _parquet_bytes(folder: Path, random: Random) -> Path:
    out = folder / "export"
    shutil.copytree(TWO_GPUS, out)
    file = sorted(out.glob("*.parquet"))[random.integers(len(list(out.glob("*.parquet"))))]
    data = bytearray(file.read_bytes())
    _flip(data, random, last=min(len(data), 2000) if random.random() < 0.5 else None)
    file.write_bytes(data[: int(random.integers(len(data)))] if random.random() < 0.1 else data)
    return out


def _parquet_columns(folder: Path, random: Random) -> Path:
    out = folder / "export"
    shutil.copytree(TWO_GPUS, out)
    files = sorted(out.glob("*.parquet"))
    file = files[random.integers(len(files))]
    table = pq.read_table(file)
    at = int(random.integers(table.num_columns))
    name, how = table.column_names[at], random.integers(6)
    number = max(1, len(table))
    if how == 0:
        file.unlink()
        return out
    if how == 1:
        table = table.drop_columns([name])
    elif how == 2:
        table = table.rename_columns([*table.column_names[:at], "other", *table.column_names[at + 1 :]])
    elif how == 3:
        values: Any = [["x"], [0.5], [b"\xff"], [None], [[1]], [True], [2**63 - 1], [-(2**63)]][random.integers(8)]
        table = table.set_column(at, name, pa.array(values * len(table)))
    elif how == 4:
        blob = pa.array([bytes(BOMB_BYTES // number // 4)] * len(table), pa.binary())
        table = table.set_column(at, name, blob.cast(pa.string(), safe=False))
    else:
        table = pa.concat_tables([table] * max(1, min(200, 400_000 // number)))
    pq.write_table(table, file, compression="zstd")
    return out


def _journal(folder: Path, blocks: Sequence[bytes]) -> Path:
    path = folder / "session" / "ranks" / "rank0-100.journal"
    path.parent.mkdir(parents=True)
    path.write_bytes(MAGIC + b"".join(blocks))
    return folder / "session"


def _whole() -> list[bytes]:
    end = json.dumps({**ENDED, "steps": 3}).encode()
    return [record(event, BEGUN_NS, payload) for event, payload in (*run_of(), ("end", end))]


def _journal_bytes(folder: Path, random: Random) -> Path:
    blocks = [block(b"".join(_whole()[at : at + 4])) for at in range(0, len(_whole()), 4)]
    how = random.integers(4)
    if how == 0:
        data = bytearray(b"".join(blocks))
        _flip(data, random)
        blocks = [bytes(data)]
    elif how == 1:
        blocks = [b"".join(blocks)[: int(random.integers(len(b"".join(blocks))))]]
    elif how == 2:
        blocks.insert(int(random.integers(len(blocks))), blocks[int(random.integers(len(blocks)))])
    else:
        del blocks[int(random.integers(len(blocks)))]
    return _journal(folder, blocks)


def _journal_records(folder: Path, random: Random) -> Path:
    """Whole blocks of damaged records."""
    records = [bytearray(one) for one in _whole()]
    for _ in range(random.integers(1, 5)):
        one = records[random.integers(len(records))]
        how = random.integers(3)
        if how == 0:
            one[0:4] = int(random.integers(len(EVENTS))).to_bytes(4, "little")
        elif how == 1:
            _flip(one, random)
        else:
            payload = bytes(one[16:]) + bytes(int(random.integers(64)))
            payload = payload[: int(random.integers(len(payload) + 1))]
            one[4:8] = len(payload).to_bytes(4, "little")
            one[16:] = payload
    return _journal(folder, [block(b"".join(records))])


def _journal_bomb(folder: Path, random: Random) -> Path:
    event = str(random.choice(EVENTS))
    size = int(random.choice([0, 20, 40, schema.STEP_DTYPE.itemsize, 65_560, BOMB_BYTES]))
    number = min(BOMB_BYTES // (size + 16), int(random.choice([1, 1000, 1_000_000]))) or 1
    bomb = record(event, BEGUN_NS, bytes(size)) * number
    return _journal(folder, [block(b"".join(_whole())), block(bomb)])


KINDS: Mapping[str, Callable[[Path, Random], Path]] = {
    "bytes of SQLite": _sqlite_bytes,
    "tables and columns": _sqlite_schema,
    "values": _sqlite_values,
    "payloads": _payloads,
    "schemas of payloads": _schema_loops,
    "names": _names,
    "moe.meta": _meta,
    "files beside": _beside,
    "bytes of Parquet": _parquet_bytes,
    "columns of Parquet": _parquet_columns,
    "bytes of a journal": _journal_bytes,
    "records of a journal": _journal_records,
    "a bomb": _journal_bomb,
}
