"""Placements to be compared: a module per algorithm, found by being here.

An algorithm is a module with ``ORDER`` (its place in tables), ``LABEL`` (its name in words) and
``place(layer: Routing) -> Layout | None``: None where it has no placement for the layer.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from nvtxmoe_analysis.core.arrays import Bools, Ints
from nvtxmoe_analysis.placement.layout import Counts, Layout


@dataclass(frozen=True)
class Routing:
    """What an algorithm sees of a layer: steps to choose a placement by.

    Attributes:
        counts: [steps, experts].
        block_m: int64 [steps], rows of a tile.
        decode: bool [steps], steps without prefill tokens.
        ranks: how many share the experts.
        redundant: slots beyond one per expert that an algorithm may use.
        today: the placement of the run, where it is known.
    """

    counts: Counts
    block_m: Ints
    decode: Bools
    ranks: int
    redundant: int
    today: Layout | None

    @property
    def experts(self) -> int:
        """Number of logical experts."""
        return int(self.counts.shape[1])


class Algorithm(Protocol):
    """What a module of this folder has."""

    ORDER: int
    LABEL: str

    def place(self, layer: Routing, /) -> Layout | None:
        """Return the layer's placement; None where there is none."""


def algorithms() -> Mapping[str, Algorithm]:
    """Return every algorithm by name, in their order."""
    modules = {
        info.name: cast(Algorithm, import_module(f"{__name__}.{info.name}")) for info in pkgutil.iter_modules(__path__)
    }
    return dict(sorted(modules.items(), key=lambda item: (item[1].ORDER, item[0])))
