"""The estimate of the time lost to imbalance: from models that the analysis writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvtxmoe.capture.live.imbalance_time import load
from nvtxmoe.capture.live.last_steps import MOST_STEPS
from tests.support.cli import run
from tests.support.live_ranks import Model, Rank, scraped, view_of

CHANCE = np.random.default_rng(11)


def model_file(folder: Path, kinds: dict[str, dict[str, Any]]) -> Path:
    """A document with the keys that the analysis writes, of what "layer/kind" gives: feature, slope and more."""
    layers: dict[str, dict[str, Any]] = {}
    for name, said in kinds.items():
        layer, _, kind = name.partition("/")
        row = {"status": "explains", "slope_ci_low": said["slope"] / 2, "slope_ci_high": said["slope"] * 2, **said}
        row["slope_ns_per_unit"] = row.pop("slope")
        layers.setdefault(layer, {})[kind] = {"alternatives": [], **row}
    path = folder / "moe_layer_model.json"
    path.write_text(json.dumps({"options": {}, "layers": layers}))
    return path


def published(folder: Path, model: Model, steps: int = 20, prefill: int = 0) -> Any:
    """Counts of some steps that all ranks of the model publish."""
    counts = CHANCE.poisson(2.0, (steps, model.layers, model.experts))
    for number in range(model.ranks):
        rank = Rank(folder, model, number)
        for step, one in enumerate(counts):
            rank.step(step, one, prefill=prefill)
        rank.publish()
    return counts[-MOST_STEPS:]


def load_of(feature: str, counts: Any) -> Any:
    """A feature of the model, over the last axis."""
    if feature == "local_activations":
        return counts.sum(axis=2)
    return np.count_nonzero(counts, axis=2) if feature == "local_active_experts" else counts.max(axis=2)


@pytest.mark.parametrize("feature", ["local_activations", "local_active_experts", "local_max_count"])
def test_ranks_wait_for_the_one_with_the_most_to_do(tmp_path: Path, feature: str) -> None:
    model = Model(experts=8, tp_size=2, expert_parallel=True)
    counts = published(tmp_path, model)
    file = model_file(tmp_path, {"all/decode": {"feature": feature, "slope": 1500.0}})
    halves = counts[:, :, :4], counts[:, :, 4:]
    values = np.stack([load_of(feature, half) for half in halves], axis=2)
    lost = 1500.0 * (values.max(axis=2) - values.mean(axis=2)) / 1e9
    found = scraped(view_of(tmp_path, load(file)))
    for bound, factor in (("low", 0.5), ("estimate", 1.0), ("high", 2.0)):
        expected = factor * lost.sum(axis=1).mean()
        assert found["nvtxmoe_estimated_imbalance_lost_seconds"][(bound,)] == pytest.approx(expected)
    assert list(found["nvtxmoe_estimated_layer_imbalance_lost_seconds"].values()) == pytest.approx(lost.mean(axis=0))
    assert found["nvtxmoe_estimated_imbalance_coverage_ratio"] == {(): 1.0}


@pytest.mark.parametrize("feature", ["local_max_count", "max_mean_ratio"])
def test_one_rank_loses_what_an_even_load_would_not_take(tmp_path: Path, feature: str) -> None:
    counts = published(tmp_path, Model())
    file = model_file(tmp_path, {"all/decode": {"feature": feature, "slope": 700.0}})
    even = counts.sum(axis=2) / 8
    excess = counts.max(axis=2) - even if feature == "local_max_count" else counts.max(axis=2) / even - 1
    found = scraped(view_of(tmp_path, load(file)))["nvtxmoe_estimated_imbalance_lost_seconds"]
    assert found[("estimate",)] == pytest.approx(700e-9 * excess.sum(axis=1).mean())


def test_a_layer_s_own_slope_comes_before_that_of_all(tmp_path: Path) -> None:
    """Layer 2 has its own; of layer 1 the model says that no effect was found, so that of all layers holds."""
    model = Model(layers=2, experts=8, tp_size=2, expert_parallel=True)
    counts = published(tmp_path, model)
    file = model_file(
        tmp_path,
        {
            "all/decode": {"feature": "local_activations", "slope": 100.0},
            "layer_1/decode": {"feature": None, "slope": 1.0, "status": "no_effect"},
            "layer_2/decode": {"feature": "local_activations", "slope": 9000.0},
        },
    )
    loads = np.stack([counts[:, :, :4].sum(axis=2), counts[:, :, 4:].sum(axis=2)], axis=2)
    excess = (loads.max(axis=2) - loads.mean(axis=2)).mean(axis=0)
    found = scraped(view_of(tmp_path, load(file)))["nvtxmoe_estimated_layer_imbalance_lost_seconds"]
    assert found == {("1",): pytest.approx(100e-9 * excess[0]), ("2",): pytest.approx(9000e-9 * excess[1])}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Model(), {"feature": "local_active_experts", "slope": 1700.0}),  # one rank: an even load would have more
        (Model(tp_size=2, expert_parallel=True), {"feature": "max_mean_ratio", "slope": 10.0}),  # alike on all ranks
        (Model(tp_size=2, expert_parallel=True), {"feature": "local_activations", "slope": -5.0}),
        (Model(), {"feature": "local_max_count", "slope": 5.0, "kind": "prefill"}),  # no step of this kind
    ],
)
def test_no_estimate_where_the_model_does_not_allow_it(tmp_path: Path, model: Model, said: dict[str, Any]) -> None:
    published(tmp_path, model)
    kind = said.pop("kind", "decode")
    more = {"all/mixed": {"feature": "local_max_count", "slope": 1.0}}  # a model of which an estimate can be made
    file = model_file(tmp_path, {f"all/{kind}": said, **more})
    assert not [name for name in scraped(view_of(tmp_path, load(file))) if "estimated" in name]


def test_a_feature_that_cannot_be_told_apart_from_the_best_one(tmp_path: Path) -> None:
    """The best one says nothing of ranks; an alternative that predicts as well does."""
    model = Model(tp_size=2, expert_parallel=True)
    published(tmp_path, model)
    alternative = {
        "feature": "local_activations", "status": "cannot_tell_apart", "slope_ns_per_unit": 50.0,
        "slope_ci_low": -1.0, "slope_ci_high": 90.0,
    }  # fmt: skip
    best = {"feature": "gini", "slope": 10.0, "alternatives": [alternative]}
    found = scraped(view_of(tmp_path, load(model_file(tmp_path, {"all/decode": best}))))
    lost = found["nvtxmoe_estimated_imbalance_lost_seconds"]
    assert lost[("low",)] == 0 < lost[("estimate",)] < lost[("high",)]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"layers": {"x": {}}}', '{"layers": {"all": {"decode": 1}}}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "model.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"no moe_layer_model\.json|no layer has a slope"):
        load(file)


def test_the_document_of_a_real_analysis_is_read(golden_1gpu: Path, tmp_path: Path) -> None:
    """Its best feature is active experts on one GPU: a slope, and no estimate of this run."""
    done = run("analyze", golden_1gpu, "-o", tmp_path / "results")
    assert done.code == 0, done
    found = load(tmp_path / "results" / "moe_expert_tracking" / "moe_layer_model.json")
    slope = found.slope(3, "decode", ["local_active_experts"])
    assert slope is not None
    assert 1000 < slope.ns[0] < slope.ns[1] < slope.ns[2] < 3000
    assert found.slope(3, "decode", ["local_max_count", "max_mean_ratio"]) is None
