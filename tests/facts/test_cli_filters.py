"""Filters of `nvtxmoe analyze`: what they leave is what filtering the tables afterwards leaves."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.support.cli import RESULTS, TWO_GPUS, analyze, files, refused, run
from tests.support.export_builder import Export, Process
from tests.support.written_results import TABLES

KEYED = {
    "moe_layer_timings": ["rank", "step", "layer_idx"],
    "moe_layer_correlation": ["rank", "step", "layer_idx"],
    "moe_load_imbalance": ["rank", "step", "layer_idx"],
    "moe_routing_weights_hist": ["rank", "step", "layer_idx"],
}
#: Sums over steps: table, what a row is of, what is summed.
SUMMED = {
    "moe_expert_activations": (["layer_idx", "expert_id"], ["activation_count"]),
    "moe_expert_coselection": (["layer_idx", "expert_id_1", "expert_id_2"], ["coselection_count"]),
    "moe_kernel_timings": (["rank", "layer_idx", "phase", "kernel_name", "launched_by"], ["count", "total_ns"]),
}

Tables = dict[str, pl.DataFrame]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("filters")


@cache
def of_demo(folder: Path, *options: str) -> tuple[Tables, dict[str, Any]]:
    """Tables and validation file of the demo capture with some filters."""
    output = folder / "_".join(options or ["all"]).replace(":", "to").replace(",", "and")
    analyze(TWO_GPUS, output, "--format", "parquet", *options)
    tables = {stem: pl.read_parquet(output / RESULTS / f"{stem}.parquet") for stem in TABLES}
    return tables, json.loads((output / RESULTS / "moe_capture_validation.json").read_text())


PREFILL, DECODE = pl.col("prefill_tokens") > 0, pl.col("decode_tokens") > 0

STEP_FILTERS: dict[str, tuple[list[str], pl.Expr]] = {
    "span": (["--steps", "10:20"], pl.col("step").is_between(10, 20)),
    "one step": (["--steps", "7:7"], pl.col("step") == 7),
    "from": (["--steps", "40:"], pl.col("step") >= 40),
    "to": (["--steps", ":5"], pl.col("step") <= 5),
    "skip": (["--skip-first", "3"], pl.col("step") >= 3),
    "prefill": (["--only", "prefill"], PREFILL & ~DECODE),
    "decode": (["--only", "decode"], DECODE & ~PREFILL),
    "mixed": (["--only", "mixed"], PREFILL & DECODE),
    "together": (
        ["--only", "decode", "--skip-first", "10", "--steps", ":40"],
        DECODE & ~PREFILL & pl.col("step").is_between(10, 40),
    ),
}
#: Filters that do not touch steps.
OTHER_FILTERS: dict[str, tuple[list[str], pl.Expr]] = {
    "layers": (["--layers", "1,3"], pl.col("layer_idx").is_in([1, 3])),
    "a range of layers": (["--layers", "0-1, 3"], pl.col("layer_idx").is_in([0, 1, 3])),
    "a rank": (["--ranks", "0"], pl.col("rank") == 0),
    "both": (["--ranks", "0", "--layers", "2"], (pl.col("rank") == 0) & (pl.col("layer_idx") == 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STEP_FILTERS, *OTHER_FILTERS])
def test_tables_with_keys(folder: Path, name: str) -> None:
    options, keep = (STEP_FILTERS | OTHER_FILTERS)[name]
    whole, _ = of_demo(folder)
    narrowed, _ = of_demo(folder, *options)
    steps = whole["moe_layer_timings"].filter(keep).select("rank", "step", "layer_idx").unique()
    assert 0 < len(steps) < len(whole["moe_layer_timings"])
    for stem, key in KEYED.items():
        expected = whole[stem].join(steps, on=key, how="semi", maintain_order="left")
        # Steps without sampled tokens leave nothing in one table.
        assert len(expected) > 0 or stem == "moe_routing_weights_hist"
        assert narrowed[stem].equals(expected), stem


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_FILTERS)
def test_sums_of_layers_and_ranks(folder: Path, name: str) -> None:
    options, keep = OTHER_FILTERS[name]
    whole, _ = of_demo(folder)
    narrowed, _ = of_demo(folder, *options)
    for stem in SUMMED:
        # Tensor-parallel ranks see the same tokens: without the other rank the counts stay.
        ranked = keep if "rank" in whole[stem].columns else None
        if ranked is None:
            layers = whole["moe_layer_timings"].filter(keep)["layer_idx"].unique()
            ranked = pl.col("layer_idx").is_in(layers.to_list())
        assert narrowed[stem].equals(whole[stem].filter(ranked)), stem


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        [["--only", "prefill"], ["--only", "decode"], ["--only", "mixed"]],
        [["--steps", ":9"], ["--steps", "10:20"], ["--steps", "21:"]],
        [["--steps", ":2"], ["--skip-first", "3"]],
    ],
)
def test_parts_add_up_to_the_whole(folder: Path, parts: list[list[str]]) -> None:
    whole, _ = of_demo(folder)
    several = [of_demo(folder, *options)[0] for options in parts]
    for stem, (key, sums) in SUMMED.items():
        added = pl.concat([tables[stem] for tables in several]).group_by(key).agg(pl.col(sums).sum()).sort(key)
        assert added.equals(whole[stem].select(*key, *sums).sort(key)), stem
        assert len(added) > 0


@pytest.mark.parametrize("name", [*STEP_FILTERS, *OTHER_FILTERS])
def test_shares_are_of_what_is_kept(folder: Path, name: str) -> None:
    narrowed, _ = of_demo(folder, *(STEP_FILTERS | OTHER_FILTERS)[name][0])
    shares = narrowed["moe_expert_activations"].group_by("layer_idx").agg(pl.col("percentage").sum())
    assert shares["percentage"].to_list() == pytest.approx([100.0] * len(shares), abs=1e-9)
    of_cells = narrowed["moe_layer_correlation"].filter(pl.col("rank") == pl.col("rank").min())
    expected = of_cells.group_by("layer_idx").agg(pl.col("total_activations").sum()).sort("layer_idx")
    activations = narrowed["moe_expert_activations"].group_by("layer_idx").agg(pl.col("activation_count").sum())
    assert activations.sort("layer_idx").rows() == expected.rows()


def test_the_other_rank(folder: Path) -> None:
    """Of a tensor-parallel group the lowest rank that is kept speaks for all."""
    whole, _ = of_demo(folder)
    narrowed, _ = of_demo(folder, "--ranks", "1")
    assert narrowed["moe_layer_timings"].equals(whole["moe_layer_timings"].filter(rank=1))
    assert narrowed["moe_kernel_timings"].equals(whole["moe_kernel_timings"].filter(rank=1))
    assert narrowed["moe_expert_activations"].equals(whole["moe_expert_activations"])
    expected = whole["moe_load_imbalance"].with_columns(rank=pl.lit(1, pl.Int64)).drop("timestamp_sec")
    assert narrowed["moe_load_imbalance"].drop("timestamp_sec").equals(expected)


@pytest.mark.parametrize(
    ("options", "stated"),
    [
        ([], {}),
        (["--steps", "10:20"], {"first_step": 10, "last_step": 20, "steps_kept": 22}),
        (["--steps", "40:"], {"first_step": 40, "steps_kept": 14}),
        (["--steps", ":5"], {"last_step": 5, "steps_kept": 12}),
        (["--skip-first", "3"], {"skip_first": 3, "steps_kept": 88}),
        (["--only", "mixed"], {"only": "mixed", "steps_kept": 4}),
        (["--layers", "3,0-1"], {"layers": [0, 1, 3], "steps_kept": 94}),
        (["--ranks", "1"], {"ranks": [1], "steps_kept": 47}),
    ],
)
def test_filters_are_stated_and_checks_see_everything(folder: Path, options: list[str], stated: dict[str, Any]) -> None:
    _, whole = of_demo(folder)
    _, validation = of_demo(folder, *options)
    none = dict.fromkeys(("first_step", "last_step", "only", "layers", "ranks"))
    assert validation["selection"] == {
        **none,
        "skip_first": 0,
        "steps_kept": 94,
        "steps_captured": 94,
        "steps_lost": 0,
        **stated,
    }
    for same in ("verdict", "reasons", "checks", "coverage", "inputs"):
        assert validation[same] == whole[same]


# Filters that leave nothing, or nearly ------------------------------------------------------------------------------


def decoding(folder: Path) -> Path:
    """An export of steps that only decode, one of which has no tokens, launched nothing and was sampled not at all."""
    export = Export()
    worker = Process(export)
    worker.send_meta()
    for step in range(4):
        with worker.step(step, tokens=0 if step == 3 else 2):
            for layer in range(worker.layers if step < 3 else 0):
                with worker.layer(layer):
                    worker.kernel()
        for layer in range(worker.layers if step < 3 else 0):
            worker.counts(step, layer, [2, 1, 1, 0], tokens=2)
    return export.save(folder / "built.sqlite")


@pytest.mark.parametrize(
    "options", [["--only", "prefill"], ["--steps", "900:"], ["--skip-first", "4"], ["--layers", "7"], ["--ranks", "5"]]
)
def test_nothing_left(tmp_path: Path, options: list[str]) -> None:
    source = decoding(tmp_path)
    ran = run("analyze", source, "-o", tmp_path / "results", *options)
    said = "the filters keep nothing: captured are steps 0 to 3 of rank 0, layers 0, 1"
    refused(ran, said, "Widen --steps, --skip-first, --only, --layers or --ranks")
    assert files(tmp_path) == {"built.sqlite"}


#: Tables with a row per (rank, step, layer).
PER_LAYER = ("moe_layer_timings", "moe_layer_correlation", "moe_roofline")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_step_with_nothing_in_it(tmp_path: Path, form: str) -> None:
    source = decoding(tmp_path)
    options = ["--format", form, "--sqlite", str(tmp_path / "results.db")]
    analyze(source, tmp_path / "all", *options)
    analyze(source, tmp_path / "results", *options, "--steps", "3:")
    analyze(source, tmp_path / "results", *options, "--steps", "3:", "--json")
    found = run("analyze", source, "-o", tmp_path / "results", *options, "--steps", "3:", "--json").json
    assert (found["steps_kept"], found["tokens"], found["in_layer_ns"], found["kernels"]) == (1, 0, 0, [])
    read = pl.read_csv if form == "csv" else pl.read_parquet
    for stem in TABLES:
        whole, narrowed = (read(tmp_path / name / RESULTS / f"{stem}.{form}") for name in ("all", "results"))
        assert narrowed.columns == whole.columns, stem
        # The rows of what was captured are there, zeros where the GPU did nothing.
        if stem == "moe_waterfall":
            assert narrowed["time_ns"].fill_null(0).sum() == 0
        elif stem == "moe_roofline_summary":
            assert narrowed["matmul_ns"].fill_null(0).sum() == narrowed["rows_timed"].sum() == 0
        else:
            assert len(narrowed) == (2 if stem in PER_LAYER else 0), stem
    assert json.loads((tmp_path / "results" / RESULTS / "moe_summary.json").read_text()) == {}


SHARES = [
    ([], 600, 100.0 * 600 / 1400, {"attention": 800}),
    (["--steps", "1:1"], 400, 100.0 * 400 / 900, {"attention": 500}),
    (["--layers", "1"], 300, 100.0 * 300 / 1400, {"attention": 800}),
    (["--steps", "0:0", "--layers", "0"], 100, 100.0 * 100 / 500, {"attention": 300}),
]


@pytest.mark.parametrize(("options", "in_layer_ns", "share", "outside"), SHARES)
def test_shares_and_work_outside_layers_are_of_the_kept_steps(
    tmp_path: Path, options: list[str], in_layer_ns: int, share: float, outside: dict[str, int]
) -> None:
    """Step 0: 100 ns in each of two layers, 300 ns of attention; step 1: 200 ns in each layer, 500 ns of attention."""
    export = Export()
    worker = Process(export, layers=2)
    worker.send_meta()
    for step, (ns, attention_ns) in enumerate([(100, 300), (200, 500)]):
        with worker.step(step):
            worker.kernel(attention_ns, "attention")
            for layer in range(2):
                with worker.layer(layer):
                    worker.kernel(ns, "experts")
        for layer in range(2):
            worker.counts(step, layer, [2, 2, 1, 1])
    ran = run("analyze", export.save(tmp_path / "built.sqlite"), "-o", tmp_path / "out", "--json", *options)
    found = json.loads(ran.out)
    assert (found["in_layer_ns"], found["in_layer_pct"]) == (in_layer_ns, pytest.approx(share))
    assert {row["kernel_name"]: row["total_ns"] for row in found["outside"]} == outside
    assert [row["pct"] for row in found["outside"]] == [100.0]


@pytest.mark.slow
def test_an_earlier_report_is_made_anew(tmp_path: Path) -> None:
    """A page beside newer tables would contradict them."""
    source, output = decoding(tmp_path), tmp_path / "results"
    page = output / "report.html"
    assert run("analyze", source, "-o", output).code == 0
    assert not page.exists()
    assert run("analyze", source, "-o", output, "--report").code == 0
    whole = page.read_text()
    ran = run("analyze", source, "-o", output, "--steps", "1:1")
    assert ran.code == 0
    assert str(page) in ran.out
    assert page.read_text() != whole
