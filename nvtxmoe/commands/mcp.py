"""Serve results to an agent, read-only, over the Model Context Protocol."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from nvtxmoe.commands._common import PATH, command
from nvtxmoe.extras import require


@command("mcp", "nvtxmoe mcp results\nnvtxmoe mcp runs/before runs/after")
@click.argument("folders", metavar="DIR...", type=PATH, nargs=-1, required=True)
def mcp(folders: tuple[Path, ...]) -> None:
    """Serve results to an agent over standard input and output.

    DIR is a folder that `nvtxmoe analyze -o DIR` or `nvtxmoe merge` wrote, or a folder with several of them. An agent
    asks for findings, their evidence, rows of tables, the meaning of columns and the differences of two runs. The
    server writes nothing and reads nothing outside the folders. Needs the extra [mcp].
    """
    require("mcp")
    from nvtxmoe.mcp_server.server import make_server  # noqa: PLC0415  the SDK and polars only when it runs

    server = make_server(folders)
    if sys.stdin.isatty():
        click.echo("nvtxmoe mcp: an agent's program starts this and speaks to it. Ctrl-C ends it.", err=True)
    server.run("stdio")
