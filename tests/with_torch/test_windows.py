"""Windows of a running server: stand-in ranks with real recorders, sockets and journals, and the real command."""

from __future__ import annotations

import csv
import json
import threading
import time
from pathlib import Path

import pytest

from nvtxmoe.capture.hooks import unhook_all
from nvtxmoe.formats.journal import Journal
from tests.support.cli import run
from tests.support.window_calls import counts_in_merge, counts_of, journal_of, ranks_of, validation_of, window
from tests.support.window_engine import LAYERS, Serving, expected, tokens_of
from tests.with_torch.events import Kept


@pytest.fixture(autouse=True)
def no_hooks() -> None:
    """Hooks that an earlier test switched off are forgotten."""
    unhook_all()


def test_each_window_has_the_steps_between_start_and_stop_and_nothing_else(tmp_path: Path) -> None:
    ranks = ranks_of(tmp_path)

    def both(steps: int) -> None:
        for rank in ranks:
            rank.step(steps)

    both(7)
    for number, steps in ((1, 40), (2, 1)):
        began = ranks[0].recorder.steps
        assert window("start", tmp_path)["window"]["number"] == number
        both(steps)
        ended = window("stop", tmp_path)
        both(5)
        folder = tmp_path / "windows" / str(number)
        assert ended["window"] | {"number": number} == {
            "number": number, "first_step": began, "last_step": began + steps - 1, "steps": steps,
            "tokens": sum(map(tokens_of, range(began, began + steps))), "ranks": [0, 1],
        }  # fmt: skip
        assert (counts_of(folder) == expected(range(began, began + steps))).all()
        assert (ended["verdict"], ended["steps_captured"]) == ("complete", steps)
        assert validation_of(folder)["selection"]["steps_captured"] == 2 * steps


def test_windows_under_load_begin_and_end_at_common_steps(tmp_path: Path) -> None:
    """Exact whatever step each rank has reached when it hears of it."""
    ranks = ranks_of(tmp_path)
    with Serving(ranks):
        for number in (1, 2, 3):
            window("start", tmp_path)
            time.sleep(0.05)
            ended = window("stop", tmp_path)
            folder = tmp_path / "windows" / str(number)
            first, last = ended["window"]["first_step"], ended["window"]["last_step"]
            assert last > first
            assert (counts_of(folder) == expected(range(first, last + 1))).all()
            assert ended["verdict"] == "complete", ended["reasons"]
            assert ended["steps_captured"] == last - first + 1


def test_nothing_is_kept_or_counted_outside_of_a_window(tmp_path: Path) -> None:
    (rank,) = ranks_of(tmp_path, 1)
    rank.begin()
    assert not rank.recorder.listens(0)
    rank.end()
    rank.step(3)
    assert rank.recorder._counter is None
    assert not (tmp_path / "windows").exists()
    window("start", tmp_path)
    rank.step(2)
    window("stop", tmp_path, "--no-merge")
    rank.begin()
    assert not rank.recorder.listens(0)


def test_a_step_that_runs_at_the_end_is_in_the_window(tmp_path: Path) -> None:
    (rank,) = ranks_of(tmp_path, 1)
    window("start", tmp_path)
    rank.step(2)
    rank.begin()
    threading.Timer(0.3, rank.end).start()
    ended = window("stop", tmp_path)
    assert ended["window"]["steps"] == 3
    assert (counts_of(tmp_path / "windows" / "1") == expected(range(3))).all()
    assert ended["verdict"] == "complete"


def test_sinks_of_all_steps_go_on_outside_of_windows(tmp_path: Path) -> None:
    metrics, nvtx = Kept(), Kept()
    (rank,) = ranks_of(tmp_path, 1, always=[metrics], shared=[nvtx])
    rank.step(2)
    for _ in range(2):
        window("start", tmp_path)
        rank.step(3)
        window("stop", tmp_path, "--no-merge")
        rank.step(1)
    rank.recorder.settle()
    assert {step for step, _ in metrics.counts()} == set(range(10))
    assert {step for step, _ in nvtx.counts()} == {2, 3, 4, 6, 7, 8}
    assert [step.number for step in nvtx.of("step")] == [2, 3, 4, 6, 7, 8]
    assert len(nvtx.of("end")) == 6
    assert nvtx.of("meta")[-1]["windows"] == [[2, 4], [6, 8]]
    assert "windows" not in metrics.of("meta")[-1]
    assert counts_in_merge(tmp_path / "windows" / "2") == expected(range(6, 9)).tolist()


def test_pairs_are_those_of_the_window(tmp_path: Path) -> None:
    (rank,) = ranks_of(tmp_path, 1, always=[Kept()], emit=frozenset({"counts", "pairs"}))
    rank.step(3)
    window("start", tmp_path)
    rank.step(120)
    ended = window("stop", tmp_path)
    assert ended["verdict"] == "complete", ended["reasons"]
    tokens = sum(map(tokens_of, range(3, 123)))
    with (tmp_path / "windows" / "1" / "moe_expert_tracking" / "moe_expert_coselection.csv").open() as file:
        together = sum(int(row["coselection_count"]) for row in csv.DictReader(file))
    assert together == LAYERS * tokens


