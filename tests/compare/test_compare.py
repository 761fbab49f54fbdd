"""`nvtxmoe compare`: planted differences are found, what is the same is not, and what can't be compared is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.compare import summary as summary_module
from nvtxmoe_analysis.compare.compare import FOLDER, Comparison, compare, movers
from nvtxmoe_analysis.compare.gate import WATCHED
from nvtxmoe_analysis.compare.tables import ACTIVATIONS, EXPERTS, METRICS
from tests.support.cli import RESULTS, analyze, refused, run
from tests.support.compare_runs import Load, make_results
from tests.support.paths import ROOT
from tests.support.sessions import journal, run_of

LOAD = Load(steps=80, experts=16, layers=3)


def pair(folder: Path, a: Load, b: Load) -> tuple[Path, Path]:
    return make_results(folder / "a", a, 1), make_results(folder / "b", b, 2)


def compared(folder: Path, a: Load, b: Load) -> Comparison:
    return compare(*pair(folder, a, b))


def of(found: Comparison, metric: str, kind: str = "all") -> pl.DataFrame:
    """All layers together, then each, in order."""
    return found.metrics.filter(metric=metric, step_kind=kind).sort("layer_idx", nulls_last=False)


# What is found --------------------------------------------------------------------------------------------------------


def test_a_slower_layer(tmp_path: Path) -> None:
    found = compared(tmp_path, LOAD, replace(LOAD, slow={1: 1.25}))
    rows = of(found, "kernel_time")
    assert rows["layer_idx"].to_list() == [None, 0, 1, 2]
    assert rows["change_pct"][2] == pytest.approx(25.0, abs=2.5)
    assert rows["change_pct_ci_low"][2] < 25.0 < rows["change_pct_ci_high"][2]
    assert rows["change_pct"][0] == pytest.approx(25.0 / 3, abs=2.0)
    assert rows["significant"].to_list() == [True, False, True, False]
    first = movers(found.metrics.filter(metric="kernel_time"), "difference").row(0, named=True)
    assert first["layer_idx"] == 1
    # Nanoseconds: a step's layers are added, and differences are B's less A's.
    assert rows["value_a"][0] == pytest.approx(rows["value_a"][1:].sum(), rel=1e-6)
    assert rows["difference"].to_list() == pytest.approx((rows["value_b"] - rows["value_a"]).to_list())
    # The other way round, the same with its sign changed.
    back = compare(found.runs[1].folder, found.runs[0].folder)
    assert of(back, "kernel_time")["difference"].to_list() == pytest.approx([-d for d in rows["difference"]])


def test_experts_that_get_more(tmp_path: Path) -> None:
    found = compared(tmp_path, LOAD, replace(LOAD, moved={2: 0.2}))
    layers = found.activations.filter(step_kind="all").sort("layer_idx", nulls_last=False)
    assert layers["significant"].to_list() == [True, False, False, True]
    first = found.experts.row(0, named=True)
    assert (first["layer_idx"], first["expert_id"], first["significant"]) == (2, 0, True)
    own = 100.0 - first["share_a_pct"]
    assert first["difference_pct"] == pytest.approx(0.2 * own, abs=3.0)
    assert first["ci_low"] < 0.2 * own < first["ci_high"]
    imbalance = of(found, "imbalance")
    # The mean of three layers rises by 5 %, which 80 steps do not make sure.
    assert imbalance["significant"].to_list() == [False, False, False, True]
    assert imbalance["change_pct_ci_low"][3] > 5
    assert movers(found.metrics.filter(metric="imbalance"), "difference")["layer_idx"][0] == 2
    assert of(found, "kernel_time")["significant"].to_list() == [False] * 4


def test_divergence_of_the_same_routing_is_its_noise(tmp_path: Path) -> None:
    rows = compared(tmp_path, LOAD, LOAD).activations.filter(step_kind="all")
    assert not rows["significant"].any()
    assert rows["js_bits"].min() > 0  # type: ignore[operator]
    ratio = rows["js_bits"] / rows["noise_bits"]
    assert ratio.min() > 0.4 and ratio.max() < 2.0  # type: ignore[operator]


def test_more_tokens_a_step_are_no_difference_in_time(tmp_path: Path) -> None:
    """Kernel time grows with tokens; it is compared at equal numbers of them."""
    found = compared(tmp_path, replace(LOAD, tokens=(16, 24)), replace(LOAD, tokens=(20, 31)))
    row = of(found, "kernel_time").row(0, named=True)
    assert not row["significant"] and abs(row["change_pct"]) < 3
    assert any(note.startswith("The loads differ: decode steps have") for note in found.notes)


def test_kinds_of_step_are_compared_apart(tmp_path: Path) -> None:
    """More prefill in B makes no decode step slower."""
    steps = replace(LOAD, steps=200)
    found = compared(tmp_path, replace(steps, prefill=0.2), replace(steps, prefill=0.5))
    for kind in ("all", "decode", "prefill"):
        assert abs(of(found, "kernel_time", kind)["change_pct"][0]) < 5, kind
    assert any("of A's steps are decode steps" in note for note in found.notes)
    only = compared(tmp_path / "only", steps, replace(steps, prefill=0.5))
    assert any(note.startswith("Only B has prefill steps") for note in only.notes)


def test_a_run_with_itself(tmp_path: Path) -> None:
    a = make_results(tmp_path / "a", LOAD, 1)
    found = compare(a, a)
    assert found.metrics["difference"].abs().max() == 0.0
    assert not found.metrics["significant"].any()
    assert found.metrics["p_value"].min() == 1.0
    assert (found.activations["js_bits"].max(), found.activations["excess_bits"].max()) == (0.0, 0.0)
    assert not found.activations["significant"].any() and not found.experts["significant"].any()
    ran = run("compare", a, a, "--fail-if", "kernel_time>0%", "--fail-if", "layer_js>0", "--fail-if", "imbalance<0")
    assert ran.code == 0
    assert ran.out.replace("\n", " ").count("The results are identical: every count and time of A is B's.") == 1
    assert not any("identical" in note for note in compared(tmp_path / "other", LOAD, LOAD).notes)


def test_ranks_of_a_step_are_no_further_evidence(tmp_path: Path) -> None:
    """Eight ranks share a step's noise: the interval is as wide as that of one."""
    widths = []
    for ranks in (1, 8):
        load = replace(LOAD, ranks=ranks, noise=0.1)
        row = of(compared(tmp_path / str(ranks), load, load), "kernel_time").row(0, named=True)
        widths.append(row["change_pct_ci_high"] - row["change_pct_ci_low"])
    assert widths[1] == pytest.approx(widths[0], rel=0.25)


