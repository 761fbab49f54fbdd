"""scripts/gpu/check_all.py with a stand-in for vLLM's Python: statuses, limits, places on GPUs, files."""

from __future__ import annotations

import json
import lzma
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from scripts.gpu import check_all, check_exact
from scripts.gpu.case_process import command, last_error
from scripts.gpu.cases import CASES, Case
from scripts.gpu.check_all import Driver
from scripts.gpu.engine_settings import (
    EXCHANGE_OF_DBO,
    EXCHANGES,
    PLAIN_EXCHANGE,
    check_engine,
    plain_exchange_under_dbo,
)
from scripts.gpu.made_up_models import QUANTISATIONS
from tests.support import fakes

#: Behaves as the case's first word says; writes a result for each process.
STAND_IN = """
import json, os, sys, time
words = sys.argv[sys.argv.index("--result") - 2:]
what, many, folder = words[0], int(words[1]), words[3]
print("the GPUs are", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
if what == "dies":
    print("RuntimeError: out of luck"); sys.exit(3)
if what == "hangs":
    time.sleep(600)
time.sleep(0.2)
os.makedirs(folder, exist_ok=True)
for number in range(many):
    result = {"exact": what != "wrong", "gpus": os.environ["CUDA_VISIBLE_DEVICES"]}
    if what == "fails":
        result = {"error": "ValueError: no"}
    with open(os.path.join(folder, f"{number}.json"), "w") as file:
        json.dump(result, file)
if what == "lingers":
    time.sleep(600)
"""


@pytest.fixture
def python(tmp_path: Path) -> str:
    """A Python that ignores the script it is given."""
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)
    fakes.executable(tmp_path / "python", f'exec "{sys.executable}" "{program}" "$@"')
    return str(tmp_path / "python")


def case(name: str, what: str, gpus: int = 1, **more: Any) -> Case:
    return Case(name, "a model", "a setting", (what, str(gpus)), gpus=gpus, **{"least_s": 0.0, **more})


def run(out: Path, cases: list[Case], python: str, **more: Any) -> dict[str, dict[str, Any]]:
    driver = Driver(out, cases, **{"gpus": 2, "jobs": 2, "budget_s": 120.0, "python": python, **more})
    driver.run()
    assert driver.load == [0] * driver.gpus
    file = json.loads((out / "results.json").read_text())
    assert len(file["cases"]) == len(cases)
    return {one["name"]: one for one in file["cases"]}


def test_every_status(tmp_path: Path, python: str, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        case("good", "good"), case("two", "good", gpus=2), case("wrong", "wrong"), case("fails", "fails"),
        case("dies", "dies"), case("hangs", "hangs", limit_s=1.5), case("many", "good", gpus=4),
    ]  # fmt: skip
    found = run(tmp_path / "out", cases, python)
    assert {name: one["status"] for name, one in found.items()} == {
        "good": "exact", "two": "exact", "wrong": "differs", "fails": "failed", "dies": "failed", "hangs": "timed out",
        "many": "not run",
    }  # fmt: skip
    assert found["many"]["why"] == "needs 4 GPUs, there is 2"
    assert found["fails"]["why"] == "ValueError: no"
    assert found["dies"]["why"] == "RuntimeError: out of luck"
    assert [one["gpus"] for one in found["two"]["processes"]] == ["0,1", "0,1"]
    log = lzma.decompress((tmp_path / "out" / "dies.log.xz").read_bytes())
    assert b"the GPUs are" in log
    assert len(capsys.readouterr().out.splitlines()) == len(cases)


def test_a_case_whose_package_is_absent_is_not_run(tmp_path: Path, python: str) -> None:
    cases = [case("absent", "good", module="a_module_of_no_package"), case("there", "good", module="json")]
    found = run(tmp_path / "out", cases, python)
    assert found["absent"]["why"] == "needs the module a_module_of_no_package, which is not installed"
    assert found["there"]["status"] == "exact"


def test_no_case_is_begun_that_cannot_end(tmp_path: Path, python: str) -> None:
    found = run(tmp_path / "out", [case("long", "good", least_s=500.0), case("short", "good")], python)
    assert found["long"]["why"] == "no time was left"
    assert found["short"]["status"] == "exact"


