"""Telling people how far long work is, without knowing how they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import polars as pl


class Progress:
    """How far the work is.

    Parameters:
        report_progress: called with what is being done and the part of it that is done, 0 to 1, or None where nobody
            knows.
    """

    def __init__(self, report_progress: Callable[[str, float | None], None] | None = None) -> None:
        self._report_progress = report_progress
        self._what = ""
        self._done = self._total = 0

    def begin(self, what: str, rows: int = 0) -> None:
        """Say what is being done now, and over how many rows if that is known."""
        self._what, self._done, self._total = what, 0, rows
        self._report()

    def part(self, what: str, done: int, total: int) -> None:
        """Say what has been done, and how many of how many parts that makes."""
        self._what, self._done, self._total = what, done, total
        self._report()

    def over(self, batches: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Pass batches on, counting their rows."""
        for batch in batches:
            yield batch
            self._done += len(batch)
            self._report()

    def _report(self) -> None:
        if self._report_progress is not None:
            self._report_progress(self._what, min(1.0, self._done / self._total) if self._total else None)
