"""moe_balance_metrics: hand-computed loads, and each project's definition written again in plain Python."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.metrics import balance
from nvtxmoe_analysis.metrics.balance import Loads
from tests.support import naive_analysis
from tests.support.expert_parallel_runs import STEM, Cells, expert_parallel, one_row, value, worker_of
from tests.support.export_builder import Export, Process
from tests.support.paths import ROOT
from tests.support.sessions import journal, run_of
from tests.support.written_results import Written, written

# By hand -----------------------------------------------------------------------------------------------------------

#: Loads of ranks 0 (experts 0, 1) and 1: 4, 2 and 6, 0 in step 0; 3, 3 and 6, 0 in step 1.
SMALL: Cells = {(0, 0): [3, 1, 1, 1], (0, 1): [3, 3, 0, 0], (1, 0): [1, 2, 2, 1], (1, 1): [6, 0, 0, 0]}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return written(tmp_path_factory.mktemp("small"), expert_parallel(SMALL, [[0, 1], [2, 3]]))


E = 1e-5
BY_HAND: list[tuple[Any, ...]] = [
    # layer, project, metric, over, window: value, least, largest, samples
    (None, "vLLM", "balancedness", "ranks", "steps", (6 / 10 + 6 / 9) / 2, 6 / 10, 6 / 9, 2),
    (0, "vLLM", "balancedness", "ranks", "steps", (3 / 4 + 1) / 2, 3 / 4, 1, 2),
    (1, "vLLM", "balancedness", "ranks", "steps", 1 / 2, 1 / 2, 1 / 2, 2),
    # Step 0: ranks get 4 + 6 and 2 + 0 in the two layers, at most 6 and 2. Step 1: 9 and 3, at most 6 and 3.
    (None, "vLLM", "balancedness_before_0_28", "ranks", "steps", ((5 + 1) / 8 + (4.5 + 1.5) / 9) / 2, 6 / 9, 6 / 8, 2),
    (0, "SGLang", "balancedness", "ranks", "steps", ((3 + E) / (4 + E) + 1) / 2, (3 + E) / (4 + E), 1, 2),
    (
        None, "SGLang", "balancedness", "ranks", "steps",
        (((3 + E) / (4 + E) + (3 + E) / (6 + E)) / 2 + (1 + (3 + E) / (6 + E)) / 2) / 2,
        ((3 + E) / (4 + E) + (3 + E) / (6 + E)) / 2, (1 + (3 + E) / (6 + E)) / 2, 2,
    ),
    (0, "TensorRT-LLM", "imbalance_ratio", "ranks", "steps", (1 / 3 + 0) / 2, 0, 1 / 3, 2),
    (None, "TensorRT-LLM", "imbalance_ratio", "ranks", "steps", (1 / 3 + 0 + 1 + 1) / 4, 0, 1, 4),
    (0, "TensorRT-LLM", "imbalance_ratio", "slots", "steps", (1 + 1 / 3) / 2, 1 / 3, 1, 2),
    (None, "TensorRT-LLM", "imbalance_ratio", "slots", "steps", (1 + 1 / 3 + 1 + 3) / 4, 1 / 3, 3, 4),
    (0, "Megatron-LM", "avg_overload_factor", "ranks", "steps", (4 / 3 + 1) / 2, 1, 4 / 3, 2),
    (0, "Megatron-LM", "max_overload_factor", "ranks", "steps", 4 / 3, 1, 4 / 3, 2),
    (None, "Megatron-LM", "avg_overload_factor", "ranks", "steps", (4 / 3 + 1 + 2 + 2) / 4, 1, 2, 4),
    (None, "Megatron-LM", "max_overload_factor", "ranks", "steps", 2, 1, 2, 4),
    (0, "nvtxmoe", "max_mean_ratio", "experts", "steps", (2 + 4 / 3) / 2, 4 / 3, 2, 2),
    (0, "nvtxmoe", "max_mean_ratio", "experts", "total", 4 / 3, None, None, 1),  # 4, 3, 3, 2
    (1, "nvtxmoe", "max_mean_ratio", "experts", "total", 3, None, None, 1),  # 9, 3, 0, 0
    (None, "nvtxmoe", "max_mean_ratio", "experts", "total", (4 / 3 + 3) / 2, None, None, 2),
    (0, "nvtxmoe", "max_mean_ratio", "ranks", "total", 7 / 6, None, None, 1),
    (1, "nvtxmoe", "active_pct", "experts", "steps", (50 + 25) / 2, 25, 50, 2),
    (1, "nvtxmoe", "active_pct", "experts", "total", 50, None, None, 1),
    (1, "nvtxmoe", "entropy_bits", "experts", "steps", (1 + 0) / 2, 0, 1, 2),
    (1, "nvtxmoe", "gini", "experts", "steps", (0.5 + 0.75) / 2, 0.5, 0.75, 2),
    (1, "nvtxmoe", "cv", "experts", "steps", (1 + math.sqrt(3)) / 2, 1, math.sqrt(3), 2),
    (0, "nvtxmoe", "load_balance_ratio", "experts", "total", 2, None, None, 1),
]  # fmt: skip


@pytest.mark.parametrize("expected", BY_HAND, ids=lambda e: "-".join(map(str, e[:5])))
def test_by_hand(small: Written, expected: tuple[Any, ...]) -> None:
    assert value(small, *expected[:5]) == pytest.approx(expected[5:], rel=1e-7)


def test_no_row_is_there_twice(small: Written) -> None:
    table = pl.read_csv(small.folder / f"{STEM}.csv")
    key = ["layer_idx", "metric", "project", "over", "window"]
    assert len(table.select(key).unique()) == len(table)
    assert table["layer_idx"].to_list() == sorted(table["layer_idx"].to_list(), key=lambda n: (n is None, n))


def test_an_expert_that_got_nothing(small: Written) -> None:
    row = one_row(small, 1, "nvtxmoe", "load_balance_ratio", "experts", "total")
    assert (row["value"], row["samples"], row["reason"]) == (None, 0, "an expert got nothing")
    assert small.json("moe_summary")["layer_1"]["load_balance_ratio"] is None


def test_what_is_compared(small: Written) -> None:
    ranks = one_row(small, 0, "vLLM", "balancedness", "ranks", "steps")
    assert (ranks["units"], ranks["placement"], ranks["reason"]) == (2, "local_experts", None)
    experts = one_row(small, None, "nvtxmoe", "gini", "experts", "total")
    assert (experts["units"], experts["placement"], experts["reason"]) == (4, None, None)


# Definitions again, in plain Python ----------------------------------------------------------------------------------

#: Loads of ranks by step and layer.
ByRank = dict[tuple[int, int], list[int]]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def steps_of(loads: ByRank) -> list[int]:
    return sorted({step for step, _ in loads})


def layers_of(loads: ByRank) -> list[int]:
    return sorted({layer for _, layer in loads})


def vllm_balancedness(loads: ByRank) -> float:
    """A value a step that has tokens: what 0.28 and later log."""
    values = []
    for step in steps_of(loads):
        average = most = 0.0
        for layer in layers_of(loads):
            average += mean(loads[step, layer])
            most += max(loads[step, layer])
        if most > 0:
            values.append(average / most)
    return mean(values)


def vllm_balancedness_before(loads: ByRank) -> float:
    """The same tensor [layers, ranks], reduced over its first dimension and then summed."""
    values = []
    for step in steps_of(loads):
        rows = [loads[step, layer] for layer in layers_of(loads)]
        columns = list(zip(*rows, strict=True))
        most = sum(max(column) for column in columns)
        if most > 0:
            values.append(sum(mean(column) for column in columns) / most)
    return mean(values)


def sglang_balancedness(loads: ByRank, last: int | None = None) -> float:
    """The mean over passes of the mean over layers; of the last passes."""
    passes = [
        mean([(mean(row) + 1e-5) / (max(row) + 1e-5) for row in (loads[step, layer] for layer in layers_of(loads))])
        for step in steps_of(loads)
    ]
    return mean(passes[-last:] if last else passes)


def trtllm_imbalance(loads: ByRank) -> float:
    """The mean over layers of the mean over iterations."""
    by_layer = []
    for layer in layers_of(loads):
        rows = [loads[step, layer] for step in steps_of(loads) if sum(loads[step, layer])]
        by_layer.append(mean([(max(row) - mean(row)) / mean(row) for row in rows]))
    return mean(by_layer)


def megatron_factors(loads: ByRank) -> list[float]:
    """One a (layer, step): the most loaded rank over tokens x top_k / ranks."""
    return [max(row) / (sum(row) / len(row) + 1e-8) for row in loads.values() if sum(row)]


def by_rank(cells: Cells, held: Sequence[Sequence[int]]) -> ByRank:
    return {key: [sum(counts[e] for e in experts) for experts in held] for key, counts in cells.items()}


def random_cells(seed: int, *, steps: int = 14, layers: int = 3, experts: int = 12) -> Cells:
    rng = np.random.default_rng(seed)
    cells = {}
    for step in range(steps):
        tokens = 0 if step == 5 else int(rng.integers(1, 40))
        for layer in range(layers):
            drawn = rng.choice(experts, size=2 * tokens, p=rng.dirichlet(np.ones(experts)))
            cells[step, layer] = np.bincount(drawn, minlength=experts).tolist()
    return cells


def assert_equal_definitions(found: Written, loads: ByRank, slots: ByRank) -> None:
    """Of all layers together."""
    factors = megatron_factors(loads)
    wanted = {
        ("vLLM", "balancedness", "ranks", "steps"): vllm_balancedness(loads),
        ("vLLM", "balancedness_before_0_28", "ranks", "steps"): vllm_balancedness_before(loads),
        ("SGLang", "balancedness", "ranks", "steps"): sglang_balancedness(loads),
        **{("SGLang", "balancedness", "ranks", f"last_{n}"): sglang_balancedness(loads, n) for n in (10, 100, 1000)},
        ("TensorRT-LLM", "imbalance_ratio", "ranks", "steps"): trtllm_imbalance(loads),
        ("TensorRT-LLM", "imbalance_ratio", "slots", "steps"): trtllm_imbalance(slots),
        ("Megatron-LM", "avg_overload_factor", "ranks", "steps"): mean(factors),
        ("Megatron-LM", "max_overload_factor", "ranks", "steps"): max(factors),
    }
    for key, expected in wanted.items():
        assert value(found, None, *key)[0] == pytest.approx(expected, rel=1e-7), key


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("held", [[[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]], [[11, *range(5)], [*range(5, 11)]]])
def test_definitions(tmp_path: Path, seed: int, held: list[list[int]]) -> None:
    """Experts dealt to the ranks in turn, and out of order; one step without tokens."""
    cells = random_cells(seed)
    found = written(tmp_path, expert_parallel(cells, held))
    assert_equal_definitions(found, by_rank(cells, held), cells)


def test_definitions_over_data_parallel_ranks(tmp_path: Path) -> None:
    """Two engines of two tensor-parallel ranks: four ranks share the experts, and serve both engines' tokens. An
    engine's idle step has no counts."""
    held = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    parts = [random_cells(1), {key: counts for key, counts in random_cells(2).items() if key[0] != 3}]
    export = Export()
    for rank in range(4):
        worker_of(export, rank, 4, parts[rank // 2], held[rank], tp_size=2, meta={"dp_size": 2, "dp_rank": rank // 2})
    both: Cells = defaultdict(lambda: [0] * 12)
    for part in parts:
        for key, counts in part.items():
            both[key] = [a + b for a, b in zip(both[key], counts, strict=True)]
    found = written(tmp_path, export)
    assert_equal_definitions(found, by_rank(both, held), both)
    assert one_row(found, 0, "vLLM", "balancedness", "ranks", "steps")["units"] == 4


def test_slots_of_eplb(tmp_path: Path) -> None:
    """Physical experts, of which expert 0 has two: what each served counts, not the logical experts."""
    logical: Cells = {(0, 0): [8, 1, 1], (1, 0): [2, 4, 4]}
    physical: Cells = {(0, 0): [5, 1, 1, 3], (1, 0): [1, 4, 4, 1]}
    held = [[0, 1], [2, 3]]
    export = Export()
    for rank in range(2):
        worker = worker_of(export, rank, 2, logical, held[rank], tp_size=2, meta={"eplb": True})
        for (step, layer), counts in physical.items():
            worker.counts(step, layer, counts, tokens=5, event="physical")
    found = written(tmp_path, export)
    assert_equal_definitions(found, by_rank(physical, held), physical)
    assert one_row(found, 0, "TensorRT-LLM", "imbalance_ratio", "slots", "steps")["units"] == 4
    assert value(found, 0, "nvtxmoe", "max_mean_ratio", "experts", "steps")[0] == pytest.approx((2.4 + 1.2) / 2)


def test_the_two_gpu_capture(golden_2gpu: Path, tmp_path: Path) -> None:
    """Counts by brute force; the two meanings of vLLM's number that docs/explanation/metrics.md quotes."""
    run = naive_analysis.read(golden_2gpu)
    cells = {(step, layer): list(run.answer.cells[rank, step, layer].counts) for rank, step, layer in run.counted}
    found = written(tmp_path, golden_2gpu)
    assert_equal_definitions(found, by_rank(cells, [range(16), range(16, 32)]), cells)
    now, before = (value(found, None, "vLLM", f"balancedness{name}", "ranks")[0] for name in ("", "_before_0_28"))
    assert (f"{now:.3f}", f"{before:.3f}") == ("0.746", "0.831")
    text = (ROOT / "docs" / "explanation" / "metrics.md").read_text()
    assert f"they are {now:.3f} and {before:.3f}" in text


@pytest.mark.parametrize(
    ("name", "stem_column"), [("max_mean_ratio", "max_mean_ratio"), ("load_balance_ratio", "load_balance_ratio")]
)
def test_ours_agree_with_the_other_files(small: Written, name: str, stem_column: str) -> None:
    """The mean of moe_load_imbalance's steps, and moe_summary.json."""
    if name == "load_balance_ratio":
        expected = small.json("moe_summary")["layer_0"][stem_column]
        found = value(small, 0, "nvtxmoe", name, "experts", "total")[0]
    else:
        rows = small.rows("moe_load_imbalance", "layer_idx", stem_column)
        expected = mean([float(ratio) for layer, ratio in rows if layer == "0"])
        found = value(small, 0, "nvtxmoe", name, "experts")[0]
    assert found == pytest.approx(expected, rel=1e-8)


# Steps ---------------------------------------------------------------------------------------------------------------


def test_a_layer_without_counts_in_a_step(tmp_path: Path) -> None:
    """What sums over layers looks at whole steps only; the layers' own numbers at all that there are."""
    cells = {key: counts for key, counts in SMALL.items() if key != (0, 1)}
    found = written(tmp_path, expert_parallel(cells, [[0, 1], [2, 3]]))
    assert value(found, None, "vLLM", "balancedness", "ranks") == pytest.approx((6 / 9, 6 / 9, 6 / 9, 1))
    assert value(found, 0, "vLLM", "balancedness", "ranks")[3] == 2
    assert value(found, None, "Megatron-LM", "avg_overload_factor", "ranks") == pytest.approx((13 / 9, 1, 2, 3))


def test_only_empty_steps(tmp_path: Path) -> None:
    """SGLang calls a pass without tokens balanced; the others say nothing of it."""
    found = written(tmp_path, expert_parallel({(0, 0): [0] * 4}, [[0, 1], [2, 3]]))
    assert value(found, None, "SGLang", "balancedness", "ranks") == (1, 1, 1, 1)
    for project, metric, over in (("vLLM", "balancedness", "ranks"), ("nvtxmoe", "gini", "experts")):
        row = one_row(found, None, project, metric, over, "steps")
        assert (row["value"], row["samples"], row["reason"]) == (None, 0, "no step has an assignment")


def test_windows_of_sglang(tmp_path: Path) -> None:
    """Twelve passes, the first two uneven: the last ten do not know them."""
    cells: Cells = {(step, 0): [6, 0, 0, 0] if step < 2 else [3, 0, 3, 0] for step in range(12)}
    found = written(tmp_path, expert_parallel(cells, [[0, 1], [2, 3]]))
    uneven = (3 + E) / (6 + E)
    assert value(found, None, "SGLang", "balancedness", "ranks", "last_10") == (1, 1, 1, 10)
    for window in ("last_100", "last_1000", "steps"):
        expected = ((10 + 2 * uneven) / 12, uneven, 1, 12)
        assert value(found, None, "SGLang", "balancedness", "ranks", window) == pytest.approx(expected, rel=1e-8)


def test_filters_narrow_it(tmp_path: Path) -> None:
    found = written(tmp_path, expert_parallel(SMALL, [[0, 1], [2, 3]]), selection=Selection(first_step=1))
    assert value(found, None, "vLLM", "balancedness", "ranks") == pytest.approx((6 / 9, 6 / 9, 6 / 9, 1))


def test_no_counts_at_all(tmp_path: Path) -> None:
    export = Export()
    Process(export).send_meta()
    assert written(tmp_path, export).rows(STEM, "metric") == []


def test_direct_mode(tmp_path: Path) -> None:
    journal(tmp_path, run_of())
    found = written(tmp_path, tmp_path)
    assert value(found, 0, "nvtxmoe", "max_mean_ratio", "experts")[3] == 3


# Measures of one layer, on any loads ---------------------------------------------------------------------------------

LOADS = st.lists(st.lists(st.integers(0, 300), min_size=5, max_size=5), min_size=1, max_size=6)


def of(loads: list[list[int]]) -> Loads:
    return Loads(np.array(loads, dtype=np.int64))


def gini(row: Sequence[int]) -> float:
    """Mean absolute difference of all ordered pairs, over twice the mean."""
    return mean([abs(a - b) for a in row for b in row]) / (2 * mean(row))


def entropy_bits(row: Sequence[int]) -> float:
    return -sum(n / sum(row) * math.log2(n / sum(row)) for n in row if n)


MEASURES: dict[str, tuple[Callable[..., Any], Callable[[Sequence[int]], float]]] = {
    "max_mean_ratio": (balance.max_mean_ratio, lambda row: max(row) / mean(row)),
    "variation": (balance.variation, lambda row: naive_analysis.deviation(row) / mean(row)),
    "entropy_bits": (balance.entropy_bits, entropy_bits),
    "gini": (balance.gini, gini),
    "active_pct": (balance.active_pct, lambda row: 100 * sum(n > 0 for n in row) / len(row)),
    "balancedness": (balance.balancedness, lambda row: mean(row) / max(row)),
    "imbalance_ratio": (balance.imbalance_ratio, lambda row: (max(row) - mean(row)) / mean(row)),
    "overload_factor": (balance.overload_factor, lambda row: max(row) / (mean(row) + 1e-8)),
}


@pytest.mark.parametrize("name", MEASURES)
@given(loads=LOADS)
def test_measures(name: str, loads: list[list[int]]) -> None:
    ours, plain = MEASURES[name]
    wanted = [plain(row) if sum(row) else math.nan for row in loads]
    assert ours(of(loads)).tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12, nan_ok=True)


@given(loads=LOADS)
def test_sglangs_measure_knows_empty_steps(loads: list[list[int]]) -> None:
    wanted = [(mean(row) + 1e-5) / (max(row) + 1e-5) for row in loads]
    assert balance.utilization(of(loads)).tolist() == pytest.approx(wanted, rel=1e-12)
