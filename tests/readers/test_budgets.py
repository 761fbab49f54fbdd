"""Small files that would fill any memory: refused in one line before they do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nvtxmoe.capture.sinks import journal as journal_sink
from nvtxmoe.formats import schema
from nvtxmoe.formats.journal import MAGIC, MOST_RAW_BYTES, block, record
from nvtxmoe_analysis.events import journal_budget
from nvtxmoe_analysis.facts import capture_facts
from nvtxmoe_analysis.ingest import task
from nvtxmoe_analysis.readers import parquet
from tests.support.cli import TWO_GPUS, Ran, refused, run
from tests.support.constructed_runs import simple
from tests.support.sessions import BEGUN_NS, Payload, counts, meta_of, run_of


def session(folder: Path, *more: list[Payload]) -> Path:
    """A little run, and a block each of further records."""
    path = folder / "session" / "ranks" / "rank0-100.journal"
    path.parent.mkdir(parents=True)
    blocks = [b"".join(record(event, BEGUN_NS, payload) for event, payload in payloads) for payloads in more]
    whole = b"".join(record(event, BEGUN_NS, payload) for event, payload in run_of())
    path.write_bytes(MAGIC + b"".join(map(block, [whole, *blocks])))
    return folder / "session"


def merged(folder: Path, *more: list[Payload]) -> Ran:
    return run("merge", session(folder, *more), "-o", folder / "results")


def test_what_capture_keeps_fits_a_block() -> None:
    """The reader refuses larger blocks; beside what is kept, the end record is written."""
    assert journal_sink.MOST_BYTES + (8 << 20) <= MOST_RAW_BYTES


def test_a_block_of_zeros(tmp_path: Path) -> None:
    zeros = ("topk", bytes(MOST_RAW_BYTES))
    refused(merged(tmp_path, [zeros]), "damaged journal at byte")


def test_a_long_text_of_metadata(tmp_path: Path) -> None:
    text = json.dumps({**meta_of(), "x": [[] for _ in range(journal_budget.MOST_META_BYTES // 4)]}).encode()
    assert len(text) > journal_budget.MOST_META_BYTES
    refused(merged(tmp_path, [("meta", text)]), "damaged payload: moe.meta of 8 MiB")


def test_more_than_a_file_of_that_size_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.zeros(200_000, schema.topk_dtype(2))
    rows["experts"] = [0, 1]
    rows["token"] = np.arange(len(rows))
    monkeypatch.setattr(journal_budget, "ALWAYS_BYTES", 1 << 20)
    ran = merged(tmp_path, [("topk", rows.tobytes())])
    assert "more than those of a real run. Merge its journals one by one" in refused(ran)
    real = np.random.default_rng(1)
    rows["weights"], rows["token"] = real.random((len(rows), 2)), real.permutation(len(rows))
    assert merged(tmp_path / "real", [("topk", rows.tobytes())]).code == 0


def test_records_without_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_budget, "ALWAYS_BYTES", 1 << 20)
    refused(merged(tmp_path, [("topk", b"")] * 10_000), "more than those of a real run")


def test_one_payload_far_wider_than_the_others(tmp_path: Path) -> None:
    many = [counts(number, 0, [1, 1, 1, 1]) for number in range(20_000)]
    refused(merged(tmp_path, [*many, counts(1, 1, [0] * 60_000)]), "one has 60,000 experts, far more than the other")


def test_more_experts_than_an_id_has_numbers(tmp_path: Path) -> None:
    refused(merged(tmp_path, [counts(1, 1, [0] * 70_000)]), "moe.counts of 70,000 experts")


def test_payloads_of_many_sizes(tmp_path: Path) -> None:
    many = [counts(0, 0, [0] * (1 + number)) for number in range(journal_budget.MOST_SIZES + 1)]
    refused(merged(tmp_path, many), "moe.counts has payloads of more than 1,024 sizes")


def test_samples_of_many_sizes_are_read(tmp_path: Path) -> None:
    """As many as there are numbers of tokens in a step."""
    rows = np.zeros(3000, schema.topk_dtype(2))
    rows["experts"], rows["token"] = [0, 1], np.arange(3000)
    assert merged(tmp_path, [("topk", rows[:number].tobytes()) for number in range(1, 1500)]).code == 0


def test_a_table_of_more_rows_than_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "export"
    shutil.copytree(TWO_GPUS, folder)
    file = folder / "CUPTI_ACTIVITY_KIND_RUNTIME.parquet"
    names = pq.read_schema(file).names
    rows = 2_000_000
    pq.write_table(pa.table({name: pa.array(np.ones(rows, np.int64)) for name in names}), file, compression="zstd")
    assert file.stat().st_size < rows
    monkeypatch.setattr(parquet, "ANY_ROWS", 1_000_000)
    refused(run("analyze", folder, "-o", tmp_path / "results"), f"damaged: {rows:,} rows in ")


def test_one_large_payload_in_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "export"
    shutil.copytree(TWO_GPUS, folder)
    file = folder / "NVTX_EVENTS.parquet"
    table = pq.read_table(file)
    blob = pa.array([bytes(1 << 16)] * len(table), pa.binary()).cast(pa.string(), safe=False)
    at = table.schema.get_field_index("binaryData")
    pq.write_table(table.set_column(at, "binaryData", blob), file, compression="zstd")
    monkeypatch.setattr(parquet, "ANY_BLOB_BYTES", 1 << 20)
    refused(run("analyze", folder, "-o", tmp_path / "results"), "bytes of payloads in")


@pytest.mark.parametrize(
    ("deep", "definitions", "said"),
    [(3000, 1, "schemas deep"), (6, 8, "defined in")],
)
def test_schemas_that_explode(tmp_path: Path, deep: int, definitions: int, said: str) -> None:
    """Nested, several definitions of each: their combinations multiply."""
    export = simple()
    first = 1 << 40
    for number in range(deep):
        for definition in range(definitions):
            ids = {"domainId": 1, "schemaId": first + number}
            export.add("NVTX_PAYLOAD_SCHEMAS", **ids, name="", type=1, numEntries=4)
            for index in range(4):
                kind = first + number + 1 if number + 1 < deep else 7 + definition % 2
                name = f"f{index}of{definition}"
                export.add("NVTX_PAYLOAD_SCHEMA_ENTRIES", **ids, idx=index, flags=0, type=kind, name=name)
    row = next(row for row in export.rows["NVTX_EVENTS"] if row.get("binaryData") and row["eventType"] == 34)
    row["binaryData"] = row["binaryData"][:8] + first.to_bytes(8, "little") + row["binaryData"][16:]
    path = export.save(tmp_path / "x.sqlite")
    refused(run("analyze", path, "-o", tmp_path / "results"), said)


@pytest.mark.parametrize("kind", ["sqlite", "parquet"])
def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is of two captures."""
    source = simple().save(tmp_path / "x.sqlite")
    other = tmp_path / "y.sqlite"
    shutil.copyfile(source, other)
    replaced = source
    if kind == "parquet":
        shutil.copytree(TWO_GPUS, source := tmp_path / "export")
        replaced = source / "StringIds.parquet"
        shutil.copyfile(replaced, other)
    real = capture_facts.read_capture

    def reads(*arguments: object) -> object:
        facts = real(*arguments)  # type: ignore[arg-type]
        other.replace(replaced)
        return facts

    monkeypatch.setattr(task, "read_capture", reads)
    refused(run("analyze", source, "-o", tmp_path / "results"), f"{source}: it changed while it was read. Run it again")
    assert not (tmp_path / "results" / "moe_expert_tracking").exists()
