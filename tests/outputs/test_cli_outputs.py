"""Writing results: whole or not at all, our own files together, the files of others never."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nvtxmoe import cli
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.outputs.read import load
from nvtxmoe_analysis.outputs.write import as_text, write_set
from tests.support.cli import PROC, RESULTS, TWO_GPUS, analyze, everything, everything_but_its_path, files, refused, run
from tests.support.constructed_runs import simple
from tests.support.written_results import DOCUMENTS, PARQUET_ONLY, TABLES, file_set

CSV, PARQUET = file_set("csv"), file_set("parquet")


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    """Two exports whose results differ in every file."""
    (tmp_path / "in").mkdir()
    old = simple(steps=2).save(tmp_path / "in" / "old.sqlite")
    return old, simple(steps=5, experts=6, layers=3).save(tmp_path / "in" / "new.sqlite")


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    return {stem: pl.read_parquet(folder / RESULTS / f"{stem}.parquet") for stem in TABLES}


# Formats -------------------------------------------------------------------------------------------------------------


def test_both_formats_say_the_same(tmp_path: Path) -> None:
    for name, formats in (("csv", []), ("parquet", ["parquet"]), ("both", ["parquet", "csv", "csv"])):
        analyze(TWO_GPUS, tmp_path / name, *(part for one in formats for part in ("--format", one)))
    folders = {name: tmp_path / name / RESULTS for name in ("csv", "parquet", "both")}
    assert files(folders["csv"]) == CSV
    assert files(folders["parquet"]) == PARQUET
    assert files(folders["both"]) == CSV | PARQUET
    for name in CSV - {"moe_capture_validation.json"}:
        assert (folders["csv"] / name).read_bytes() == (folders["both"] / name).read_bytes()
    for stem in PARQUET_ONLY:
        assert len(pl.read_parquet(folders["csv"] / f"{stem}.parquet")) > 0
    for stem, table in tables(tmp_path / "parquet").items():
        assert table.equals(pl.read_parquet(folders["both"] / f"{stem}.parquet"))
        text = pl.read_csv(folders["csv"] / f"{stem}.csv", infer_schema=False)
        assert len(text) > 0 or stem == "moe_cross_layer_paths"  # gates of random numbers have none
        assert text.equals(as_text(table).cast(pl.String)), stem


def test_another_format_replaces_the_first(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    old, new = sources
    output = tmp_path / "results"
    analyze(old, output, "--format", "csv", "--format", "parquet")
    analyze(new, output, "--format", "parquet")
    assert files(output / RESULTS) == PARQUET
    analyze(new, tmp_path / "fresh", "--format", "parquet")
    assert everything_but_its_path(output) == everything_but_its_path(tmp_path / "fresh")
    analyze(old, output)
    assert files(output / RESULTS) == CSV


# Folders that are there already ---------------------------------------------------------------------------------------


def test_files_of_others_stay(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    old, new = sources
    output = tmp_path / "results"
    foreign = {
        "notes.txt": b"mine\r\n",
        f"{RESULTS}/moe_other.csv": b"layer_idx\n",
        f"{RESULTS}/moe_summary.json.bak": b"{}",
        f"{RESULTS}/sub/moe_summary.json": b"\x00\xff",
    }
    for name, content in foreign.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(content)
    analyze(old, output)
    analyze(new, output)
    analyze(new, tmp_path / "fresh")
    found = everything(output)
    assert {name: found[name] for name in foreign} == foreign
    ours = {f"{RESULTS}/{name}" for name in CSV}
    assert set(found) == ours | set(foreign) | {RESULTS, f"{RESULTS}/sub", "findings.json"}
    fresh = everything(tmp_path / "fresh")
    assert {name: found[name] for name in ours} == {name: fresh[name] for name in ours}


def test_links_are_replaced_and_what_they_name_stays(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    folder = tmp_path / "results" / RESULTS
    folder.mkdir(parents=True)
    (tmp_path / "precious").write_text("mine")
    (folder / "moe_summary.json").symlink_to(tmp_path / "precious")
    (folder / "moe_kernel_timings.csv").symlink_to(tmp_path / "nowhere")
    analyze(sources[0], tmp_path / "results")
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert not (folder / "moe_summary.json").is_symlink()
    assert files(folder) == CSV


# Failing half-way ----------------------------------------------------------------------------------------------------

Fail = Callable[[int, Callable[[], Any]], Any]


def patched(monkeypatch: pytest.MonkeyPatch, fail: Fail) -> list[int]:
    """Let ``fail`` decide what each call of Path.replace does; returns where their number is counted."""
    replace = Path.replace
    calls = [0]

    def counted(self: Path, target: Path) -> Any:
        calls[0] += 1
        return fail(calls[0], lambda: replace(self, target))

    monkeypatch.setattr(Path, "replace", counted)
    return calls


def full(call: Callable[[], Any]) -> Any:
    raise OSError(28, "No space left on device")


def interrupt(call: Callable[[], Any]) -> Any:
    raise KeyboardInterrupt


def interrupt_after(call: Callable[[], Any]) -> Any:
    call()
    raise KeyboardInterrupt


def small_set(number: int) -> tuple[dict[str, pl.DataFrame], dict[str, Any]]:
    """Tables and documents under the names of ours."""
    documents = {stem: {"number": number} for stem in DOCUMENTS}
    return {stem: pl.DataFrame({"number": [number]}) for stem in (*TABLES, *PARQUET_ONLY)}, documents


@pytest.mark.parametrize("how", [full, interrupt, interrupt_after])
@pytest.mark.parametrize("earlier", [("csv",), ("csv", "parquet"), ()])
def test_the_old_set_is_restored(
    tmp_path: Path, how: Callable[[Callable[[], Any]], Any], earlier: tuple[str, ...]
) -> None:
    if earlier:
        write_set(tmp_path, *small_set(1), earlier, parquet_only=PARQUET_ONLY)
    before = everything(tmp_path)
    number = len(CSV) + len(before)  # every new file is placed, every old one moved
    for at in range(1, number + 1):
        with pytest.MonkeyPatch.context() as monkeypatch:
            patched(monkeypatch, lambda n, call, at=at: how(call) if n == at else call())  # type: ignore[misc]
            with pytest.raises(NvtxmoeError if how is full else KeyboardInterrupt):
                write_set(tmp_path, *small_set(2), parquet_only=PARQUET_ONLY)
        assert everything(tmp_path) == before, at
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = patched(monkeypatch, lambda n, call: call())
        write_set(tmp_path, *small_set(2), parquet_only=PARQUET_ONLY)
    assert calls[0] == number
    assert files(tmp_path) == CSV
    assert (tmp_path / "moe_layer_timings.csv").read_text() == "number\n2\n"


@pytest.mark.parametrize("at", [1, 14])
@pytest.mark.parametrize("how", [full, interrupt])
def test_the_command_restores_the_old_set(
    tmp_path: Path, sources: tuple[Path, Path], how: Callable[[Callable[[], Any]], Any], at: int
) -> None:
    old, new = sources
    analyze(old, tmp_path / "results")
    before = everything(tmp_path)
    with pytest.MonkeyPatch.context() as monkeypatch:
        patched(monkeypatch, lambda n, call: how(call) if n == at else call())
        ran = run("analyze", new, "-o", tmp_path / "results")
    if how is full:
        refused(ran, "cannot write the results: No space left on device", "Choose another folder with -o")
    else:
        assert (ran.code, ran.out, ran.err) == (cli.INTERRUPTED, "", "\nnvtxmoe: interrupted\n")
    assert everything(tmp_path) == before


def test_what_cannot_be_put_back_is_finished_by_the_next_reader(
    tmp_path: Path, sources: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = sources
    output = tmp_path / "results"
    analyze(old, output)
    patched(monkeypatch, lambda n, call: call() if n <= len(CSV) + 3 else full(call))
    ran = run("analyze", new, "-o", output)
    refused(ran, "cannot replace the files: No space left on device; the earlier ones could not be put back: ")
    monkeypatch.undo()
    load(output)
    analyze(new, tmp_path / "alone")
    assert everything(output / RESULTS).keys() == everything(tmp_path / "alone" / RESULTS).keys()
    for stem in TABLES:
        name = f"{stem}.csv"
        assert (output / RESULTS / name).read_bytes() == (tmp_path / "alone" / RESULTS / name).read_bytes()


def test_an_interrupt_while_files_are_written(
    tmp_path: Path, sources: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = sources
    output = tmp_path / "results"
    analyze(old, output)
    before = everything(output)
    write = pl.DataFrame.write_csv

    def interrupted(self: pl.DataFrame, *arguments: Any, **more: Any) -> Any:
        if self.columns[:2] == ["layer_idx", "expert_id"]:
            os.kill(os.getpid(), signal.SIGINT)
        return write(self, *arguments, **more)

    monkeypatch.setattr(pl.DataFrame, "write_csv", interrupted)
    ran = run("analyze", new, "-o", output)
    assert (ran.code, ran.out, ran.err) == (cli.INTERRUPTED, "", "\nnvtxmoe: interrupted\n")
    assert everything(output) == before


# --sqlite ------------------------------------------------------------------------------------------------------------


def stored(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    connection = sqlite3.connect(path)
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    rows = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}
    connection.close()
    return rows


def test_the_tables_in_a_database(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    old, new = sources
    database = tmp_path / "deep" / "results.db"
    ran = analyze(old, tmp_path / "results", "--format", "parquet", "--sqlite", database)
    assert f"\n  {database}\n" in ran.out
    assert stored(database) == {stem: table.rows() for stem, table in tables(tmp_path / "results").items()}
    ours = database.read_bytes()
    analyze(new, tmp_path / "results", "--format", "parquet", "--sqlite", database)
    assert database.read_bytes() != ours
    assert stored(database) == {stem: table.rows() for stem, table in tables(tmp_path / "results").items()}
    assert {path.name for path in database.parent.iterdir()} == {"results.db"}


def test_a_database_of_others_is_refused(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    foreign = tmp_path / "foreign.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE moe_layer_timings (a)")
    connection.execute("CREATE TABLE orders (a)")
    connection.close()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    before = everything(tmp_path)
    for path in (foreign, tmp_path / "notes.txt", tmp_path / "folder", sources[0]):
        ran = run("analyze", sources[0], "-o", tmp_path / "results", "--sqlite", path)
        remedy = "Choose another name for --sqlite"
        refused(ran, f"{path}: is there already and was not written by nvtxmoe. {remedy}")
        assert everything(tmp_path) == before


def test_a_database_that_cannot_be_written(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    old, new = sources
    output = tmp_path / "results"
    analyze(old, output)
    before = everything(tmp_path)
    for path, said in ((Path("/proc/nvtxmoe.db"), PROC), (old / "x.db", "Not a directory")):
        ran = run("analyze", new, "-o", output, "--sqlite", path)
        refused(ran, f"{path}: cannot write the database: {said}. Choose another name for --sqlite, or make room")
        assert everything(tmp_path) == before


def test_database_and_files_are_replaced_together(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    old, new = sources
    output, database = tmp_path / "results", tmp_path / "results.db"
    analyze(old, output, "--sqlite", database)
    before = everything(tmp_path)
    with pytest.MonkeyPatch.context() as monkeypatch:
        patched(monkeypatch, lambda n, call: full(call) if n == 12 else call())
        refused(run("analyze", new, "-o", output, "--sqlite", database), "cannot write the results")
    assert everything(tmp_path) == before
