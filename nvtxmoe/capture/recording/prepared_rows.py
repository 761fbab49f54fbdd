"""Rows of counts that are used again in every step."""

from __future__ import annotations

from typing import Any

import numpy as np

from nvtxmoe.capture.run_identity import Step
from nvtxmoe.formats import schema


class PreparedRows:
    """Rows of counts of the same layers, used again in every step: most of their fields stay as they are."""

    def __init__(self, layers: tuple[int, ...], top_k: int, experts: int) -> None:
        self._rows = np.zeros(len(layers), schema.counts_dtype(experts))
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