def test_losses_of_one_window_are_not_those_of_the_next(tmp_path: Path) -> None:
    (rank,) = ranks_of(tmp_path, 1)
    window("start", tmp_path)
    rank.step()
    rank.recorder.begin_step(2, 1, 2, 0)
    rank.recorder.abandon_step()
    assert window("stop", tmp_path)["verdict"] == "incomplete"
    window("start", tmp_path)
    rank.step()
    assert window("stop", tmp_path)["verdict"] == "complete"


def test_a_rank_that_is_lost_steps_is_not_excused_by_the_window(tmp_path: Path) -> None:
    """Only what is outside of the window is cut on purpose."""
    ranks = ranks_of(tmp_path)
    for rank in ranks:
        rank.step(4)
    window("start", tmp_path)
    for rank in ranks:
        rank.step(6)
    lame = journal_of(ranks[1])
    assert lame._pending_steps
    lame._pending_steps.clear()
    ended = window("stop", tmp_path)
    checks = {check["name"]: check for check in validation_of(tmp_path / "windows" / "1")["checks"]}
    assert ended["verdict"] == "incomplete"
    assert "fail" in {checks["steps_consecutive"]["status"], checks["ranks_in_step"]["status"]}


def test_status_tells_what_is_recorded(tmp_path: Path) -> None:
    ranks = ranks_of(tmp_path)
    assert window("status", tmp_path)["window"] is None
    window("start", tmp_path)
    for rank in ranks:
        rank.step(3)
    found = window("status", tmp_path)["window"]
    assert (found["steps"], found["tokens"], found["ranks"], found["last_step"]) == (3, 6, [0, 1], None)
    assert (
        "Window 1 is open on ranks 0, 1, from step 0 on: 3 steps, 6 tokens."
        in run("window", "status", str(tmp_path)).out
    )


def test_a_window_without_steps_has_no_results(tmp_path: Path) -> None:
    ranks_of(tmp_path)
    window("start", tmp_path)
    done = run("window", "stop", str(tmp_path))
    assert (done.code, "No step ran in the window" in done.out) == (0, True)
    assert not (tmp_path / "windows" / "1" / "moe_expert_tracking").exists()


@pytest.mark.parametrize(("action", "said"), [("start", "window 1 is open"), ("stop", "no window is open")])
def test_what_is_out_of_order_is_refused(action: str, said: str, tmp_path: Path) -> None:
    ranks_of(tmp_path)
    if action == "start":
        window("start", tmp_path)
    done = run("window", action, str(tmp_path))
    assert (done.code, said in done.err) == (2, True), done.err


def test_a_folder_without_sockets_is_named(tmp_path: Path) -> None:
    done = run("window", "status", str(tmp_path))
    assert (done.code, "NVTXMOE_WINDOW=closed" in done.err) == (2, True)


def test_a_step_outside_of_windows_takes_a_number_alone(tmp_path: Path) -> None:
    """What the hook around a step calls; with live metrics the step is recorded all the same."""
    (rank,) = ranks_of(tmp_path, 1)
    assert (rank.recorder.pass_step(), rank.recorder.steps) == (True, 1)
    window("start", tmp_path)
    assert (rank.recorder.pass_step(), rank.recorder.steps) == (False, 1)
    rank.step()
    assert not rank.recorder.quiet
    window("stop", tmp_path, "--no-merge")
    assert (rank.recorder.pass_step(), rank.recorder.steps, rank.recorder.quiet) == (True, 3, True)
    rank.recorder.warming_up = True  # ranges are kept in graphs that are captured
    assert (rank.recorder.pass_step(), rank.recorder.quiet) == (False, False)
    (seen,) = ranks_of(tmp_path / "metrics", 1, always=[Kept()])
    assert not seen.recorder.pass_step()


def test_idle_batches_of_a_window_are_in_its_end_record(tmp_path: Path) -> None:
    (rank,) = ranks_of(tmp_path, 1)
    rank.recorder.skip_step()
    window("start", tmp_path)
    rank.step(2)
    for _ in range(3):
        rank.recorder.skip_step()
    rank.step(1)
    ended = window("stop", tmp_path, "--no-merge")
    rank.recorder.skip_step()
    assert (ended["window"]["first_step"], ended["window"]["last_step"]) == (1, 6)
    (path,) = tmp_path.glob("windows/1/ranks/*.journal")
    journal = Journal(path)
    assert sum(len(records) for records in journal.bulk())
    assert journal.ended is not None
    assert {key: json.loads(journal.ended)[key] for key in ("steps", "idle_steps")} == {"steps": 6, "idle_steps": 3}
