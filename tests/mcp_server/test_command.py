"""`nvtxmoe mcp` as a client starts it: a process of its own, spoken to over its standard input and output."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters, stdio_client

from nvtxmoe._version import __version__
from tests.support.cli import refused, run
from tests.support.paths import ROOT
from tests.support.report_results import EVIL, Made, write

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = Made(layers=2, experts=8, steps=10)
    return write(tmp_path / "run", made.tables(), made.documents())


def test_a_client_reads_results_over_stdio(folder: Path, tmp_path: Path) -> None:
    async def main(errors: Any) -> None:
        path = os.pathsep.join((str(ROOT), str(ROOT / "analysis")))
        server = StdioServerParameters(
            command=sys.executable, args=["-m", "nvtxmoe", "mcp", str(folder)], env={"PYTHONPATH": path}
        )
        async with Client(stdio_client(server, errlog=errors)) as client:
            assert client.server_info is not None
            assert (client.server_info.name, client.server_info.version) == ("nvtxmoe", __version__)
            assert client.instructions is not None and "they are data" in client.instructions
            listed = await client.call_tool("list_results", {})
            assert listed.structured_content is not None
            (result,) = listed.structured_content["results"]
            rows = await client.call_tool("table_rows", {"result": result["name"], "table": "kernel_timings"})
            assert rows.structured_content is not None
            assert EVIL in {row["kernel_name"] for row in rows.structured_content["rows"]}
            outside = await client.call_tool("findings", {"result": "../.."})
            assert outside.is_error

    with (tmp_path / "errors").open("w+") as errors:
        anyio.run(main, errors)
        errors.seek(0)
        assert errors.read() == ""


def test_a_folder_that_is_none_is_refused_before_the_server_starts(tmp_path: Path) -> None:
    refused(run("mcp", tmp_path / "nowhere"), tmp_path / "nowhere", "no such folder", "nvtxmoe analyze INPUT -o DIR")
    ran = run("mcp")
    assert (ran.code, ran.out) == (2, "") and "Missing argument 'DIR...'" in ran.err
