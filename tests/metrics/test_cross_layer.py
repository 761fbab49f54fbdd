"""moe_cross_layer: planted connections and none, by hand, in plain Python and against scipy."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from nvtxmoe_analysis.events.tables import TopkTable
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.metrics import cross_layer as module
from nvtxmoe_analysis.metrics import token_paths
from nvtxmoe_analysis.metrics.cross_layer import cross_layer
from nvtxmoe_analysis.metrics.token_paths import chance_bits, evenly, joint, mutual_information_bits, shuffled
from tests.support import naive_analysis
from tests.support.export_builder import Export, Process
from tests.support.sampled_tokens import Chosen, compared, ids, independent, of_layers, table
from tests.support.sessions import journal, run_of
from tests.support.written_results import written

# Mutual information --------------------------------------------------------------------------------------------------


def plain_bits(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> float:
    """Every pick of a token's expert here with every pick there, each as likely."""
    pairs: Counter[tuple[int, int]] = Counter()
    for one, other in zip(a, b, strict=True):
        pairs.update((x, y) for x in one for y in other)
    total = sum(pairs.values())
    of_a: Counter[int] = Counter()
    of_b: Counter[int] = Counter()
    for (x, y), number in pairs.items():
        of_a[x] += number
        of_b[y] += number
    return sum(n / total * math.log2(n * total / (of_a[x] * of_b[y])) for (x, y), n in pairs.items())


def test_one_layer_that_copies_the_other() -> None:
    """Top-1 of four experts, each for a quarter of the tokens: two bits, all of them explained."""
    chosen = of_layers([[[t % 4] for t in range(400)], [[3 - t % 4] for t in range(400)]])
    (row,) = compared(chosen).pairs.rows(named=True)
    assert (row["tokens"], row["tokens_sampled"], row["experts_a"], row["experts_b"]) == (400, 400, 4, 4)
    assert (row["plug_in_bits"], row["entropy_b_bits"]) == (pytest.approx(2), pytest.approx(2))
    assert row["mutual_information_bits"] == row["plug_in_bits"] - row["chance_bits"]
    assert row["mutual_information_bits"] == pytest.approx(2, abs=0.03)
    assert row["explained_pct"] == 100 * row["mutual_information_bits"] / row["entropy_b_bits"]
    assert row["reason"] is None


def test_top_2_by_hand() -> None:
    """The pick of {0, 1} or {2, 3} tells which pair the other layer's pick is of, not which of the two: one bit."""
    rows = [[[0, 1]] * 50 + [[2, 3]] * 50, [[5, 4]] * 50 + [[6, 7]] * 50]
    (row,) = compared(of_layers(rows)).pairs.rows(named=True)
    assert (row["plug_in_bits"], row["entropy_b_bits"]) == (pytest.approx(1), pytest.approx(2))


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (8, 2), (16, 4)])
def test_plug_in_equals_plain_python(experts: int, top_k: int) -> None:
    chosen = independent(experts, 60, experts, top_k, layers=3)
    rows = compared(chosen).pairs.rows(named=True)
    assert [(row["layer_a"], row["layer_b"], row["adjacent"]) for row in rows] == [
        (0, 1, True), (0, 2, False), (1, 2, True),
    ]  # fmt: skip
    for row in rows:
        a, b = ids(chosen, row["layer_a"]), ids(chosen, row["layer_b"])
        assert row["plug_in_bits"] == pytest.approx(plain_bits(a, b), rel=1e-9)
        assert row["entropy_b_bits"] == pytest.approx(stats.entropy(np.bincount(np.ravel(b)), base=2), rel=1e-12)


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(2000, 8, 1), (2000, 16, 2), (3000, 32, 4)])
def test_chance_is_the_known_bias(tokens: int, experts: int, top_k: int) -> None:
    """Where cells are well filled: (experts - top_k)^2 / (2 n top_k^2 ln 2), for top-1 that of Miller and Madow."""
    chosen = independent(1, tokens, experts, top_k)
    a, b = (np.array(ids(chosen, layer)) for layer in range(2))
    first_order = (experts - top_k) ** 2 / (2 * tokens * top_k**2 * math.log(2))
    assert chance_bits(a, b, 50) == pytest.approx(first_order, rel=0.08)


