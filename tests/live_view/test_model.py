"""Views of pages by the real collector: values, rates over two scrapes, orders."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest

from nvtxmoe.capture.live.samples import Options
from nvtxmoe.capture.live.series import PREFIX, SERIES
from nvtxmoe.live_view import model as viewed
from nvtxmoe.live_view.model import EXPERT_CELLS, RANK_CELLS, SHARE_CELLS, View, ordered, orders_of, view_of
from nvtxmoe.live_view.scrape import Page, parse
from nvtxmoe.live_view.watch import RATE_S, Pages
from tests.support.live_pages import LOADS, Served, text_of
from tests.support.live_ranks import Model


def page(served: Served, at_s: float) -> Page:
    return parse(text_of(served.collector), at_s)


def test_values_of_the_real_collector(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.steps(10)
    view = view_of(page(served, 1.0))
    assert (view.model, view.vllm, view.ranks) == ("made-up", "0.33.0", 2)
    assert (view.tokens_per_s, view.steps_per_s, view.own_cpu_ratio, view.rates_over_s) == (None, None, None, None)
    assert (view.dropped_steps, view.hidden_layers, view.failed_hooks) == ({"metrics": 0, "recorder": 0}, 0, 0)
    assert [row.layer for row in view.layers] == [1, 2, 3]
    for row, loads in zip(view.layers, LOADS, strict=True):
        ranks = loads.reshape(2, 4).sum(axis=1)
        assert row.expert_max_over_mean == pytest.approx(loads.max() / loads.mean())
        assert row.active_experts == np.count_nonzero(loads)
        assert row.experts_never_hit == np.count_nonzero(loads == 0)
        assert row.rank_balancedness == pytest.approx(ranks.mean() / ranks.max(), rel=1e-4)
        assert row.estimated_lost_us_per_step == pytest.approx(0.9 * (ranks.max() - ranks.mean()))
        assert row.heat == pytest.approx(ranks / ranks.mean())
        assert [one.expert for one in row.hottest] == np.argsort(-loads, kind="stable")[:3].tolist()
        assert [one.expert for one in row.coldest] == np.argsort(loads, kind="stable")[:3].tolist()
        assert row.hottest[0].share == pytest.approx(loads.max() / loads.sum())
    assert view.estimated_lost_us_per_step == pytest.approx({"low": 3.5, "estimate": 4.5, "high": 5.5})
    assert (view.heat, view.estimated_coverage) == (RANK_CELLS, 1.0)


def test_rates_over_two_scrapes(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.steps(10)
    before = page(served, 100.0)
    served.steps(30)
    view = view_of(page(served, 104.0), before)
    assert (view.tokens_per_s, view.decode_tokens_per_s, view.prefill_tokens_per_s) == (30.0, 30.0, 0.0)
    assert (view.steps_per_s, view.rates_over_s) == (7.5, 4.0)
    assert [row.assignments_per_s for row in view.layers] == [30 * loads.sum() / 4 for loads in LOADS]


COUNTERS = """
nvtxmoe_ranks 2.0
nvtxmoe_steps_total{rank="0"} %s
nvtxmoe_steps_total{rank="1"} %s
nvtxmoe_tokens_total{rank="0",kind="decode"} 7.0
nvtxmoe_thread_cpu_seconds_total{rank="0",thread="metrics"} %s
nvtxmoe_thread_cpu_seconds_total{rank="0",thread="send"} 1.0
"""


def test_counters_that_begin_again() -> None:
    """A rank that restarted counts from zero; one that came has no rate yet."""
    view = view_of(parse(COUNTERS % (10, 5, 0.5), 12.0), parse(COUNTERS % (40, 1, 0.3), 10.0))
    assert view.steps_per_s == 5.0
    assert view.own_cpu_ratio == pytest.approx(0.1)
    assert view.own_cpu_us_per_step == pytest.approx(0.2e6 / 14)
    alone = parse(COUNTERS.replace('nvtxmoe_steps_total{rank="0"} %s\n', "") % (1, 0.3), 10.0)
    assert view_of(parse(COUNTERS % (900, 5, 0.5), 12.0), alone).steps_per_s == 2.0
    assert view_of(parse(COUNTERS % (40, 1, 0.3), 10.0), parse(COUNTERS % (40, 1, 0.3), 10.0)).steps_per_s is None


def test_rates_are_over_the_last_seconds() -> None:
    pages = Pages(parse(COUNTERS % (0, 0, 0), 0.0))
    for second in range(1, 31):
        pages.add(parse(COUNTERS % (second if second <= 20 else 20 + 5 * (second - 20), 0, 0), float(second)))
    view = pages.view()
    assert (view.rates_over_s, view.steps_per_s) == (RATE_S, 5.0)
    pages.add(parse(COUNTERS % (170, 0, 0), 130.0))
    assert (pages.view().rates_over_s, pages.view().steps_per_s) == (100.0, 1.0)


def test_values_that_are_no_numbers_are_unknown() -> None:
    view = view_of(
        parse('nvtxmoe_ranks NaN\nnvtxmoe_layer_active_experts{layer="4"} +Inf\nnvtxmoe_info{model="\x1b[2J"} 1\n', 0)
    )
    assert (view.ranks, view.layers, view.model) == (None, (), "\\x1b[2J")


def test_detail_by_expert_is_the_heatmap_without_ranks(tmp_path: Path) -> None:
    options, model = Options(experts=True), Model(layers=3, experts=8)
    served = Served(tmp_path, model, options, slopes=False)
    served.steps(3, LOADS[::-1])
    before = page(served, 0.0)
    served.steps(5)
    view = view_of(page(served, 1.0), before)
    assert view.heat == EXPERT_CELLS
    for row, loads in zip(view.layers, LOADS, strict=True):
        assert row.heat == pytest.approx(loads / loads.mean())
    idle = view_of(page(served, 2.0), page(served, 1.5))
    assert idle.layers[0].heat[0] == pytest.approx((5 * LOADS[0] + 3 * LOADS[2])[0] / (5 * 2 + 3 * 2))


def test_hottest_experts_are_the_heatmap_without_detail(tmp_path: Path) -> None:
    served = Served(tmp_path, Model(layers=3, experts=8), slopes=False)
    served.steps(2)
    view = view_of(page(served, 0.0))
    assert view.heat == SHARE_CELLS
    assert view.layers[2].heat == pytest.approx((9 / 16, 7 / 16, 0.0))
    assert [one.name for one in orders_of(view)] == ["imbalance", "active", "layer"]


def order(view: View, name: str) -> list[int]:
    return [row.layer for row in ordered(view.layers, name)]


def test_orders(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.steps(4)
    view = view_of(page(served, 0.0))
    assert [one.name for one in orders_of(view)] == ["imbalance", "ranks", "active", "lost", "layer"]
    assert order(view, "imbalance") == [3, 2, 1]
    assert order(view, "ranks") == [2, 3, 1]
    assert order(view, "active") == [1, 2, 3]
    assert order(view, "lost") == [2, 3, 1]
    assert order(view, "layer") == [1, 2, 3]


def test_every_name_is_one_of_the_series() -> None:
    """The view reads names from the page: each must be one that capture publishes."""
    tree = ast.parse(inspect.getsource(viewed))
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    published = {one.full_name.removeprefix(PREFIX) for one in SERIES}
    asked = {
        word
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and (getattr(call.func, "attr", "") == "of" or getattr(call.func, "id", "") in READERS)
        for word in (one.value for one in call.args if isinstance(one, ast.Constant))
        if isinstance(word, str) and word not in LABELS
    }
    assert len(asked) > 12
    assert asked <= published
    assert published - words == {"assignments_total", "ep_rank_assignments_total"}


READERS = {"_one", "_by_layer", "_shares", "_increase", "_sums"}
LABELS = {"by", "rank", "kind", "layer"}
