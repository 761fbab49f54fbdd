"""Which feature moe_layer_model names, on rows whose cause is planted, and what it says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
import pytest

from nvtxmoe_analysis.metrics.layer_model.choice import (
    ALIKE,
    ALTERNATIVE,
    BEST,
    BY_CHANCE,
    EXPLAINS,
    NO_BETTER,
    NO_EFFECT,
    REFUSED,
    Choice,
    Term,
)
from nvtxmoe_analysis.metrics.layer_model.choose import choose
from nvtxmoe_analysis.metrics.layer_model.samples import FEATURES, IMBALANCE, LOAD
from nvtxmoe_analysis.metrics.layer_model.sentences import sentence
from tests.support.layer_model_terms import added, alternative, near, of_layers
from tests.support.planted_correlation import Features, Floats, Plan, decode_tokens, draw, planted, step_noise, timed
from tests.support.planted_correlation import active_experts as active

# A cause that shows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expert_parallel", [False, True])
def test_the_cause_is_found(expert_parallel: bool) -> None:
    """In each of three layers on two ranks, with its slope in the interval; tokens predict worse, imbalance no more."""
    choices = choose(planted(1, 700, layers=3, ranks=2, expert_parallel=expert_parallel))
    assert [choice.sample.layer for choice in choices] == [None, 0, 1, 2]
    for choice in choices:
        best = choice.best
        assert best.feature == "local_active_experts"
        assert near(best, 1500)
        assert best.high is not None and best.high < 1600
        assert best.intercept == pytest.approx(20_000, abs=1500)
        assert best.r2 is not None and best.r2 > 0.9
        assert best.cv_error is not None and best.cv_error < 800 < (choice.constant_error or 0) / 2
        tokens = alternative(choice, "local_activations")
        assert tokens.status == NO_EFFECT or (tokens.reason or "").startswith("predicts worse than active experts: ")
        for feature in IMBALANCE:
            if added(choice, feature).status != ALIKE:
                assert added(choice, feature).status == NO_EFFECT
        assert sentence(choice).endswith("imbalance explains nothing more")


def test_the_sentence() -> None:
    """As an engineer would say it; the numbers are the row's."""
    choice = choose(planted(1, 700))[1]
    assert sentence(choice) == (
        "layer 0, decode: each further active expert costs 1.50 us (95 % CI 1.44 to 1.55), "
        "imbalance explains nothing more"
    )
    assert [choice.best.slope, choice.best.low, choice.best.high] == pytest.approx([1500, 1440, 1550], abs=5)


def test_tokens_as_the_cause() -> None:
    rng = np.random.default_rng(2)
    rows = draw(rng, Plan(decode_tokens(rng, 300)))
    frame = timed(rows, lambda f: 20_000 + 60 * f["local_activations"], step_noise(rng, rows, 300))
    choice = choose(frame)[1]
    assert (choice.best.feature, choice.best.status) == ("local_activations", EXPLAINS)
    assert "each further activation costs 60 ns (95 % CI 59 to 62)" in sentence(choice)


def test_imbalance_as_the_cause() -> None:
    """With as many tokens in each step; load explains nothing more, and what does not vary is refused by itself."""
    rng = np.random.default_rng(3)
    rows = draw(rng, Plan(np.full(200, 256), drift=0.8))
    frame = timed(rows, lambda f: 20_000 + 6000 * f["max_mean_ratio"], step_noise(rng, rows, 500))
    choice = choose(frame)[1]
    tokens, twin = alternative(choice, "local_activations"), alternative(choice, "max_mean_ratio")
    assert (tokens.status, tokens.reason) == (REFUSED, "no variation")
    # Of the same number of assignments the busiest expert's share is its count.
    assert (choice.best.feature, choice.best.status) == ("local_max_count", EXPLAINS)
    assert (twin.status, twin.reason) == (REFUSED, "moves exactly as local_max_count in these rows")


def test_a_second_cause_is_added() -> None:
    """Imbalance after load: both slopes of the model of two are right, while the one of load alone is not."""
    rng = np.random.default_rng(4)
    rows = draw(rng, Plan(decode_tokens(rng, 400), drift=0.8))
    frame = timed(rows, lambda f: active(f) + 8000 * f["cv"], step_noise(rng, rows, 300))
    choice = choose(frame)[1]
    second = added(choice, "cv")
    assert (choice.best.feature, second.status) == ("local_active_experts", EXPLAINS)
    assert near(second, 8000)
    assert near(second, 1500, joint=True)
    assert choice.best.high is not None and choice.best.high < 1450
    assert second.cv_error is not None and choice.best.cv_error is not None
    assert second.cv_error < 0.9 * choice.best.cv_error
    assert sentence(choice).startswith("layer 0, decode: each further active expert costs 1.50 us")
    assert ", and beside it each 0.1 of coefficient of variation costs 0.8" in sentence(choice)


