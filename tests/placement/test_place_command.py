"""``nvtxmoe place``: what it prints and writes, and what it refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from nvtxmoe_analysis import load
from nvtxmoe_analysis.placement.blocks import cut
from nvtxmoe_analysis.placement.predict import Predictor
from nvtxmoe_analysis.placement.run_data import read_run
from nvtxmoe_analysis.report import report
from tests.support.cli import RESULTS, analyze, run
from tests.support.placement_runs import Planted, write_run

SMALL = Planted(steps=80, layers=3)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(SMALL, tmp_path_factory.mktemp("place") / "run", "csv")


@pytest.fixture(scope="module")
def golden(golden_2gpu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    analyze(golden_2gpu, folder)
    return folder


def test_a_table_that_was_read_is_not_read_again(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings have read the large table before they ask for a placement."""
    read = load(results)
    alone = read_run(read)
    read.frame("layer_correlation")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the file is read again")

    monkeypatch.setattr(pl, "scan_csv", refuse)
    kept = read_run(read)
    assert kept.step_ns == alone.step_ns
    assert [one.steps.tolist() for one in kept.layers] == [one.steps.tolist() for one in alone.layers]


def test_json_has_every_layers_order_and_prediction(results: Path) -> None:
    found = run("place", results, "--json")
    assert found.code == 0
    document = found.json
    assert [one["name"] for one in document["placements"]] == [
        *("today", "contiguous", "greedy", "redundant", "fewest_active")
    ]
    assert document["verdict"]["answer"] == "worth it"
    for placement in document["placements"]:
        assert [layer["layer_idx"] for layer in placement["layers"]] == [0, 1, 2]
        for layer in placement["layers"]:
            assert set(layer["order"]) == set(range(16))
            assert sum(layer["slots_per_rank"]) == len(layer["order"])
            part = layer["decode"]
            assert part["predicted_low_ns"] <= part["predicted_ns"] <= part["predicted_high_ns"]
            assert part["saved_low_ns"] <= part["saved_ns"] <= part["saved_high_ns"]
            assert layer["prefill"] is None
        whole = sum(layer["decode"]["saved_ns"] for layer in placement["layers"])
        assert placement["decode"]["saved_ns"] == pytest.approx(whole, abs=0.3)
    assert document["phases"]["prefill"]["reason"] == "0 steps, at least 8 needed"


def test_a_placement_that_was_written_is_valued_alike(results: Path, tmp_path: Path) -> None:
    written = run("place", results, "-o", tmp_path, "--json").json
    folder = tmp_path / "moe_placement"
    assert json.loads((folder / "placement.json").read_text())["verdict"] == written["verdict"]
    again = run(
        "place", results, "--value", folder / "greedy.json", "--value", folder / "redundant.json", "--json"
    ).json
    assert [one["name"] for one in again["placements"]] == ["today", "greedy", "redundant"]
    by_name = {one["name"]: one for one in written["placements"]}
    for one in again["placements"]:
        assert one["layers"] == by_name[one["name"]]["layers"]


def test_every_form_is_written_or_its_absence_explained(results: Path, tmp_path: Path) -> None:
    found = run("place", results, "-o", tmp_path, "--json").json
    forms = (".json", ".sglang.json", ".tensorrt_llm.yaml", ".vllm.json")
    names = {f"{one['name']}{form}" for one in found["placements"] for form in forms} | {"placement.json"}
    assert {Path(file).name for file in found["files"]} | set(found["files_lacking"]) == names
    assert found["files_lacking"] == {"redundant.vllm.json": "redundant experts, which a checkpoint can't hold"}
    assert {file.name for file in (tmp_path / "moe_placement").iterdir()} == names - {"redundant.vllm.json"}


def test_text_shows_the_table_and_the_verdict(results: Path) -> None:
    found = run("place", results)
    assert (found.code, found.err) == (0, "")
    assert "fewest active experts" in found.out
    assert "Worth it: the placement" in found.out
    assert "EPLB" in found.out


def test_moving_weights_is_taken_off(results: Path) -> None:
    free = run("place", results, "--json").json
    paid = run("place", results, "--link-gbs", "1", "--rearrange-every", "100", "--json").json
    before, after = (
        next(one for one in document["placements"] if one["name"] == "greedy") for document in (free, paid)
    )
    assert before["moving"]["ns_per_step"] is None
    assert before["all"]["net_saved_ns"] == before["all"]["saved_ns"]
    # The busiest rank's bytes at 1 GB/s, over 100 steps: a byte takes a nanosecond.
    assert after["moving"]["ns_per_step"] == after["moving"]["busiest_rank_bytes"] / 100
    moved = after["all"]["saved_ns"] - after["all"]["net_saved_ns"]
    assert moved == pytest.approx(after["moving"]["ns_per_step"], abs=0.2)
    assert paid["verdict"]["answer"] == "not worth it"
    for verdict in (free["verdict"], paid["verdict"]):  # the run has decode steps alone
        decode = verdict["phases"]["decode"]
        names = ("net_saved_ns", "net_saved_low_ns", "net_saved_high_ns", "saves_at_most_ns")
        assert [decode[name] for name in names] == pytest.approx([verdict[name] for name in names], abs=0.2)


