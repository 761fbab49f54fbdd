"""The sink of live metrics: a thread adds up what was counted and publishes it as a snapshot."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nvtxmoe.capture.live import snapshot
from nvtxmoe.capture.live.rank_facts import rank_facts
from nvtxmoe.capture.live.samples import Options
from nvtxmoe.capture.live.series import Shape, most_series
from nvtxmoe.capture.live.totals import Begun, Totals
from nvtxmoe.capture.log import logger
from nvtxmoe.capture.run_identity import Step
from nvtxmoe.formats import schema

#: Seconds between two times that what is waiting is added up; it is published every so many of them.
ADD_S = 0.25
PUBLISH_EVERY = 4
#: Bytes of counts that wait at most: beyond, the counts of steps are dropped.
MOST_BYTES = 64 << 20
#: Beginning of the names of our threads.
THREADS = "nvtxmoe-"


class MetricsSink:
    """Keeps counts until its thread adds them up. Serving only appends.

    Parameters:
        runs: whether it has a thread; else somebody calls ``work``.
    """

    encoding = "live"
    steps_a_send = 16

    def __init__(self, folder: Path, rank: int, options: Options, *, runs: bool = True) -> None:
        self.path = snapshot.path_of(folder, rank)
        self.failure: str | None = None
        self._options = options
        self._pid = os.getpid()
        self._pending_steps: deque[tuple[int, Step]] = deque()
        self._rows: deque[tuple[str, np.dtype[np.void], bytes]] = deque()
        self._dropped, self._dropped_last = 0, -1
        self._meta: bytes | None = None
        self._totals: Totals | None = None
        self._working = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._touched = True
        arguments = (weakref.ref(self), self._wake)
        if runs:
            threading.Thread(target=_run, args=arguments, name=f"{THREADS}metrics", daemon=True).start()

    def meta(self, text: bytes) -> None:
        """Kept: the thread reads it."""
        self._meta = text

    def step_begins(self, step: Step) -> None:
        """Kept, with its time."""
        if self.failure is None:
            self._pending_steps.append((time.time_ns(), step))

    def step_ends(self) -> None:
        """Nothing."""

    def payload(self, event: str, payload: Any) -> None:
        """Nothing: metrics are of counts."""

    def payloads(self, event: str, rows: Any) -> None:
        """A copy is kept, or the step is dropped where too much waits."""
        if self.failure is not None:
            return
        if len(self._rows) * rows.nbytes > MOST_BYTES:
            number = int(rows["step"][0])
            if number != self._dropped_last:
                self._dropped, self._dropped_last = self._dropped + 1, number
            return
        self._rows.append((event, rows.dtype, rows.tobytes()))

    def pause(self) -> None:
        """Add up and publish soon."""
        if self._rows:
            self._wake.set()

    def conclude(self, summary: Mapping[str, Any]) -> None:  # noqa: ARG002  moe.meta has it
        """Add up and publish, now."""
        self.work(publish=True)

    def close(self, summary: Mapping[str, Any]) -> None:
        """As ``conclude``; the thread ends."""
        if not self._closed:
            self.conclude(summary)
        self._closed = True
        self._wake.set()

    def work(self, publish: bool) -> None:
        """Add up what waits. The first failure is a warning, and nothing is published from then on."""
        if self.failure is not None or os.getpid() != self._pid:
            return
        with self._working:
            try:
                self._add_up()
                if publish:
                    self._publish()
            except Exception as error:  # serving is sacred
                self.failure = f"{type(error).__name__}: {error}"
                self._rows.clear()
                self._pending_steps.clear()
                logger().warning("live metrics stop: %s", self.failure)

    def _add_up(self) -> None:
        meta, self._meta = self._meta, None
        if meta is not None:
            self._read_meta(meta)
        # The rows first: their steps have begun before.
        rows = [self._rows.popleft() for _ in range(len(self._rows))]
        new_steps = [Begun(*self._pending_steps.popleft()) for _ in range(len(self._pending_steps))]
        count_events = (schema.COUNTS, schema.PHYSICAL)
        counts = [(event, np.frombuffer(data, dtype)) for event, dtype, data in rows if event in count_events]
        if self._totals is not None and (new_steps or counts):
            self._totals.add(new_steps, counts, time.monotonic())
            self._touched = True

    def _read_meta(self, meta: bytes) -> None:
        facts = rank_facts(meta)
        self._touched = True
        if self._totals is not None and self._totals.facts.layers_alike(facts):
            self._totals.facts = facts
            return
        self._totals = Totals(facts)
        if self._options.experts and facts.rank == 0:
            layers, experts = len(facts.layers), max((layer.experts for layer in facts.layers), default=0)
            shape = Shape(layers, experts, facts.world_size, facts.ep_size, self._options)
            logger().warning(
                "NVTXMOE_METRICS_EXPERTS is on: up to %s series (%s layers x %s experts, %s ranks)",
                f"{most_series(shape):,}", layers, experts, facts.world_size,
            )  # fmt: skip

    def _publish(self) -> None:
        if self._totals is None:
            return
        if not self._touched:
            snapshot.touch(self.path)
            return
        self._touched = False
        sink_fields = {"dropped": self._dropped, "thread_cpu_s": thread_cpu_s()}
        snapshot.write(self.path, {**self._totals.header(), **sink_fields}, self._totals.arrays())


def thread_cpu_s() -> dict[str, float]:
    """Processor time of our threads in this process, in seconds, by what they do."""
    cpu_s: dict[str, float] = {}
    for thread in threading.enumerate():
        if thread.name.startswith(THREADS) and thread.native_id is not None:
            try:
                times = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()
            except OSError:
                continue
            name = thread.name.removeprefix(THREADS)
            cpu_s[name] = cpu_s.get(name, 0.0) + int(times[0]) / 1e9
    return cpu_s


def _run(reference: weakref.ref[MetricsSink], wake: threading.Event) -> None:
    """Add up, as long as somebody has the sink and nothing has failed."""
    turn = 0
    while True:
        woken = wake.wait(ADD_S)
        wake.clear()
        sink = reference()
        if sink is None or sink._closed or sink.failure is not None:
            return
        turn += 1
        sink.work(publish=woken or turn % PUBLISH_EVERY == 0)
        del sink
