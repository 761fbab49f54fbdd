"""Draw a view as lines of a given width. No number is cut from its unit: what does not fit goes to the next line."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from rich.cells import cell_len
from rich.text import Text

from nvtxmoe.live_view.model import SHARE_CELLS, LayerRow, View, ordered, orders_of
from nvtxmoe.live_view.state import State, picked_layer
from nvtxmoe.terminal_text import harmless
from nvtxmoe_analysis.core.text import number

BLOCKS, ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
#: Cells of a heatmap's row at most; more are folded, each shown by its largest.
MOST_CELLS = 32
#: Rows that a low terminal keeps: what is below them is left out, then the end of what is above.
LEAST_ROWS = 3
_HEAT_STYLES = ("green", "yellow", "red")
_NAMES = {"imbalance": "imbalance", "ranks": "ranks", "active": "active", "lost": "time lost", "layer": "layer"}


@dataclass(frozen=True)
class _Column:
    """One column: two lines of a head, the width in cells, the order it belongs to, and its text."""

    head: tuple[str, str]
    width: int
    order: str | None
    text: Callable[[LayerRow], str | None]


#: The most important first: on a narrow terminal the last ones are left out.
_COLUMNS = (
    _Column(("", "layer"), 6, "layer", lambda row: str(row.layer)),
    _Column(("max/", "mean"), 7, "imbalance", lambda row: _format(row.expert_max_over_mean, ".2f")),
    _Column(("active", "experts"), 8, "active", lambda row: _format(row.active_experts, ",.1f")),
    _Column(("est. lost", "us/step"), 10, "lost", lambda row: _format(row.estimated_lost_us_per_step, ",.1f")),
    _Column(("rank", "balance"), 8, "ranks", lambda row: _format(row.rank_balancedness, ".3f")),
    _Column(("experts", "never hit"), 10, None, lambda row: _format(row.experts_never_hit, ",")),
    _Column(("assignments", "per s"), 12, None, lambda row: _format(row.assignments_per_s, ",.0f")),
)  # fmt: skip


def draw(
    view: View, state: State, width: int, height: int | None = None, *, ascii_only: bool = False, keys: bool = False
) -> Text:
    """Draw a view.

    Parameters:
        width: columns of the terminal.
        height: its lines; None: as many as there are layers.
        keys: whether to show which keys work.
    """
    blocks = ASCII_BLOCKS if ascii_only else BLOCKS
    rows = ordered(view.layers, state.order)
    picked = picked_layer(view, state)
    above = [*_header(view, width), *_trouble(state, width), Text()]
    if not rows:
        return _joined([*above, Text("No counts yet: no request was answered, or no layer is recorded.")], width)
    columns = _fitting(rows, width)
    scale = max((max(row.heat, default=0.0) for row in rows), default=0.0)
    room = min(MOST_CELLS, width - sum(column.width for column in columns) - 2)
    head = [_head(columns, state, line) for line in range(2)]
    if view.heat and room > 0:
        word = "hottest" if view.heat == SHARE_CELLS else "load"
        head[1].append(f"  {word if len(word) <= room else ''}", "bold")
    below = [Text(), *_details(picked, width), *_legend(view, scale, blocks, width)]
    below += _left_out(rows, columns, width)
    below += _keys(view, width) if keys else []
    lines = len(rows)
    if height is not None:
        above = above[: max(1, height - len(head) - LEAST_ROWS)]
        room_lines = height - len(above) - len(head)
        below = below if room_lines - len(below) >= LEAST_ROWS else []
        lines = max(1, room_lines - len(below))
    table = [
        _row(row, columns, _heat(row, room, scale, blocks), keys and row is picked)
        for row in _window(rows, picked, lines)
    ]
    return _joined([*above, *head, *table, *below], width)


def _header(view: View, width: int) -> list[Text]:
    ranks = None if view.ranks is None else number(view.ranks, "rank")
    names = [ranks, view.vllm and f"vLLM {view.vllm}", view.nvtxmoe and f"nvtxmoe {view.nvtxmoe}"]
    title = [
        Text(line.plain, "bold")
        for line in _packed([view.model or "model unknown", *(name for name in names if name)], width)
    ]
    dropped = ", ".join(f"{by} {count:,}" for by, count in sorted(view.dropped_steps.items()) if count)
    items = [
        f"tokens {_rate(view.tokens_per_s, ',.0f')}",
        f"prefill {_rate(view.prefill_tokens_per_s, ',.0f')}",
        f"decode {_rate(view.decode_tokens_per_s, ',.0f')}",
        f"steps {_rate(view.steps_per_s, ',.1f')}",
        f"dropped {number(sum(view.dropped_steps.values()), 'step')}{f' ({dropped})' if dropped else ''}",
        f"hidden {number(view.hidden_layers, 'layer')}",
        *([f"failed {number(view.failed_hooks, 'hook')}"] if view.failed_hooks else []),
        f"own CPU {_own_cost(view)}",
    ]
    if view.collect_us is not None:
        items.append(f"page {view.collect_us / 1e3:.1f} ms")
    if view.rank_balancedness is not None:
        items.append(f"rank balance {view.rank_balancedness:.3f}")
    lost = view.estimated_lost_us_per_step
    if "estimate" in lost:
        ends = f" ({lost['low']:,.1f} to {lost['high']:,.1f} us)" if {"low", "high"} <= lost.keys() else ""
        items.append(f"estimated lost {lost['estimate']:,.1f} us/step{ends}")
    if view.estimated_coverage is not None:
        items.append(f"estimate of {100 * view.estimated_coverage:.0f} % of layers")
    return [*title, *_packed(items, width)]


def _trouble(state: State, width: int) -> list[Text]:
    return [Text(line, "bold red") for line in textwrap.wrap(harmless(state.trouble, keep=""), max(1, width))]


def _own_cost(view: View) -> str:
    if view.own_cpu_ratio is None:
        return "-"
    per_step = "" if view.own_cpu_us_per_step is None else f", {view.own_cpu_us_per_step:,.0f} us per rank's step"
    return f"{100 * view.own_cpu_ratio:.1f} % of a core{per_step}"


def _fitting(rows: Sequence[LayerRow], width: int) -> list[_Column]:
    """Return the columns that have values and fit, with eight cells left for the heatmap."""
    columns: list[_Column] = []
    left = width - 10
    for column in _COLUMNS:
        if all(column.text(row) is None for row in rows):
            continue
        if columns and column.width > left:
            break
        columns.append(column)
        left -= column.width
    return columns


def _left_out(rows: Sequence[LayerRow], columns: Sequence[_Column], width: int) -> list[Text]:
    """Name the columns that have values and no room."""
    names = [
        " ".join(column.head).replace("/ ", "/").strip()
        for column in _COLUMNS
        if column not in columns and any(column.text(row) is not None for row in rows)
    ]
    items = ["no room for:", *(f"{name}," for name in names[:-1]), *names[-1:], "(--once --json)"]
    return [Text(line.plain, "dim") for line in _packed(items, width)] if names else []


def _head(columns: Sequence[_Column], state: State, line: int) -> Text:
    text = Text()
    for column in columns:
        style = "bold underline" if column.order == state.order else "bold"
        word = column.head[line]
        text.append(" " * (column.width - len(word))).append(word, style)
    return text


def _row(row: LayerRow, columns: Sequence[_Column], heat: Text, is_picked: bool) -> Text:
    cells = "".join((column.text(row) or "-").rjust(column.width) for column in columns)
    if is_picked:
        cells = ">" + cells[1:]
    return Text(cells, "reverse" if is_picked else "").append("  ").append_text(heat)


def _heat(row: LayerRow, room: int, scale: float, blocks: str) -> Text:
    """Draw a row's cells, from nothing to the largest of all rows. More cells than there is room for are folded."""
    text, number = Text(), len(row.heat)
    shown = min(number, max(0, room))
    for place in range(shown):
        part = row.heat[place * number // shown : (place + 1) * number // shown]
        share = max(part) / scale if scale > 0 else 0.0
        text.append(blocks[_level(share, len(blocks))], _HEAT_STYLES[min(2, int(3 * share))])
    return text


def _level(share: float, levels: int) -> int:
    return min(levels - 1, max(1 if share > 0 else 0, round(share * (levels - 1))))


def _window(rows: Sequence[LayerRow], picked: LayerRow | None, lines: int) -> Sequence[LayerRow]:
    """Return as many rows as fit, with the picked one in the middle where that is possible."""
    at = rows.index(picked) if picked is not None else 0
    first = max(0, min(at - lines // 2, len(rows) - lines))
    return rows[first : first + lines]


def _details(picked: LayerRow | None, width: int) -> list[Text]:
    if picked is None:
        return []
    lines: list[Text] = []
    for name, shares in (("hottest", picked.hottest), ("coldest", picked.coldest)):
        items = [f"expert {share.expert} {100 * share.share:.2f} %" for share in shares[:8]]
        lines += _packed([f"layer {picked.layer} {name}:", *items], width)
    return lines if picked.hottest or picked.coldest else []


def _legend(view: View, scale: float, blocks: str, width: int) -> list[Text]:
    if view.heat is None or not scale:
        return []
    scale_text = f"{100 * scale:.2f} %" if view.heat == SHARE_CELLS else f"{scale:.2f} x"
    return [Text(line.plain, "dim") for line in _packed([f"{view.heat}:", f"{blocks[-1]} is {scale_text}"], width)]


def _keys(view: View, width: int) -> list[Text]:
    items = ["up/down pick a layer", *(f"{order.key} {_NAMES[order.name]}" for order in orders_of(view)), "q quit"]
    return [Text(line.plain, "dim") for line in _packed(items, width)]


def _packed(items: Sequence[str], width: int) -> list[Text]:
    """Put items into lines; none is cut, and only one that is wider than the terminal is divided."""
    lines: list[str] = []
    for item in chain.from_iterable(textwrap.wrap(item, max(1, width)) or [""] for item in items):
        if lines and cell_len(lines[-1]) + 2 + cell_len(item) <= width:
            lines[-1] += "  " + item
        else:
            lines.append(item)
    return [Text(line) for line in lines]


def _joined(lines: Sequence[Text], width: int) -> Text:
    """Join lines; those that are still too wide for the terminal are cropped, not wrapped."""
    for line in lines:
        line.rstrip()
        line.truncate(width)
    return Text("\n").join(lines)


def _format(value: float | None, how: str) -> str | None:
    return None if value is None else format(value, how)


def _rate(value: float | None, how: str) -> str:
    return "-" if value is None else f"{format(value, how)}/s"