def test_chance_where_cells_are_nearly_empty() -> None:
    """As random permutations of numpy's have it; the known bias would take away far more than there is."""
    chosen = independent(2, 60, 64, 2)
    a, b = (np.array(ids(chosen, layer)) for layer in range(2))
    rng = np.random.default_rng(5)
    drawn = [mutual_information_bits(joint(a, b[rng.permutation(60)])) for _ in range(200)]
    deviation = float(np.std(drawn))
    assert chance_bits(a, b, 50) == pytest.approx(float(np.mean(drawn)), abs=4 * deviation / math.sqrt(50))
    assert 62**2 / (2 * 60 * 4 * math.log(2)) > 2 * float(np.mean(drawn))


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(100, 8, 2), (400, 32, 4), (60, 64, 2)])
def test_nothing_is_seen_where_nothing_is(tokens: int, experts: int, top_k: int) -> None:
    """The mean over unconnected pairs is zero within four standard errors, however small the sample; plug-in is not."""
    pairs = [compared(independent(seed, tokens, experts, top_k)).pairs.row(0, named=True) for seed in range(60)]
    found = np.array([pair["mutual_information_bits"] for pair in pairs])
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert abs(found.mean()) < 4 * error
    assert np.mean([pair["plug_in_bits"] for pair in pairs]) > 20 * error


def test_a_weak_connection_is_seen() -> None:
    """Every fourth token is sent on by a fixed map, the others anywhere."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 16, 4000)
    b = np.where(rng.random(4000) < 0.25, (a * 5 + 3) % 16, rng.integers(0, 16, 4000))
    (row,) = compared(of_layers([a[:, None], b[:, None]])).pairs.rows(named=True)
    p, rest = 0.25 + 0.75 / 16, 0.75 / 16
    true_bits = p * math.log2(p * 16) + 15 * rest * math.log2(rest * 16)
    assert row["mutual_information_bits"] == pytest.approx(true_bits, rel=0.1)


def test_shuffles_are_permutations_that_never_change() -> None:
    assert shuffled(8, 1).tolist() == [6, 3, 0, 7, 4, 5, 2, 1]
    for number in range(1, 6):
        assert sorted(shuffled(1000, number)) == list(range(1000))
    assert len({tuple(shuffled(1000, number)) for number in range(1, 21)}) == 20


# Who is the same token -----------------------------------------------------------------------------------------------


def test_a_token_is_rank_step_and_token() -> None:
    """A layer that copies the other's experts, in another order of events, some tokens only here or there."""
    rng = np.random.default_rng(3)
    keys = [(rank, step, token) for rank in (4, 2) for step in (7, 3, 90) for token in range(20)]
    choice = {key: int(rng.integers(0, 8)) for key in keys}
    order = [keys[at] for at in rng.permutation(len(keys))]
    chosen: Chosen = {
        0: {key: [choice[key]] for key in keys if key != (4, 3, 0)},
        2: {key: [choice[key] ^ 5] for key in sorted(order, key=lambda key: (key[1], key[0]))[:-10]},
    }
    (row,) = compared(chosen, layers=range(5)).pairs.rows(named=True)
    common = set(chosen[0]) & set(chosen[2])
    assert (row["layer_a"], row["layer_b"], row["adjacent"]) == (0, 2, False)
    assert row["tokens"] == row["tokens_sampled"] == len(common) == 109
    counts = np.bincount([choice[key] for key in common])
    assert row["plug_in_bits"] == pytest.approx(stats.entropy(counts, base=2))


def test_a_token_that_was_sent_twice_counts_once() -> None:
    one = table(of_layers([[[t % 3] for t in range(40)], [[t % 3] for t in range(40)]]))
    runs = pl.concat([one.runs, one.runs[:1].with_columns(first=pl.lit(80, pl.Int64))])
    experts = np.append(one.experts, np.full((40, 1), 9, dtype=np.int32), axis=0)
    twice = TopkTable(runs, np.append(one.token, one.token[:40]), experts, experts.astype(np.float32))
    assert cross_layer(twice, [0, 1]).pairs.equals(cross_layer(one, [0, 1]).pairs)


