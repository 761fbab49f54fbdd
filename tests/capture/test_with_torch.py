"""Runs tests/with_torch, which needs torch, with the Python of vLLM's environment: all modules in one process."""

from __future__ import annotations

import os
from xml.etree import ElementTree

import pytest

from tests.support.paths import ROOT
from tests.support.vllm_forks import Forks

MODULES = sorted(file.stem for file in (ROOT / "tests" / "with_torch").glob("test_*.py"))
NOT_PASSED = {"failure", "error", "skipped"}


@pytest.fixture(scope="module")
def outcomes(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """By module, a line per test: nothing where it passed, else what came of it."""
    folder = tmp_path_factory.mktemp("with_torch")
    report = folder / "report.xml"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("NVTXMOE", "PYTEST_"))}
    env["PYTHONPATH"] = str(ROOT)
    call = ["pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "tests/with_torch"]
    (code,), said = forks.call(folder, env, [call], ROOT)
    assert code in (0, 1), said
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        module = next(part for part in case.attrib["classname"].split(".") if part.startswith("test_"))
        bad = [f"{case.attrib['name']}: {part.tag}\n{part.text}" for part in case if part.tag in NOT_PASSED]
        found.setdefault(module, []).append("\n".join(bad))
    assert code == int(any(map(any, found.values()))), said
    return found


@pytest.mark.xdist_group("vllm")
@pytest.mark.parametrize("module", MODULES)
def test_module(module: str, outcomes: dict[str, list[str]]) -> None:
    assert outcomes[module] == [""] * len(outcomes[module])


def test_there_are_some() -> None:
    assert {"test_recorder", "test_graphs", "test_profiler"} <= set(MODULES)
