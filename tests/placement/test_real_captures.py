"""`nvtxmoe place` on captures of two H200s with expert parallelism: verdicts, and predictions carried to other routing.

One made-up model, vLLM 0.33.0, three gates: "skewed" (hot experts on the first rank), "even", and "tokens" (the first
rank gets more tokens, and in decode both read about all of their experts). See tests/golden/README.md.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import polars as pl
import pytest

from nvtxmoe_analysis import load
from nvtxmoe_analysis.placement.predict import Prediction, Predictor
from nvtxmoe_analysis.placement.verdict import CANNOT_TELL, NOT_WORTH, WORTH, verdict
from scripts.gpu.placement_transfer import changes, summary
from tests.support.placement_captures import CAPTURES, CASES, unpacked

PAIRS = [(fitted, other) for fitted in CASES for other in CASES if fitted != other]


@pytest.fixture(scope="module")
def predictors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Predictor]:
    """The models by capture."""
    folder = tmp_path_factory.mktemp("captures")
    return {name: Predictor(load(unpacked(name, folder))) for name in CASES}


@pytest.fixture(scope="module")
def placed(predictors: dict[str, Predictor]) -> dict[str, Prediction]:
    return {name: predictor.place() for name, predictor in predictors.items()}


@pytest.mark.parametrize(("fitted", "other"), PAIRS)
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_the_model_holds_in_another_capture(
    predictors: dict[str, Predictor], fitted: str, other: str, phase: str
) -> None:
    found = changes(predictors[fitted], predictors[other], phase)
    if phase == "prefill" and "tokens" in (fitted, other):
        assert found == []  # its prompts are of another batch size
        return
    large, relative, all_us = summary(found)
    assert large >= 15
    assert relative < 0.07
    assert all_us < (2.5 if phase == "prefill" else 1.5)


@pytest.mark.parametrize(("name", "answer"), [("skewed", WORTH), ("even", NOT_WORTH), ("tokens", CANNOT_TELL)])
def test_verdicts(placed: dict[str, Prediction], name: str, answer: str) -> None:
    assert verdict(placed[name]).answer == answer


def test_a_balance_of_tokens_is_not_a_balance_of_time(placed: dict[str, Prediction]) -> None:
    """Ranks of "tokens" are 20 % apart in tokens; equal tokens save under 3 % of the layers' time in decode."""
    greedy, today = placed["tokens"].find("greedy"), placed["tokens"].find("today")
    assert (today.rank_tokens.max(axis=1) / today.rank_tokens.mean(axis=1)).mean() > 1.19
    assert (greedy.rank_tokens.max(axis=1) / greedy.rank_tokens.mean(axis=1)).mean() < 1.02
    sums = greedy.sums["decode"]
    assert 0 < sums.saved().mean_ns < 0.03 * sums.predicted().mean_ns


def test_the_model_explains_what_ranks_differ_by(placed: dict[str, Prediction]) -> None:
    for phase in placed["skewed"].phases.values():
        assert phase.calibration is not None
        assert phase.calibration.explained is not None
        assert phase.calibration.explained > 0.98


@pytest.mark.parametrize("name", [*CASES, "skewed-earlier"])
def test_captures_name_no_machine(name: str) -> None:
    with tarfile.open(CAPTURES / f"{name}.tar.xz") as archive:
        file = archive.extractfile("moe_capture_validation.json")
        assert file is not None
        document = json.load(file)
    assert [source["path"] for source in document["inputs"]] == [f"runs/{name.removesuffix('-earlier')}.sqlite"]
    assert document["verdict"] == "complete"


def test_a_share_names_what_it_is_of_where_the_time_of_steps_is_unknown(tmp_path: Path) -> None:
    folder = unpacked("skewed", tmp_path)
    file = next(folder.rglob("moe_layer_correlation.csv"))
    frame = pl.read_csv(file, infer_schema_length=None)
    frame.with_columns(step_gpu_ns=pl.lit(None, dtype=pl.Int64)).write_csv(file)
    found = verdict(Predictor(load(folder)).place())
    assert " % of the predicted time of their MoE layers" in found.sentence
    assert found.step_ns is None
