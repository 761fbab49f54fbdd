"""Rows that moe_layer_model can't take as they are: too few, too many, odd ones, copies, outliers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from nvtxmoe_analysis.metrics.layer_model.choice import EXPLAINS, REFUSED
from nvtxmoe_analysis.metrics.layer_model.choose import choose
from nvtxmoe_analysis.metrics.layer_model.samples import (
    FEATURES,
    MIN_ROWS,
    MIN_STEPS,
    MOST_POOLED_ROWS,
    MOST_ROWS,
    samples,
)
from nvtxmoe_analysis.metrics.layer_model.sentences import sentence
from tests.support.layer_model_terms import alternative, near, of_layers, pooled
from tests.support.planted_correlation import Plan, draw, planted, step_noise, timed
from tests.support.planted_correlation import active_experts as active

Floats = npt.NDArray[np.float64]


# What is not as it should be ---------------------------------------------------------------------------------------


def test_too_few_are_refused_with_the_reason() -> None:
    """Of each layer; all layers together are enough."""
    frame = planted(6, 700, steps=MIN_ROWS - 1, layers=4)
    choices = choose(frame)
    for choice in of_layers(choices):
        assert (choice.best.feature, choice.best.status) == (None, REFUSED)
        assert (choice.alternatives, choice.added, choice.constant_error) == ([], [], None)
        layer = choice.sample.layer
        assert sentence(choice) == (
            f"layer {layer}, decode: not fitted, 19 rows in 19 steps, at least 20 rows and 8 steps needed"
        )
    together = pooled(choices)
    assert together.sample.reason is None
    assert together.sample.rows == 4 * (MIN_ROWS - 1)
    few_steps = frame.filter(pl.col("step") < MIN_STEPS - 1)
    assert pooled(choose(few_steps)).best.reason == "28 rows in 7 steps, at least 20 rows and 8 steps needed"
    assert pooled(choose(frame.head(1))).best.reason == (
        "0 rows in 0 steps (1 more without another row of the same rank and way of launch), at least 20 rows and 8 "
        "steps needed"
    )


def test_variation_in_one_stretch_is_refused() -> None:
    """A batch that is constant but for its last three steps says nothing that chance could not."""
    rng = np.random.default_rng(7)
    rows = draw(rng, Plan(np.append(np.full(97, 24), [8, 4, 1]), drift=0.0, skew=1000.0))
    choice = choose(timed(rows, active, step_noise(rng, rows, 100)))[1]
    tokens = alternative(choice, "local_activations")
    assert tokens.status == REFUSED
    assert tokens.reason == "97 % of its variation lies in one of 10 stretches of steps"
    assert (tokens.slope, tokens.low, tokens.p_value) == (None, None, None)


def test_nothing_that_varies() -> None:
    frame = planted(8, 700).with_columns(pl.lit(3.0).alias(name) for name in FEATURES)
    choice = choose(frame)[1]
    assert (choice.best.status, choice.best.reason) == (REFUSED, "none of 8 features could be tested: 8 do not vary")
    assert {term.reason for term in choice.alternatives} == {"no variation"}


def test_a_feature_not_known_is_refused_by_itself() -> None:
    frame = planted(9, 700).with_columns(
        local_expert_tiles=pl.lit(None, pl.Int64),
        gini=pl.when(pl.col("step") > 2).then("gini"),
    )
    choice = choose(frame)[1]
    assert choice.best.feature == "local_active_experts"
    assert alternative(choice, "local_expert_tiles").reason == "not known"
    assert alternative(choice, "gini").reason == "not known in 3 of the rows"
    assert not [term for term in choice.added if term.feature in ("gini", "local_expert_tiles")]


def test_a_layer_without_counts_says_so() -> None:
    """Beside one that has them, and all layers without any."""
    frame = planted(9, 700, layers=2)
    hidden = [pl.when(pl.col("layer_idx") == 0).then(pl.col(name)).alias(name) for name in FEATURES]
    choices = choose(frame.with_columns(hidden))
    assert [choice.sample.layer for choice in choices] == [None, 0, 1]
    assert [choice.best.status for choice in choices] == [EXPLAINS, EXPLAINS, REFUSED]
    assert sentence(choices[2]) == "layer 1, decode: not fitted, the routing of none of its 200 rows is known"
    nothing = choose(frame.with_columns(pl.lit(None, pl.Float64).alias(name) for name in FEATURES))
    assert [(c.sample.layer, c.sample.rows, c.best.status) for c in nothing] == [(n, 0, REFUSED) for n in (None, 0, 1)]
    assert nothing[0].best.reason == "the routing of none of its 400 rows is known"


def test_rows_without_work_or_counts_are_left_out() -> None:
    frame = planted(10, 700)
    broken = frame.with_columns(
        launched_by=pl.when(pl.col("step") < 5).then(pl.lit("none")).otherwise("launched_by"),
        own_ns=pl.when(pl.col("step") < 5).then(0).otherwise("own_ns"),
    ).with_columns(pl.when(pl.col("step") != 7).then(pl.col(name)).alias(name) for name in FEATURES)
    (_, choice) = choose(broken)
    assert choice.sample.rows == 194
    assert choose(broken.filter(pl.col("launched_by") == "none")) == []
    assert choose(broken.with_columns(step_kind=pl.lit("none"))) == []


def test_eager_steps_have_a_level_of_their_own() -> None:
    """Every other step eager and slower by far, with a smaller batch: without a level the slope would turn round."""
    rng = np.random.default_rng(11)
    tokens = np.stack([rng.integers(1, 12, 100), rng.integers(12, 48, 100)], axis=1).ravel()
    rows = draw(rng, Plan(tokens))
    eager = pl.col("step") % 2 == 0
    rows = rows.with_columns(launched_by=pl.when(eager).then(pl.lit("eager")).otherwise(pl.lit("graph")))
    late = np.where(rows["step"].to_numpy() % 2 == 0, 60_000.0, 0.0)
    frame = timed(rows, active, late + step_noise(rng, rows, 700))
    best = choose(frame)[1].best
    assert best.feature in ("local_active_experts", "local_expert_tiles")
    assert near(best, 1500)
    one = choose(frame.with_columns(launched_by=pl.lit("graph")))[1].best
    assert one.slope is None or one.slope < 0


def test_slow_first_steps_change_little() -> None:
    """Three warm-up steps at ten times the time, and 5 % of the others late."""
    rng = np.random.default_rng(12)
    frame = planted(12, 700)
    slow = (pl.col("step") < 3) | pl.Series(rng.random(len(frame)) < 0.05)
    late = frame.with_columns(own_ns=pl.when(slow).then(pl.col("own_ns") * 10).otherwise("own_ns"))
    quiet, loud = (choose(rows)[1].best for rows in (frame, late))
    assert loud.feature == quiet.feature == "local_active_experts"
    assert loud.slope == pytest.approx(quiet.slope, rel=0.03)
    assert near(loud, 1500)


def test_copies_on_more_ranks_are_no_more_evidence() -> None:
    """Eight ranks that saw the same tokens in the same time give the interval of one."""
    one = planted(13, 700)
    eight = pl.concat([one.with_columns(rank=pl.lit(rank, pl.Int64)) for rank in range(8)])
    alone, copies = (choose(rows)[1].best for rows in (one, eight))
    assert copies.slope == pytest.approx(alone.slope, rel=3e-3)
    assert copies.low is not None and copies.high is not None and alone.low is not None and alone.high is not None
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(40))
def test_odd_rows_break_nothing(seed: int) -> None:
    """Features of one step, of one rank, of two values far apart, times of nothing and of minutes: no NaN gets out."""
    rng = np.random.default_rng(seed)
    steps, ranks = int(rng.integers(8, 60)), int(rng.integers(1, 5))
    rows = steps * ranks
    frame = pl.DataFrame(
        {
            "rank": np.repeat(np.arange(ranks), steps),
            "step": np.tile(np.arange(steps), ranks),
            "layer_idx": rng.integers(0, 3, rows),
            "step_kind": ["decode"] * rows,
            "launched_by": rng.choice(["eager", "graph", "mixed"], rows),
            "own_ns": rng.choice([0, 1, 1000, 10**6, 10**12], rows),
            **{name: _odd(rng, steps, ranks) for name in FEATURES},
        }
    )
    for choice in choose(frame):
        assert sentence(choice).endswith(tuple("abcdefghijklmnopqrstuvwxyz0123456789)"))
        for term in (choice.best, *choice.alternatives, *choice.added):
            numbers = (term.slope, term.low, term.high, term.intercept, term.r2, term.cv_error, term.p_value)
            assert all(number is None or np.isfinite(number) for number in numbers)


def _odd(rng: np.random.Generator, steps: int, ranks: int) -> Floats:
    rows = steps * ranks
    kind = rng.integers(0, 6)
    values = np.full(rows, 5.0)
    if kind == 1:
        values = rng.normal(size=rows)
    elif kind == 2:
        values[rng.integers(0, rows)] = 9.0
    elif kind == 3:
        values[-2:] = rng.normal(size=2)
    elif kind == 4:
        values = np.repeat(np.arange(ranks), steps) * 1.0
    elif kind == 5:
        values = rng.integers(0, 2, rows) * 1e9
    return values


def test_order_of_rows_does_not_matter() -> None:
    frame = planted(14, 700, layers=2, ranks=2, steps=60)
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=1)
    for one, other in zip(choose(frame), choose(shuffled), strict=True):
        assert (one.best, one.alternatives, one.added) == (other.best, other.alternatives, other.added)


def test_layers_are_fitted_as_each_by_itself() -> None:
    """Those whose rows are of the same steps at once, one that lacks a step apart; it makes no difference."""
    frame = planted(18, 700, layers=4, ranks=2).filter((pl.col("layer_idx") != 2) | (pl.col("step") != 50))
    together = {choice.sample.layer: choice for choice in choose(frame)}
    for layer in range(4):
        (_, alone) = choose(frame.filter(pl.col("layer_idx") == layer))
        one, other = together[layer].best, alone.best
        assert one.feature == other.feature == "local_active_experts"
        assert one.low is not None and one.high is not None
        room = (one.high - one.low) / 50
        assert [one.slope, one.low, one.high] == pytest.approx([other.slope, other.low, other.high], abs=room)
        assert one.cv_error == pytest.approx(other.cv_error, rel=1e-3)


def test_kinds_and_layers_in_order() -> None:
    frame = planted(15, 700, layers=2, steps=60)
    three = pl.concat([frame.with_columns(step_kind=pl.lit(kind)) for kind in ("mixed", "decode", "prefill")])
    found = [(choice.sample.kind, choice.sample.layer) for choice in choose(three)]
    assert found == [(kind, layer) for kind in ("prefill", "decode", "mixed") for layer in (None, 0, 1)]


# Many rows ---------------------------------------------------------------------------------------------------------


def test_many_rows_are_thinned_evenly() -> None:
    """All steps and all ranks stay, each rank with steps of its own, and the slope with them."""
    frame = planted(16, 700, steps=900, ranks=4, layers=3)
    whole = {sample.layer: sample for sample in samples(frame, "own_ns")}
    assert [whole[layer].rows for layer in (None, 0, 1, 2)] == [10_800 // 3, 3600 // 4, 3600 // 4, 3600 // 4]
    assert MOST_ROWS // 2 < whole[0].rows <= MOST_ROWS
    assert MOST_POOLED_ROWS // 2 < whole[None].rows <= MOST_POOLED_ROWS
    assert {sample.steps for sample in whole.values()} == {900}
    assert np.bincount(whole[0].strata.stratum).tolist() == [225] * 4
    for choice in choose(frame):
        assert choice.best.feature in ("local_active_experts", "local_expert_tiles")
        assert near(choice.best, 1500)


def test_blocks_are_neighbours() -> None:
    """Of steps in order, as even as can be; at least ten steps each where that leaves ten blocks."""
    for steps, blocks in ((8, 8), (30, 10), (150, 15), (1000, 20)):
        frame = planted(17, 700, steps=steps, ranks=3)
        sample = list(samples(frame, "own_ns"))[1]
        assert sample.strata.blocks == blocks
        one_rank = sample.strata.block[sample.strata.stratum == 0]
        assert (np.diff(one_rank) >= 0).all()
        sizes = np.bincount(one_rank)
        assert len(sizes) == blocks and sizes.max() - sizes.min() <= 1