def test_moved_bytes_are_those_of_experts_that_change_ranks(results: Path) -> None:
    found = run("place", results, "--json").json
    by_name = {one["name"]: one for one in found["placements"]}
    moved = 0
    for before, after in zip(by_name["today"]["layers"], by_name["greedy"]["layers"], strict=True):
        half = before["slots_per_rank"][0]
        moved += len(set(after["order"][:half]) - set(before["order"][:half])) * 2  # one comes, one goes
    assert by_name["greedy"]["moving"]["experts"] == moved
    assert by_name["greedy"]["moving"]["bytes"] == moved * 1_000_000


def test_unknown_bytes_are_null_and_explained(tmp_path: Path) -> None:
    folder = write_run(Planted(steps=40, layers=2, expert_bytes=None), tmp_path / "run")
    found = run("place", folder, "--link-gbs", "100", "--json").json
    moving = next(one for one in found["placements"] if one["name"] == "greedy")["moving"]
    assert (moving["bytes"], moving["ns_per_step"]) == (None, None)
    assert moving["reason"] == "the capture does not tell the bytes of an expert"


def test_todays_placement_is_found_from_the_counts(tmp_path: Path) -> None:
    """Neither blocks nor round robin: the members of each rank are solved for."""
    random = np.random.default_rng(3)
    order = random.permutation(16)
    layout = type(SMALL.today).of_ranks([np.sort(order[:9]), np.sort(order[9:])])
    folder = write_run(Planted(steps=60, layers=1, layout=layout), tmp_path / "run")
    (found,) = Predictor(load(folder)).today
    assert found is not None
    assert [found.held(rank).tolist() for rank in (0, 1)] == [layout.held(rank).tolist() for rank in (0, 1)]


def test_a_batch_in_between_is_predicted_and_one_beyond_refused(tmp_path: Path) -> None:
    planted = Planted(batches=(4, 8, 16), steps=300, layers=2)
    folder = write_run(planted, tmp_path / "run")
    (batch,) = run("place", folder, "--batch", "12", "--json").json["batches"]
    random = np.random.default_rng(5)
    tokens = np.full(4000, 12)
    truth = 0.0
    for layer in range(2):
        counts = planted.counts(layer, tokens, random)
        loads = planted.today.load(counts, np.full(4000, 16), np.arange(4000))
        noise = planted.noise_ns * random.standard_normal((4000, 2))
        truth += float((planted.time(loads, tokens) + noise).max(axis=1).mean())
    assert batch["predicted_ns"] == pytest.approx(truth, rel=0.02)
    assert batch["check_error_pct"] < 3
    for beyond in (3, 17):
        found = run("place", folder, "--batch", beyond)
        assert found.code == 2
        assert "decode was seen with 4 to 16" in found.err


def _changed(folder: Path, table: str, **columns: Any) -> None:
    file = folder / RESULTS / f"{table}.parquet"
    pl.read_parquet(file).with_columns(**columns).write_parquet(file)


def test_bad_input_is_one_line(tmp_path: Path, results: Path) -> None:
    def refused(folder: Path, *options: object) -> str:
        found = run("place", folder, *options)
        assert found.code == 2
        assert found.out == ""
        assert found.err.count("\n") == 1
        assert "Traceback" not in found.err
        return found.err

    assert "no such folder" in refused(tmp_path / "nothing")
    small = Planted(steps=20, layers=1)
    no_gpu = write_run(small, tmp_path / "a")
    (no_gpu / RESULTS / "moe_layer_correlation.parquet").unlink()
    assert "no GPU time" in refused(no_gpu)
    one_rank = write_run(small, tmp_path / "b")
    file = one_rank / RESULTS / "moe_layer_correlation.parquet"
    pl.read_parquet(file).filter(pl.col("rank") == 0).write_parquet(file)
    assert "1 rank" in refused(one_rank)
    unknown = write_run(small, tmp_path / "c")
    _changed(unknown, "moe_layer_correlation", local_activations=pl.lit(None, pl.Int64))
    assert "no expert-parallel group is known" in refused(unknown)
    tensor_parallel = write_run(small, tmp_path / "d")
    _changed(
        tensor_parallel,
        "moe_layer_correlation",
        local_experts=pl.lit(16, pl.Int64),
        local_activations=pl.col("local_activations").sum().over("step"),
    )
    assert "every rank holds all experts" in refused(tensor_parallel)
    for name, value, option in (
        ("skip_first", 10, "--skip-first"),
        ("only", "decode", "--only"),
        ("ranks", [0], "--ranks"),
    ):
        filtered = write_run(Planted(steps=20, layers=1, settings={"selection": {name: value}}), tmp_path / name)
        assert f"the results are filtered ({option})" in refused(filtered)
    no_time = write_run(small, tmp_path / "e")
    _changed(no_time, "moe_layer_correlation", own_ns=pl.lit(None, pl.Int64))
    assert "no GPU time of any layer" in refused(no_time)
    stages = write_run(Planted(steps=20, layers=2), tmp_path / "g")
    later = pl.when(pl.col("layer_idx") == 1)
    _changed(stages, "moe_layer_correlation", rank=pl.col("rank") + later.then(2).otherwise(0))
    _changed(stages, "moe_step_activations", rank=pl.col("rank") + later.then(2).otherwise(0))
    assert "pipeline stages" in refused(stages)
    damaged = write_run(small, tmp_path / "f")
    (damaged / RESULTS / "moe_layer_correlation.parquet").write_bytes(b"PAR1")
    assert "cannot be read" in refused(damaged)
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"nvtxmoe_placement": 1, "ranks": 4, "layers": {"0": list(range(16))}}))
    assert "a placement for 4 ranks, the run has 2" in refused(results, "--value", wrong)
    wrong.write_text(json.dumps({"nvtxmoe_placement": 1, "ranks": 2, "layers": {"9": list(range(16))}}))
    assert "the results do not hold this layer" in refused(results, "--value", wrong)
    wrong.write_text(json.dumps({"nvtxmoe_placement": 1, "ranks": 2, "layers": {"1": [0] * 16}}))
    assert "wrong, layer 1: " in refused(results, "--value", wrong)
    assert "no layer 7" in refused(results, "--fit-layers", "7")


