"""Slow ranks told apart from uneven routing, with planted speeds and loads."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from nvtxmoe_analysis.metrics.rank_speed import by_routing
from nvtxmoe_analysis.metrics.straggler import stragglers

GROUPS = pl.DataFrame({"rank": [0, 1], "group": [0, 0], "size": [2, 2]})
SPLIT = pl.DataFrame(
    schema={
        **dict.fromkeys(("rank", "step", "layer", "group", "wait_ns", "transfer_ns"), pl.Int64),
        **dict.fromkeys(("reason", "group_kind"), pl.String),
    }
)


def layers(loads: tuple[float, float], slow: tuple[float, float], *, even: bool, steps: int = 100) -> pl.DataFrame:
    """Time is 5 us and 1 us per active expert, times the rank's factor, with 1 % noise."""
    random = np.random.default_rng(1)
    frames = []
    batch = random.integers(8, 24, steps)
    for rank in (0, 1):
        active = batch if even else np.maximum(1, random.poisson(batch * loads[rank]))
        own = slow[rank] * (5000 + 1000 * active) * (1 + 0.01 * random.standard_normal(steps))
        frames.append(
            pl.DataFrame(
                {
                    "rank": np.full(steps, rank),
                    "step": np.arange(steps),
                    "layer_idx": np.zeros(steps, dtype=np.int64),
                    "own_ns": np.round(own).astype(np.int64),
                    "local_activations": 4 * active,
                    "local_active_experts": active,
                }
            )
        )
    return pl.concat(frames)


def found(rows: pl.DataFrame) -> tuple[dict[str, object], float]:
    """What is told of routing, and the whole excess in us."""
    cells = stragglers(rows, GROUPS, SPLIT)
    told = by_routing(cells.filter(pl.col("excess_ns").is_not_null()), rows, GROUPS)
    assert told is not None
    return told, float(cells["excess_ns"].sum()) / 1e3


def test_a_slow_rank_under_even_routing_is_no_imbalance() -> None:
    """Rank 1's clock is 20 % lower: routing could save nothing."""
    told, excess = found(layers((1, 1), (1, 1.25), even=True))
    assert (told["saves_us"], told["cells_of_even_load"]) == (0.0, 100)
    assert excess > 200
    speed = [row["time_at_mean_load"] for row in told["speed"]]  # type: ignore[attr-defined]
    assert speed == pytest.approx([1 / 1.125, 1.25 / 1.125], rel=0.01)


def test_uneven_routing_at_equal_speed_is_imbalance() -> None:
    told, excess = found(layers((0.8, 1.2), (1, 1), even=False))
    assert told["saves_us"] == pytest.approx(excess, rel=0.05)
    assert [row["time_at_mean_load"] for row in told["speed"]] == pytest.approx([1, 1], abs=0.01)  # type: ignore[attr-defined]


def test_a_slow_rank_under_uneven_routing() -> None:
    """What routing could save is about what it would with ranks of one speed."""
    told, excess = found(layers((1, 1), (1, 1.25), even=False))
    equal, _ = found(layers((1, 1), (1, 1), even=False))
    assert told["saves_us"] == pytest.approx(equal["saves_us"], rel=0.15)
    assert told["saves_us"] < 0.8 * excess  # type: ignore[operator]
    assert [row["time_at_mean_load"] for row in told["speed"]] == pytest.approx([0.889, 1.111], abs=0.01)  # type: ignore[attr-defined]


def test_few_cells_tell_no_speed() -> None:
    told, _ = found(layers((1, 1), (1, 1.25), even=False, steps=10))
    assert {row["reason"] for row in told["speed"]} == {"10 (step, layer), at least 20 needed"}  # type: ignore[attr-defined]


def test_unknown_loads_tell_nothing() -> None:
    rows = layers((1, 1), (1, 1.25), even=True).with_columns(local_activations=pl.lit(None, pl.Int64))
    cells = stragglers(rows, GROUPS, SPLIT)
    assert by_routing(cells, rows, GROUPS) is None


def test_a_rank_without_gpu_time_takes_no_part() -> None:
    """Its kernels are missing: the other rank is not slow beside it."""
    told, _ = found(layers((1, 1), (1, 0), even=True))
    reason = "rank 1 has no GPU time in MoE layers"
    assert told["speed"] == [{"rank": 0, "reason": reason}, {"rank": 1, "reason": reason}]
