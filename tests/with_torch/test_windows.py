"""Windows of a running server: stand-in ranks with real recorders, sockets and journals, and the real command."""

from __future__ import annotations

import csv
import json
import os
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nvtxmoe.capture.hooks import unhook_all
from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from nvtxmoe.capture.recording.windows import Windows
from nvtxmoe.capture.run_identity import Identity
from nvtxmoe.capture.sinks.journal import JournalSink
from nvtxmoe.capture.startup import window_socket
from nvtxmoe.capture.startup.settings import SESSION_DIR, Settings
from nvtxmoe.capture.startup.start import has_windows
from nvtxmoe.capture.startup.windows import make_windows
from nvtxmoe.formats.journal import Journal
from nvtxmoe.formats.window_socket import CONTROL, Control, receive, send
from tests.support.cli import run
from tests.support.kept_warnings import kept_warnings
from tests.support.window_engine import EXPERTS, LAYERS, Rank, Serving, expected, tokens_of
from tests.with_torch.events import Kept, identity


@pytest.fixture(autouse=True)
def no_hooks() -> None:
    """Hooks that an earlier test switched off are forgotten."""
    unhook_all()


def ranks_of(folder: Path, number: int = 2, **more: Any) -> list[Rank]:
    """The ranks of an engine."""
    return [Rank(folder, rank, number, **more) for rank in range(number)]


def window(action: str, session: Path, *more: str, status: int = 0) -> dict[str, Any]:
    """What the command prints as JSON."""
    done = run("window", action, str(session), "--json", *more)
    assert done.code == status, done.out + done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def counts_of(folder: Path) -> np.ndarray[Any, Any]:
    """moe_expert_activations: [layers, experts]."""
    counts = np.zeros((LAYERS, EXPERTS), np.int64)
    with (folder / "moe_expert_tracking" / "moe_expert_activations.csv").open() as file:
        for row in csv.DictReader(file):
            counts[int(row["layer_idx"]), int(row["expert_id"])] += int(row["activation_count"])
    return counts


def validation_of(folder: Path) -> dict[str, Any]:
    """moe_capture_validation.json."""
    found: dict[str, Any] = json.loads((folder / "moe_expert_tracking" / "moe_capture_validation.json").read_text())
    return found


def journal_of(rank: Rank) -> JournalSink:
    """The journal of the window that is open."""
    assert rank.windows.current is not None
    (journal,) = rank.windows.current.sinks
    assert isinstance(journal, JournalSink)
    return journal


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


def counts_in_merge(folder: Path) -> list[list[int]]:
    """Counts after a merge by hand."""
    assert run("merge", str(folder), "--strict").code == 0
    counts: list[list[int]] = counts_of(folder).tolist()
    return counts


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
    assert lame._begun
    lame._begun.clear()
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


def test_the_folder_and_the_sockets_are_the_user_s_own(tmp_path: Path) -> None:
    (rank,) = ranks_of(tmp_path, 1)
    assert rank.socket is not None
    assert stat.S_IMODE((tmp_path / CONTROL).stat().st_mode) == 0o700
    assert stat.S_IMODE(rank.socket.path.stat().st_mode) == 0o600
    (tmp_path / CONTROL).chmod(0o755)
    done = run("window", "status", str(tmp_path))
    assert (done.code, "other users may enter" in done.err) == (2, True)


def test_another_user_is_refused_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (rank,) = ranks_of(tmp_path, 1)
    control = Control(tmp_path)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(Exception, match="belongs to user"):
        Control(tmp_path)
    monkeypatch.setattr(window_socket, "peer_is_trusted", lambda _: False)
    with connected(control, rank) as client:
        assert client.recv(1) == b""  # it was closed, unheard


def connected(control: Control, rank: Rank) -> socket.socket:
    """A client's connection."""
    assert rank.socket is not None
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(control.address(rank.socket.path.name))
    return client


def test_the_path_of_a_session_may_be_long(tmp_path: Path) -> None:
    session = tmp_path / ("a" * 100) / ("b" * 100)
    (rank,) = ranks_of(session, 1)
    window("start", session)
    rank.step(2)
    assert window("stop", session)["verdict"] == "complete"


def test_a_start_that_one_rank_can_t_follow_is_taken_back(tmp_path: Path) -> None:
    ranks = ranks_of(tmp_path)
    ranks[1].windows._make_own = failing
    done = run("window", "start", str(tmp_path))
    assert done.code == 2
    assert "rank 1 (process " in done.err
    assert "No space left on device; no window was opened" in done.err
    wait_until(lambda: ranks[0].windows.current is None)
    ranks[0].step(2)
    assert not list(tmp_path.glob("windows/*/ranks/*.journal"))


def failing(_: int) -> Any:
    """A full disk."""
    raise OSError(28, "No space left on device")


def wait_until(holds: Any) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_rank_that_does_not_answer_is_named(tmp_path: Path) -> None:
    ranks = ranks_of(tmp_path)
    control = Control(tmp_path)
    with connected(control, ranks[1]) as hangs:  # its thread waits for this client
        done = run("window", "start", str(tmp_path), "--timeout", "0.5")
        assert done.code == 2
        assert f"rank 1 (process {os.getpid()}): it does not answer; no window was opened" in done.err
        assert hangs.fileno() > 0
    window("start", tmp_path, "--timeout", "20")
    window("stop", tmp_path, "--timeout", "20")


