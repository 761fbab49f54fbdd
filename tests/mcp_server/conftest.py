"""Results that are given to the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mcp_client import results


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results that were given to the server."""
    return results(tmp_path_factory.mktemp("mcp") / "run", 1)


@pytest.fixture(scope="module")
def two(made: Path) -> list[Path]:
    """A folder with two results of equal shape, and no other."""
    results(made.parent / "deep" / "er" / "other", 2)
    return [made.parent]