def test_few_steps_are_silent(tmp_path: Path) -> None:
    found = compared(tmp_path, replace(LOAD, steps=5), LOAD)
    assert found.metrics["significant"].null_count() == len(found.metrics)
    assert set(found.metrics["reason"]) == {"A has only 5 decode steps"}
    assert any("Nothing can be said about significance in decode steps" in note for note in found.notes)


# What can't be compared -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("b", "said"),
    [
        (replace(LOAD, layers=4), "the runs have different layers: A 0-2, B 0-3"),
        (replace(LOAD, experts=8), "layer 0 has 16 experts in A and 8 in B"),
        (replace(LOAD, top_k=4), r"layer 0 has 2 experts a token \(top-k\) in A and 4 in B"),
    ],
)
def test_runs_of_other_models_are_refused(b: Load, said: str, tmp_path: Path) -> None:
    folders = pair(tmp_path, LOAD, b)
    with pytest.raises(NvtxmoeError, match=said):
        compare(*folders)
    refused(run("compare", *folders), folders[1])


def test_folders_without_results(tmp_path: Path) -> None:
    a = make_results(tmp_path / "a", LOAD, 1)
    refused(run("compare", a, tmp_path / "none"), "no such folder")
    (tmp_path / "empty").mkdir()
    refused(run("compare", tmp_path / "empty", a), "no result file in it")
    (a / RESULTS / "moe_step_activations.parquet").unlink()
    refused(run("compare", a, a), "no moe_step_activations.parquet")


