"""Compute what ``nvtxmoe top`` shows from pages of metrics: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nvtxmoe.live_view.scrape import Labels, Page
from nvtxmoe.terminal_text import harmless

#: What the cells of the heatmap are.
RANK_CELLS = "load of each expert-parallel rank over the layer's mean"
EXPERT_CELLS = "load of each expert over the layer's mean"
SHARE_CELLS = "share of the layer's assignments of its hottest experts"


@dataclass(frozen=True)
class ExpertShare:
    """One expert of a layer, with its share of the layer's assignments (0 to 1)."""

    expert: int
    share: float


@dataclass(frozen=True)
class LayerRow:
    """One layer. A value is None if the page lacks it.

    Attributes:
        expert_max_over_mean: largest over mean load of the experts; 1 is even.
        active_experts: experts with any token, mean per step.
        experts_never_hit: experts without any token since the run began.
        rank_balancedness: mean over largest load of the expert-parallel ranks; 1 is even.
        estimated_lost_us_per_step: estimate of the time per step that imbalance costs, in microseconds.
        assignments_per_s: None before the second scrape.
        heat: cells of the heatmap, see ``View.heat``.
    """

    layer: int
    expert_max_over_mean: float | None
    active_experts: float | None
    experts_never_hit: int | None
    rank_balancedness: float | None
    estimated_lost_us_per_step: float | None
    assignments_per_s: float | None
    hottest: tuple[ExpertShare, ...]
    coldest: tuple[ExpertShare, ...]
    heat: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class View:
    """All that is shown of one moment. Rates are None before the second scrape.

    Attributes:
        steps_per_s: of the rank with the most steps: ranks that work together run the same steps.
        rates_over_s: time between the two scrapes that rates are computed from.
        dropped_steps: steps without counts, by who lost them (``recorder``, ``metrics``), added over ranks.
        hidden_layers: most of any rank.
        own_cpu_ratio: processor time of nvtxmoe's threads per second, in cores, added over ranks.
        own_cpu_us_per_step: the same time per step of a rank, in microseconds.
        collect_us: time that the server took to put the page together, in microseconds.
        estimated_lost_us_per_step: by bound (low, estimate, high), in microseconds.
        estimated_coverage: share of the layers that have an estimate.
        heat: meaning of the layers' ``heat``; None without cells.
    """

    model: str | None
    vllm: str | None
    nvtxmoe: str | None
    ranks: int | None
    tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    steps_per_s: float | None
    rates_over_s: float | None
    dropped_steps: Mapping[str, int]
    hidden_layers: int
    failed_hooks: int
    own_cpu_ratio: float | None
    own_cpu_us_per_step: float | None
    collect_us: float | None
    rank_balancedness: float | None
    estimated_lost_us_per_step: Mapping[str, float]
    estimated_coverage: float | None
    heat: str | None
    layers: tuple[LayerRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, layers in their order."""
        return asdict(self)


@dataclass(frozen=True)
class Order:
    """One way to sort layers.

    Attributes:
        key: the key that chooses it.
        value: what is compared, the largest first; layers without a value come last.
    """

    name: str
    key: str
    value: Callable[[LayerRow], float | None]


ORDERS = (
    Order("imbalance", "i", lambda row: row.expert_max_over_mean),
    Order("ranks", "r", lambda row: None if row.rank_balancedness is None else -row.rank_balancedness),
    Order("active", "a", lambda row: row.active_experts),
    Order("lost", "t", lambda row: row.estimated_lost_us_per_step),
    Order("layer", "l", lambda row: -row.layer),
)


def orders_of(view: View) -> list[Order]:
    """Return the orders that the view has values for."""
    return [
        order for order in ORDERS if order.name == "layer" or any(order.value(row) is not None for row in view.layers)
    ]


def ordered(rows: Iterable[LayerRow], name: str) -> list[LayerRow]:
    """Sort layers; equal ones by number."""
    value = next(order.value for order in ORDERS if order.name == name)

    def key(row: LayerRow) -> tuple[bool, float, int]:
        sort_value = value(row)
        return sort_value is None, -(sort_value or 0.0), row.layer

    return sorted(rows, key=key)


def view_of(now: Page, before: Page | None = None) -> View:
    """Compute the view of a page, with rates since an earlier page."""
    info: Labels = next((labels for labels, _ in now.of("info")), {})
    span = now.at_s - before.at_s if before is not None and now.at_s > before.at_s else None
    tokens = _increase(now, before, "tokens_total", "kind")
    steps = _increase(now, before, "steps_total", "rank")
    cpu = _increase(now, before, "thread_cpu_seconds_total")
    by_kind = {kind: _per_s(tokens.get(kind, 0.0) if tokens else None, span) for kind in ("prefill", "decode")}
    cpu_s = sum(cpu.values()) if cpu else None
    rank_steps = sum(steps.values()) if steps else 0.0
    heat, cells = _heat(now, before)
    return View(
        model=_text(info.get("model")), vllm=_text(info.get("vllm")), nvtxmoe=_text(info.get("version")),
        ranks=_whole_number(_single_value(now, "ranks")),
        tokens_per_s=_per_s(sum(tokens.values()) if tokens else None, span),
        prefill_tokens_per_s=by_kind["prefill"], decode_tokens_per_s=by_kind["decode"],
        steps_per_s=_per_s(max(steps.values()) if steps else None, span),
        rates_over_s=span,
        dropped_steps={by: int(value) for by, value in _sums(now, "dropped_steps_total", "by").items()},
        hidden_layers=int(max((value for _, value in now.of("hidden_layers")), default=0)),
        failed_hooks=int(sum(value for _, value in now.of("failed_hooks"))),
        own_cpu_ratio=_per_s(cpu_s, span),
        own_cpu_us_per_step=cpu_s * 1e6 / rank_steps if cpu_s is not None and rank_steps else None,
        collect_us=_micro(_single_value(now, "collect_seconds")),
        rank_balancedness=_single_value(now, "eplb_balancedness"),
        estimated_lost_us_per_step={
            labels.get("bound", ""): value * 1e6
            for labels, value in now.of("estimated_imbalance_lost_seconds")
        },
        estimated_coverage=_single_value(now, "estimated_imbalance_coverage_ratio"),
        heat=heat, layers=_layers(now, before, span, cells),
    )  # fmt: skip


def _layers(
    now: Page, before: Page | None, span: float | None, cells: Mapping[int, tuple[float, ...]]
) -> tuple[LayerRow, ...]:
    ratio, active = _by_layer(now, "layer_expert_max_over_mean"), _by_layer(now, "layer_active_experts")
    never, balance = _by_layer(now, "layer_experts_never_hit"), _by_layer(now, "layer_eplb_balancedness")
    lost = _by_layer(now, "estimated_layer_imbalance_lost_seconds")
    hottest, coldest = _shares(now, "hottest_expert_share", True), _shares(now, "coldest_expert_share", False)
    grown = _increase(now, before, "layer_assignments_total", "layer") or {}
    layers = sorted({*_by_layer(now, "layer_assignments_total"), *ratio, *active, *hottest})
    return tuple(
        LayerRow(
            layer=layer, expert_max_over_mean=ratio.get(layer), active_experts=active.get(layer),
            experts_never_hit=_whole_number(never.get(layer)), rank_balancedness=balance.get(layer),
            estimated_lost_us_per_step=_micro(lost.get(layer)),
            assignments_per_s=_per_s(grown.get(str(layer)), span),
            hottest=hottest.get(layer, ()), coldest=coldest.get(layer, ()), heat=cells.get(layer, ()),
        )
        for layer in layers
    )  # fmt: skip


def _heat(now: Page, before: Page | None) -> tuple[str | None, dict[int, tuple[float, ...]]]:
    """Return what the cells are, and the cells by layer: of ranks, else of all experts, else of the hottest experts.

    Loads are those since the earlier page; if nothing has run since then, those since the run began.
    """
    for name, label, meaning in (
        ("layer_ep_rank_assignments_total", "ep_rank", RANK_CELLS),
        ("expert_assignments_total", "expert", EXPERT_CELLS),
    ):
        loads = _grid(now, name, label)
        if not loads:
            continue
        earlier = _grid(before, name, label) if before is not None else {}
        since = {key: value - earlier.get(key, 0.0) for key, value in loads.items()}
        if before is not None and any(since.values()) and min(since.values()) >= 0:
            loads = since
        return meaning, _over_mean(loads)
    hottest = _shares(now, "hottest_expert_share", True)
    if not hottest:
        return None, {}
    return SHARE_CELLS, {layer: tuple(share.share for share in shares) for layer, shares in hottest.items()}


def _grid(page: Page, name: str, label: str) -> dict[tuple[int, int], float]:
    pairs = ((_number(labels, "layer"), _number(labels, label), value) for labels, value in page.of(name))
    return {(row, column): value for row, column, value in pairs if row is not None and column is not None}


def _over_mean(loads: Mapping[tuple[int, int], float]) -> dict[int, tuple[float, ...]]:
    rows: dict[int, list[float]] = {}
    for key in sorted(loads):
        rows.setdefault(key[0], []).append(loads[key])
    means = {row: sum(values) / len(values) for row, values in rows.items()}
    return {row: tuple(value / means[row] if means[row] else 0.0 for value in values) for row, values in rows.items()}


def _increase(now: Page, before: Page | None, name: str, label: str | None = None) -> dict[str, float] | None:
    """Return how much a counter grew, added by a label; None without two pages that have it.

    A series that is new has no increase yet. One that fell began again at zero.
    """
    if before is None:
        return None
    earlier = {tuple(sorted(labels.items())): value for labels, value in before.of(name)}
    increases: dict[str, float] = {}
    for labels, value in now.of(name):
        last = earlier.get(tuple(sorted(labels.items())))
        if last is not None:
            key = labels.get(label, "") if label else ""
            increases[key] = increases.get(key, 0.0) + (value - last if value >= last else value)
    return increases or None


def _sums(page: Page, name: str, label: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for labels, value in page.of(name):
        sums[labels.get(label, "")] = sums.get(labels.get(label, ""), 0.0) + value
    return sums


def _by_layer(page: Page, name: str) -> dict[int, float]:
    pairs = ((_number(labels, "layer"), value) for labels, value in page.of(name))
    return {layer: value for layer, value in pairs if layer is not None}


def _shares(page: Page, name: str, hottest: bool) -> dict[int, tuple[ExpertShare, ...]]:
    shares_by_layer: dict[int, list[ExpertShare]] = {}
    for (layer, expert), share in _grid(page, name, "expert").items():
        shares_by_layer.setdefault(layer, []).append(ExpertShare(expert, share))
    sign = -1 if hottest else 1
    return {
        layer: tuple(sorted(shares, key=lambda share: (sign * share.share, share.expert)))
        for layer, shares in shares_by_layer.items()
    }


def _number(labels: Labels, name: str) -> int | None:
    text = labels.get(name, "")
    return int(text) if text.removeprefix("-").isdecimal() else None


def _single_value(page: Page, name: str) -> float | None:
    samples: Sequence[tuple[Labels, float]] = page.of(name)
    return samples[0][1] if samples else None


def _per_s(amount: float | None, span: float | None) -> float | None:
    return None if amount is None or not span else amount / span


def _micro(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6


def _whole_number(value: float | None) -> int | None:
    return None if value is None else round(value)


def _text(value: str | None) -> str | None:
    return None if not value else harmless(value, keep="")