def test_tokens_with_fewer_experts_than_their_layers() -> None:
    """Or with one twice: only damage makes them. Layers may differ."""
    chosen = of_layers([[[t % 4, 4 + t % 3] for t in range(60)], [[t % 5] for t in range(60)]])
    chosen[0] |= {(0, 1, 0): [1], (0, 1, 1): [2, 2]}
    chosen[1] |= {(0, 1, 0): [1], (0, 1, 1): [1]}
    (row,) = compared(chosen).pairs.rows(named=True)
    assert row["tokens"] == 60
    chosen[0] = {key: experts for key, experts in chosen[0].items() if key[1] == 0}
    assert row["plug_in_bits"] == pytest.approx(plain_bits(ids(chosen, 0), ids(chosen, 1)[:60]))


def test_few_tokens_say_nothing() -> None:
    rows = [[[t % 2] for t in range(29)]] * 2
    (row,) = compared(of_layers(rows)).pairs.rows(named=True)
    assert (row["tokens"], row["mutual_information_bits"], row["plug_in_bits"], row["shuffles"]) == (29, None, None, 0)
    assert row["reason"] == "29 tokens are too few: 30 are wanted"
    (row,) = compared(of_layers([[*one, [0]] for one in rows])).pairs.rows(named=True)
    assert row["mutual_information_bits"] is not None


def test_layers_without_a_choice() -> None:
    """One expert that all tokens have: no entropy, so no share of it."""
    (row,) = compared(of_layers([[[t % 2] for t in range(50)], [[0]] * 50])).pairs.rows(named=True)
    assert (row["mutual_information_bits"], row["entropy_b_bits"], row["explained_pct"]) == (0, 0, None)


def test_many_experts_in_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted without a square of all experts; the same comes out."""
    chosen = independent(4, 200, 64, 2)
    a, b = (np.array(ids(chosen, layer)) for layer in range(2))
    dense = joint(a, b)
    monkeypatch.setattr(token_paths, "DENSE_FACTOR", 0)
    monkeypatch.setattr(token_paths, "DENSE_CONSTANT", 0)
    sparse = joint(a, b)
    for name in ("cells", "counts", "of_a", "of_b"):
        assert np.array_equal(getattr(dense, name), getattr(sparse, name))


# Bounds --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "most"), [(5, 5), (5, 9), (10, 3), (1000, 7)])
def test_evenly_spread(rows: int, most: int) -> None:
    found = evenly(rows, most)
    assert len(found) == min(rows, most)
    gaps = np.diff(np.append(found, rows))
    assert gaps.max() - gaps.min() <= 1 and found[0] == 0


@pytest.mark.slow
def test_sixty_layers_of_256_experts() -> None:
    """All 1,770 pairs; the work is bounded: neighbours get all tokens here, the others fewer."""
    rng = np.random.default_rng(0)
    layers, tokens, top_k = 60, 4000, 8
    ids_of = np.argsort(rng.random((tokens, 256)), axis=1)[:, :top_k].astype(np.int32)
    experts = np.concatenate([np.roll(ids_of, n, axis=0) for n in range(layers)])
    names = ("rank", "step", "layer", "top_k", "first", "tokens")
    runs = [(0, 0, n, top_k, n * tokens, tokens) for n in range(layers)]
    frame = pl.DataFrame(runs, schema=dict.fromkeys(names, pl.Int64), orient="row")
    token = np.tile(np.arange(tokens, dtype=np.int32), layers)
    found = cross_layer(TopkTable(frame, token, experts, np.zeros(experts.shape, np.float32)), range(layers)).pairs
    assert len(found) == 1770
    neighbours, others = found.filter("adjacent"), found.filter(~pl.col("adjacent"))
    assert set(neighbours["tokens"]) == {4000} and set(found["tokens_sampled"]) == {4000}
    assert len(neighbours) == 59
    (looked_at,) = set(others["tokens"])
    assert module.TOKENS_A_PAIR <= looked_at < 4000
    assert (others["shuffles"] + 1).sum() * looked_at * (64 + module.TOKEN_WORK) <= module.WORK
    assert found["mutual_information_bits"].abs().to_numpy().max() < 0.05


# Through analyze -----------------------------------------------------------------------------------------------------


def connected(
    export: Export, rank: int = 0, layers: Sequence[int] = (0, 1, 2), shift: int | None = None, **process: Any
) -> None:
    """Layers whose experts are the same, of 48 tokens in two sampled steps; those of another rank's tokens differ."""
    shift = rank + 1 if shift is None else shift
    worker = Process(export, rank=rank, pid=100 + rank, layers=3, **process)
    worker.meta["layers"] = [one for one in worker.meta["layers"] if one["layer"] in layers]
    worker.send_meta()
    for step in range(2):
        with worker.step(step, tokens=24):
            worker.kernel()
        for layer in layers:
            rows = [[t * shift % 4, (t * shift + 1) % 4] for t in range(24)]
            worker.counts(step, layer, np.bincount(np.ravel(rows), minlength=4).tolist(), tokens=24)
            worker.topk(step, layer, rows)