# No effect ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["constant", "wandering"])
def test_no_effect_is_claimed_seldom(tokens: str) -> None:
    """Of 60 runs with four layers each and no cause at all, 5 % may claim anything: 3, and by chance 9 at most."""
    claims = 0
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        batch = np.full(60, 24) if tokens == "constant" else decode_tokens(rng, 60)
        rows = draw(rng, Plan(batch, layers=4))
        frame = timed(rows, lambda f: np.full(len(f["cv"]), 20_000.0), step_noise(rng, rows, 900, tails=3))
        claims += any(choice.best.status in (EXPLAINS, ALIKE) for choice in choose(frame))
    assert claims <= 9


def test_no_effect_is_said() -> None:
    """With how large an effect may be that does not show."""
    rng = np.random.default_rng(5)
    rows = draw(rng, Plan(np.full(200, 24)))
    choice = choose(timed(rows, lambda f: np.full(200, 20_000.0), step_noise(rng, rows, 900)))[1]
    assert (choice.best.feature, choice.best.status) == (None, NO_EFFECT)
    assert choice.added == []
    assert choice.best.intercept == pytest.approx(20_000, abs=200)
    said = sentence(choice)
    assert said.startswith("layer 0, decode: 6 of 8 features")
    assert "6 of 8 features could be tested (1 does not vary, 1 moves exactly as another), no effect on the 20." in said
    assert " us can be told from chance: a further active expert costs between -" in said
    experts = alternative(choice, "local_active_experts")
    assert experts.low is not None and experts.high is not None and experts.low < 0 < experts.high
    assert {term.status for term in choice.alternatives} == {NO_EFFECT, REFUSED}


# Features that move together ---------------------------------------------------------------------------------------


def confounded(seed: int, steps: int, noise_ns: float, apart: float) -> pl.DataFrame:
    """Tokens and active experts rise together; experts are the cause, and vary by ``apart`` by themselves."""
    rng = np.random.default_rng(seed)
    experts = np.clip(np.round(20 + 6 * rng.normal(size=steps)), 1, 64)
    tokens = np.maximum(4, np.round(4 * experts + 4 * apart * rng.normal(size=steps)))
    constant = {name: np.full(steps, 7) for name in FEATURES if name not in LOAD[:2]}
    frame = pl.DataFrame(
        {
            "rank": np.zeros(steps, dtype=np.int64),
            "step": np.arange(steps),
            "layer_idx": np.zeros(steps, dtype=np.int64),
            "step_kind": ["decode"] * steps,
            "launched_by": ["graph"] * steps,
            "local_activations": tokens,
            "local_active_experts": experts,
            **constant,
        }
    )
    return timed(frame, active, step_noise(rng, frame, noise_ns))


def test_what_moves_together_is_not_told_apart() -> None:
    """Both are named, with their correlation, and with the slope of each if it were the cause."""
    choice = choose(confounded(1, 100, 2500, 0.5))[1]
    (other,) = choice.similar_terms
    assert {choice.best.feature, other.feature} == {"local_activations", "local_active_experts"}
    assert choice.best.status == ALIKE
    assert other.correlation is not None and other.correlation > 0.99
    assert other.reason is not None and "as far as can be told" in other.reason
    said = sentence(choice)
    assert "active experts" in said and "activations" in said
    assert " can't be told apart (correlation 1.00): each further " in said or "(correlation 0.99)" in said
    assert added(choice, other.feature or "").status == ALIKE


def test_with_enough_data_they_are() -> None:
    """The same correlation of 0.97, quiet: experts are the cause."""
    choice = choose(confounded(2, 400, 300, 1.5))[1]
    tokens = alternative(choice, "local_activations")
    assert (choice.best.feature, choice.best.status) == ("local_active_experts", EXPLAINS)
    assert tokens.correlation is not None and tokens.correlation > 0.95
    assert (tokens.status, (tokens.reason or "")[:34]) == (EXPLAINS, "predicts worse than active experts")


@pytest.mark.slow
def test_the_wrong_one_is_seldom_named_alone() -> None:
    """Of 60 noisy runs each either names experts, both, or neither."""
    found = Counter(
        (choice.best.feature, choice.best.status)
        for seed in range(60)
        for choice in of_layers(choose(confounded(seed, 60, 6000, 1.5)))
    )
    assert found["local_activations", EXPLAINS] <= 4
    assert found["local_active_experts", ALIKE] + found["local_activations", ALIKE] >= 30