def test_without_gpu_time_routing_alone(tmp_path: Path) -> None:
    folders = pair(tmp_path, LOAD, replace(LOAD, gpu=False, moved={0: 0.2}))
    found = compare(*folders)
    assert set(found.metrics["metric"]) == {"imbalance"}
    assert set(found.activations["step_kind"]) == {"all", "unknown"}
    assert found.activations.filter(step_kind="all", layer_idx=0)["significant"].item()
    assert "B has no GPU time: only routing is compared." in found.notes
    refuse = run("compare", *folders, "--fail-if", "kernel_time>5%")
    assert refuse.code == 2 and "the runs have no kernel_time to compare" in refuse.err
    assert run("compare", *folders, "--fail-if", "js>0.001").code == 4


def test_sessions_of_direct_mode(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        journal(folder, run_of(steps=12))
        assert run("merge", folder).code == 0
    ran = run("compare", *folders, "--json")
    assert ran.code == 0, ran.err
    assert {row["metric"] for row in ran.json["metrics"]} == {"imbalance"}
    assert max(row["js_bits"] for row in ran.json["activations"]) == 0.0


def test_notes_of_what_differs(tmp_path: Path) -> None:
    other = replace(LOAD, ranks=2, meta={"device": "another", "verdict": "incomplete"})
    found = compared(tmp_path, LOAD, other)
    assert "The runs differ in device (A a device, B another)." in found.notes
    assert any(note.startswith("The capture of B is incomplete") for note in found.notes)
    assert any("different numbers of ranks" in note for note in found.notes)


def test_models_of_one_shape_that_differ_are_noted(tmp_path: Path) -> None:
    folders = pair(tmp_path, LOAD, LOAD)
    for folder, model in zip(folders, ("org/one", "org/other"), strict=True):
        file = folder / RESULTS / "moe_capture_validation.json"
        check = {"name": "one_model", "figures": {"models": [model]}}
        file.write_text(json.dumps({**json.loads(file.read_text()), "checks": [check]}))
    assert "The runs differ in model (A org/one, B org/other)." in compare(*folders).notes


# Output ---------------------------------------------------------------------------------------------------------------


def test_files_and_json(tmp_path: Path) -> None:
    folders = pair(tmp_path, LOAD, replace(LOAD, slow={1: 1.25}, moved={2: 0.2}))
    ran = run("compare", *folders, "--json", "-o", tmp_path / "out", "--fail-if", "kernel_time>1%")
    assert (ran.code, ran.err) == (4, "")
    said = ran.json
    inner = tmp_path / "out" / FOLDER
    assert {Path(f) for f in said.pop("files")} == set(inner.iterdir())
    assert json.loads((inner / "moe_comparison.json").read_text()) == said
    schemas = {"moe_comparison": METRICS, "moe_comparison_activations": ACTIVATIONS, "moe_comparison_experts": EXPERTS}
    assert {f.name for f in inner.iterdir()} == {*(f"{stem}.csv" for stem in schemas), "moe_comparison.json"}
    for stem, schema in schemas.items():
        table = pl.read_csv(inner / f"{stem}.csv")
        assert table.columns == list(schema), stem
    assert said["failed"] and said["gates"][0]["expression"] == "kernel_time>1%"
    assert said["layers"]["kernel_time"][0]["layer_idx"] == 1
    assert said["layers"]["js"][0]["layer_idx"] == 2
    assert (said["experts"][0]["layer_idx"], said["experts"][0]["expert_id"]) == (2, 0)
    experts = pl.read_csv(inner / "moe_comparison_experts.csv")
    assert len(experts) == LOAD.layers * LOAD.experts


def test_the_page_names_each_column_and_metric() -> None:
    text = (ROOT / "docs" / "how-to" / "compare-in-ci.md").read_text()
    tables = {"": METRICS, "_activations": ACTIVATIONS, "_experts": EXPERTS}
    for suffix, schema in tables.items():
        row = re.search(rf"^\| `moe_comparison{suffix}\.csv` \| (.*) \|$", text, re.MULTILINE)
        assert row is not None, suffix
        assert re.findall(r"`(\w+)`", row[1]) == [name for name in schema if name != "metric"], suffix
    for metric in WATCHED:
        assert f"| `{metric}` |" in text


def test_the_same_seed_gives_the_same_figures(tmp_path: Path) -> None:
    folders = pair(tmp_path, LOAD, LOAD)
    one, same, other = (run("compare", *folders, "--json", "--seed", seed).json for seed in (3, 3, 4))
    assert one == same
    assert one["activations"][0]["noise_bits"] != other["activations"][0]["noise_bits"]
    assert one["metrics"] == other["metrics"]


def test_confidence(tmp_path: Path) -> None:
    folders = pair(tmp_path, LOAD, LOAD)
    narrow, wide = (of(compare(*folders, confidence=c), "kernel_time").row(0, named=True) for c in (0.8, 0.99))
    assert narrow["ci_high"] - narrow["ci_low"] < wide["ci_high"] - wide["ci_low"]
    assert narrow["p_value"] == wide["p_value"]


def test_on_the_terminal(tmp_path: Path) -> None:
    folders = pair(tmp_path, LOAD, replace(LOAD, slow={1: 1.25}, moved={2: 0.2}))
    ran = run("compare", *folders)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0].startswith("A ") and lines[1].startswith("B ")
    at = next(i for i, line in enumerate(lines) if line.startswith("Layers that moved most in kernel_time"))
    assert lines[at + 2].split()[0] == "1"
    at = next(i for i, line in enumerate(lines) if line.startswith("Layers whose shares of experts moved most"))
    assert lines[at + 2].split()[0] == "2"
    assert "not against other runs of the same thing" in ran.out


