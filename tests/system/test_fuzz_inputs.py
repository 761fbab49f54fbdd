"""Damaged inputs of every kind over earlier results: new results, or one line and the earlier ones untouched.

`scripts/fuzz_inputs.py` draws thousands, each in a process whose time and memory are measured.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest

from tests.support.cli import RESULTS, everything, files, refused, run
from tests.support.input_damage import KINDS, draw, good

pytestmark = pytest.mark.slow

#: Draws in CI: some of each kind.
DRAWS = 3 * len(KINDS)
#: Draws that ended otherwise once: 17, a capture none of whose steps is like another (a comparison with null); 406, a
#: step of less than 0 tokens (a logarithm of it); 841, a reason of thousands of escaped characters.
FOUND = (17, 406, 841)


def check(seed: int, folder: Path) -> int:
    """Analyse one draw into a folder that holds results; return the exit code."""
    kind, source = draw(seed, folder)
    out = folder.parent / "results"
    before = everything(out)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ran = run("analyze", source, "-o", out, "--report", "--json")
    if ran.code == 0:
        assert ran.json["verdict"] in ("complete", "incomplete"), kind
        assert set(everything(out)) >= {"report.html", f"{RESULTS}/moe_capture_validation.json"}
    else:
        line = refused(ran)
        assert len(line) < 2500
        assert "internal error" not in line
        assert everything(out) == before
    assert not [name for name in everything(out) if ".nvtxmoe-" in name], "half-written"
    return ran.code


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with a report, which tests copy."""
    folder = tmp_path_factory.mktemp("analyzed")
    (folder / "good").mkdir()
    assert run("analyze", good(folder / "good"), "-o", folder / "results", "--report").code == 0
    return folder / "results"


@pytest.fixture
def results(analyzed: Path, tmp_path: Path) -> Path:
    shutil.copytree(analyzed, tmp_path / "results")
    return tmp_path


@pytest.mark.parametrize("first", range(0, DRAWS, len(KINDS)))
def test_draws(results: Path, first: int) -> None:
    codes = set()
    for seed in range(first, first + len(KINDS)):
        (results / f"draw{seed}").mkdir()
        codes.add(check(seed, results / f"draw{seed}"))
    assert codes <= {0, 2}
    assert files(results / "results" / RESULTS)


@pytest.mark.parametrize("seed", FOUND)
def test_draws_that_ended_otherwise_once(results: Path, seed: int) -> None:
    (results / "draw").mkdir()
    assert check(seed, results / "draw") in {0, 2}
