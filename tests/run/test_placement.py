"""Which rank holds which expert: what moe.meta says, the linear placement, and why there is none."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.run.expert_placement import linear_placement
from tests.support.expert_parallel_runs import STEM, Cells, expert_parallel, one_row, value, worker_of
from tests.support.export_builder import Export, Process
from tests.support.written_results import Written, written


def refusal(found: Written, layer: int | None = 0) -> str | None:
    """Why there is no metric over ranks; those over experts are there all the same."""
    assert value(found, layer, "nvtxmoe", "gini", "experts")[0] is not None
    rows = pl.read_csv(found.folder / f"{STEM}.csv").filter(over="ranks")
    of_layer = rows.filter(pl.col("layer_idx").is_null() if layer is None else pl.col("layer_idx") == layer)
    assert of_layer["value"].null_count() == len(of_layer) > 0
    assert set(of_layer["samples"]) == {0}
    (reason,) = set(of_layer["reason"])
    assert reason is None or isinstance(reason, str)
    return reason


CELLS: Cells = {(0, 0): [3, 1, 1, 1], (1, 0): [1, 2, 2, 1]}


@pytest.mark.parametrize("held", [[None, None], [[0, 1], None], [None, [2, 3]]])
def test_a_linear_placement_where_nothing_speaks_against_it(tmp_path: Path, held: list[list[int] | None]) -> None:
    found = written(tmp_path, expert_parallel(CELLS, held))
    row = one_row(found, 0, "vLLM", "balancedness", "ranks", "steps")
    assert (row["value"], row["placement"]) == (pytest.approx((3 / 4 + 1) / 2), "linear")


@pytest.mark.parametrize(("slots", "ranks", "expected"), [(4, 2, "0011"), (5, 2, "00011"), (7, 3, "0001122")])
def test_linear_blocks(slots: int, ranks: int, expected: str) -> None:
    assert "".join(map(str, linear_placement(slots, ranks))) == expected


def test_no_expert_parallelism(tmp_path: Path) -> None:
    found = written(tmp_path, expert_parallel(CELLS, [range(4)], meta={"ep_size": 1}))
    assert refusal(found) == refusal(found, None) == "no expert parallelism: there are no ranks to compare"
    assert value(found, 0, "TensorRT-LLM", "imbalance_ratio", "slots")[0] is not None


def test_no_meta(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    with worker.step(0):
        worker.kernel()
    worker.counts(0, 0, [3, 1, 1, 1])
    reason = "moe.meta is missing: nothing tells which rank holds which expert"
    assert refusal(written(tmp_path, export)) == reason


def test_an_expert_on_two_ranks(tmp_path: Path) -> None:
    found = written(tmp_path, expert_parallel(CELLS, [[0, 1, 2], [2, 3]]))
    assert refusal(found) == "expert 2 is on ranks 0 and 1"


def test_an_expert_nowhere(tmp_path: Path) -> None:
    """Nothing says where expert 3 is, and what is said is not the linear placement."""
    found = written(tmp_path, expert_parallel(CELLS, [[0, 2], [1]]))
    assert refusal(found) == "moe.meta does not tell which rank holds expert 3"


def test_one_layer_that_can_not_be_placed(tmp_path: Path) -> None:
    """Then nothing sums over layers; what is averaged is so over the layers that there are."""
    export = Export()
    for rank in range(2):
        cells: Cells = {(0, 0): [3, 1, 1, 1], (0, 1): [6, 0, 0, 0]}
        worker = worker_of(export, rank, 2, cells, [[0, 1], [2, 3]][rank], tp_size=2)
        worker.meta["layers"][1]["local_experts"] = [0, 1]
        worker.send_meta()
    found = written(tmp_path, export)
    assert refusal(found, 1) == "expert 0 is on ranks 0 and 1"
    row = one_row(found, None, "vLLM", "balancedness", "ranks", "steps")
    assert (row["value"], row["reason"]) == (None, "expert 0 is on ranks 0 and 1")
    assert value(found, None, "Megatron-LM", "avg_overload_factor", "ranks")[0] == pytest.approx(4 / 3)


def test_more_ranks_than_experts(tmp_path: Path) -> None:
    found = written(tmp_path, expert_parallel(CELLS, [None], meta={"ep_size": 1 << 16}))
    assert refusal(found) == f"moe.meta says ep_size {1 << 16}, of 4 experts"


def test_a_rank_past_the_last(tmp_path: Path) -> None:
    found = written(tmp_path, expert_parallel(CELLS, [[0, 1], [2, 3]], meta={"ep_rank": 2, "ep_size": 2}))
    assert refusal(found) == "moe.meta says ep_rank 2 of ep_size 2"


@pytest.mark.parametrize("steps", [[], [0]])
def test_eplb_without_its_slots(tmp_path: Path, steps: list[int]) -> None:
    """Also where moe.physical has only some of the steps."""
    export = Export()
    worker = worker_of(export, 0, 1, CELLS, [0, 1], meta={"ep_size": 2, "eplb": True})
    for step in steps:
        worker.counts(step, 0, [1, 1, 1, 1, 2], event="physical")
    reason = "EPLB is on, and moe.physical does not say which replicas served the tokens"
    assert refusal(written(tmp_path, export)) == reason


def data_parallel() -> list[Export]:
    """Two engines that share the experts, a report each."""
    exports = [Export(), Export()]
    for rank, export in enumerate(exports):
        worker_of(export, rank, 2, CELLS, [[0, 1], [2, 3]][rank], meta={"dp_size": 2, "dp_rank": rank})
    return exports


def test_a_report_that_is_missing(tmp_path: Path) -> None:
    both = data_parallel()
    assert value(written(tmp_path, *both), 0, "vLLM", "balancedness", "ranks")[0] is not None
    reason = "of 2 tensor-parallel groups that these ranks serve, 1 is here"
    assert refusal(written(tmp_path, both[0])) == reason


def test_ranks_left_out(tmp_path: Path) -> None:
    chosen = Selection(ranks=frozenset({0}))
    reason = "the option --ranks leaves out ranks whose tokens these ranks serve too"
    assert refusal(written(tmp_path, *data_parallel(), selection=chosen)) == reason
    # The ranks of a tensor-parallel group see the same tokens: one of them tells all.
    found = written(tmp_path, expert_parallel(CELLS, [[0, 1], [2, 3]]), selection=chosen)
    assert value(found, 0, "vLLM", "balancedness", "ranks")[0] == pytest.approx((3 / 4 + 1) / 2)


def test_pipeline_stages_are_groups_of_their_own(tmp_path: Path) -> None:
    """Layer 0 on ranks 0 and 1, layer 1 on ranks 2 and 3: vLLM's sum over layers is by stage."""
    export = Export()
    for rank in range(4):
        layer = rank // 2
        worker = Process(
            export, pid=100 + rank, rank=rank, world_size=4, tp_size=2, layers=2,
            meta={"ep_rank": rank % 2, "ep_size": 2},
        )  # fmt: skip
        worker.meta["layers"] = [{**worker.meta["layers"][layer], "local_experts": [[0, 1], [2, 3]][rank % 2]}]
        worker.send_meta()
        with worker.step(0):
            worker.kernel()
        worker.counts(0, layer, [[3, 1, 1, 1], [3, 3, 0, 0]][layer])
    found = written(tmp_path, export)
    assert value(found, None, "vLLM", "balancedness", "ranks") == pytest.approx(((3 / 4 + 1 / 2) / 2, 1 / 2, 3 / 4, 2))
