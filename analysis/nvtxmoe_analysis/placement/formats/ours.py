"""Our form, which ``nvtxmoe place --value`` reads back: of each layer the experts by slot, rank by rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.placement.formats import Placement
from nvtxmoe_analysis.placement.layout import Layout

SUFFIX = ".json"
VERSION = 1
KEY = "nvtxmoe_placement"
REMEDY = 'It needs {"nvtxmoe_placement": 1, "ranks": R, "layers": {"0": {"order": [...]}}}'


def dump(placement: Placement) -> str:
    """Return ``ranks`` and ``layers``: by number ``order`` (experts by slot), ``slots_per_rank``, ``num_experts``."""
    layers = {
        str(number): {
            "order": layout.order.tolist(),
            "slots_per_rank": layout.sizes.tolist(),
            "num_experts": placement.experts[number],
        }
        for number, layout in placement.layers.items()
    }
    ranks = next(iter(placement.layers.values())).ranks
    lines = ",\n    ".join(f'"{number}": {json.dumps(layer)}' for number, layer in layers.items())
    head = f'"{KEY}": {VERSION},\n  "name": {json.dumps(placement.name)},\n  "ranks": {ranks}'
    return f'{{\n  {head},\n  "layers": {{\n    {lines}\n  }}\n}}\n'


def read(path: Path) -> dict[int, Layout]:
    """Return a placement by number of the layer.

    A layer is an object with ``order``, or the list itself. Without ``slots_per_rank`` slots divide equally.

    Raises:
        NvtxmoeError: the file is absent or not of this form.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NvtxmoeError(error.strerror or "cannot be read", where=path) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise NvtxmoeError(f"not JSON ({error})", where=path, remedy=REMEDY) from error
    if not isinstance(document, dict) or document.get(KEY) != VERSION:
        raise NvtxmoeError("no placement of ours", where=path, remedy=REMEDY)
    ranks, layers = document.get("ranks"), document.get("layers")
    if type(ranks) is not int or ranks < 1 or not isinstance(layers, dict) or not layers:
        raise NvtxmoeError("ranks or layers are absent", where=path, remedy=REMEDY)
    layouts = {}
    for number, layer in layers.items():
        try:
            layouts[int(number)] = _layout(layer, ranks)
        except ValueError as error:
            raise NvtxmoeError(f"layer {number!r}: not a number", where=path, remedy=REMEDY) from error
        except NvtxmoeError as error:
            raise NvtxmoeError(f"layer {number}: {error.what}", where=path, remedy=REMEDY) from error
    return layouts


def _layout(layer: Any, ranks: int) -> Layout:
    order = layer.get("order") if isinstance(layer, dict) else layer
    sizes = layer.get("slots_per_rank") if isinstance(layer, dict) else None
    if not isinstance(order, list) or not _numbers(order):
        raise NvtxmoeError("order is no list of experts")
    if sizes is None:
        return Layout.equal(order, ranks)
    if not isinstance(sizes, list) or not _numbers(sizes) or len(sizes) != ranks or sum(sizes) != len(order):
        raise NvtxmoeError("slots_per_rank does not add up to the slots of order")
    return Layout(np.array(order, dtype=np.int64), np.array(sizes, dtype=np.int64))


def _numbers(values: list[Any]) -> bool:
    return len(values) > 0 and all(type(value) is int and 0 <= value < 1 << 31 for value in values)
