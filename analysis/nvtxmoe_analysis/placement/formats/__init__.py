"""Files of a placement, as the systems that run it take them: a module per form, found by being here.

A form is a module with ``SUFFIX`` (what its file's name ends in) and ``dump(placement: Placement) -> str``, which
raises NvtxmoeError where the form can't hold the placement.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.placement.layout import Layout


@dataclass(frozen=True)
class Placement:
    """A placement of all layers.

    Attributes:
        layers: by number of the layer.
        experts: logical experts of each layer, by its number.
    """

    name: str
    layers: Mapping[int, Layout]
    experts: Mapping[int, int]

    def slots(self) -> tuple[int, int]:
        """Return experts and slots of every layer.

        Raises:
            NvtxmoeError: layers differ, or a layer's slots do not divide equally between ranks.
        """
        if len(set(self.experts.values())) > 1 or len({len(layer.order) for layer in self.layers.values()}) > 1:
            raise NvtxmoeError("layers have unequal numbers of experts or slots, and this form has one for all")
        if any(len(set(layer.sizes.tolist())) > 1 for layer in self.layers.values()):
            raise NvtxmoeError("ranks have unequal numbers of slots, and this form divides them equally")
        return next(iter(self.experts.values())), len(next(iter(self.layers.values())).order)


class Form(Protocol):
    """What a module of this folder has."""

    SUFFIX: str

    def dump(self, placement: Placement, /) -> str:
        """Return the file's text."""


def forms() -> Mapping[str, Form]:
    """Return every form by name."""
    return {info.name: cast(Form, import_module(f"{__name__}.{info.name}")) for info in pkgutil.iter_modules(__path__)}
