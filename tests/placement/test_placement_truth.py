"""Predictions against planted truth: the time of every rank is a known function of its tiles and active experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nvtxmoe_analysis import load
from nvtxmoe_analysis.placement.layout import Layout
from nvtxmoe_analysis.placement.predict import Options, Prediction, Predictor, place, predict
from nvtxmoe_analysis.placement.verdict import CANNOT_TELL, NOT_WORTH, WORTH, verdict
from tests.support.placement_runs import Planted, write_run

#: Runs of each rate: a 95 % interval misses in 8 of 48 or more with a probability of 0.3 %.
RUNS, LEAST_HELD = 8, 41 / 48


def predicted(planted: Planted, folder: Path, options: Options | None = None) -> Prediction:
    return place(load(write_run(planted, folder / "run")), options)


def slopes(prediction: Prediction, phase: str = "decode") -> list[float]:
    return [float(slope) for slope in prediction.phases[phase].model.pooled]


def test_slopes_and_speeds_are_found(tmp_path: Path) -> None:
    planted = Planted(ranks=4, experts=32, active_ns=500, tiles_ns=300, batches=(60, 80), speed=(1.03, 1.0, 0.99, 0.98))
    found = predicted(planted, tmp_path).phases["decode"].model
    assert found.features == ("expert tiles", "active experts")
    assert found.pooled.tolist() == pytest.approx([300, 500], rel=0.1)
    assert found.speed.tolist() == pytest.approx([1.03, 1.0, 0.99, 0.98], abs=0.004)


def test_a_gain_is_worth_it(tmp_path: Path) -> None:
    found = predicted(Planted(), tmp_path)
    told = verdict(found)
    assert told.answer == WORTH
    assert told.placement in {"greedy", "fewest_active"}
    assert told.sentence.startswith("Worth it: ")
    assert told.saves is not None
    layouts = found.find(told.placement).layouts
    truth = sum(Planted().true_saving(at, layout) for at, layout in enumerate(layouts) if layout is not None)
    assert told.saves.interval()[0] < truth < told.saves.interval()[1]
    assert told.saves.mean_ns == pytest.approx(truth, rel=0.1)


def test_even_experts_are_not_worth_it(tmp_path: Path) -> None:
    told = verdict(predicted(Planted(skew=0.0, steps=400), tmp_path))
    assert told.answer == NOT_WORTH
    assert told.sentence.startswith("Not worth it: rebalancing saves at most ")


def test_better_balance_of_tokens_that_saves_nothing_is_not_worth_it(tmp_path: Path) -> None:
    """Every expert is active in every step: tokens can be balanced, time can't."""
    planted = Planted(batches=(300, 310), skew=1.0, block_m=512, active_ns=1000, tiles_ns=0, experts=8)
    found = predicted(planted, tmp_path)
    tokens = found.find("today").rank_tokens.sum(axis=0), found.find("greedy").rank_tokens.sum(axis=0)
    assert tokens[0].max() / tokens[0].mean() > 1.25
    assert tokens[1].max() / tokens[1].mean() < 1.1
    told = verdict(found)
    assert told.answer == NOT_WORTH
    assert any("that test would pass" in fact for fact in told.considered)


def test_time_that_load_does_not_move_saves_nothing(tmp_path: Path) -> None:
    found = predicted(Planted(active_ns=0.0), tmp_path)
    assert abs(found.find("greedy").sums["decode"].saved().mean_ns) < 50
    assert verdict(found).answer == NOT_WORTH


def test_a_slow_gpu_is_not_taken_for_load(tmp_path: Path) -> None:
    """Load is even, one GPU is 10 % slower: no placement helps, and the excess is not the load's."""
    found = predicted(Planted(skew=0.0, speed=(1.1, 0.9)), tmp_path)
    assert found.phases["decode"].model.speed.tolist() == pytest.approx([1.1, 0.9], abs=0.01)
    assert slopes(found) == pytest.approx([1000], rel=0.15)
    assert abs(found.find("greedy").sums["decode"].saved().mean_ns) < 1500


def test_steps_that_are_all_alike_cannot_tell(tmp_path: Path) -> None:
    planted = Planted(batches=(400, 400), block_m=1024, experts=4, skew=0.0, noise_ns=3000, speed=(1.2, 0.8))
    told = verdict(predicted(planted, tmp_path))
    assert told.answer == CANNOT_TELL
    assert "same load" in told.sentence


def test_too_few_steps_cannot_tell(tmp_path: Path) -> None:
    found = predicted(Planted(steps=7, speed=(1.2, 0.8)), tmp_path)
    assert verdict(found).answer == CANNOT_TELL
    assert "7 steps, at least 8 needed" in verdict(found).sentence


