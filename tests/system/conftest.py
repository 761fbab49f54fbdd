"""Runs of a real vLLM that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.vllm_forks import Forks
from tests.support.vllm_runs import RUNS, Runs
from tests.support.vllm_server import Served, serve


def runs_of(items: list[pytest.Item]) -> list[str]:
    """Names of the runs that tests look at, in the order of the tests."""
    marks = (mark for item in items for mark in item.iter_markers("vllm_runs"))
    return list(dict.fromkeys(name for mark in marks for name in mark.args))


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests whose runs happen under nsys; keep all tests with runs in one process, so that each happens once."""
    for item in items:
        names = runs_of([item])
        if any(RUNS[name].nsys for name in names):
            item.add_marker("nsys")
        if names:
            item.add_marker(pytest.mark.xdist_group("vllm"))


@pytest.fixture(scope="session")
def vllm_runs(
    forks: Forks, vllm_python: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    """Runs of a real vLLM by name. Those that the chosen tests' marks name begin in the order of the tests."""
    names = runs_of(request.session.items)
    nsys = request.getfixturevalue("nsys_path") if any(RUNS[name].nsys for name in names) else None
    runs = Runs(tmp_path_factory.mktemp("vllm"), vllm_python, nsys, forks, names)
    yield runs
    runs.close()


@pytest.fixture(scope="session")
def served(forks: Forks, prometheus_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A real vLLM server, begun once: its live metrics and its windows."""
    return serve(forks, prometheus_bin, tmp_path_factory.mktemp("served"))
