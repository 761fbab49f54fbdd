"""File and folder names as people have them: SQLite files are opened through a URL, Parquet files through globs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.open import open_export
from tests.support.cli import RESULTS, TWO_GPUS, Ran, analyze, everything, refused, run
from tests.support.constructed_runs import simple

NAMES = [
    "two words",
    "  spaces  around  ",
    "hash#tag",
    "what?mode=rw",
    "100%",
    "50%25 %20 %zz",
    "it's",
    'a "quote"',
    "ünï-日本-🔥",
    "e\u0301 composed of two",
    "[brackets] [!x]",
    "star*",
    "a&b=c;d",
    "{braces} $HOME ~",
    "back\\slash",
    "line\nbreak",
    "rank=0",
    "file:x.sqlite?vfs=none",
    ":memory:",
    "-o",
]


KINDS = ["small", "large", "parquet"]


@dataclass(frozen=True)
class Captures:
    """One export read row by row, one above that, one of Parquet files; and what is written of each."""

    source: dict[str, Path]
    plain: dict[str, dict[str, bytes | None]]


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Captures:
    folder = tmp_path_factory.mktemp("captures")
    source = {
        "small": simple().save(folder / "small.sqlite"),
        "large": simple(steps=1200).save(folder / "large.sqlite"),
        "parquet": TWO_GPUS,
    }
    return Captures(source, {k: results(analyze(s, folder / k), folder / k) for k, s in source.items()})


def copied(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return target


def results(ran: Ran, output: Path) -> dict[str, bytes | None]:
    """What was written, but for the file that has the inputs' names."""
    assert (ran.code, ran.err) == (0, "")
    return {n: c for n, c in everything(output / RESULTS).items() if n != "moe_capture_validation.json"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_names(tmp_path: Path, captures: Captures, name: str) -> None:
    source = copied(captures.source["small"], tmp_path / "in" / name)
    output = tmp_path / "out" / name
    assert (
        results(analyze(source, output, "--json", "--sqlite", tmp_path / "db" / name), output)
        == captures.plain["small"]
    )
    assert [path.name for path in (tmp_path / "in").iterdir()] == [name]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert [path.name for path in (tmp_path / "db").iterdir()] == [name]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["large", "parquet"])
def test_names_of_what_is_read_in_another_way(tmp_path: Path, captures: Captures, kind: str, name: str) -> None:
    """Each table, and the payloads, which are read apart."""
    source = copied(captures.source[kind], tmp_path / "in" / name)
    plain, named = open_export(captures.source[kind]), open_export(source)
    for table in nsys_tables.ALL:
        assert_frame_equal(named.read(table), plain.read(table))
    assert_frame_equal(named.read_blobs([1]), plain.read_blobs([1]))
    assert not plain.read(nsys_tables.KERNEL).is_empty()
    assert [path.name for path in (tmp_path / "in").iterdir()] == [name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_relative_paths(tmp_path: Path, captures: Captures, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    copied(captures.source[kind], tmp_path / "in" / "capture")
    (tmp_path / "in" / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "in" / "deep")
    for source, output in (("../capture", "out"), ("./../../in/capture", "./a/../b"), ("../capture/../capture", "..")):
        if "/../" in source and kind != "parquet":
            continue  # the way leads through a file
        assert results(run("analyze", source, "-o", output), Path(output)) == captures.plain[kind]
    monkeypatch.chdir(tmp_path / "in")
    assert results(run("analyze", "-o", "-o", "--", "capture"), Path("-o")) == captures.plain[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_links(tmp_path: Path, captures: Captures, kind: str) -> None:
    link, second = tmp_path / "link #1", tmp_path / "link"
    link.symlink_to(captures.source[kind])
    second.symlink_to("link #1")
    assert results(analyze(second, tmp_path / "results"), tmp_path / "results") == captures.plain[kind]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "away").symlink_to(tmp_path / "elsewhere")
    assert results(analyze(link, tmp_path / "away"), tmp_path / "elsewhere") == captures.plain[kind]


def test_a_folder_with_a_slash_behind(tmp_path: Path, captures: Captures) -> None:
    ran = run("analyze", f"{TWO_GPUS}/", "-o", f"{tmp_path}/results/")
    assert results(ran, tmp_path / "results") == captures.plain["parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_may_only_be_read(tmp_path: Path, captures: Captures, kind: str) -> None:
    source = copied(captures.source[kind], tmp_path / "in" / "capture")
    members = [source, *source.iterdir()] if source.is_dir() else [source]
    before = everything(tmp_path / "in")
    times = {path: path.stat().st_mtime_ns for path in members}
    for path in (*members, source.parent):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        analyze(source, tmp_path / "results")
        assert everything(tmp_path / "in") == before
        assert {path: path.stat().st_mtime_ns for path in members} == times
    finally:
        for path in (source.parent, *members):
            path.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folders", [1, 14])
def test_long_paths(tmp_path: Path, captures: Captures, kind: str, folders: int) -> None:
    deep = tmp_path.joinpath(*["n" * 200] * folders)
    source = copied(captures.source[kind], deep / "capture")
    ran = run("analyze", source, "-o", deep)
    if folders == 1 or kind == "parquet":
        assert results(ran, deep) == captures.plain[kind]
    else:
        refused(ran, f"{source}: cannot be opened: unable to open database file. ", "SQLite takes paths of 512 bytes")
    shutil.rmtree(tmp_path / ("n" * 200))
