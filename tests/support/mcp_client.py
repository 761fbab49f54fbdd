"""Questions to a server of the Model Context Protocol through the SDK's own client, and results to ask about."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import polars as pl
from mcp import Client
from mcp.types import CallToolResult, TextContent

from nvtxmoe.mcp_server.bounds import MOST_BYTES
from nvtxmoe.mcp_server.server import make_server
from nvtxmoe_analysis.outputs.spec import COUNTS, FOLDER
from tests.support.report_results import Made, write


def talk(folders: list[Path], conversation: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
    """What a conversation with a server over these folders returns."""

    async def main() -> Any:
        async with Client(make_server(folders)) as client:
            return await conversation(client)

    return anyio.run(main)


def called(folders: list[Path], tool: str, **arguments: Any) -> CallToolResult:
    """What a tool answers."""
    answer: CallToolResult = talk(folders, lambda client: client.call_tool(tool, arguments))
    return answer


def text_of(answer: CallToolResult) -> str:
    """The text of an answer, which is within the bound."""
    (content,) = answer.content
    assert isinstance(content, TextContent)
    assert len(content.text.encode()) <= MOST_BYTES
    return content.text


def value(folders: list[Path], tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured content of a good answer, which its text repeats."""
    answer = called(folders, tool, **arguments)
    assert not answer.is_error, text_of(answer)
    assert json.loads(text_of(answer)) == answer.structured_content
    return dict(answer.structured_content or {})


def refusal(folders: list[Path], tool: str, **arguments: Any) -> str:
    """The line of an answer that is an error."""
    answer = called(folders, tool, **arguments)
    assert answer.is_error and answer.structured_content is None
    return text_of(answer)


def results(folder: Path, seed: int) -> Path:
    """Results of more than a page, with hostile names and counts per step; the seed draws the counts."""
    run_made = Made(layers=6, experts=16, steps=40)
    random = np.random.default_rng(seed)
    cells = [(rank, step, layer) for rank in range(2) for step in range(40) for layer in range(6)]
    frame = pl.DataFrame(cells, schema=["rank", "step", "layer_idx"], orient="row").with_columns(
        num_tokens=pl.lit(16, pl.Int64),
        counts=pl.Series([random.multinomial(64, np.full(16, 1 / 16)).tolist() for _ in cells], dtype=COUNTS),
    )
    write(folder, run_made.tables(), run_made.documents())
    frame.write_parquet(folder / FOLDER / "moe_step_activations.parquet")
    return folder
