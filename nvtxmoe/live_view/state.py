"""What a user of ``nvtxmoe top`` has chosen, and how keys change it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nvtxmoe.live_view.model import LayerRow, View, ordered, orders_of

#: Rows that a page key moves by.
PAGE_ROWS = 10
_MOVES = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -PAGE_ROWS, "page down": PAGE_ROWS}
QUIT = ("q", "Q")


@dataclass(frozen=True)
class State:
    """Choices, and what is wrong at the moment.

    Attributes:
        order: name of the order, see ``model.ORDERS``.
        layer: number of the picked layer; None: the first row.
        trouble: why the last scrape failed; empty if it did not.
    """

    order: str = "imbalance"
    layer: int | None = None
    trouble: str = ""


def picked_layer(view: View, state: State) -> LayerRow | None:
    """Return the picked layer, or the first row if it is gone; None without layers."""
    rows = ordered(view.layers, state.order)
    return next((row for row in rows if row.layer == state.layer), rows[0] if rows else None)


def pressed(state: State, key: str, view: View) -> State:
    """Return the state after a key; keys without a meaning change nothing."""
    for order in orders_of(view):
        if key.lower() == order.key:
            return replace(state, order=order.name)
    rows = ordered(view.layers, state.order)
    picked = picked_layer(view, state)
    if picked is None:
        return state
    if key in ("home", "end"):
        return replace(state, layer=rows[0 if key == "home" else -1].layer)
    if key not in _MOVES:
        return state
    at = rows.index(picked) + _MOVES[key]
    return replace(state, layer=rows[max(0, min(at, len(rows) - 1))].layer)
