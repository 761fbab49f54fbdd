"""One file is written whole; what is at its name is judged first."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.files import check_file, whole_file, whole_folder


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.bin"
    with pytest.raises(FileNotFoundError), whole_file(out) as stage:
        stage.write_bytes(b"new")
    out.parent.mkdir()
    with whole_file(out) as stage:
        stage.write_bytes(b"new")
        assert not out.exists()
    assert out.read_bytes() == b"new"
    assert [path.name for path in out.parent.iterdir()] == ["out.bin"]


def test_a_file_that_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    out.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(out) as stage:
        stage.write_bytes(b"half")
        raise KeyboardInterrupt
    assert out.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_umask_holds(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with whole_file(tmp_path / "out") as stage:
            stage.write_bytes(b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_written_through(tmp_path: Path, there: bool) -> None:
    target, link = tmp_path / "other" / "target", tmp_path / "link"
    target.parent.mkdir()
    if there:
        target.write_bytes(b"old")
    link.symlink_to(Path("other") / "target")
    with whole_file(link) as stage:
        stage.write_bytes(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert not target.is_symlink()
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        check_file(tmp_path / "a")


@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, linked: bool) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    kinds = {tmp_path / "fifo": "a FIFO", tmp_path / "folder": "a folder", Path("/dev/null"): "a device"}
    for number, (path, kind) in enumerate(kinds.items()):
        before = path.stat()
        name = path
        if linked:
            name = tmp_path / f"link-{number}"
            name.symlink_to(path)
        with pytest.raises(NvtxmoeError, match=f"{kind}, where a file would be written"), whole_file(name) as stage:
            stage.write_bytes(b"new")
        after = path.stat()
        assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)


def test_a_folder_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), whole_folder(out) as stage:
        stage.mkdir()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with whole_folder(out) as stage:
        stage.mkdir()
        (stage / "1.parquet").write_text("new")
    with pytest.raises(OSError, match="not empty"), whole_folder(out) as stage:
        stage.mkdir()
    assert [path.name for path in out.iterdir()] == ["1.parquet"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