def late_noise(seed: int, ranks: int, jitter: float, late_ns: float) -> Choice:
    """The time of the last four steps scatters for a reason of its own, and only there the feature moves much."""
    rng = np.random.default_rng(seed)
    rank, step = np.repeat(np.arange(ranks), 40), np.tile(np.arange(40), ranks)
    values = 16 + jitter * rng.normal(size=len(step))
    ns = 30_000 + rng.normal(0, 150, len(step))
    for late, value in ((36, 14), (37, 8), (38, 6), (39, 4)):
        values[step == late] = value
        ns[step == late] += rng.normal(0, late_ns)
    frame = pl.DataFrame(
        {
            "rank": rank, "step": step, "layer_idx": 0, "step_kind": "decode", "launched_by": "graph",
            "own_ns": ns.astype(np.int64), **dict.fromkeys(FEATURES, 1.0), "local_active_experts": values,
        }
    )  # fmt: skip
    return choose(frame)[1]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_feature_that_moves_in_one_stretch_of_steps_is_refused(ranks: int) -> None:
    """The block that fixes the slope says nothing of the noise, whatever the others say."""
    assert {late_noise(seed, ranks, 0, 1500).best.status for seed in range(25)} == {REFUSED}


def test_a_stretch_of_outliers_widens_the_interval() -> None:
    """All its rows are clipped, and still they move the slope: 5 % of 40 intervals may lack 0."""
    lacking = tested = 0
    for seed in range(40):
        choice = late_noise(seed, 8, 2, 15_000)
        terms = [term for term in (choice.best, *choice.alternatives) if term.low is not None and term.high is not None]
        tested += len(terms)
        lacking += sum((term.low or 0) * (term.high or 0) > 0 for term in terms)
    assert tested == 40
    assert lacking <= 5


# Words -------------------------------------------------------------------------------------------------------------


def _told(low: float, high: float, reason: str) -> str:
    """The sentence where one of all features, none of which shows an effect, has this interval in ns."""
    sample = choose(planted(1, 700))[1].sample
    others = [Term(name, ALTERNATIVE, NO_EFFECT, 0.0, -1.0, 1.0, reason=BY_CHANCE) for name in FEATURES]
    at = FEATURES.index("local_active_experts")
    others[at] = Term(FEATURES[at], ALTERNATIVE, NO_EFFECT, (low + high) / 2, low, high, reason=reason)
    nothing = "no effect of any feature can be told from chance"
    best = Term(None, BEST, NO_EFFECT, intercept=5000.0, reason=nothing)
    return sentence(Choice(sample, best, others)).split("a further active expert costs ")[1]


def test_a_bound_near_0_keeps_its_sign() -> None:
    assert _told(-2000, -4, BY_CHANCE).startswith("between -2.00 and -0.004 us")
    assert _told(-840, 4, BY_CHANCE) == "between -0.84 and 0.004 us (95 % CI)"
    assert _told(-1e-7, 1e-7, BY_CHANCE) == "between 0.00 and 0.00 ns (95 % CI)"


def test_an_interval_has_two_ends() -> None:
    assert _told(24.9, 25.1, NO_BETTER).startswith("between 24.9 and 25.1 ns")
    assert _told(118, 121, NO_BETTER).startswith("between 0.118 and 0.121 us")


def test_an_interval_without_0_says_why_it_is_no_effect() -> None:
    assert _told(700, 5300, BY_CHANCE) == "between 0.7 and 5.3 us (95 % CI, before the correction for many tests)"
    assert _told(700, 5300, NO_BETTER).endswith("(95 % CI, but it predicts no better than the typical time)")


# All layers --------------------------------------------------------------------------------------------------------


def steady(features: Features) -> Floats:
    return np.full(len(features["cv"]), 20_000.0)


def test_all_layers_have_the_mean_of_their_slopes() -> None:
    """500, 500, 500 and 4,500 ns: the interval of the mean holds 1,500, and the sentence names the layers."""
    held = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rows = draw(rng, Plan(rng.integers(2, 40, 120), layers=4))
        per_layer = np.where(rows["layer_idx"].to_numpy() == 3, 4500, 500)
        noise = per_layer * rows["local_active_experts"].to_numpy() + step_noise(rng, rows, 700)
        frame = timed(rows, steady, noise)
        choice = choose(frame)[0]
        (term,) = [t for t in (choice.best, *choice.alternatives) if t.feature == "local_active_experts"]
        assert term.slope == pytest.approx(1500, rel=0.05)
        held += (term.low or 0) <= 1500 <= (term.high or 0)
    assert held >= 8
    assert choice.best.feature == "local_active_experts"
    assert "this is the mean of layers that differ: active experts cost from 0." in sentence(choice)
    assert sentence(choice).endswith("in layer 3")


def test_layers_alike_are_not_said_to_differ() -> None:
    choices = [choose(planted(seed, 700, layers=4, steps=60))[0] for seed in range(10)]
    assert sum(choice.apart is not None for choice in choices) <= 1
