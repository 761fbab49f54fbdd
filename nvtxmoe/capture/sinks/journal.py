"""The sink of direct mode: a journal a process, written by a thread of its own."""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from multiprocessing import util
from pathlib import Path
from typing import Any

import numpy as np

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.run_identity import Step
from nvtxmoe.capture.sinks.waiting_records import WaitingRecords
from nvtxmoe.formats.journal import RANKS, SUFFIX, JournalWriter, fill_records, record, records_bytes

#: Bytes waiting to be written, from which on the thread is woken early, and from which on events are dropped.
WAKE_BYTES = 1 << 20
MOST_BYTES = 64 << 20


class JournalSink:
    """Appends records to memory; a thread writes them every ``interval_s`` seconds.

    Serving never waits for the disk. A killed process loses at most the last interval.
    """

    encoding = "journal"
    steps_a_send = 16
    _closed = True  # until it is made

    def __init__(self, session: Path, rank: int, interval_s: float) -> None:
        self.path = session / RANKS / f"rank{rank}-{os.getpid()}{SUFFIX}"
        self.dropped = 0
        self.failure: str | None = None
        self._writer = JournalWriter(self.path)
        self._pid = os.getpid()
        self._waiting = WaitingRecords()
        self._pending_steps: deque[tuple[int, Step]] = deque()  # appended to without the lock
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        arguments = (weakref.ref(self), self._wake, interval_s)
        self._thread = threading.Thread(target=_run, args=arguments, name="nvtxmoe-journal", daemon=True)
        self._thread.start()
        # Children of multiprocessing leave without atexit.
        reference = weakref.WeakMethod(self.flush)

        def flush() -> None:
            method = reference()
            if method is not None:
                method()

        self._at_exit = flush
        atexit.register(flush)
        self._finalizer = util.Finalize(None, flush, exitpriority=100)

    def meta(self, text: bytes) -> None:
        """A record."""
        self._add(record("meta", time.time_ns(), text))

    def step_begins(self, step: Step) -> None:
        """A record, with the time at which the step began. It is encoded later: with what follows, or by the thread."""
        if not self._closed:
            self._pending_steps.append((time.time_ns(), step))

    def step_ends(self) -> None:
        """Nothing: the next step's record tells."""

    def payload(self, event: str, payload: Any) -> None:
        """A record."""
        self._add(record(event.removeprefix("moe."), time.time_ns(), np.asarray(payload).tobytes()))

    def payloads(self, event: str, rows: Any) -> None:
        """A record a row."""
        if self._closed or self.failure is not None:
            return
        with self._lock:
            self._encode_begun()
            size_bytes = records_bytes(rows)
            if self._has_room(size_bytes):
                fill_records(self._waiting.room(size_bytes), event.removeprefix("moe."), time.time_ns(), rows)
                self._waiting.filled(size_bytes)
        self._wake_if_much()

    def flush(self) -> None:
        """Write what is pending, now."""
        if os.getpid() != self._pid:  # a forked child has the parent's records
            return
        with self._writing:
            with self._lock:
                self._encode_begun()
                pieces = self._waiting.take()
            while pieces:
                piece = pieces.popleft()
                if piece.used_bytes and self.failure is None:
                    self._write(piece.records())
                with self._lock:
                    self._waiting.give_back(piece)

    def _write(self, records: memoryview) -> None:
        try:
            if self._writer.removed():
                raise FileNotFoundError(errno.ENOENT, "the file was removed")
            self._writer.append(records)
        except (OSError, ValueError) as error:
            self.failure = f"{type(error).__name__}: {error}"
            logger().warning("%s: cannot write (%s); nothing more is recorded there", self.path, self.failure)

    def pause(self) -> None:
        """Wake the thread that writes."""
        if self._waiting.size_bytes or self._pending_steps:
            self._wake.set()

    def conclude(self, summary: Mapping[str, Any]) -> None:
        """Write what is pending and an end record, which counts until something follows."""
        if not self._closed and os.getpid() == self._pid:
            self._end(summary)

    def _end(self, summary: Mapping[str, Any]) -> None:
        with self._lock:
            self._encode_begun()
        summary_with_losses = {**summary, "lost": {**summary.get("lost", {})}}
        if self.dropped:
            summary_with_losses["lost"]["the disk was slower than the events"] = self.dropped
        with self._lock:
            self._waiting.add(record("end", time.time_ns(), json.dumps(summary_with_losses).encode()))
        self.flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        """Write the end record and close the file."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._end(summary)
        self._wake.set()
        with self._writing, contextlib.suppress(OSError):
            self._writer.close()
        atexit.unregister(self._at_exit)
        self._finalizer.cancel()

    def __del__(self) -> None:
        if not self._closed and os.getpid() == self._pid:
            self.flush()
            self._writer.close()

    def _add(self, data: bytes) -> None:
        if self._closed or self.failure is not None:
            return
        with self._lock:
            self._encode_begun()
            self._append(data)
        self._wake_if_much()

    def _append(self, data: bytes) -> None:
        """Add records, or count them as dropped. The lock is held."""
        if self._has_room(len(data)):
            self._waiting.add(data)

    def _has_room(self, size_bytes: int) -> bool:
        """Whether so much may wait as well; else it is counted as dropped. The lock is held."""
        if self._waiting.size_bytes + size_bytes <= MOST_BYTES:
            return True
        self.dropped += 1
        return False

    def _wake_if_much(self) -> None:
        if self._waiting.size_bytes > WAKE_BYTES and not self._wake.is_set():
            self._wake.set()

    def _encode_begun(self) -> None:
        """Add the records of the steps that have begun since. The lock is held."""
        while self._pending_steps:
            time_ns, step = self._pending_steps.popleft()
            self._append(record("step", time_ns, step.packed()))


def _run(reference: weakref.ref[JournalSink], wake: threading.Event, interval_s: float) -> None:
    """Write every interval, as long as somebody has the sink."""
    while True:
        wake.wait(interval_s)
        wake.clear()
        sink = reference()
        if sink is None or sink._closed:
            return
        sink.flush()
        del sink
