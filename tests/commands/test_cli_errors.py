"""Bad input to `nvtxmoe analyze`: one line that says where, what and what to do; exit code 2; nothing written."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nvtxmoe_analysis.readers import nsys_tables
from tests.support.cli import PROC, RESULTS, TWO_GPUS, Ran, everything, files, refused, refuses, run, spawn
from tests.support.constructed_runs import simple
from tests.support.export_builder import Export, simple_run


def saved(folder: Path, name: str = "built.sqlite", **process: Any) -> Path:
    return simple(**process).save(folder / name)


def changed(path: Path, *statements: str) -> Path:
    """The SQLite file after some SQL."""
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return path


NO_EXPORT = {
    "empty.sqlite": (b"", "the file is empty. Expected a .nsys-rep, a SQLite export, or a folder of Parquet files"),
    "text.sqlite": (b"rank,step\n0,1\n", "not a SQLite database. Expected a .nsys-rep"),
    "magic.sqlite": (b"SQLite format 3\0", "truncated within the SQLite header. Copy or export it again"),
    "noise.sqlite": (b"SQLite format 3\0" + bytes(8176), "SQLite cannot read it: file is not a database"),
    "report.qdstrm": (b"QDSTRM", "an unfinished capture"),
    "zip.nsys": (b"PK\3\4" * 100, "not a SQLite database"),
}


@pytest.mark.parametrize("name", NO_EXPORT)
def test_what_is_no_export(tmp_path: Path, name: str) -> None:
    content, said = NO_EXPORT[name]
    (tmp_path / name).write_bytes(content)
    refuses(tmp_path / name, said)


def test_what_is_not_there(tmp_path: Path) -> None:
    remedy = "no such file or folder. Give a .nsys-rep, a SQLite export, or a folder of Parquet files"
    refuses(tmp_path / "nothing.sqlite", remedy)
    refuses(tmp_path / "nothing.nsys-rep", remedy)
    os.mkfifo(tmp_path / "pipe")
    refused(
        run("analyze", tmp_path / "pipe", "-o", tmp_path / "results"), "neither a file nor a folder. Give a .nsys-rep"
    )
    (tmp_path / "pipe").unlink()
    (tmp_path / "dangling").symlink_to(tmp_path / "away")
    refuses(tmp_path / "dangling", remedy)
    refuses(tmp_path / ("n" * 300), "cannot be read: File name too long")


def test_a_database_that_is_no_export(tmp_path: Path) -> None:
    path = changed(tmp_path / "shop.db", "CREATE TABLE customers (id)", "CREATE TABLE orders (id)")
    refuses(path, "not an Nsight Systems export", "(found customers, orders)", "`nsys export --type sqlite")
    path = changed(tmp_path / "bare.db", "CREATE TABLE t (id)", "DROP TABLE t")
    refuses(path, "not an Nsight Systems export", "(found no table)")


def test_without_nvtx(tmp_path: Path) -> None:
    path = changed(saved(tmp_path), "DROP TABLE NVTX_EVENTS")
    refuses(path, "no NVTX_EVENTS in it", "Capture again with `nsys profile -t cuda,nvtx`")


def test_without_our_domain(tmp_path: Path) -> None:
    renamed = "UPDATE StringIds SET value = 'NCCL' WHERE value = 'nvtxmoe'"
    path = changed(saved(tmp_path), renamed)
    refuses(path, "no events of the NVTX domain nvtxmoe (domains found: NCCL). Capture a program that ")
    export = simple()
    worker_tid = export.rows["NVTX_EVENTS"][0]["globalTid"]
    more = {"start": 0, "eventType": 75, "globalTid": worker_tid, "domainId": 9, "text": "CCCL"}
    export.add("NVTX_EVENTS", **more)
    refuses(changed(export.save(tmp_path / "two.sqlite"), renamed), "(domains found: CCCL, NCCL)")
    path = changed(saved(tmp_path, "none.sqlite"), "DELETE FROM NVTX_EVENTS WHERE eventType = 75")
    refuses(path, "(no NVTX domain at all)")


@pytest.mark.parametrize(
    "table", [nsys_tables.NVTX, nsys_tables.KERNEL, nsys_tables.MEMCPY, nsys_tables.RUNTIME, nsys_tables.GRAPH_NODES]
)
def test_a_table_without_a_column(tmp_path: Path, table: nsys_tables.Table) -> None:
    export = Export()
    worker = simple_run(export)
    with worker.step(9):
        worker.memcpy()
    worker.create_node(1)
    whole = export.save(tmp_path / "whole.sqlite")
    unused = {"deviceId", "streamId", "bytes"} | ({"end"} if table == nsys_tables.RUNTIME else set())
    for column in set(table.columns) - unused:
        path = tmp_path / f"{column}.sqlite"
        shutil.copy(whole, path)
        changed(path, f'ALTER TABLE {table.name} DROP COLUMN "{column}"')
        line = refuses(path, f"table {table.name} lacks the column {column} (it has ")
        assert "Is it an Nsight Systems export of version 2023.4 or newer?" in line
        path.unlink()


def test_a_folder_without_parquet(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    refuses(folder, "a folder with neither reports nor Parquet files. Give the folder that `nsys export --type")
    (folder / "notes.txt").write_text("x")
    refuses(folder, "a folder with neither reports nor Parquet files")
    pl.DataFrame({"a": [1]}).write_parquet(folder / "trips.parquet")
    refuses(folder, "not an Nsight Systems export", "(found trips)")


@pytest.mark.parametrize("table", ["NVTX_EVENTS", "CUPTI_ACTIVITY_KIND_KERNEL", "StringIds"])
def test_damaged_parquet(tmp_path: Path, table: str) -> None:
    folder = tmp_path / "capture"
    shutil.copytree(TWO_GPUS, folder)
    file = folder / f"{table}.parquet"
    content = file.read_bytes()
    remedy = "Export the report again, or copy it again"
    for damaged in (b"", b"PAR1", b"no Parquet", content[: len(content) // 2], content[:-1], content + b"x"):
        file.write_bytes(damaged)
        refuses(folder, file, "Parquet cannot be read: ", remedy)
    file.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
    refuses(folder, file, "Parquet cannot be read: ", remedy)


@pytest.mark.parametrize("column", ["start", "domainId", "globalTid"])
def test_parquet_without_a_column(tmp_path: Path, column: str) -> None:
    folder = tmp_path / "capture"
    shutil.copytree(TWO_GPUS, folder)
    file = folder / "NVTX_EVENTS.parquet"
    pl.read_parquet(file, columns=["start", "end", "eventType", "text", "globalTid", "textId", "domainId"]).drop(
        column
    ).write_parquet(file)
    refuses(folder, f"table NVTX_EVENTS lacks the column {column} (it has ")


def test_the_same_rank_twice(tmp_path: Path) -> None:
    first = saved(tmp_path, "a.sqlite", pid=11, world_size=2)
    second = saved(tmp_path, "b.sqlite", pid=22, world_size=2)
    before = everything(tmp_path)
    ran = run("analyze", first, second, "-o", tmp_path / "results")
    refused(
        ran,
        f"two processes say they are rank 0: {first} (process 11) and {second} (process 22)",
        "Give each rank's report once, and reports of one run only",
    )
    ran = run("analyze", first, first, "-o", tmp_path / "results")
    refused(ran, f"{first}: given twice. Name each report once")
    link = tmp_path / "c.sqlite"
    link.symlink_to(first)
    refused(run("analyze", first, link, "-o", tmp_path / "results"), f"{link}: given twice, as {first} too")
    link.unlink()
    copy = Path(shutil.copy(first, link))
    refused(run("analyze", first, copy, "-o", tmp_path / "results"), "(are they copies of one report?)")
    copy.unlink()
    assert everything(tmp_path) == before


def test_the_same_rank_twice_without_meta(tmp_path: Path) -> None:
    paths = [
        changed(saved(tmp_path, f"{name}.sqlite"), "UPDATE NVTX_EVENTS SET binaryData = NULL WHERE eventType = 59")
        for name in "ab"
    ]
    for path in paths:
        changed(path, "DELETE FROM NVTX_EVENTS WHERE textId = (SELECT id FROM StringIds WHERE value = 'moe.meta')")
    refused(run("analyze", *paths, "-o", tmp_path / "results"), "two processes say they are rank 0", *paths)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "3"], "--steps: '3' is no range; write A:B, A: or :B"),
        (["--steps", ":"], "--steps: ':' is no range"),
        (["--steps", "-1:2"], "--steps: '-1:2' is no range"),
        (["--steps", "5:4"], "--steps: '5:4' ends before it begins"),
        (["--steps", f"{'9' * 5000}:"], "is no range"),
        (["--layers", ""], "--layers: '' is no number or range; write 0,3,8-11"),
        (["--layers", "1,,2"], "--layers: '' is no number or range"),
        (["--layers", "all"], "--layers: 'all' is no number or range"),
        (["--layers", "4-2"], "--layers: '4-2' ends before it begins"),
        (["--layers", "0-999999999999999"], "--layers: '0-999999999999999' are more than 100,000 numbers"),
        (["--ranks", "a"], "--ranks: 'a' is no number or range"),
        (["--ranks", "1-2-3"], "--ranks: '1-2-3' is no number or range"),
        (["--skip-first", "-1"], "'--skip-first': -1 is not in the range"),
        (["--skip-first", "x"], "'--skip-first': 'x' is not a valid integer"),
        (["--only", "both"], "'--only': 'both' is not one of 'prefill', 'decode', 'mixed'"),
        (["--format", "xlsx"], "'--format': 'xlsx' is not one of 'csv', 'parquet'"),
        (["--stepz", "1:2"], "No such option"),
    ],
)
def test_bad_options(tmp_path: Path, options: list[str], said: str) -> None:
    ran = run("analyze", saved(tmp_path), "-o", tmp_path / "results", *options)
    refused(ran, said, "See `nvtxmoe analyze --help`")
    assert files(tmp_path) == {"built.sqlite"}


def test_missing_arguments() -> None:
    refused(run("analyze"), "Missing argument 'INPUT...'. See `nvtxmoe analyze --help`")
    refused(run("analyze", "-o", "x"), "Missing argument 'INPUT...'")
    refused(run("analyze", "x.sqlite"), "Missing option '-o' / '--output'")
    refused(run("analyse"), "No such command 'analyse'. Did you mean analyze? See `nvtxmoe --help`")
    refused(run("prolife"), "No such command 'prolife'. Did you mean profile? See `nvtxmoe --help`")
    refused(run("zzz"), "No such command 'zzz'. See `nvtxmoe --help`")
    refused(run("demo", "x"), "unexpected extra argument (x)")


def test_paths_that_are_not_utf8(tmp_path: Path) -> None:
    name = tmp_path / b"caf\xe9.sqlite".decode("utf-8", "surrogateescape")
    refused(run("analyze", name, "-o", tmp_path / "results"), r"caf\udce9.sqlite' is not UTF-8; rename the file")
    ran = spawn("analyze", saved(tmp_path), "-o", name)
    refused(ran, r"caf\udce9.sqlite' is not UTF-8")


@pytest.mark.parametrize("place", ["a file", "below a file", "/proc", "a long name"])
def test_output_that_cannot_be_made(tmp_path: Path, place: str) -> None:
    source = saved(tmp_path)
    (tmp_path / "file").write_text("mine")
    output, said = {
        "a file": (tmp_path / "file", "Not a directory"),
        "below a file": (tmp_path / "file" / "deep" / "results", "Not a directory"),
        "/proc": (Path("/proc/nvtxmoe"), PROC),
        "a long name": (tmp_path / ("n" * 300), "File name too long"),
    }[place]
    before = everything(tmp_path)
    remedy = "Choose another folder with -o, or make room"
    refused(run("analyze", source, "-o", output), f"cannot write the results: {said}. {remedy}")
    assert everything(tmp_path) == before


def test_output_is_looked_at_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    ran = run("analyze", tmp_path / "missing.sqlite", "-o", tmp_path / "file")
    refused(ran, f"{tmp_path / 'file'}: cannot write the results")
    ran = run("analyze", tmp_path / "missing.sqlite", "-o", tmp_path / "results", "--sqlite", tmp_path / "file")
    refused(ran, f"{tmp_path / 'file'}: is there already and was not written by nvtxmoe")


def test_a_folder_nobody_may_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, to whom no folder is read-only.
    monkeypatch.setattr("os.access", lambda *_: False)
    refused(run("analyze", saved(tmp_path), "-o", tmp_path), f"{tmp_path}: cannot write the results: Permission denied")


@pytest.mark.parametrize("reads", ["nvtxmoe_analysis.readers.sqlite.check_whole", "pathlib.Path.is_dir"])
def test_a_file_nobody_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: str) -> None:
    source = saved(tmp_path)

    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(source))

    monkeypatch.setattr(reads, denied)
    ran = run("inspect" if "is_dir" in reads else "analyze", source, *([] if "is_dir" in reads else ["-o", tmp_path]))
    refused(ran, f"{source}: cannot be read: Permission denied")


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    source = saved(tmp_path, steps=200)
    before = everything(tmp_path)

    def limited(*options: object) -> Ran:
        def no_file_above_4_kb() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

        ran = spawn(
            "analyze", source, "-o", tmp_path / "results", *options,
            preexec_fn=no_file_above_4_kb, env={"PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        assert files(tmp_path) == set(before)
        return ran

    remedy = "Choose another folder with -o, or make room"
    where = tmp_path / "results" / RESULTS
    refused(limited(), f"{where}: cannot write the results: File too large", remedy)
    refused(limited("--format", "parquet"), f"{where}: cannot write the results: ", "File too large", remedy)
    database = tmp_path / "results.db"
    ran = limited("--sqlite", database)
    refused(ran, f"{database}: cannot write the database: ", "Choose another name for --sqlite, or make room")
