"""The collector of prometheus_client: each scrape reads the ranks' snapshots."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvtxmoe.capture.live.imbalance_time import ImbalanceTime
from nvtxmoe.capture.live.run_view import RunView, run_view
from nvtxmoe.capture.live.samples import Options
from nvtxmoe.capture.live.series import COUNTER, PREFIX, SERIES
from nvtxmoe.capture.live.snapshot import read_all
from nvtxmoe.capture.log import logger


class Collector:
    """Series of all ranks of a folder. Nothing is kept: what a rank no longer shows is gone with the next scrape."""

    def __init__(self, folder: Path, options: Options, model: ImbalanceTime | None = None) -> None:
        self._folder, self._options, self._model = folder, options, model
        self._failed = False

    def view(self) -> RunView:
        """The run as it is now."""
        began = time.perf_counter()
        view = run_view(read_all(self._folder), self._model)
        view.collect_s = time.perf_counter() - began
        return view

    def collect(self) -> Iterator[Any]:
        """Families of prometheus_client. After a failure there are none, with one warning."""
        try:
            yield from self._families()
        except Exception:  # the server's own metrics go on
            if not self._failed:
                self._failed = True
                logger().warning("live metrics can't be read; the server's own ones go on", exc_info=True)

    def _families(self) -> list[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415  an extra

        view, families = self.view(), []
        for series in SERIES:
            made = CounterMetricFamily if series.kind == COUNTER else GaugeMetricFamily
            family = made(PREFIX + series.name, series.what, labels=series.labels)
            for labels, value in series.of(view, self._options):
                family.add_metric(labels, value)
            if family.samples:
                families.append(family)
        return families
