"""Which batches vLLM sorts by expert, against the kernels that ran in real captures."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from scripts.bench.brute_capture import CellKey
from scripts.bench.brute_force import Answer, attribute
from tests.support.naive_step_sums import tiles
from tests.support.written_results import written

#: Only the kernels that sort a batch have it in their names.
SORTS = "moe_align_block_size"


def sorted_cells(answer: Answer) -> dict[CellKey, bool]:
    """Whether a kernel sorted each cell's batch."""
    names: dict[CellKey, set[str]] = defaultdict(set)
    for operation in answer.operations:
        if operation.kind == "kernel" and operation.key is not None:
            names[operation.key].add(operation.name)
    return {key: any(SORTS in name for name in found) for key, found in names.items()}


@pytest.mark.parametrize(
    ("capture", "unsorted"),
    [("1gpu", 32), ("vllm", 8), ("2gpu", 0), ("tp2", 0), ("dp2", 0), ("eplb", 0)],
)
def test_tiles_of_real_captures(
    capture: str,
    unsorted: int,
    golden_1gpu: Path,
    golden_2gpu: Path,
    golden_vllm: Path,
    golden_vllm_ranks: dict[str, Path],
    tmp_path: Path,
) -> None:
    """A cell has a tile per assignment exactly where no kernel sorted its batch."""
    path = {"1gpu": golden_1gpu, "2gpu": golden_2gpu, "vllm": golden_vllm, **golden_vllm_ranks}[capture]
    answer = attribute(path)
    ran = sorted_cells(answer)
    assert sum(not did for did in ran.values()) == unsorted
    names = ("rank", "step", "layer_idx", "block_m", "expert_tiles")
    for row in written(tmp_path, path).rows("moe_layer_correlation", *names):
        rank, step, layer, block, found = map(int, row)
        cell = answer.cells[rank, step, layer].counts
        assert found == (tiles(cell, block) if ran[rank, step, layer] else sum(cell))