def test_two_gpus_of_a_real_capture(golden: Path) -> None:
    """Decode of a real Qwen3-MoE shape: 1.0 to 1.1 us per active expert, and nothing that rebalancing is worth."""
    found = run("place", golden, "--json").json
    decode = found["phases"]["decode"]
    assert decode["features"] == ["active experts"]
    assert 900 < decode["mean_slopes_ns"][0] < 1200
    assert decode["today"]["explained_pct"] > 75
    assert found["verdict"]["answer"] == "not worth it"
    today = found["placements"][0]
    assert today["layers"][0]["order"] == list(range(32))
    greedy = next(one for one in found["placements"] if one["name"] == "greedy")
    assert greedy["tokens_max_mean"] < 1.05 < today["tokens_max_mean"]


def test_the_report_needs_no_prediction_if_ranks_are_even(golden: Path) -> None:
    """Even loads would save less than the least gain that is worth it, so no placement saves more."""
    found = next(one for one in report(golden).findings if one.id == "uneven-ranks")
    assert str(found.headline).startswith("Loads of the ranks are even: equal ones would save about ")
    assert found.kind == "note" and found.stake is not None and found.stake.share.value < 1
    assert run("place", golden, "--json").json["verdict"]["answer"] == "not worth it"


def test_the_report_says_what_rebalancing_saves(golden: Path, tmp_path: Path) -> None:
    """Without the waterfall the verdict of ``place`` is asked for."""
    without(golden, tmp_path, "moe_waterfall.csv")
    found = next(one for one in report(tmp_path).findings if one.id == "uneven-ranks")
    verdict = run("place", golden, "--json").json["verdict"]
    assert str(found.headline).startswith("Rebalancing experts saves at most ")
    assert found.stake is not None and found.stake.per_step.value == verdict["saves_at_most_ns"]
    # the share is of the steps that were valued, not of all: batches differ
    times = pl.read_csv(golden / RESULTS / "moe_layer_correlation.csv")
    steps = times.group_by("step").agg(pl.col("prefill_tokens").sum(), pl.col("step_gpu_ns").mean())
    steps = steps.filter(prefill_tokens=0).sort("step")
    blocks = cut(steps["step"].to_numpy())
    of_valued = steps.filter(pl.Series(blocks.for_value[blocks.of(steps["step"].to_numpy())]))["step_gpu_ns"]
    mean_ns = float(np.mean(of_valued.to_numpy()))
    assert len(of_valued) < len(steps)
    assert verdict["phases"]["decode"]["step_gpu_ns"] == pytest.approx(mean_ns, abs=0.1)
    assert found.stake.share.value == pytest.approx(100 * verdict["phases"]["decode"]["saves_at_most_ns"] / mean_ns)


def test_a_report_of_one_rank_has_no_such_finding(golden_1gpu: Path, tmp_path: Path) -> None:
    analyze(golden_1gpu, tmp_path)
    assert "uneven-ranks" not in {finding.id for finding in report(tmp_path).findings}


def without(source: Path, folder: Path, name: str) -> Path:
    """A copy of results that lacks a file; the folder in it."""
    inner = folder / RESULTS
    inner.mkdir(parents=True)
    for file in (source / RESULTS).iterdir():
        if file.name != name:
            (inner / file.name).write_bytes(file.read_bytes())
    return inner


def test_results_in_which_experts_are_unknown_say_so_in_the_report(golden: Path, tmp_path: Path) -> None:
    folder = without(golden, tmp_path, "moe_waterfall.csv")
    table = pl.read_csv(folder / "moe_layer_correlation.csv", infer_schema_length=None)
    table.with_columns(local_activations=None).write_csv(folder / "moe_layer_correlation.csv")
    made = report(tmp_path)
    assert "uneven-ranks" not in {finding.id for finding in made.findings}
    assert any("rebalancing experts would save" in reason for reason in made.absent)
