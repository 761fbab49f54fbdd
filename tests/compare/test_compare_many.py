"""`nvtxmoe compare` of several results: each against the baseline as if compared alone, p-values for all together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.compare.compare import FOLDER, compare
from nvtxmoe_analysis.compare.many import Comparisons, across, compare_many, names_of
from nvtxmoe_analysis.stats.multiple_testing import holm
from tests.support.cli import everything, refused, run
from tests.support.compare_runs import Load, make_results

LOAD = Load(steps=80, experts=16, layers=3)
LOADS = {
    "before": LOAD,
    "after": replace(LOAD, slow={1: 1.25}),
    "skewed": replace(LOAD, moved={2: 0.2}),
    "same": LOAD,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("results")
    return [make_results(folder / name, load, seed) for seed, (name, load) in enumerate(LOADS.items())]


@pytest.fixture(scope="module")
def found(folders: list[Path]) -> Comparisons:
    return compare_many(folders)


def test_each_result_is_compared_as_if_alone(found: Comparisons, folders: list[Path]) -> None:
    assert (found.baseline, list(found.results)) == ("before", ["after", "skewed", "same"])
    alone = compare(folders[0], folders[2])
    for name in ("metrics", "activations", "experts"):
        left = getattr(found.results["skewed"], name).drop("p_adjusted", "significant")
        assert left.equals(getattr(alone, name).drop("p_adjusted", "significant"))


def test_p_values_are_adjusted_over_results_and_layers(found: Comparisons) -> None:
    of_layer = (pl.col("metric") == "kernel_time") & (pl.col("step_kind") == "all") & pl.col("layer_idx").is_not_null()
    rows = pl.concat([one.metrics.filter(of_layer) for one in found.results.values()])
    assert len(rows) == 9
    assert rows["p_adjusted"].to_list() == pytest.approx(holm(rows["p_value"].to_numpy()[None])[0].tolist())
    assert rows["significant"].to_list() == (rows["p_adjusted"] < 0.05).to_list()
    whole = (pl.col("metric") == "imbalance") & (pl.col("step_kind") == "all") & pl.col("layer_idx").is_null()
    rows = pl.concat([one.metrics.filter(whole) for one in found.results.values()])
    assert rows["p_adjusted"].to_list() == pytest.approx(holm(rows["p_value"].to_numpy()[None])[0].tolist())
    experts = pl.concat([one.experts for one in found.results.values()])
    assert experts["p_adjusted"].min() == pytest.approx(holm(experts["p_value"].to_numpy()[None])[0].min())


def test_planted_differences_are_found_in_their_results(found: Comparisons) -> None:
    whole = (pl.col("step_kind") == "all") & pl.col("layer_idx").is_null()
    times = {n: one.metrics.filter(whole, metric="kernel_time")["significant"][0] for n, one in found.results.items()}
    assert times == {"after": True, "skewed": False, "same": False}
    shares = {name: one.activations.filter(whole)["significant"][0] for name, one in found.results.items()}
    assert shares == {"after": False, "skewed": True, "same": False}


def test_many_results_without_a_difference_raise_no_more_false_alarms() -> None:
    """Of 300 experiments of 10 results in which nothing differs, about 5 % have a difference, not 40 %."""
    random = np.random.default_rng(1)
    alarms = 0
    for _ in range(300):
        tables = [
            pl.DataFrame({"kind": ["all"], "p_value": [p], "p_adjusted": [p], "significant": [p < 0.05]})
            for p in random.random(10)
        ]
        alarms += any(table["significant"].any() for table in across(tables, ("kind",), 0.05))
    assert alarms <= 30


def test_missing_p_values_stay_missing() -> None:
    table = pl.DataFrame(
        {"p_value": [0.02, None], "p_adjusted": [0.02, None], "significant": [True, None]},
        schema_overrides={"p_value": pl.Float64, "p_adjusted": pl.Float64, "significant": pl.Boolean},
    )
    first, second = across([table, table], (), 0.05)
    assert first["p_adjusted"].to_list() == second["p_adjusted"].to_list() == [0.04, None]
    assert first["significant"].to_list() == [True, None]


def test_the_baseline_by_name_or_path(folders: list[Path]) -> None:
    by_name = compare_many(folders[:3], baseline="skewed")
    assert (by_name.baseline, list(by_name.results)) == ("skewed", ["before", "after"])
    by_path = compare_many(folders[:3], baseline=str(folders[2]))
    assert by_path.baseline == "skewed"
    with pytest.raises(NvtxmoeError, match=r"--baseline nothing: no result .*before, after, skewed"):
        compare_many(folders[:3], baseline="nothing")
    two = run("compare", *folders[:2], "--baseline", "after", "--json").json
    assert two == run("compare", folders[1], folders[0], "--json").json


def test_names_tell_results_apart() -> None:
    assert names_of([Path("/x/a/moe_expert_tracking"), Path("/x/b")]) == ["a", "b"]
    assert names_of([Path("/x/a/results"), Path("/x/b/results")]) == ["a/results", "b/results"]


def test_a_result_given_twice_and_one_alone_are_refused(folders: list[Path]) -> None:
    again = folders[0] / "moe_expert_tracking"
    why = "given twice: p-values are adjusted for the number of results, and a copy would count as one more"
    refused(run("compare", *folders[:2], again), again, why, "Name each result once")
    refused(run("compare", folders[0]), "Missing argument 'B...'")


def test_files_have_the_result_in_their_first_column(folders: list[Path], tmp_path: Path) -> None:
    ran = run("compare", *folders, "-o", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    written = tmp_path / FOLDER
    for name in ("", "_activations", "_experts"):
        table = pl.read_csv(written / f"moe_comparison{name}.csv")
        assert table.columns[0] == "result"
        assert table["result"].unique(maintain_order=True).to_list() == ["after", "skewed", "same"]
    document = json.loads((written / "moe_comparison.json").read_text())
    assert document["baseline"]["name"] == "before"
    assert [one["name"] for one in document["results"]] == ["after", "skewed", "same"]
    pair = run("compare", *folders[:2], "--json").json
    assert set(document["results"][0]) == (set(pair) | {"name"}) - {"files"}
    shown = run("compare", *folders, "--json").json
    assert {key: shown[key] for key in document} == document


def test_gates_are_of_each_result(folders: list[Path]) -> None:
    ran = run("compare", *folders, "--fail-if", "kernel_time>5%")
    assert (ran.code, ran.err) == (4, "")
    assert "after: kernel_time>5%: failed, " in ran.out
    assert "same: kernel_time>5%: passed, " in ran.out
    assert run("compare", folders[0], folders[2], folders[3], "--fail-if", "kernel_time>5%").code == 0


def test_what_people_read(folders: list[Path]) -> None:
    lines = run("compare", *folders).out.splitlines()
    assert lines[0].startswith("before (baseline): 80 steps, 1 rank, 3 MoE layers, ")
    at = lines.index("kernel_time")
    assert [line.split()[0] for line in lines[at + 1 : at + 4]] == ["after", "skewed", "same"]
    assert lines[at + 1].endswith("yes") and lines[at + 3].endswith("not seen")
    assert any("adjusted for 3 results" in line for line in lines)


def test_rows_that_some_results_lack_are_named(folders: list[Path], tmp_path: Path) -> None:
    untimed = make_results(tmp_path / "untimed", replace(LOAD, gpu=False), 9)
    page = tmp_path / "page.html"
    ran = run("compare", *folders[:2], untimed, "--html", page)
    line = "No row of kernel_time, kernel_time_per_token, own_time and step_time for untimed: the result or the "
    assert line in ran.out.replace("\n", " ")
    assert line in page.read_text()
    assert run("compare", *folders, "--json").json["not_in_all"] == []


def test_a_failed_comparison_writes_nothing(folders: list[Path], tmp_path: Path) -> None:
    other = make_results(tmp_path / "other", replace(LOAD, experts=8), 9)
    before = everything(tmp_path)
    refused(run("compare", *folders[:2], other, "-o", tmp_path / "out", "--html", tmp_path / "c.html"), other)
    assert everything(tmp_path) == before
