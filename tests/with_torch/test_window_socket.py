"""Who opens and closes windows, what a rank does with clients that fail, and what settings make of it."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from nvtxmoe.capture.hooks import unhook_all
from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from nvtxmoe.capture.recording.windows import Windows
from nvtxmoe.capture.run_identity import Identity
from nvtxmoe.capture.startup import window_socket
from nvtxmoe.capture.startup.settings import SESSION_DIR, Settings
from nvtxmoe.capture.startup.start import has_windows
from nvtxmoe.capture.startup.windows import make_windows
from nvtxmoe.formats.window_socket import CONTROL, Control, receive, send
from tests.support.cli import run
from tests.support.kept_warnings import kept_warnings
from tests.support.waiting import wait_until
from tests.support.window_calls import connected, counts_in_merge, journal_of, ranks_of, window
from tests.support.window_engine import Rank, expected
from tests.with_torch.events import identity


@pytest.fixture(autouse=True)
def no_hooks() -> None:
    """Hooks that an earlier test switched off are forgotten."""
    unhook_all()


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