def pairs_of(found: Any) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = found.rows("moe_cross_layer", "layer_a", "layer_b", "adjacent", "tokens")
    return rows


def test_layers_left_out_are_still_between(tmp_path: Path) -> None:
    export = Export()
    connected(export)
    found = written(tmp_path, export)
    assert pairs_of(found) == [("0", "1", "true", "48"), ("0", "2", "false", "48"), ("1", "2", "true", "48")]
    narrowed = written(tmp_path, export, selection=Selection(layers=frozenset({0, 2}), last_step=0))
    assert pairs_of(narrowed) == [("0", "2", "false", "24")]


@pytest.mark.parametrize("known", ["meta", "counts"])
def test_layers_without_samples_are_between_too(tmp_path: Path, known: str) -> None:
    """Layer 1 is in moe.meta alone, or has counts alone; the others are and have both."""
    export = Export()
    worker = Process(export, layers=3)
    if known == "counts":
        del worker.meta["layers"][1]
        worker.counts(0, 1, [2, 2, 1, 1])
    worker.send_meta()
    for layer in (0, 2):
        worker.counts(0, layer, [1, 2, 2, 1])
        worker.topk(0, layer, [[0, 1], [1, 2], [2, 3]])
    assert pairs_of(written(tmp_path, export)) == [("0", "2", "false", "3")]


def test_ranks(tmp_path: Path) -> None:
    """Tensor-parallel copies once, data-parallel ranks added, pipeline stages not compared."""
    copies, parallel, stages = Export(), Export(), Export()
    for rank in range(2):
        connected(copies, rank=rank, shift=1, world_size=2, tp_size=2)
    connected(parallel, world_size=2)
    connected(parallel, rank=1, world_size=2)
    connected(stages, layers=[0], world_size=2)
    connected(stages, rank=1, layers=[1, 2], world_size=2)
    assert [row[3] for row in pairs_of(written(tmp_path, copies))] == ["48"] * 3
    assert [row[3] for row in pairs_of(written(tmp_path, parallel))] == ["96"] * 3
    assert pairs_of(written(tmp_path, stages)) == [("1", "2", "true", "48")]


def test_no_samples(tmp_path: Path) -> None:
    export = Export()
    Process(export).send_meta()
    found = written(tmp_path, export)
    assert found.rows("moe_cross_layer", "tokens") == found.rows("moe_cross_layer_paths", "tokens") == []


def test_direct_mode(tmp_path: Path) -> None:
    journal(tmp_path, run_of())
    assert pairs_of(written(tmp_path, tmp_path)) == [("0", "1", "true", "9")]


def test_the_two_gpu_capture(golden_2gpu: Path, tmp_path: Path) -> None:
    """361 tokens by brute force. Its gates are random, so that no layer knows of another."""
    found = written(tmp_path, golden_2gpu, formats=("parquet",))
    answer = naive_analysis.read(golden_2gpu)
    chosen: Chosen = defaultdict(dict)
    for (rank, step, layer), tokens in answer.samples.items():
        if rank in answer.first_ranks:
            chosen[layer] |= {(rank, step, token.index): token.experts for token in tokens}
    rows = found.frame("moe_cross_layer").rows(named=True)
    assert [(row["layer_a"], row["layer_b"]) for row in rows] == list(combinations(range(4), 2))
    for row in rows:
        a, b = ids(chosen, row["layer_a"]), ids(chosen, row["layer_b"])
        assert row["tokens"] == row["tokens_sampled"] == len(a) == 361
        assert row["plug_in_bits"] == pytest.approx(plain_bits(a, b), rel=1e-9)
        assert abs(row["mutual_information_bits"]) < 0.02 < row["plug_in_bits"]
    assert len(found.frame("moe_cross_layer_paths")) == 0
