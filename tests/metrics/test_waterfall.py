"""The waterfall: its bars add up to the measured time to the nanosecond, and planted costs come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvtxmoe_analysis.metrics.straggler import SCHEMA as STRAGGLERS
from nvtxmoe_analysis.metrics.waterfall.matmul_model import MatmulModel, fit
from nvtxmoe_analysis.metrics.waterfall.waterfall import BARS, OF_RANKS, ONE_RANK, TOTAL, waterfall
from tests.support.collective_simulation import Run
from tests.support.written_results import Written, written

ESTIMATED = ("ideal", "further_experts", "padding", "uneven_ranks", "unequal_speed")


def adds_up(bars: pl.DataFrame) -> None:
    """Assert that the bars of every step, and of every sum, are the total."""
    by = ["group", "step", "step_kind"]
    parts = bars.filter(pl.col("bar") != TOTAL).group_by(by).agg(pl.col("time_ns").sum().alias("parts"))
    wholes = bars.filter(bar=TOTAL)
    joined = wholes.join(parts, on=by, nulls_equal=True, how="left")
    assert len(joined) == len(wholes)
    assert joined["parts"].fill_null(0).to_list() == joined["time_ns"].to_list()


def made_up(
    seed: int, ranks: int, steps: int, layers: int, longest: int, known: float
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Cells with any times, and the waiting of some of their layers. A value is known with this probability."""
    random = np.random.default_rng(seed)

    def some(value: Any) -> Any:
        return value if random.random() < known else None

    def ns() -> int:
        return int(random.integers(0, longest + 1))

    rows, met = [], []
    for step in range(steps):
        kind = some(str(random.choice(["decode", "prefill", "mixed"])))
        for layer in range(layers):
            for rank in range(ranks):
                own, routed = some(ns()), some(int(random.integers(0, 500)))
                rows.append(
                    {
                        "rank": rank, "step": step, "layer_idx": layer, "step_kind": kind,
                        "kernel_time_ns": ns() + (own or 0), "own_ns": own,
                        "matmul_ns": None if own is None else some(own // 2),
                        "memcpy_time_ns": ns(), "memset_time_ns": ns(), "collective_inferred_ns": ns(),
                        "routed_rows": routed, "local_activations": routed,
                        "local_active_experts": None if routed is None else min(routed, int(random.integers(1, 9))),
                        "kernel_tokens": some(int(random.integers(0, 500))),
                        "tile_rows": None if routed is None else some(routed + int(random.integers(0, 300))),
                        "expert_bytes": some(100), "weights": None, "local_experts": 8, "top_k": 2,
                    }
                )  # fmt: skip
            if ranks > 1 and random.random() < known:
                met.append(
                    {
                        "step": step, "layer_idx": layer, "group": 0, "ranks": ranks, "ranks_in_group": ranks,
                        "mean_own_ns": 1.0, "max_own_ns": 1, "excess_ns": some(longest * float(random.random())),
                        "slowest_rank": 0, "collectives": 1, "wait_ns": ns(), "transfer_ns": ns(),
                    }
                )  # fmt: skip
    types = dict.fromkeys(rows[0], pl.Int64) | {"step_kind": pl.String()}
    groups = pl.DataFrame(
        {"rank": range(ranks), "group": [0] * ranks, "size": [ranks] * ranks},
        schema=dict.fromkeys(("rank", "group", "size"), pl.Int64),
    )
    return pl.DataFrame(rows, schema=types), pl.DataFrame(met, schema=STRAGGLERS, orient="row"), groups


@given(
    seed=st.integers(0, 2**32 - 1),
    ranks=st.integers(1, 3),
    steps=st.integers(1, 12),
    layers=st.integers(1, 3),
    longest=st.sampled_from([0, 1, 10_000, 10**12]),
    known=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)
@settings(max_examples=80)
def test_any_times_add_up(seed: int, ranks: int, steps: int, layers: int, longest: int, known: float) -> None:
    cells, stragglers, groups = made_up(seed, ranks, steps, layers, longest, known)
    bars = waterfall(cells, stragglers, cells, groups)
    adds_up(bars)
    whole = cells.select(
        pl.sum_horizontal("kernel_time_ns", "memcpy_time_ns", "memset_time_ns", "collective_inferred_ns").sum()
    ).item()
    sums = bars.filter(pl.col("step").is_null() & pl.col("step_kind").is_null())
    assert sums.filter(bar=TOTAL)["time_ns"].to_list() == [whole]
    assert len(sums) == len(BARS) + 1
    estimates = bars.filter(pl.col("bar").is_in(ESTIMATED)).drop_nulls("time_ns")
    assert (estimates["low_ns"] >= 0).all()
    # Each is rounded by itself, and there are so many in a sum.
    slack = 1 + steps * layers
    assert (estimates["low_ns"] <= estimates["time_ns"] + slack).all()
    assert (estimates["time_ns"] <= estimates["high_ns"] + slack).all()


def planted(noise_ns: float, steps: int = 40, seed: int = 3) -> tuple[np.ndarray[Any, Any], ...]:
    """Cells whose product takes 2 us + 400 ns per active expert + 5 ns per row of a tile."""
    random = np.random.default_rng(seed)
    experts = random.integers(1, 32, steps * 4)
    rows = 16 * (experts + random.integers(0, 60, steps * 4))
    time = 2000 + 400 * experts + 5 * rows + random.normal(0, noise_ns, steps * 4)
    return time.round().astype(np.int64), experts, rows, np.repeat(np.arange(steps), 4)


def test_planted_costs() -> None:
    model = fit(*planted(0.0))
    assert isinstance(model, MatmulModel)
    assert model.values == pytest.approx([2000, 400, 5], rel=1e-3)


def test_intervals_cover() -> None:
    """Of 200 noisy captures about 95 % have the planted cost in the interval; fewer than 180 have a chance of 1e-3."""
    weight = np.array([[0.0, 100.0, 0.0], [0.0, 0.0, 1000.0], [10.0, 50.0, 500.0]])
    truth = weight @ [2000, 400, 5]
    inside = np.zeros(3)
    for seed in range(200):
        model = fit(*planted(300.0, seed=seed))
        assert isinstance(model, MatmulModel)
        inside += np.abs(weight @ model.values - truth) <= model.half_width(weight)
    assert (inside >= 180).all(), inside


def test_no_cost_below_zero() -> None:
    """Time that falls with the rows of tiles is no cost of them."""
    random = np.random.default_rng(1)
    experts, rows = random.integers(1, 30, 200), random.integers(100, 900, 200)
    model = fit(9000 + 300 * experts - 5 * rows, experts, rows, np.repeat(np.arange(50), 4))
    assert isinstance(model, MatmulModel)
    assert (model.values >= 0).all()
    assert model.values[2] == 0


def test_rows_that_rise_with_experts() -> None:
    """One tile per active expert: what a row costs can't be told from what an expert costs."""
    time, experts, _, step = planted(10.0)
    model = fit(time, experts, 16 * experts, step)
    assert isinstance(model, MatmulModel)
    assert not model.told_apart
    assert model.values[2] == 0


def test_too_few() -> None:
    time, experts, rows, step = planted(0.0, steps=5)
    assert fit(time, experts, rows, step) == "20 (rank, step, layer) of 5 steps, 12 of 6 are needed"


def sums(found: Written, kind: str | None = None) -> dict[str, dict[str, Any]]:
    bars = pl.read_parquet(found.folder / "moe_waterfall.parquet")
    adds_up(bars)
    of_kind = pl.col("step_kind").is_null() if kind is None else pl.col("step_kind") == kind
    return {row["bar"]: row for row in bars.filter(pl.col("step").is_null() & of_kind).iter_rows(named=True)}


def test_ranks_that_wait(tmp_path: Path) -> None:
    """Rank 1 takes 3 us more in every layer at the same load, and begins step 2 late by 20 us."""
    run = Run(
        [[0, 1]],
        own_ns=lambda step, layer, rank: 10_000 + 3_000 * rank,
        before_ns=lambda step, rank: 1_000 + 20_000 * rank * (step == 2),
        steps=30,
        meta=lambda rank: {"layers": held(rank)},
    )
    bars = sums(written(tmp_path, *run.build(), formats=("parquet",)))
    wait = sum(sum(one.wait.values()) for one in run.met)
    transfer = sum(sum(one.transfer.values()) for one in run.met)
    assert bars["transfer"]["time_ns"] == transfer
    # 2 ranks x (13 - 11.5 us), at most what was waited; loads are even, so it is speed.
    assert bars["unequal_speed"]["time_ns"] == 30 * 2 * 3_000
    assert bars["uneven_ranks"]["time_ns"] == 0
    assert bars["waiting"]["time_ns"] == wait - 30 * 2 * 3_000
    assert bars["collectives_not_split"]["time_ns"] == 0
    assert bars["other_work"]["time_ns"] == 30 * 2 * 23_000  # no name of a product
    assert bars["ideal"]["time_ns"] is None
    assert "no kernel of the phase experts" in bars["ideal"]["reason"]


def held(rank: int) -> list[dict[str, Any]]:
    """Two layers of four experts that got 2, 2, 1 and 1 rows: ranks 0 and 1 hold as many rows and experts."""
    local = [[0, 2], [1, 3]][rank]
    return [
        {"layer": layer, "name": f"layers.{layer}", "num_experts": 4, "top_k": 2, "local_experts": local}
        for layer in range(2)
    ]


def test_one_rank(golden_vllm: Path, tmp_path: Path) -> None:
    bars = sums(written(tmp_path, golden_vllm, formats=("parquet",)))
    assert [bars[bar]["time_ns"] for bar in OF_RANKS] == [None] * 4
    assert {bars[bar]["reason"] for bar in OF_RANKS} == {ONE_RANK}
    assert bars["ideal"]["time_ns"] > 0


def test_real_ranks(golden_vllm_ranks: dict[str, Path], tmp_path: Path) -> None:
    """Measured bars are sums of other tables; what is fitted leaves little over."""
    found = written(tmp_path, golden_vllm_ranks["tp2"], formats=("parquet",))
    bars = sums(found, "decode")
    assert list(sums(found)) == [*BARS, TOTAL]
    rows = pl.read_parquet(found.folder / "moe_layer_correlation.parquet").filter(step_kind="decode")
    met = pl.read_parquet(found.folder / "moe_straggler.parquet").filter(pl.col("step").is_in(rows["step"].implode()))
    assert bars["transfer"]["time_ns"] == met["transfer_ns"].sum()
    waited = sum(bars[bar]["time_ns"] for bar in ("uneven_ranks", "unequal_speed", "waiting"))
    assert waited == met["wait_ns"].sum()
    roofline = pl.read_parquet(found.folder / "moe_roofline.parquet").filter(step_kind="decode")
    products = sum(roofline["matmul_ns"].to_list())
    model = sum(bars[bar]["time_ns"] for bar in ("ideal", "further_experts", "padding"))
    assert model + bars["rest"]["time_ns"] == products
    assert abs(bars["rest"]["time_ns"]) < 0.02 * products
