"""The script that draws charts: made once per user, and never taken from a file that is not whole."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import vl_convert

from nvtxmoe_analysis.report import vega
from tests.support.cli import files

VERSION = version("vl-convert-python")
SCRIPT = "made('größe')\r\n// \u2028 end\n"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows with each making of the script; the cache is a folder of its own."""
    calls: list[int] = []

    def make() -> str:
        calls.append(1)
        return SCRIPT

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vl_convert, "javascript_bundle", make)
    vega.bundle.cache_clear()
    yield calls
    vega.bundle.cache_clear()


def again() -> str:
    """What a later process gets."""
    vega.bundle.cache_clear()
    return vega.bundle()


def test_it_is_made_once(made: list[int], tmp_path: Path) -> None:
    assert vega.bundle() == again() == f"(() => {{\n{SCRIPT}\n}})();"
    assert len(made) == 1
    assert files(tmp_path) == {f"nvtxmoe/vega-{VERSION}.js"}


@pytest.mark.parametrize("content", [b"", b"made(", b"0" * 64 + b"\nmade()", b"\xff\xfe\n"])
def test_a_file_that_is_not_whole_is_made_anew(content: bytes, made: list[int], tmp_path: Path) -> None:
    first = vega.bundle()
    (file,) = (tmp_path / "nvtxmoe").iterdir()
    whole = file.read_bytes()
    for broken in (content, whole[:-1], whole + b" "):
        file.write_bytes(broken)
        assert again() == first
        assert file.read_bytes() == whole
    assert len(made) == 4


def test_another_version_is_another_file(made: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vega.bundle()
    monkeypatch.setattr(vega, "version", lambda name: "99")
    again()
    assert len(made) == 2 and len(files(tmp_path)) == 2


@pytest.mark.parametrize("cache", ["/dev/null", "folder"])
def test_nothing_can_be_kept(cache: str, made: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", cache if cache.startswith("/") else str(tmp_path))
    if cache == "folder":
        (tmp_path / "nvtxmoe" / f"vega-{VERSION}.js").mkdir(parents=True)
    assert vega.bundle() == again()
    assert len(made) == 2
    assert files(tmp_path) == set()


def test_the_real_one_defines_what_the_page_calls() -> None:
    assert "vegaEmbed" in vega.bundle()
