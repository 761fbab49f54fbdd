"""Placements hold every expert, and the load that they give the ranks is that of a plain count."""

from __future__ import annotations

import numpy as np
import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.placement.algorithms import Routing, algorithms
from nvtxmoe_analysis.placement.algorithms.redundant import replicas
from nvtxmoe_analysis.placement.layout import Layout, contiguous, round_robin


def routing(seed: int, experts: int, ranks: int, redundant: int, steps: int = 30) -> Routing:
    random = np.random.default_rng(seed)
    popularity = random.gamma(0.5, size=experts) + 0.01
    counts = random.multinomial(60, popularity / popularity.sum(), size=steps)
    block_m = random.choice([16, 24, 64], size=steps)
    today = round_robin(experts, ranks)
    return Routing(counts, block_m, random.random(steps) < 0.7, ranks, redundant, today)


@pytest.mark.parametrize(("experts", "ranks", "redundant"), [(16, 2, 2), (32, 4, 4), (13, 3, 2), (8, 8, 8), (5, 2, 5)])
@pytest.mark.parametrize("seed", range(6))
def test_every_algorithm_places_every_expert(seed: int, experts: int, ranks: int, redundant: int) -> None:
    layer = routing(seed, experts, ranks, redundant)
    for name, algorithm in algorithms().items():
        layout = algorithm.place(layer)
        assert layout is not None, name
        layout.check(experts)
        assert layout.ranks == ranks
        slots = experts + (redundant if name == "redundant" else 0)
        assert len(layout.order) == slots
        assert sorted(layout.sizes) == sorted(contiguous(slots, ranks).sizes), name


def test_redundant_slots_that_do_not_divide_have_no_placement() -> None:
    for redundant in (3, 16 * 4):
        layer = routing(0, 16, 4, redundant)
        assert algorithms()["redundant"].place(layer) is None


@pytest.mark.parametrize("redundant", [0, 4])
def test_the_load_of_ranks_is_that_of_a_plain_count(redundant: int) -> None:
    layer = routing(3, 16, 4, redundant)
    layout = algorithms()["redundant" if redundant else "greedy"].place(layer)
    assert layout is not None
    steps = np.arange(100, 130)
    load = layout.load(layer.counts, layer.block_m, steps)
    for at, step in enumerate(steps):
        many = {expert: int((layout.order == expert).sum()) for expert in range(16)}
        seen: dict[int, int] = {}
        rows, active, tiles = np.zeros(4, int), np.zeros(4, int), np.zeros(4, int)
        for slot, expert in enumerate(layout.order.tolist()):
            number = seen.get(expert, 0)
            seen[expert] = number + 1
            count = int(layer.counts[at, expert])
            share = count // many[expert] + ((number + step) % many[expert] < count % many[expert])
            rank = int(layout.rank_of[slot])
            rows[rank] += share
            active[rank] += share > 0
            tiles[rank] += -(-share // int(layer.block_m[at]))
        assert load.rows[at].tolist() == rows.tolist()
        assert load.active[at].tolist() == active.tolist()
        assert load.tiles[at].tolist() == tiles.tolist()
    assert (load.rows.sum(axis=1) == layer.counts.sum(axis=1)).all()


def test_greedy_is_more_even_than_blocks_and_fewest_active_has_fewer_on_the_busiest_rank() -> None:
    layer = routing(1, 32, 4, 4, steps=200)
    steps = np.arange(200)
    loads = {}
    for name, algorithm in algorithms().items():
        layout = algorithm.place(layer)
        assert layout is not None
        loads[name] = layout.load(layer.counts, layer.block_m, steps)
    even = {name: load.rows.sum(axis=0).max() for name, load in loads.items()}
    assert even["greedy"] < even["contiguous"]
    assert even["redundant"] <= even["greedy"]
    busiest = {name: load.active[layer.decode].max(axis=1).mean() for name, load in loads.items()}
    assert busiest["fewest_active"] < min(busiest["greedy"], busiest["contiguous"], busiest["redundant"])


def test_replicas_go_to_the_largest_load_per_replica() -> None:
    assert replicas(np.array([90.0, 40.0, 30.0, 10.0]), 6, 4).tolist() == [3, 1, 1, 1]
    assert replicas(np.array([90.0, 50.0, 30.0, 10.0]), 6, 4).tolist() == [2, 2, 1, 1]
    assert replicas(np.array([90.0, 1.0]), 4, 2).tolist() == [2, 2]  # no third on two ranks


@pytest.mark.parametrize(
    ("ranks", "says"),
    [
        ([[0, 1], [2]], "no slot for expert 3"),
        ([[0, 1], [2, 4]], "expert 4, of 4 experts"),
        ([[0, 0, 1], [2, 3]], "holds an expert twice"),
        ([[0, 1, 2, 3], []], "a rank without a slot"),
    ],
)
def test_a_placement_that_is_none_is_refused(ranks: list[list[int]], says: str) -> None:
    with pytest.raises(NvtxmoeError, match=says):
        Layout.of_ranks(ranks).check(4)


def test_a_rank_without_experts_has_no_load() -> None:
    layout = Layout(np.arange(4), np.array([2, 0, 2, 0]))
    load = layout.load(np.array([[3, 0, 5, 1]]), np.array([4]), np.array([0]))
    assert load.rows.tolist() == [[3, 0, 6, 0]]
    assert (load.tiles.tolist(), load.active.tolist()) == ([[1, 0, 3, 0]], [[1, 0, 2, 0]])