def test_a_process_that_is_compared_and_does_not_end(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.gpu.case_process.END_S", 1.0)
    began = time.monotonic()
    assert run(tmp_path / "out", [case("lingers", "lingers")], python)["lingers"]["status"] == "exact"
    assert time.monotonic() - began < 100


def test_cases_are_spread_over_the_gpus(tmp_path: Path, python: str) -> None:
    found = run(tmp_path / "out", [case(f"c{number}", "good") for number in range(4)], python)
    assert sorted(one["processes"][0]["gpus"] for one in found.values()) == ["0", "0", "1", "1"]


def test_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case is a command line of check_exact.py and arguments of an engine."""
    assert len({one.name for one in CASES}) == len(CASES)
    for one in CASES:
        options = check_exact.parser().parse_args(one.words)
        made = check_engine(options)
        assert options.tp * options.dp * options.pp == one.gpus, one.name
        assert options.draft == "none" or "speculative_config" in made
        assert made["attention_backend"] == ("TRITON_MLA" if options.family == "deepseek_v3" else "TRITON_ATTN")
        plain = options.exchange == PLAIN_EXCHANGE
        exchange = (EXCHANGE_OF_DBO if options.dbo else None) if plain else options.exchange
        assert made.get("all2all_backend") == exchange
        assert made.get("enable_dbo", False) is options.dbo
        assert one.module == EXCHANGES.get(options.exchange)
        assert (made.get("async_scheduling") is False) is (options.dp > 1)  # ranks in step
        assert set(QUANTISATIONS[options.quantisation].engine) <= set(made)
        assert one.least_s < one.limit_s
    monkeypatch.setattr("scripts.gpu.case_process.free_port", lambda: 4711)
    by_name = {one.name: one for one in CASES}
    assert command(by_name["tp2-ep"], "python", Path("r"))[1:8] == [
        "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2", "--master-addr",
    ]  # fmt: skip
    assert "torch.distributed.run" not in command(by_name["pp2"], "python", Path("r"))


def test_the_plain_exchange_under_dbo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration becomes the plain exchange, which supports DBO for as long as the engine runs."""

    class Exchange:
        def supports_dbo(self) -> bool:
            return False

    class VllmConfig:
        def __init__(self) -> None:
            self.parallel_config = SimpleNamespace(all2all_backend=EXCHANGE_OF_DBO)
            self.__post_init__()

        def __post_init__(self) -> None:
            assert self.parallel_config.all2all_backend == EXCHANGE_OF_DBO

    folder = "vllm.model_executor.layers.fused_moe.prepare_finalize.naive_dp_ep"
    for name, one in (("vllm.config", VllmConfig), (folder, Exchange)):
        parts = name.split(".")
        for end in range(1, len(parts)):
            package = ModuleType(".".join(parts[:end]))
            package.__path__ = []
            monkeypatch.setitem(sys.modules, package.__name__, package)
        module = ModuleType(name)
        setattr(module, "VllmConfig" if one is VllmConfig else "MoEPrepareAndFinalizeNaiveDPEPModular", one)
        monkeypatch.setitem(sys.modules, name, module)
    with plain_exchange_under_dbo():
        assert VllmConfig().parallel_config.all2all_backend == PLAIN_EXCHANGE
        assert Exchange().supports_dbo()
    assert VllmConfig().parallel_config.all2all_backend == EXCHANGE_OF_DBO
    assert not Exchange().supports_dbo()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a\nValueError: b\nc", "ValueError: b"),
        ("[rank1]: torch.OutOfMemoryError: CUDA\n", "torch.OutOfMemoryError: CUDA"),
        ("(EngineCore pid=3) ERROR 11-29 [core.py:1] RuntimeError: late\nok", "RuntimeError: late"),
        ("nothing of the kind", None),
    ],
)
def test_the_last_error_of_a_log(text: str, found: str | None) -> None:
    assert last_error(text) == found


def test_a_line_per_case() -> None:
    process = {
        "cells": 8, "cells_equal": 8, "oracle_cells": 8, "tokens_equal": 20, "oracle_tokens": 20, "tokens_tied": 1,
        "recording": {"recomputed": [0, 1]}, "kernels": [{"experts": "OAI", "method": "M"}],
    }  # fmt: skip
    text = check_all.line({"name": "x", "status": "exact", "seconds": 61.0, "processes": [process]})
    assert text.split() == [
        "x",
        "exact",
        "61",
        "s",
        "[8/8",
        "cells,",
        "20/20",
        "tokens,",
        "1",
        "tied;",
        "recomputed",
        "2;",
        "OAI]",
    ]
