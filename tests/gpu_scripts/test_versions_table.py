"""scripts/gpu/versions_table.py: rows only of what ran, or of what did not and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.gpu import versions_table

MACHINE = {
    "vllm": "0.33.0", "torch": "2.14.0", "triton": "3.8.0", "driver": "580.1", "date": "2026-11-30",
    "gpus": ["NVIDIA H200", "NVIDIA H200"],
}  # fmt: skip
PROCESS: dict[str, Any] = {
    "exact": True, "mode": "full_and_piecewise", "oracle": "copies", "runner": "vllm.v1.worker.gpu.model_runner",
    "kernels": [{"experts": "OAITritonMxfp4ExpertsMonolithic", "method": "GptOssMxfp4MoEMethod"}],
    "recording": {"recomputed": [0, 1, 2, 3]}, "hidden": {}, "oracle_steps": 37, "replayed_steps": 26,
    "cells_equal": 148, "oracle_cells": 148, "tokens_equal": 7784, "oracle_tokens": 7784, "tokens_tied": 12,
    "experts": 32, "experts_used": 32, "weights": 7784, "weights_equal": 0, "weights_close": 7784, "weights_unknown": 0,
}  # fmt: skip


def case(
    name: str, status: str = "exact", processes: list[dict[str, Any]] | None = None, **more: Any
) -> dict[str, Any]:
    kept = {} if processes is None else {"processes": processes}
    return {"name": name, "model": "gpt-oss", "setting": "MXFP4", "status": status, **kept, **more}


def rows(*cases: dict[str, Any]) -> list[str]:
    return versions_table.table(cases).splitlines()[2:]


def test_a_case_that_was_exact() -> None:
    assert rows(case("a", processes=[PROCESS])) == [
        "| gpt-oss | MXFP4 | V2 | full and piecewise | copies in the graph | OAITritonMxfp4ExpertsMonolithic "
        "| recomputed | 37 (26) | 148 | 7,784, 12 tied | equal to 1/128 | exact |"
    ]


def test_a_layer_that_chose_few_experts() -> None:
    (row,) = rows(case("a", processes=[PROCESS | {"experts_used": 4}]))
    assert row.endswith("| exact; a layer used 4 of 32 experts |")


def test_ranks_and_what_differs() -> None:
    wrong = PROCESS | {
        "exact": False, "cells_equal": 140, "tokens_equal": 7000, "weights_close": 10, "tokens_tied": 0,
        "recording": {"sink": [0, 1], "hidden": [2, 3]}, "hidden": {"2": "DBO | is on", "3": "DBO | is on"},
        "runner": "vllm.v1.worker.gpu_model_runner",
    }  # fmt: skip
    first, second = rows(case("a", "differs", [PROCESS, wrong]))
    assert "MXFP4, rank 0 of 2 | V2" in first
    assert "MXFP4, rank 1 of 2 | V1" in second
    assert "sink (2 layers), hidden (2 layers)" in second
    assert "140 of 148 | 7,000 of 7,784 | 0 of 7,784 equal" in second
    assert second.endswith("**differs**: 2 layers hidden (DBO \\| is on) |")


@pytest.mark.parametrize("status", ["not run", "failed", "timed out"])
def test_a_case_without_a_comparison_says_why(status: str) -> None:
    (row,) = rows(case("a", status, why="needs 2 GPUs,\nthere is 1"))
    assert row == f"| gpt-oss | MXFP4 |{'  |' * 9} {status}: needs 2 GPUs, there is 1 |"


def test_the_last_run_of_a_case_counts() -> None:
    first = {"machine": MACHINE, "cases": [case("a", "failed", why="x"), case("b", processes=[PROCESS])]}
    late = [case(name, "not run", why="no time was left") for name in "bc"]
    second = {"machine": {"vllm": "0.33.0", "driver": None}, "cases": [case("a", processes=[PROCESS]), *late]}
    machine, cases = versions_table.merged([first, second])
    assert machine == {**MACHINE, "ran_on": {"2 x NVIDIA H200": ["a", "b", "c"]}}
    assert {one["name"]: one["status"] for one in cases} == {"a": "exact", "b": "exact", "c": "not run"}


def test_cases_of_two_machines_in_the_order_of_the_matrix() -> None:
    many = [case(name, processes=[PROCESS]) for name in ("other", "qwen3-eager", "gpt-oss-mxfp4")]
    first = {"machine": {**MACHINE, "gpus": ["NVIDIA H200"]}, "cases": [case("qwen3-bf16", processes=[PROCESS]), *many]}
    machine, cases = versions_table.merged([first, {"machine": MACHINE, "cases": many}])
    assert [one["name"] for one in cases] == ["gpt-oss-mxfp4", "qwen3-bf16", "qwen3-eager", "other"]
    head = versions_table.section(machine, cases).splitlines()[0]
    assert head.startswith("2 x NVIDIA H200, 2026-11-30: vLLM 0.33.0, ")
    assert head.endswith(" 4 of 4 cases are exact. Cases on another machine (NVIDIA H200): `qwen3-bf16`.")


def test_a_cuda_error_without_its_link() -> None:
    link = "Search for `cudaErrorUnknown' in https://x.html for more information.\n"
    why = f"AcceleratorError: CUDA error: unknown error\n{link}"
    (row,) = rows(case("a", "failed", why=why))
    assert row.endswith(" failed: AcceleratorError: CUDA error: unknown error |")


def test_the_section_replaces_the_one_between_the_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    results.write_text(json.dumps({"machine": MACHINE, "cases": [case("a", processes=[PROCESS])]}))
    page.write_text("before\n<!-- gpu 0.33.0 -->\nold\n<!-- /gpu 0.33.0 -->\nafter\n")
    assert versions_table.main([str(results), "--into", str(page)]) == 0
    text = page.read_text()
    assert text.startswith(
        "before\n<!-- gpu 0.33.0 -->\n2 x NVIDIA H200, 2026-11-30: vLLM 0.33.0, PyTorch 2.14.0, Triton 3.8.0, "
        "driver 580.1. 1 of 1 cases are exact.\n\n| model |"
    )
    assert text.endswith(" exact |\n<!-- /gpu 0.33.0 -->\nafter\n")
    page.write_text("no marks")
    assert versions_table.main([str(results), "--into", str(page)]) == 2
    assert page.read_text() == "no marks"
    assert "no marks <!-- gpu 0.33.0 -->" in capsys.readouterr().err
