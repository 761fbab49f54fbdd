"""Golden captures with rows removed, repeated, moved or exchanged at random never read complete with other numbers.

``TEST_DAMAGES=500 pytest tests/checks/test_random_damage.py`` draws more than the 52 of a usual run.
"""

from __future__ import annotations

import lzma
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.progress import Progress
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.ingest.ingest import ingest
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.outputs.capture_validation import validate
from nvtxmoe_analysis.outputs.registry import table_builders
from nvtxmoe_analysis.run.run_facts import merge
from tests.support.damage import Damage, damage
from tests.support.paths import GOLDEN

CAPTURES = {
    "h200-graph-program": 4,
    "h100-vllm-capture": 3,
    "h100-2gpu-vllm-tp2-capture": 2,
    "h100-2gpu-vllm-dp2-capture": 2,
    "h100-2gpu-ep2-graphs": 2,
}
#: Draws that read complete once: rows of graph nodes that changed places with rows of nodes that were not replayed.
FOUND = (220, 237, 282, 381, 400, 419)
DRAWS = int(os.environ.get("TEST_DAMAGES", "52"))
COUNTS, TIMES, NAMES = "moe_step_activations", "moe_layer_timings", "moe_kernel_timings"
TIME_COLUMNS = ("kernel_time_ns", "memcpy_time_ns", "memset_time_ns", "busy_ns")


@dataclass(frozen=True)
class Seen:
    """What an analysis shows: the verdict and its tables."""

    complete: bool
    tables: dict[str, pl.DataFrame]


def look(path: Path) -> Seen:
    selection = Selection()
    reports, failed = ingest([path], selection, cache_dir=None, nsys=None, jobs=1, dask=None, progress=Progress())
    results = RunMetrics.of(merge(reports, selection, {}), failed=tuple(failed))
    _, validation = validate(results)
    tables = {stem: table_builders()[stem](results) for stem in (COUNTS, TIMES, NAMES)}
    return Seen(validation["verdict"] == "complete", tables)


def other_counts(found: Seen, truth: Seen) -> pl.DataFrame:
    """Cells of both that count otherwise."""
    columns = truth.tables[COUNTS].columns
    key, value = columns[:-1], columns[-1]
    both = found.tables[COUNTS].join(truth.tables[COUNTS], on=key, how="inner", suffix="_truth")
    return both.filter(pl.col(value) != pl.col(f"{value}_truth"))


def other_times(found: Seen, truth: Seen, *, more: bool) -> pl.DataFrame:
    """Cells with a time below zero, or (``more``) above the truth."""
    both = found.tables[TIMES].join(truth.tables[TIMES], on=["rank", "step", "layer_idx"], how="inner", suffix="_truth")
    wrong = [pl.col(name) < 0 for name in TIME_COLUMNS]
    if more:
        wrong += [pl.col(name) > pl.col(f"{name}_truth") for name in TIME_COLUMNS]
    return both.filter(pl.any_horizontal(wrong))


def holds(path: Path, done: Damage, truth: Seen) -> None:
    try:
        found = look(path)
    except NvtxmoeError:
        return  # refused by name
    if found.complete:
        for name, table in truth.tables.items():
            assert table.equals(found.tables[name]), f"complete, but {name} is another one"
    assert other_counts(found, truth).is_empty()
    # Exchanged or repeated rows add time to other cells, which the verdict covers; lost ones must not.
    added = done.kind.split()[0] in {"repeat", "swap", "shift"}
    assert other_times(found, truth, more=not added).is_empty()


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Seen]]:
    """The golden captures, and what each of them shows when it is whole."""
    folder = tmp_path_factory.mktemp("captures")
    found = {}
    for name in CAPTURES:
        path = folder / f"{name}.sqlite"
        path.write_bytes(lzma.decompress((GOLDEN / f"{path.name}.xz").read_bytes()))
        found[name] = path, look(path)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", sorted({*range(DRAWS), *FOUND}))
def test_damage_is_seen_or_changes_nothing(captures: dict[str, tuple[Path, Seen]], tmp_path: Path, seed: int) -> None:
    names = [name for name, times in CAPTURES.items() for _ in range(times)]
    path, truth = captures[names[seed % len(names)]]
    assert truth.complete
    damaged = tmp_path / path.name
    damaged.write_bytes(path.read_bytes())
    done = damage(damaged, np.random.default_rng(seed))
    assert done.rows
    holds(damaged, done, truth)
