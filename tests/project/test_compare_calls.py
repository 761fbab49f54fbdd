"""scripts/gpu/compare_calls.py on captures made by hand: what waits, and in which step."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from scripts.gpu import compare_calls

TID = (7 << 24) | 9
PID = 7 << 24


def capture(path: Path, calls: list[tuple[int, str]], pageable: int | None = None) -> Path:
    """Steps at 0, 100 and 200; calls by their start."""
    names = {name: number for number, name in enumerate(sorted({name for _, name in calls}), 1)}
    with sqlite3.connect(path) as base:
        base.executescript(
            """CREATE TABLE StringIds (id, value);
            CREATE TABLE NVTX_EVENTS (globalTid, start, end, text, textId, eventType);
            CREATE TABLE ENUM_CUDA_MEM_KIND (id, label);
            CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (globalPid, correlationId, srcKind, dstKind);
            CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (globalTid, start, nameId, correlationId);"""
        )
        base.executemany("INSERT INTO StringIds VALUES (?, ?)", [(n, name) for name, n in names.items()])
        base.executemany(
            "INSERT INTO ENUM_CUDA_MEM_KIND VALUES (?, ?)", [(0, "Pageable"), (1, "Pinned"), (2, "Device")]
        )
        forward = [(TID, at, at + 50, compare_calls.FORWARD, None, 59) for at in (0, 100, 200)]
        base.executemany("INSERT INTO NVTX_EVENTS VALUES (?, ?, ?, ?, ?, ?)", forward)
        base.executemany(
            "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, ?, ?)",
            [(TID, at, names[name], number) for number, (at, name) in enumerate(calls)],
        )
        if pageable is not None:
            base.execute("INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (?, ?, 2, 0)", (PID, pageable))
    return path


def test_waiting_calls_by_step(tmp_path: Path) -> None:
    calls = [
        (-5, "cudaDeviceSynchronize_v3020"),  # before the first step
        (10, "cudaStreamSynchronize_v3020"),
        (20, "cudaMemcpyAsync_v3020"),
        (30, "cudaLaunchKernel_v7000"),
        (110, "cudaMemcpy_v3020"),
        (120, "cudaMemcpyAsync_v3020"),  # pageable
        (130, "cudaEventQuery_v3020"),
        (210, "cudaDeviceSynchronize_v3020"),  # in the last step, which has no end
    ]
    waits, others = compare_calls.steps(capture(tmp_path / "a.sqlite", calls, pageable=5))
    assert waits == [Counter({"cudaStreamSynchronize": 1}), Counter({"cudaMemcpy": 1, "cudaMemcpyAsync": 1})]
    assert others == Counter({"cudaMemcpyAsync": 1, "cudaLaunchKernel": 1, "cudaEventQuery": 1})


@pytest.mark.parametrize(("more", "code"), [([], 0), ([(40, "cudaEventQuery")], 0), ([(40, "cuCtxSynchronize")], 1)])
def test_captures_are_compared(
    more: list[tuple[int, str]], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = capture(tmp_path / "off.sqlite", [(10, "cudaEventSynchronize")])
    on = capture(tmp_path / "on.sqlite", [(10, "cudaEventSynchronize"), *more])
    monkeypatch.setattr("sys.argv", ["compare_calls.py", str(off), str(on)])
    assert compare_calls.main() == code


def test_a_capture_without_vllms_ranges_is_refused(golden_vllm: Path) -> None:
    with pytest.raises(SystemExit, match="VLLM_NVTX_SCOPES_FOR_PROFILING"):
        compare_calls.steps(golden_vllm)
