"""Rows of counts that are used again in every step."""

from __future__ import annotations

from typing import Any

import numpy as np

from nvtxmoe.capture.recording.routing_tensors import Cells
from nvtxmoe.capture.run_identity import Step
from nvtxmoe.formats.checksum import sealed_dtype

#: Kinds of rows that are kept prepared.
MOST_PREPARED = 64


class PreparedRows:
    """Rows of counts of the same layers, used again in every step: most of their fields stay as they are."""

    def __init__(self, layers: tuple[int, ...], top_k: int, experts: int) -> None:
        self._rows = np.zeros(len(layers), sealed_dtype(experts))
        self._rows["layer"], self._rows["top_k"] = layers, top_k
        self._step, self._counts = self._rows["step"], self._rows["counts"]
        self._head: tuple[int, int] | None = None

    def filled(self, step: Step, counts: Any) -> Any:
        """Return the rows of a step, [layers]; they change with the next call."""
        head = step.rank, step.num_tokens
        if head != self._head:
            self._rows["rank"], self._rows["num_tokens"] = head
            self._head = head
        self._step.fill(step.number)
        self._counts[...] = counts
        return self._rows


class RowsByShape:
    """The rows of each set of layers, kept for the next step."""

    def __init__(self) -> None:
        self._rows: dict[tuple[tuple[int, ...], int, int], PreparedRows] = {}

    def of(self, cells: Cells) -> PreparedRows:
        """Return the rows for counts of these layers."""
        key = (cells.layers, cells.top_k, cells.counts.shape[1])
        rows = self._rows.get(key)
        if rows is None:
            if len(self._rows) > MOST_PREPARED:
                self._rows.clear()
            rows = self._rows[key] = PreparedRows(*key)
        return rows
