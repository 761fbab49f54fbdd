"""How many reports are read at once, and what the C library keeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe_analysis.ingest import memory_budget


def test_the_c_library_is_told_to_keep_little() -> None:
    """Whether there is glibc to tell is another matter; where there is, it takes all of it."""
    code = "import platform, nvtxmoe_analysis.core.malloc as a; print(a.keep_low(), platform.libc_ver()[0])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == str(said[1:] == ["glibc"])


def test_memory_of_a_batch_is_not_asked_for_again() -> None:
    """An array that takes the place of one that was just freed meets pages that the process has already."""
    code = """
import platform, resource, numpy
from nvtxmoe_analysis.core.malloc import keep_low

def faults_of(batches):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(batches):
        numpy.ones(1 << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_low()
faults_of(1)
print(faults_of(100) if kept else 0)
"""
    faults = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(faults) < 1000  # 51,200 pages of 4 KiB


GIB = 1 << 30


@given(
    sizes=st.lists(st.integers(0, 40 * GIB), min_size=1, max_size=20),
    cores=st.integers(1, 64),
    room=st.none() | st.integers(0, 200 * GIB),
)
def test_workers_fit_cores_and_memory(sizes: list[int], cores: int, room: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        of = {Path(f"/{i}"): size for i, size in enumerate(sizes)}
        patch.setattr(memory_budget, "size_bytes", lambda path, **_: of[path])
        patch.setattr(memory_budget, "needed_bytes", lambda path: memory_budget.PROCESS_BYTES + 2 * of[path])
        patch.setattr(memory_budget, "cores", lambda: cores)
        patch.setattr(memory_budget, "available_bytes", lambda: room)
        number = memory_budget.workers(list(of))
    assert 1 <= number <= min(cores, len(sizes))
    need = sorted((memory_budget.PROCESS_BYTES + 2 * size for size in sizes), reverse=True)
    small = sum(sizes) < memory_budget.SMALL_BYTES
    if room is not None and number > 1:
        assert sum(need[:number]) <= memory_budget.SHARE * room
    if number < min(cores, len(sizes)) and not small:
        assert room is not None and sum(need[: number + 1]) > memory_budget.SHARE * room


def test_jobs_are_taken_as_asked_for() -> None:
    paths = [Path(f"/nothing/{i}") for i in range(3)]
    assert [memory_budget.workers(paths, jobs) for jobs in (1, 2, 3, 100)] == [1, 2, 3, 3]


def test_available_memory(tmp_path: Path) -> None:
    info, group = tmp_path / "meminfo", tmp_path
    assert memory_budget.available_bytes(info, group) is None
    info.write_text("MemTotal:       24000000 kB\nMemAvailable:   10000000 kB\n")
    assert memory_budget.available_bytes(info, group) == 10_000_000 * 1024
    (group / "memory.current").write_text("1000\n")
    (group / "memory.max").write_text("max\n")
    assert memory_budget.available_bytes(info, group) == 10_000_000 * 1024
    (group / "memory.max").write_text("5000\n")
    assert memory_budget.available_bytes(info, group) == 4000
    (group / "memory.max").write_text("500\n")
    assert memory_budget.available_bytes(info, group) == 0


def test_needs_grow_with_the_report(tmp_path: Path) -> None:
    small, large = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    small.write_bytes(bytes(1000))
    large.write_bytes(bytes(9000))
    assert memory_budget.needed_bytes(large) - memory_budget.needed_bytes(small) == round(8000 * memory_budget.SQLITE)
    folder = tmp_path / "pqtdir"
    folder.mkdir()
    (folder / "NVTX_EVENTS.parquet").write_bytes(bytes(1000))
    assert memory_budget.needed_bytes(folder) == memory_budget.PROCESS_BYTES + 1000 * memory_budget.PARQUET
    assert memory_budget.needed_bytes(tmp_path / "nothing") == 0
