"""A plugin of pytest that says which tools the chosen tests need; scripts/test.sh asks it before it sets anything up.

python -m pytest --collect-only -q -p tests.support.needed --needed FILE [options]
"""

from __future__ import annotations

from pathlib import Path

import pytest

#: Markers of tests that need something which a Python environment does not bring.
TOOLS = ("nsys", "vllm", "browser", "prometheus")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where to write the names."""
    parser.addoption("--needed", metavar="FILE", required=True, help="write the tools that the chosen tests need here")


@pytest.hookimpl(trylast=True)  # once -m, -k and others have selected
def pytest_collection_finish(session: pytest.Session) -> None:
    """Write a line per tool."""
    found = {mark.name for item in session.items for mark in item.iter_markers()}
    Path(session.config.getoption("--needed")).write_text("".join(f"{tool}\n" for tool in TOOLS if tool in found))