def test_noise_that_hides_a_gain_cannot_tell(tmp_path: Path) -> None:
    planted = Planted(steps=24, layers=1, noise_ns=6000, active_ns=700, base_ns=20_000)
    told = verdict(predicted(planted, tmp_path))
    assert told.answer == CANNOT_TELL
    assert "95 %" in told.sentence


def test_prefill_has_its_own_slopes(tmp_path: Path) -> None:
    planted = Planted(active_ns=0.0, tiles_ns=900, prefill_every=2, block_m=64, batches=(8, 12), noise_ns=800)
    found = predicted(planted, tmp_path)
    prefill = found.phases["prefill"].model
    assert prefill.features[0] == "expert tiles"
    assert prefill.pooled[0] == pytest.approx(900, rel=0.05)
    saved = found.find("greedy").sums["prefill"].saved(0)
    layout = found.find("greedy").layouts[0]
    assert layout is not None
    assert saved.interval()[0] < planted.true_saving(0, layout, prefill=True) < saved.interval()[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "planted",
    [
        Planted(steps=100, layers=3),
        Planted(steps=100, layers=3, shuffled=True, speed=(1.04, 0.96)),
        Planted(steps=60, layers=3, skew=0.3, noise_ns=2000),
    ],
    ids=["gain", "little, unequal GPUs", "noise"],
)
def test_intervals_hold_the_truth_at_their_rate(planted: Planted, tmp_path: Path) -> None:
    held = []
    for seed in range(RUNS):
        run = replace(planted, seed=seed)
        found = predicted(run, tmp_path / str(seed))
        for name in ("greedy", "redundant"):
            one = found.find(name)
            for at, layout in enumerate(one.layouts):
                assert layout is not None
                low, high = one.sums["decode"].saved(at).interval()
                held.append(low <= run.true_saving(at, layout, steps=1500) <= high)
    assert len(held) == RUNS * 6
    assert np.mean(held) >= LEAST_HELD


def test_todays_placement_saves_nothing_and_predicts_what_was_measured(tmp_path: Path) -> None:
    found = predicted(Planted(), tmp_path)
    sums = found.find("today").sums["decode"]
    assert (sums.saved().mean_ns, sums.saved().error_ns) == (0.0, 0.0)
    phase = found.phases["decode"]
    layers = zip(found.run.layers, phase.values, strict=True)
    measured = sum(one.own_ns[some].max(axis=1).mean() for one, some in layers)
    assert sums.predicted().mean_ns == pytest.approx(measured)
    placed = zip(found.run.layers, found.find("today").layouts, strict=True)
    given = predict(load(tmp_path / "run"), {one.layer: layout for one, layout in placed if layout})
    assert given.find("given").sums["decode"].saved().mean_ns == pytest.approx(0.0, abs=1e-9)


def test_renaming_ranks_changes_nothing(tmp_path: Path) -> None:
    """The ranks of equal GPUs may exchange their experts: every layer takes the time that it took."""
    results = load(write_run(Planted(speed=(1.0, 1.0), noise_ns=0.0), tmp_path / "run"))
    predictor = Predictor(results)
    swapped = {}
    for one, layout in zip(predictor.run.layers, predictor.today, strict=True):
        assert layout is not None
        swapped[one.layer] = Layout.of_ranks([layout.held(1), layout.held(0)])
    found = predictor.value({"swapped": swapped}).find("swapped").sums["decode"].saved()
    assert found.mean_ns == pytest.approx(0.0, abs=3.0)


def test_slots_of_a_rank_in_another_order_change_nothing(tmp_path: Path) -> None:
    predictor = Predictor(load(write_run(Planted(), tmp_path / "run")))
    prediction = predictor.place()
    given = {}
    for one, layout in zip(predictor.run.layers, prediction.find("greedy").layouts, strict=True):
        assert layout is not None
        given[one.layer] = Layout.of_ranks([layout.held(rank)[::-1] for rank in (0, 1)])
    again = predictor.value({"again": given}).find("again").sums["decode"].saved()
    assert again == prediction.find("greedy").sums["decode"].saved()


def test_a_layer_that_the_fit_did_not_see_is_predicted(tmp_path: Path) -> None:
    planted = Planted(shuffled=True, steps=300)
    found = predicted(planted, tmp_path, Options(fit_layers=(0, 1)))
    model = found.phases["decode"].model
    assert model.slopes[2].tolist() == model.slopes[3].tolist() == model.pooled.tolist()
    sums = found.find("greedy").sums["decode"].saved(3)
    layout = found.find("greedy").layouts[3]
    assert layout is not None
    assert sums.interval()[0] < planted.true_saving(3, layout) < sums.interval()[1]
