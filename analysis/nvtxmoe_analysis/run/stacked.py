"""Arrays of several reports, one below the other, without a copy of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.events.tables import stack


@dataclass(frozen=True)
class Stacked:
    """Rows of all parts.

    Attributes:
        parts: [rows] each, or [rows, columns] of any width.
        fill: stands to the right of narrower parts.
    """

    parts: Sequence[npt.NDArray[Any]]
    fill: float

    def whole(self) -> npt.NDArray[Any]:
        """All rows; of one part alone its own array."""
        if self.parts[0].ndim == 1:
            return self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)
        return stack(self.parts, self.fill, np.result_type(*self.parts))

    def rows(self, at: Ints) -> npt.NDArray[Any]:
        """The rows at these positions among all."""
        ends = np.cumsum([len(part) for part in self.parts])
        of_part = np.searchsorted(ends, at, side="right")
        order = np.argsort(of_part, kind="stable")
        bounds = np.searchsorted(of_part[order], np.arange(len(self.parts) + 1))
        width = [max(part.shape[1] for part in self.parts)] if self.parts[0].ndim > 1 else []
        out = np.full([len(at), *width], self.fill, dtype=np.result_type(*self.parts))
        for number, part in enumerate(self.parts):
            to = order[bounds[number] : bounds[number + 1]]
            part_rows = part[at[to] - (ends[number] - len(part))]
            if part.ndim > 1:
                out[to, : part.shape[1]] = part_rows
            else:
                out[to] = part_rows
        return out