def test_a_rank_that_hears_late_of_the_end_ends_its_window_too(tmp_path: Path) -> None:
    ranks = ranks_of(tmp_path)
    window("start", tmp_path)
    for rank in ranks:
        rank.step(3)
    with connected(Control(tmp_path), ranks[1]) as hangs:
        ended = window("stop", tmp_path, "--timeout", "0.5", "--no-merge", status=2)
        assert ended["silent"] == {f"rank 1 (process {os.getpid()})": "it does not answer"}
        assert hangs.fileno() > 0
    wait_until(lambda: ranks[1].windows.current is None)
    assert counts_in_merge(tmp_path / "windows" / "1") == expected(range(3)).tolist()


def test_a_window_that_one_rank_has_left_open_can_be_stopped(tmp_path: Path) -> None:
    ranks = ranks_of(tmp_path)
    window("start", tmp_path)
    for rank in ranks:
        rank.step(3)
    ranks[0].control.stop()
    ranks[0].control.conclude(0, 2)
    done = run("window", "start", str(tmp_path))
    assert (done.code, "window 1 is open" in done.err) == (2, True)
    left = window("stop", tmp_path)
    assert (left["window"]["ranks"], left["silent"], left["verdict"]) == ([1], {}, "complete")


def test_a_rank_without_a_socket_is_named_and_the_others_record(tmp_path: Path) -> None:
    ranks = [Rank(tmp_path, 0, 2), Rank(tmp_path, 1, 2, listens=False)]
    done = run("window", "start", str(tmp_path))
    assert (done.code, "rank 1 of the run: no socket" in done.out) == (0, True), done.out
    for rank in ranks:
        rank.step(3)
    ended = window("stop", tmp_path)
    assert (ended["absent"], ended["verdict"]) == ([1], "incomplete")


@pytest.mark.parametrize(
    "data",
    [b"garbage\n", b"[]\n", b'{"do":"start"}\n', b'{"do":"start","window":"x"}\n', b"[" * 9000 + b"\n", b"\xff\n", b""],
)
def test_garbage_changes_nothing(data: bytes, tmp_path: Path) -> None:
    (rank,) = ranks_of(tmp_path, 1)
    with kept_warnings() as warnings:
        for _ in range(3):
            with connected(Control(tmp_path), rank) as client:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                client.settimeout(20)
                client.recv(1 << 16)
        assert window("status", tmp_path)["window"] is None
    assert len(warnings) <= 1


def test_a_client_that_leaves_after_the_start_leaves_no_window(tmp_path: Path) -> None:
    (rank,) = ranks_of(tmp_path, 1)
    with connected(Control(tmp_path), rank) as client:
        send(client, {"do": "start", "window": 1}, 5)
        assert receive(client, 5)["first"] == 0
        rank.step(1)
    wait_until(lambda: rank.windows.current is None)
    assert not list(tmp_path.glob("windows/*/ranks/*.journal"))


def test_a_client_that_leaves_during_the_end_leaves_whole_files(tmp_path: Path) -> None:
    (rank,) = ranks_of(tmp_path, 1)
    window("start", tmp_path)
    rank.step(4)
    with connected(Control(tmp_path), rank) as client:
        send(client, {"do": "stop"}, 5)
        receive(client, 5)
    wait_until(lambda: rank.windows.current is None)
    assert counts_in_merge(tmp_path / "windows" / "1") == expected(range(4)).tolist()


def test_a_disk_that_fills_up_is_one_warning_and_is_said_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rank,) = ranks_of(tmp_path, 1)
    window("start", tmp_path)
    monkeypatch.setattr(journal_of(rank)._writer, "append", failing)
    with kept_warnings() as warnings:
        rank.step(5)
        ended = window("stop", tmp_path, "--no-merge")
        rank.step(5)
    assert len(warnings) == 1
    assert "No space left" in ended["failed"]["0"]
    assert rank.recorder.steps == 10


def by_settings(session: Path, monkeypatch: pytest.MonkeyPatch, **values: Any) -> Recorder:
    """A recorder as the settings make it."""
    monkeypatch.setenv(SESSION_DIR, str(session))
    settings = Settings(enable=True, **values)
    assert has_windows(settings)

    def make(identity: Identity) -> Windows:
        return make_windows(settings, recorder, identity, (), (), files=True)

    recorder = Recorder(make, sample_every=0)
    recorder.model_loaded(identity())
    return recorder


def one_step(recorder: Recorder) -> None:
    recorder.begin_step(2, 1, 2, 0)
    for layer in range(2):
        if recorder.listens(layer):
            recorder.routed(RoutingTensors(layer, 8, torch.tensor([[0, 1], [1, 7]]), None))
    recorder.forward_done()
    recorder.end_step()


def test_the_first_window_may_be_open_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = by_settings(tmp_path, monkeypatch, mode="moe", window="open")
    for _ in range(3):
        one_step(recorder)
    ended = window("stop", tmp_path)
    assert (ended["window"]["steps"], ended["verdict"]) == (3, "complete")
    recorder.close()


def test_windows_need_more_than_live_metrics() -> None:
    assert not has_windows(Settings(enable=True, mode="live", window="closed"))
    assert not has_windows(Settings(enable=True, mode="moe"))


def test_a_socket_of_that_name_is_one_warning_and_steps_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Control(tmp_path, create=True)
    (tmp_path / CONTROL / f"rank0-{os.getpid()}.sock").touch()
    with kept_warnings() as warnings:
        recorder = by_settings(tmp_path, monkeypatch, mode="moe", window="closed")
        for _ in range(3):
            one_step(recorder)
    assert len(warnings) == 1
    assert "in use" in warnings[0]
    assert recorder.steps == 3


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
