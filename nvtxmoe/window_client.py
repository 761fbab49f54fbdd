"""Opens and closes windows of a running server: asks the socket of each rank, so that all of them agree."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats.journal import RANKS
from nvtxmoe.formats.window_socket import WINDOWS, Control, peer_is_trusted, receive, send

_NAME = re.compile(r"rank([0-9]{1,9})-([0-9]{1,9})\.sock")
#: Numbers that every answer has, that its window has while one is open, and that answers to two requests have too.
NUMBERS = ("world_size", "engine", "next_step", "windows")
OF_WINDOW = ("number", "first", "steps", "tokens")
ALSO: Mapping[str, Sequence[str]] = {"start": ("first",), "stop": ("first", "last")}
#: Numbers of steps and tokens are below this, and those of ranks below that.
MOST, MOST_WORLD_SIZE = 1 << 62, 1 << 20
#: Seconds that the end of a window may take beyond the time for an answer: counts are waited for, and files written.
END_S = 60.0


@dataclass(frozen=True)
class Answers:
    """What the ranks of a session answered.

    Attributes:
        by_rank: the last answer of each rank.
        silent: why a rank did not answer, by its name.
        absent: ranks of the run that have no socket on this machine.
    """

    by_rank: Mapping[int, Mapping[str, Any]]
    silent: Mapping[str, str]
    absent: Sequence[int]

    @property
    def window(self) -> Mapping[str, Any] | None:
        """The window: its number, first and last step that all ranks have, steps, tokens; None while none is open.

        Tokens of ranks that see the same tokens count once.
        """
        windows = {rank: answer["window"] for rank, answer in self.by_rank.items() if answer.get("window") is not None}
        if not windows:
            return None
        tokens: dict[int, int] = {}
        for rank, window in windows.items():
            engine = int(self.by_rank[rank]["engine"])
            tokens[engine] = max(tokens.get(engine, 0), int(window["tokens"]))
        return {
            "number": max(window["number"] for window in windows.values()),
            "first_step": max(window["first"] for window in windows.values()),
            "last_step": min(
                (last for window in windows.values() if (last := window["last"]) is not None), default=None
            ),
            "steps": max(window["steps"] for window in windows.values()),
            "tokens": sum(tokens.values()),
            "ranks": sorted(windows),
        }


class _Rank:
    """A connection to one rank's socket."""

    def __init__(self, control: Control, name: str, seconds: float) -> None:
        match = _NAME.fullmatch(name)
        self.rank = int(match[1]) if match else -1
        self.title = f"rank {match[1]} (process {match[2]})" if match else name
        self.seconds = seconds
        self.failure: str | None = None
        self.answer: Mapping[str, Any] = {}
        self.gone = False
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(seconds)
        try:
            self.socket.connect(control.address(name))
            if not peer_is_trusted(self.socket):
                self.failure = "its socket belongs to another user"
        except ConnectionRefusedError:
            self.gone, self.failure = True, "its process has ended"
        except OSError as error:
            self.failure = _reason(error)

    def ask(self, **request: Any) -> None:
        """Send a request; ``hear`` takes the answer."""
        if self.failure is None:
            try:
                send(self.socket, request, self.seconds)
            except OSError as error:
                self.failure = _reason(error)

    def hear(self, request: str, more_s: float = 0.0) -> None:
        """Wait for the answer to a request, and check that it has what is read from it."""
        if self.failure is None:
            try:
                self.answer = receive(self.socket, self.seconds + more_s)
            except (OSError, ValueError) as error:
                self.failure = _reason(error)
            else:
                self.failure = str(self.answer["error"]) if "error" in self.answer else _flaw(self.answer, request)


def _flaw(answer: Mapping[str, Any], request: str) -> str | None:
    """Return what an answer lacks; None if it can be read."""
    window = answer.get("window")
    unusable = [name for name in (*NUMBERS, *ALSO.get(request, ())) if not _is_number(answer.get(name))]
    if not unusable and not 0 < answer["world_size"] < MOST_WORLD_SIZE:
        unusable.append("world_size")
    if isinstance(window, dict):
        unusable += [f"window.{name}" for name in OF_WINDOW if not _is_number(window.get(name))]
        unusable += ["window.last"] if not (window.get("last") is None or _is_number(window["last"])) else []
    elif window is not None:
        unusable.append("window")
    if not isinstance(answer.get("failure"), (str, type(None))):
        unusable.append("failure")
    if not unusable:
        return None
    return f"its answer has no usable {', '.join(unusable)}: another program or version of nvtxmoe gave it"


def _is_number(value: object) -> bool:
    """Return whether it is a number of steps, tokens, windows or ranks; -1 is the last step before the first."""
    return type(value) is int and -1 <= value < MOST


def _reason(error: Exception) -> str:
    return "it does not answer" if isinstance(error, TimeoutError) else str(error)