def test_two_halves_of_a_real_capture_as_csv_and_as_parquet(golden_2gpu: Path, tmp_path: Path) -> None:
    a, b, again = (tmp_path / name for name in ("a", "b", "again"))
    analyze(golden_2gpu, a, "--steps", "4:24")
    analyze(golden_2gpu, b, "--steps", "25:46")
    analyze(golden_2gpu, again, "--steps", "25:46", "--format", "parquet")
    said = run("compare", a, b, "--json").json
    other = run("compare", a, again, "--json").json
    assert (said["a"]["steps"], said["b"]["steps"], said["a"]["ranks"]) == (21, 22, 2)
    assert other["metrics"] == said["metrics"] and other["activations"] == said["activations"]
    # One load, whose batch shrinks as requests end: routing has not changed, the tokens of a step have.
    routing = next(row for row in said["activations"] if row["step_kind"] == "decode")
    assert routing["significant"] is False and routing["p_value"] > 0.05
    assert any("different filters" in note for note in said["notes"])
    assert any(note.startswith("The loads differ: decode steps have 22 tokens in A and 10") for note in said["notes"])
    assert next(row for row in said["metrics"] if row["metric"] == "kernel_time")["difference"] is None
    ran = run("compare", a, b, "--fail-if", "kernel_time>5%")
    assert ran.code == 2 and "no decode steps with like numbers of tokens in both runs" in ran.err


