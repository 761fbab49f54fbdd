"""Exporting reports: which nsys runs, where the export is kept, and when it is used again."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.readers.nsys_export import export_report, find_nsys
from tests.support.nsys_stand_in import CUT_SHORT, WHOLE, StandIn, failure, make_report, tables

# Which nsys


def test_explicit_nsys_comes_first(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVTXMOE_NSYS", "/nonexistent")
    assert find_nsys(stand_in.path) == stand_in.path


def test_environment_comes_before_path(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVTXMOE_NSYS", str(stand_in.path))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_nsys() == stand_in.path


def test_path_comes_last(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVTXMOE_NSYS", raising=False)
    monkeypatch.setenv("PATH", str(stand_in.folder))
    assert find_nsys() == stand_in.path


def test_relative_nsys(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stand_in.folder)
    assert find_nsys(Path("nsys")) == stand_in.path


def test_no_nsys_says_both_ways_out(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVTXMOE_NSYS", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NvtxmoeError) as caught:
        find_nsys()
    assert str(caught.value) == (
        "no nsys was found, and a .nsys-rep can only be read by nsys. Install Nsight Systems here (or set "
        "NVTXMOE_NSYS to its nsys), or on the capture machine run `nsys export --type sqlite "
        "--include-blobs=true -o X.sqlite X.nsys-rep` and bring X.sqlite"
    )
    with pytest.raises(NvtxmoeError, match=r"run 1\.nsys-rep: no nsys was found"):
        export_report(report)


@pytest.mark.parametrize("by_environment", [False, True])
def test_named_nsys_is_missing(
    report: Path, tmp_path: Path, by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "no" / "nsys"
    monkeypatch.setenv("NVTXMOE_NSYS", str(missing))
    with pytest.raises(NvtxmoeError, match=f"cannot be run \\({missing}\\): no such file.*--nsys or NVTXMOE_NSYS"):
        export_report(report, nsys=None if by_environment else missing)


def test_named_nsys_is_not_executable(report: Path, stand_in: StandIn) -> None:
    stand_in.path.chmod(0o644)
    message = failure(report, stand_in.path)
    assert message.startswith(f"{report}: nsys cannot be run ({stand_in.path}): it is not executable. Give an nsys")


def test_named_nsys_is_of_another_machine(report: Path, stand_in: StandIn) -> None:
    stand_in.path.write_bytes(b"\x7fELF of some other machine")
    assert "Exec format error" in failure(report, stand_in.path)


# Where the export is kept, and when it is used again


def test_export_beside_the_report(report: Path, stand_in: StandIn) -> None:
    cache = export_report(report, nsys=stand_in.path)
    assert cache == report.parent / "run 1.nvtxmoe.sqlite"
    assert tables(cache) == {*WHOLE, "NVTXMOE_EXPORT"}
    (call,) = stand_in.exports()
    assert call[:5] == ["export", "--type", "sqlite", "--include-blobs=true", "-o"]
    assert Path(call[5]).parent.parent == report.parent
    assert call[6:] == [str(report)]
    assert sorted(p.name for p in report.parent.iterdir()) == ["run 1.nsys-rep", "run 1.nvtxmoe.sqlite"]


def test_older_nsys_is_not_asked_for_blobs(report: Path, stand_in: StandIn) -> None:
    stand_in.does(blobs=False)
    export_report(report, nsys=stand_in.path)
    assert stand_in.exports()[0][:4] == ["export", "--type", "sqlite", "-o"]


def test_cache_folder_holds_reports_of_one_name(tmp_path: Path, stand_in: StandIn) -> None:
    folder = tmp_path / "made" / "here"
    reports = [make_report(tmp_path / node / "report.nsys-rep", body=node.encode()) for node in ("a", "b")]
    caches = [export_report(report, cache_dir=folder, nsys=stand_in.path) for report in reports]
    assert len(set(caches)) == 2
    assert sorted(folder.iterdir()) == sorted(caches)
    assert [cache.name.split(".")[0] for cache in caches] == ["report", "report"]
    assert [export_report(report, cache_dir=folder, nsys=stand_in.path) for report in reports] == caches
    assert len(stand_in.exports()) == 2


def test_read_only_folder_uses_the_users_cache(
    report: Path, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_access = os.access  # root may write anywhere, so the answer is made up
    monkeypatch.setattr(os, "access", lambda path, mode: path != report.parent and real_access(path, mode))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    first = export_report(report, nsys=stand_in.path)
    assert first.parent == tmp_path / "xdg" / "nvtxmoe"
    assert export_report(report, nsys=stand_in.path) == first
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert export_report(report, nsys=stand_in.path).parent == tmp_path / "home" / ".cache" / "nvtxmoe"
    assert list(report.parent.iterdir()) == [report]


def test_read_only_folder_that_holds_an_export(
    report: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = export_report(report, nsys=stand_in.path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert export_report(report) == cache


def test_export_is_used_again_without_nsys(report: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = export_report(report, nsys=stand_in.path)
    before = cache.stat().st_mtime_ns
    monkeypatch.delenv("NVTXMOE_NSYS", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert export_report(report) == cache
    assert cache.stat().st_mtime_ns == before
    assert len(stand_in.exports()) == 1


def test_force_exports_again(report: Path, stand_in: StandIn) -> None:
    export_report(report, nsys=stand_in.path)
    export_report(report, nsys=stand_in.path, force=True)
    assert len(stand_in.exports()) == 2


def equal_time(report: Path, cache: Path) -> None:
    os.utime(report, ns=(cache.stat().st_mtime_ns, cache.stat().st_mtime_ns))


def newer(report: Path, cache: Path) -> None:
    os.utime(report, ns=(cache.stat().st_mtime_ns + 1, cache.stat().st_mtime_ns + 1))


def replaced(report: Path, cache: Path) -> None:
    make_report(report, body=b"EVENTS")


def truncated(report: Path, cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:-100])


def garbage(report: Path, cache: Path) -> None:
    cache.write_bytes(b"not a database" * 100)


def emptied(report: Path, cache: Path) -> None:
    cache.write_bytes(b"")


def damaged(report: Path, cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:100] + b"\xff" * (cache.stat().st_size - 100))


def of_someone_else(report: Path, cache: Path) -> None:
    with closing(sqlite3.connect(cache)) as database:
        database.execute("DROP TABLE NVTXMOE_EXPORT")


def without_events(report: Path, cache: Path) -> None:
    with closing(sqlite3.connect(cache)) as database:
        database.execute("DROP TABLE NVTX_EVENTS")


@pytest.mark.parametrize(
    "change",
    [equal_time, newer, replaced, truncated, garbage, emptied, damaged, of_someone_else, without_events],
    ids=lambda change: str(change.__name__),
)
def test_export_is_not_used_again(change: Callable[[Path, Path], None], report: Path, stand_in: StandIn) -> None:
    cache = export_report(report, nsys=stand_in.path)
    change(report, cache)
    assert export_report(report, nsys=stand_in.path) == cache
    assert len(stand_in.exports()) == 2
    assert tables(cache) == {*WHOLE, "NVTXMOE_EXPORT"}


def test_export_without_blobs_is_made_again_by_a_newer_nsys(
    report: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.does(blobs=False)
    cache = export_report(report, nsys=stand_in.path)
    assert export_report(report, nsys=stand_in.path) == cache
    monkeypatch.delenv("NVTXMOE_NSYS", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert export_report(report) == cache  # no nsys: what is kept is all there is
    assert len(stand_in.exports()) == 1
    stand_in.does(blobs=True)
    for _ in range(2):
        assert export_report(report, nsys=stand_in.path) == cache
    assert len(stand_in.exports()) == 2


def test_failed_export_leaves_the_older_one_and_says_so(report: Path, stand_in: StandIn) -> None:
    cache = export_report(report, nsys=stand_in.path)
    newer(report, cache)
    stand_in.does(status=1, tables=[], text=CUT_SHORT)
    failure(report, stand_in.path)
    assert tables(cache) == {*WHOLE, "NVTXMOE_EXPORT"}