def status(session: Path, seconds: float) -> Answers:
    """Ask every rank for its state.

    Parameters:
        session: the session's folder.
        seconds: that a rank may take to answer.

    Raises:
        NvtxmoeError: no rank answers.
    """
    with _ranks(session, seconds) as ranks:
        _all(ranks, do="status")
        answers = _answers(ranks)
    if not answers.by_rank:
        raise NvtxmoeError(_first(answers.silent), where=session, remedy="Is the server running?")
    return answers


def start(session: Path, seconds: float) -> Answers:
    """Open a window on all ranks, or on none.

    Raises:
        NvtxmoeError: a window is open, or a rank can't open one or does not answer; it is named.
    """
    before = status(session, seconds)
    if before.window is not None:
        raise NvtxmoeError(
            f"window {before.window['number']} is open", where=session, remedy="Stop it first: nvtxmoe window stop"
        )
    _require_all(session, before, "no window was opened")
    number = 1 + max(_last_window(session), *(int(answer["windows"]) for answer in before.by_rank.values()))
    with _ranks(session, seconds) as ranks:
        _all(ranks, do="start", window=number)
        opened = _answers(ranks)
        if not opened.silent and opened.by_rank:
            first = max(int(answer["first"]) for answer in opened.by_rank.values())
            _all(ranks, do="keep", first=first)
            opened = _answers(ranks)
    if opened.silent:  # the connections are closed: whoever had begun has taken it back
        for folder in (window_folder(session, number) / RANKS, window_folder(session, number)):
            with contextlib.suppress(OSError):  # not there, or not empty
                folder.rmdir()
    _require_all(session, opened, "no window was opened")
    return opened


def stop(session: Path, seconds: float) -> Answers:
    """Close the window on all ranks that answer. The others are in ``silent``.

    Raises:
        NvtxmoeError: no window is open, or no rank answers.
    """
    before = status(session, seconds)
    window = before.window
    if window is None:
        raise NvtxmoeError("no window is open", where=session, remedy=f"Open one: nvtxmoe window start {session}")
    with _ranks(session, seconds) as live_ranks:
        ranks = [rank for rank in live_ranks if rank.rank in window["ranks"] or rank.rank not in before.by_rank]
        _all(ranks, do="stop")
        ended = _answers(ranks)
        if ended.by_rank:
            first = max(int(answer["first"]) for answer in ended.by_rank.values())
            last = min(int(answer["last"]) for answer in ended.by_rank.values())
            _all(ranks, more_s=END_S, do="conclude", first=first, last=last)
            ended = _answers(ranks)
    if not ended.by_rank:
        raise NvtxmoeError(_first(ended.silent), where=session, remedy="Is the server running?")
    return replace(ended, absent=before.absent)


def window_folder(session: Path, number: int) -> Path:
    """Folder of a window: its journals and, once it is closed, its results."""
    return session / WINDOWS / str(number)


def _last_window(session: Path) -> int:
    return max((int(path.name) for path in (session / WINDOWS).glob("*") if path.name.isdecimal()), default=0)


@contextmanager
def _ranks(session: Path, seconds: float) -> Iterator[list[_Rank]]:
    try:
        control = Control(session)
    except OSError as error:
        raise NvtxmoeError(
            f"its sockets can't be reached ({error.strerror})",
            where=session,
            remedy="Give the session's folder of a server that runs with NVTXMOE_WINDOW=closed",
        ) from error
    with ExitStack() as stack:
        stack.callback(control.close)
        ranks = [_Rank(control, name, seconds) for name in control.names()]
        for rank in ranks:
            stack.callback(rank.socket.close)
        running = {rank.rank for rank in ranks if not rank.gone}
        yield [
            rank for rank in ranks if not rank.gone or rank.rank not in running
        ]  # a worker may have been started again


def _all(ranks: Sequence[_Rank], *, do: str, more_s: float = 0.0, **more: Any) -> None:
    """Ask all at once, then hear them."""
    for rank in ranks:
        rank.ask(do=do, **more)
    for rank in ranks:
        rank.hear(do, more_s)


def _answers(ranks: Sequence[_Rank]) -> Answers:
    by_rank = {rank.rank: rank.answer for rank in ranks if rank.failure is None}
    world_size = max((int(answer["world_size"]) for answer in by_rank.values()), default=0)
    return Answers(
        by_rank=by_rank,
        silent={rank.title: rank.failure for rank in ranks if rank.failure is not None},
        absent=sorted(set(range(world_size)) - {rank.rank for rank in ranks}),
    )


def _require_all(session: Path, answers: Answers, outcome: str) -> None:
    if answers.silent:
        raise NvtxmoeError(f"{_first(answers.silent)}; {outcome}", where=session, remedy="See the server's log")


def _first(silent: Mapping[str, str]) -> str:
    if not silent:
        return "no rank has a socket here"
    more = f" (and {len(silent) - 1} more)" if len(silent) > 1 else ""
    return next(f"{title}: {reason}" for title, reason in silent.items()) + more
