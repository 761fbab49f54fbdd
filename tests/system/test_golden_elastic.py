"""A session of real journals in which vLLM changed from two ranks to three and back: its counts and its verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.gpu.elastic_compare import judged
from tests.support.cli import run
from tests.support.elastic_golden import steps_of
from tests.support.written_results import Written, written

CHANGE = "data_parallel_size 2 -> 3, num_experts 16 -> 24, ep_size 2 -> 3"
OLD, JOINED = {0: "1702", 1: "1705"}, "2637"


@pytest.mark.parametrize("rank", OLD)
def test_a_worker_whose_ranks_change_is_exact_until_then_and_names_the_change(golden_elastic: Path, rank: int) -> None:
    worker = OLD[rank]
    found = judged(
        golden_elastic / f"session/ranks/rank{rank}-{worker}.journal", steps_of(golden_elastic / f"{worker}.npz")
    )
    assert found["exact"] is True
    assert found["sizes"] == [(2, 2), (3, 3), (2, 2)]
    assert (found["steps"], found["cells_equal"], found["tokens_equal"], found["physical_equal"]) == (
        29,
        116,
        1716,
        116,
    )
    assert found["weights_equal"] == 1716
    assert (found["steps_after"], found["recorded_after"]) == (53, 0)
    assert found["told_as"] == f"steps after ranks or experts changed ({CHANGE})"
    assert found["has_end"] is False  # vLLM kills its engine
    assert (found["first_place"]["ep_rank"], found["first_place"]["ep_size"], found["places"]) == (rank, 2, 1)


def test_the_worker_that_joins_is_exact_to_its_end_in_the_place_of_vllms_groups(golden_elastic: Path) -> None:
    steps = steps_of(golden_elastic / f"{JOINED}.npz")
    found = judged(golden_elastic / f"session/ranks/rank2-{JOINED}.journal", steps)
    assert found["exact"] is True
    assert found["sizes"] == [(3, 3)]
    assert (found["steps"], found["cells_equal"], found["tokens_equal"], found["physical_equal"]) == (
        33,
        132,
        3204,
        132,
    )
    assert found["mapped"] == 132  # in every cell EPLB sends some token elsewhere
    assert (found["told_as"], found["has_end"]) == (None, True)
    assert found["first_place"] == {
        "rank": 2, "world_size": 3, "ep_rank": 2, "ep_size": 3, "dp_rank": 2, "dp_size": 3,
        "physical": 24, "local": list(range(16, 24)),
    }  # fmt: skip


def test_the_judgement_needs_the_real_experts(golden_elastic: Path) -> None:
    steps = steps_of(golden_elastic / f"{JOINED}.npz")
    steps.ids[5][0, 2, 0] = (steps.ids[5][0, 2, 0] + 1) % 16
    assert judged(golden_elastic / f"session/ranks/rank2-{JOINED}.journal", steps)["exact"] is False


@pytest.fixture(scope="module")
def result(golden_elastic: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """What merge writes."""
    return written(tmp_path_factory.mktemp("merged"), golden_elastic / "session")


def test_merge_names_the_change_as_the_reason(result: Written) -> None:
    assert result.verdict == "incomplete"
    assert result.validation["reasons"] == [
        f"Ranks changed during the run ({CHANGE}): processes have the world sizes 2, 3.",
        "2 of 3 journals without an end: rank0-1702.journal, rank1-1705.journal. "
        "The process was killed or still runs; what it had written by then is here.",
        f"Capture lost steps after ranks or experts changed ({CHANGE}) (at least 2).",
    ]
    assert result.check("capture_healthy")[2]["ranks_changed"] == [CHANGE]


def test_the_next_step_is_a_run_of_one_size_and_no_further_input(golden_elastic: Path, tmp_path: Path) -> None:
    ran = run("merge", golden_elastic / "session", "-o", tmp_path / "out", "--strict")
    assert ran.code == 3
    shown = " ".join(ran.out.split())
    assert "Run it again under `nvtxmoe profile`, and start it with the number of ranks to record." in shown
    assert "Give the reports" not in shown


def test_steps_of_different_sizes_are_not_added(result: Written) -> None:
    """The worker that joined numbers its own steps: its step 5 is not step 5 of the two others, 29 steps together."""
    rows = result.rows("moe_balance_metrics", "layer_idx", "metric", "window", "over", "samples", "units")
    assert [row[3:] for row in rows if row[:3] == ("0", "max_mean_ratio", "steps")] == [
        ("experts", str(29 + 33), "16"),
        ("ranks", "29", "2"),
    ]


def test_inspect_names_the_change(golden_elastic: Path) -> None:
    shown = run("inspect", golden_elastic / "session").out
    assert f"ranks changed during the run ({CHANGE}): processes have the world sizes 2, 3" in shown
