"""The report's findings: every number is in the files, and they say what was planted."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nvtxmoe_analysis.analyze import analyze
from nvtxmoe_analysis.outputs.spec import FOLDER
from nvtxmoe_analysis.report import report
from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.result import Report
from tests.support.report_numbers import check_figure
from tests.support.report_results import EVIL, Made, write
from tests.support.sessions import journal, run_of


def made_report(folder: Path, **options: Any) -> Report:
    """The report of a made run."""
    made = Made()
    return report(write(folder / "results", made.tables(), made.documents(), **options))


def text_of(page: Path) -> str:
    """The words of a page, without its scripts, styles and tags."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", body)).split())


def by_topic(found: Report) -> dict[str, Finding]:
    return {finding.topic: finding for finding in found.findings}


@pytest.fixture(scope="module")
def golden(golden_2gpu: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of the real capture of two GPUs."""
    folder = tmp_path_factory.mktemp("golden-report")
    analyze([golden_2gpu], folder)
    return report(folder)


# Numbers -------------------------------------------------------------------------------------------------------------


def test_every_number_of_the_real_captures_report_is_in_the_files(golden: Report) -> None:
    figures = [figure for finding in golden.findings for figure in finding.numbers]
    assert len(figures) > 40
    for figure in figures:
        check_figure(figure, golden.page.parent / FOLDER)


def test_every_number_of_a_made_report_is_in_the_files(tmp_path: Path) -> None:
    found = made_report(tmp_path)
    figures = [figure for finding in found.findings for figure in finding.numbers]
    assert {figure.how for figure in figures} >= {
        "cell", "sum", "rows", "mean", "median", "distinct", "wins", "per_step", "total", "difference", "percent",
    }  # fmt: skip
    for figure in figures:
        check_figure(figure, tmp_path / "results" / FOLDER)


def test_each_number_names_its_file_and_rows_on_the_page(golden: Report) -> None:
    text = text_of(golden.page)
    for finding in golden.findings:
        for figure in finding.numbers:
            assert " ".join(f"{figure.text} {figure.origin}".split()) in text
            assert figure.parts or figure.file in figure.origin
        for sentence in finding.sentences:
            assert " ".join(str(sentence).split()) in text


def test_the_real_captures_reference_figures(golden: Report) -> None:
    """tests/golden/README.md: found by brute force over the whole capture."""
    found = by_topic(golden)
    steady = golden.advice.steady
    assert steady is not None and steady.as_dict()["ranges"] == [[1, 3], [5, 5], [8, 46]]
    assert str(found["Time of MoE layers"].headline) == (
        "MoE layers take 0.164 ms of 1.88 ms GPU time per steady decode step, 8.8 %."
    )
    most = "layer 0 takes most, 37.3 us of own kernel time per steady decode step"
    assert most in str(found["The layer that costs most"].headline)
    assert "expert 0 of layer 2: 4.19 times the mean, 13.1 %" in str(found["Balance of experts"].headline)
    assert set(golden.missing) == {"roofline"}  # recorded before sizes of experts were
    assert "sizes of the experts are not in moe.meta" in golden.missing["roofline"]


# What was planted ----------------------------------------------------------------------------------------------------


def test_the_planted_layer_costs_most(tmp_path: Path) -> None:
    found = by_topic(made_report(tmp_path))
    rows = pl.read_csv(tmp_path / "results" / FOLDER / "moe_layer_correlation.csv")
    decode = rows.filter(step_kind="decode")
    mine, whole = (int(part["kernel_time_ns"].sum()) for part in (decode.filter(layer_idx=3), decode))
    costliest = found["The layer that costs most"]
    assert str(costliest.headline) == (
        f"Layer 3 costs most: {mine / 72e3:.1f} us of own kernel time per steady decode step, "
        f"{100 * mine / whole:.1f} % of all layers and {mine * 6 / whole:.2f} times the mean layer."
    )
    assert str(costliest.confidence) == "it was the slowest layer in 72 of 72 steady (rank, step)."
    longest = "Its longest operation is fused_moe_kernel, 1.20 ms in all steps and ranks."
    assert longest in map(str, costliest.details)


def test_the_planted_waterfall(tmp_path: Path) -> None:
    """Of a step 30 us are ideal and 7 bars have 10 us: 100 us on two ranks."""
    found = by_topic(made_report(tmp_path))["Where MoE time goes"]
    assert str(found.headline) == (
        "Of 50.0 us in MoE layers per steady decode step, 15.0 us (30.0 %) is least work of the experts, 5.00 us "
        "(10.0 %) is experts beyond the fewest, 5.00 us (10.0 %) is padding of tiles and 5.00 us (10.0 %) is experts, "
        "not explained."
    )
    details = list(map(str, found.details))
    assert details[0].startswith("Estimates: experts beyond the fewest 5.00 us (95 % interval 4.00 us to 6.00 us)")
    assert details[1] == "Not known: waiting: unequal GPUs (3 (step, layer), at least 20 needed)."


def test_the_planted_roofline(tmp_path: Path) -> None:
    found = by_topic(made_report(tmp_path))["Distance to the GPU's limits"]
    assert str(found.headline) == (
        "The experts' matrix products take 60.0 us per steady decode step; memory allows 15.0 us: they reach 25.0 % of "
        "that limit."
    )
    details = list(map(str, found.details))
    assert details[1].startswith("In prefill steps compute binds the experts' kernels, and they reach 40.4 % of that")
    assert "In prefill steps memory binds in batches of up to 256 tokens, compute in batches from 257 on." in details
    assert "62.5 % of the rows of tiles are padding in decode steps, if the kernel has vLLM's default tiles." in details
    assert "a data sheet" in str(found.confidence)


def test_without_sizes_the_weights_speak(tmp_path: Path) -> None:
    made = Made()
    tables = made.tables()
    unknown = [pl.lit(None).alias(name) for name in ("mbu_pct", "mfu_pct", "limit", "roofline_pct")]
    tables["moe_roofline_summary"] = tables["moe_roofline_summary"].with_columns(unknown)
    tables["moe_roofline"] = tables["moe_roofline"].with_columns(*unknown, pl.lit(None).alias("roofline_ns"))
    documents = made.documents()
    documents["moe_roofline"]["unknown"] = [{"what": "routed_flop", "rows": 9, "meaning": "no sizes"}]
    found = report(write(tmp_path, tables, documents))
    finding = by_topic(found)["Distance to the GPU's limits"]
    assert str(finding.headline) == (
        "How far the experts' kernels are from the GPU's limits is not known. In decode steps they read weights at "
        "1,200 GB/s, 25.0 % of the GPU's bandwidth."
    )
    assert list(map(str, finding.details)) == ["No time at stake can be given: the limit is unknown (no sizes)."]
    assert (finding.kind, finding.stake) == ("unseen", None)
    assert found.missing["roofline"] == "Not drawn: no sizes."


def test_why_and_how_sure_are_the_models_words(tmp_path: Path) -> None:
    why = by_topic(made_report(tmp_path))["Why layer 3 takes its time"]
    assert str(why.headline) == "Layer 3, decode: each further active expert costs 3.0 us."
    assert list(map(str, why.details)) == ["active_experts explains the time best in 6 of 6 layers by themselves."]
    assert str(why.confidence) == (
        "R2 0.98; cross-validated error 0.70 us, against 9.00 us of a constant; 72 rows of 36 steps."
    )


def test_what_could_not_be_fitted_is_a_limit_and_no_finding(tmp_path: Path) -> None:
    made = Made()
    tables = made.tables()
    tables["moe_layer_model"] = tables["moe_layer_model"].filter(step_kind="prefill")
    found = by_topic(report(write(tmp_path, tables, made.documents())))
    assert "Why layer 3 takes its time" not in found
    assert "Layer 3, prefill: not fitted, 4 rows." in map(str, found["What could not be seen"].details)


def test_one_effect_has_one_slope(tmp_path: Path) -> None:
    """The slope beside a second feature is another number for the same effect: it stays in the table."""
    made = Made()
    tables = made.tables()
    best = tables["moe_layer_model"].filter(layer_idx=3, step_kind="decode")
    added = best.with_columns(
        role=pl.lit("added"), feature=pl.lit("num_tokens"), slope_ns_per_unit=50.0, best_slope_ns_per_unit=1500.0
    )
    tables["moe_layer_model"] = pl.concat([tables["moe_layer_model"], added], how="diagonal_relaxed")
    why = by_topic(report(write(tmp_path, tables, made.documents())))["Why layer 3 takes its time"]
    text = " ".join(map(str, why.sentences))
    assert text.count("3.0 us") == 1 and "1.50 us" not in text and "num_tokens" not in text


def test_features_that_cannot_be_told_apart_are_a_limit(tmp_path: Path) -> None:
    made = Made()
    tables = made.tables()
    alike = pl.col("step_kind") == "decode"
    tables["moe_layer_model"] = tables["moe_layer_model"].with_columns(
        status=pl.when(alike).then(pl.lit("cannot_tell_apart")).otherwise("status")
    )
    found = by_topic(report(write(tmp_path, tables, made.documents())))
    assert "Why layer 3 takes its time" not in found
    limits = list(map(str, found["What could not be seen"].details))
    assert "Layer 3, decode: each further active expert costs 3.0 us." in limits


def test_layers_that_say_nothing_of_one_another(tmp_path: Path) -> None:
    made = Made()
    tables = made.tables()
    tables["moe_cross_layer"] = tables["moe_cross_layer"].with_columns(explained_pct=pl.Series([-0.1, 0.25]))
    tables["moe_cross_layer_paths"] = tables["moe_cross_layer_paths"].clear()
    found = by_topic(report(write(tmp_path, tables, made.documents())))["From layer to layer"]
    assert str(found.headline) == (
        "A token's experts of one layer say next to nothing of those of another: layers 1 and 2 most, 0.25 %."
    )
    assert found.details == []


def test_ranks_balance_capacity_and_pairs(tmp_path: Path) -> None:
    made = Made()
    found = by_topic(made_report(tmp_path))
    total = made.counts.sum(axis=1)
    layer, expert = divmod(int((total / total.mean(axis=1, keepdims=True)).argmax()), made.experts)
    hottest = total[layer, expert] / total[layer].mean()
    assert f"expert {expert} of layer {layer}: {hottest:.2f} times the mean" in str(
        found["Balance of experts"].headline
    )
    silent = int((total == 0).sum())
    assert silent >= 1
    assert str(found["Experts never hit"].headline).startswith(f"{silent} of 96 (layer, expert) got no token")
    assert str(found["Capacity"].headline) == (
        "At a capacity factor of 1.25, 5.0 % of the assignments would be over capacity, and 41.5 % of the slots stay "
        "empty."
    )
    assert [str(said) for said in found["Capacity"].details] == [
        "Layer 5 would lose most, 10.0 %.", "At 2 it is still 1.2 %.",
    ]  # fmt: skip
    assert str(found["From layer to layer"].headline) == (
        "A token's experts of layer 1 tell most of those of another layer, 2: 31.2 % of their entropy."
    )


def test_layers_that_cost_the_same(tmp_path: Path) -> None:
    made = Made()
    tables = made.tables()
    tables["moe_layer_correlation"] = tables["moe_layer_correlation"].with_columns(
        kernel_time_ns=pl.lit(1000), own_ns=pl.lit(1000)
    )
    found = by_topic(report(write(tmp_path, tables, made.documents())))["The layer that costs most"]
    assert str(found.headline) == (
        "The layers cost about the same: layer 0 takes most, 1.00 us of own kernel time per steady decode step, 1.00 "
        "times the mean."
    )
    assert str(found.confidence) == "it was the slowest layer in 0 of 72 steady (rank, step)."


# What is absent ------------------------------------------------------------------------------------------------------

STEMS = sorted({*Made().tables(), *Made().documents()})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a made run that lacks nothing."""
    return made_report(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("stem", STEMS)
def test_a_missing_file_is_said_and_the_rest_is_there(stem: str, tmp_path: Path, whole: Report) -> None:
    made = Made()
    found = report(write(tmp_path, made.tables(), made.documents(), without={stem}))
    text = text_of(found.page)
    ending = "json" if stem in made.documents() and stem not in made.tables() else "csv"
    assert f"no {stem}.{ending}" in text or stem == "moe_straggler"
    most = 7 if stem == "moe_layer_correlation" else 3  # steady steps are found in it
    assert len(found.findings) >= len(whole.findings) - most
    assert len(found.charts) >= len(whole.charts) - (4 if stem == "moe_layer_correlation" else 3)
    for reason in found.missing.values():
        assert reason.startswith("Not drawn: ") and reason.endswith(".") and f"no {stem}.csv" in reason


def test_a_run_without_nsys_says_why_there_is_no_time(tmp_path: Path) -> None:
    journal(tmp_path / "session", run_of())
    analyze([tmp_path / "session"], tmp_path / "out")
    found = report(tmp_path / "out")
    assert {"expert_heatmap", "imbalance_time", "coselection", "routing_weights"} == set(found.charts)
    reason = "the run was recorded without nsys, which gives no GPU time"
    assert all(reason in why for why in found.missing.values())
    assert f"What routing costs in GPU time: moe_layer_correlation.csv: {reason}." in text_of(found.page)


def test_a_folder_of_an_older_version(tmp_path: Path) -> None:
    made = Made()
    tables = made.tables()
    old = ["rank", "step", "layer_idx", "num_tokens", "kernel_count", "kernel_time_ns", "busy_ns", "launched_by"]
    tables["moe_layer_correlation"] = tables["moe_layer_correlation"].select(old)
    keep = {"moe_layer_correlation", "moe_expert_activations"}
    found = report(write(tmp_path, tables, made.documents(), without={*tables, "moe_straggler"} - keep, older=True))
    assert found.charts == ["expert_heatmap"]
    assert (
        "no column" in found.missing["layer_phases"] and "another version of nvtxmoe" in found.missing["layer_phases"]
    )


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    made = Made()
    folder = write(tmp_path, made.tables(), made.documents())
    (folder / FOLDER / "moe_expert_activations.csv").write_text(
        "layer_idx,expert_id,activation_count,percentage\nx,y,z,w\n"
    )
    (folder / FOLDER / "moe_capture_validation.json").write_text("{")
    found = report(folder)
    assert "moe_expert_activations.csv: cannot be read" in found.missing["expert_heatmap"]
    text = text_of(found.page)
    assert "Not known whether the capture is complete: moe_capture_validation.json: cannot be read" in text


def test_tables_without_a_row(tmp_path: Path) -> None:
    made = Made()
    tables = {stem: table.clear() for stem, table in made.tables().items()}
    found = report(write(tmp_path, tables, made.documents()))
    assert found.charts == []
    assert found.missing["coselection"].startswith("Not drawn: moe_expert_coselection.csv: it has no row")
    assert '<script type="application/json"' not in found.page.read_text()


def test_one_rank_says_that_there_is_nothing_to_compare(tmp_path: Path) -> None:
    made = Made(ranks=1)
    tables, documents = made.tables(), made.documents()
    tables["moe_straggler"] = tables["moe_straggler"].clear()
    reason = "Only rank 0 was captured: there is no other to compare it with."
    documents["moe_straggler"] = {"reason": reason, "straggler": None, "collectives": None, "clock": None}
    found = report(write(tmp_path, tables, documents))
    assert found.missing["stragglers"] == f"Not drawn: {reason}"
    assert not {"Uneven ranks", "Slow rank"} & by_topic(found).keys()
    assert f"What unequal ranks cost: {reason}" in map(str, by_topic(found)["What could not be seen"].details)


def test_an_incomplete_capture_is_said_at_the_top(tmp_path: Path) -> None:
    made = Made()
    documents = made.documents()
    documents["moe_capture_validation"] |= {"verdict": "incomplete", "reasons": ["Rank 1 is missing."]}
    documents["moe_capture_validation"]["selection"] |= {"only": "decode", "steps_kept": 72, "steps_captured": 80}
    text = text_of(report(write(tmp_path, made.tables(), documents)).page)
    assert "How sure? incomplete The result is incomplete: Rank 1 is missing. Is MoE the problem?" in text
    assert text.index("Incomplete capture The result is incomplete") < text.index("Time of MoE layers")
    assert "What was filtered out (only decode): 72 of 80 steps were kept." in text


def test_parquet_results_are_named_by_their_files(tmp_path: Path) -> None:
    found = made_report(tmp_path, parquet=True)
    files = {figure.file for finding in found.findings for figure in finding.numbers if figure.file}
    assert files and all(name.endswith((".parquet", ".json")) for name in files)
    assert found.missing == {}


# Safety --------------------------------------------------------------------------------------------------------------


def test_names_from_the_capture_stay_text(tmp_path: Path) -> None:
    page = made_report(tmp_path).page.read_text()
    assert html.escape(EVIL) in page.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    outside = re.sub(r"<script\b[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    assert "<script" not in outside and "<img" not in outside and 'onerror="' not in outside
    data = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.DOTALL)
    assert data is not None and "<" not in data[1]
    kernels = json.loads(data[1])["charts"]["top_kernels"]["data"]["kernels"]
    assert any(name.startswith("</script><script>document") for name in kernels["texts"]["name"])