@pytest.mark.parametrize(
    ("a", "b", "answer", "words"),
    [
        (LOAD, replace(LOAD, slow={1: 1.25}), "yes", "B differs from A: kernel_time +"),
        (LOAD, LOAD, "not seen", "no difference from A was seen in kernel_time"),
        (
            replace(LOAD, steps=5), LOAD, "cannot tell",
            "Whether B differs from A cannot be told: A has 5 decode steps; at least 8 of a kind are needed in both.",
        ),
    ],
)  # fmt: skip
def test_the_first_lines_answer_whether_b_differs(a: Load, b: Load, answer: str, words: str, tmp_path: Path) -> None:
    folders = pair(tmp_path, a, b)
    found = run("compare", *folders, "--json").json["summary"]
    assert found["answer"] == answer and words in found["sentence"]
    assert run("compare", *folders).out.splitlines()[2] == f"Does B differ? {answer}"


def slowed(folder: Path, **factors: float) -> None:
    """Multiply the times of kinds of steps."""
    path = folder / RESULTS / "moe_layer_correlation.parquet"
    frame = pl.read_parquet(path)
    factor = pl.col("step_kind").replace_strict(factors, default=1.0)
    times = ("kernel_time_ns", "own_ns", "step_gpu_ns")
    frame.with_columns((pl.col(name) * factor).cast(frame.schema[name]) for name in times).write_parquet(path)


MIXED = replace(LOAD, steps=200, prefill=0.3, prefill_tokens=(4096, 8191))


def test_a_difference_in_one_kind_of_steps_is_the_answer(tmp_path: Path) -> None:
    """Over all steps it is lost in the scatter of the long ones."""
    folders = pair(tmp_path, MIXED, MIXED)
    slowed(folders[1], decode=1.05)
    document = run("compare", *folders, "--json").json
    of_time = {row["step_kind"]: row["significant"] for row in document["metrics"] if row["metric"] == "kernel_time"}
    assert of_time == {"all": False, "decode": True, "prefill": False}
    assert document["summary"]["answer"] == "yes"
    assert re.search(r"kernel_time \+4\.\d\d % in decode steps", document["summary"]["sentence"])


def test_a_kind_of_steps_that_changes_the_other_way_is_named(tmp_path: Path) -> None:
    folders = pair(tmp_path, MIXED, MIXED)
    slowed(folders[1], decode=1.05, prefill=0.9)
    sentence = run("compare", *folders, "--json").json["summary"]["sentence"]
    assert re.search(r"kernel_time -\d+\.\d\d %, kernel_time \+4\.\d\d % in decode steps", sentence)
    assert "in prefill steps" not in sentence


def test_a_difference_in_one_layer_alone_is_counted(tmp_path: Path) -> None:
    """A p-value of 0.04 among so many metrics and kinds of steps is no answer."""
    noisy = replace(LOAD, noise=0.2)
    document = run("compare", *pair(tmp_path, noisy, replace(noisy, slow={1: 1.1})), "--json").json
    whole = {row["step_kind"]: row["significant"] for row in document["metrics"] if row["metric"] == "kernel_time"}
    layers = [row["layer_idx"] for row in document["layers"]["kernel_time"] if row["significant"]]
    assert not any(whole.values()) and layers == [1]
    assert document["summary"]["answer"] == "not seen"
    assert re.search(r"Significant by itself: \d+ row", document["summary"]["sentence"])


def test_a_large_difference_in_one_layer_is_the_answer(tmp_path: Path) -> None:
    noisy = replace(LOAD, noise=0.2)
    document = run("compare", *pair(tmp_path, noisy, replace(noisy, slow={1: 1.5})), "--json").json
    assert document["summary"]["answer"] == "yes"
    assert document["summary"]["sentence"].startswith("B differs from A: kernel_time +")


def test_equal_runs_get_a_yes_at_the_rate_of_a_row() -> None:
    """40 families of metrics, kinds and layers, 2,000 draws of p-values of runs of the same thing."""
    random = np.random.default_rng(5)
    draws = [summary_module._level(random.uniform(size=40).tolist(), 0.05) for _ in range(2_000)]
    assert 0.03 < np.mean([level > 0 for level in draws]) < 0.08
