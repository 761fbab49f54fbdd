"""A compressed export is refused with the command that unpacks it."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import refused, run


@pytest.mark.parametrize(("pack", "command"), [(lzma.compress, "xz -dk"), (gzip.compress, "gzip -dk")])
def test_a_compressed_export(pack: Callable[[bytes], bytes], command: str, tmp_path: Path) -> None:
    file = tmp_path / "run.sqlite"
    file.write_bytes(pack(b"SQLite format 3\0" + bytes(200)))
    refused(run("analyze", file, "-o", tmp_path / "out"), f"a compressed file. Unpack it first: {command} {file}")
