"""What the charts draw: numbers worked out by hand, what is left out of large runs and said, pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nvtxmoe_analysis.outputs.read import load
from nvtxmoe_analysis.report import report
from nvtxmoe_analysis.report.chart import Drawing
from nvtxmoe_analysis.report.charts import (
    chart_modules,
    coselection,
    expert_heatmap,
    imbalance_time,
    layer_phases,
    routing_weights,
    step_share,
    stragglers,
    time_and_feature,
    top_kernels,
)
from nvtxmoe_analysis.report.results import Source
from tests.support.report_results import Made, write


def drawn(module: Any, folder: Path, made: Made | None = None, **tables: pl.DataFrame) -> Drawing:
    """A chart of a made run, some of whose tables are replaced."""
    made = made or Made()
    found = module.build(Source(load(write(folder, {**made.tables(), **tables}, made.documents()))))
    assert isinstance(found, Drawing), found
    return found


def rows(frame: pl.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    return frame.select(columns).rows()


# Numbers -------------------------------------------------------------------------------------------------------------


def test_shares_of_a_step(tmp_path: Path) -> None:
    """Two ranks, two steps of two layers; a step's columns stand in both layers' rows and count once. Nothing waits."""
    made = Made(layers=2, steps=2)
    classes = {f"step_{name}_ns": 0 for name in step_share.OUTSIDE}
    steps = [
        (0, 0, "decode", 1000, 400),
        (0, 1, "prefill", 4000, 1000),
        (1, 0, "decode", 3000, 600),
        (1, 1, "prefill", 0, 0),
    ]
    frame = pl.DataFrame(
        [
            {"rank": rank, "step": step, "layer_idx": layer, "step_kind": kind, "step_gpu_ns": gpu, **classes,
             "step_attention_ns": attention}
            for rank, step, kind, gpu, attention in steps for layer in (0, 1)
        ]
    ).join(made.correlation().drop("step_kind", "step_gpu_ns", *classes), on=["rank", "step", "layer_idx"])  # fmt: skip
    found = drawn(step_share, tmp_path, made, moe_layer_correlation=frame)
    assert rows(found.data["shares"], "kind", "class", "ns", "pct") == [
        ("all (2)", "moe layers", 6000, 75.0),
        ("all (2)", "attention", 2000, 25.0),
        ("steady decode (1)", "moe layers", 3000, 75.0),
        ("steady decode (1)", "attention", 1000, 25.0),
        ("steady prefill (1)", "moe layers", 3000, 75.0),
        ("steady prefill (1)", "attention", 1000, 25.0),
    ]
    assert found.table.rows[0] == ["all (2)", "moe layers", "6.00 us", "75.0 %", "2.00 us"]


def test_phases_of_layers(tmp_path: Path) -> None:
    made = Made()
    found = drawn(layer_phases, tmp_path, made)
    frame = made.correlation()
    for layer, phase, ms in rows(found.data["phases"], "layer_idx", "phase", "ms"):
        ns = int(frame.filter(layer_idx=layer)[f"{phase}_ns"].sum())
        assert ms == pytest.approx(ns / 1e6, rel=1e-5)
    assert found.data["phases"]["ms"].sum() == pytest.approx(int(frame["kernel_time_ns"].sum()) / 1e6, rel=1e-4)
    assert found.table.rows[0][0] == "3"
    assert found.alt.startswith("Stacked bars, one a layer. Layer 3 takes most, ")


def test_longest_operations(tmp_path: Path) -> None:
    found = drawn(top_kernels, tmp_path)
    assert rows(found.data["kernels"], "name", "phase", "ms", "count")[0] == ("fused_moe_kernel", "experts", 7.2, 120)
    assert [row[1] for row in found.table.rows] == ["experts", "experts", "route"]
    assert "attention_kernel" not in json.dumps(found.table.rows)
    assert found.table.rows[2][0] == "void vllm::moe::topkGating<float, int>(float const*)"


def test_the_fitted_line_and_its_points(tmp_path: Path) -> None:
    made = Made()
    found = drawn(time_and_feature, tmp_path, made)
    points = found.data["points"].filter(layer=3, kind="decode")
    frame = made.correlation().filter(layer_idx=3, step_kind="decode").sort("step", "rank")
    assert points.filter(part="point")["x"].to_list() == frame["active_experts"].to_list()
    assert points.filter(part="point")["us"].to_list() == pytest.approx((frame["own_ns"] / 1e3).to_list(), rel=1e-4)
    low, high = frame["active_experts"].min(), frame["active_experts"].max()
    line = rows(points.filter(part="line"), "x", "us")
    assert line == [(low, pytest.approx(7.5 + 3 * low)), (high, pytest.approx(7.5 + 3 * high))]  # type: ignore[operator]
    assert found.data["points"].filter(kind="prefill", part="line").is_empty()
    words = {(row[0], row[1]): row[3] for row in found.data["words"].rows()}
    assert words[3, "decode"] == "3.00 us a unit (2.90 us to 3.10 us), R2 0.98"
    assert words[3, "prefill"] == "not tested: too few rows"
    assert "Layer 3, decode" not in found.caption and "layer 3, decode" in found.alt
    spec = json.dumps(found.chart.to_dict())
    assert '"name": "layer", "bind": {"input": "select"' in spec and '"value": 3' in spec


def test_excess_waiting_and_transfer(tmp_path: Path) -> None:
    found = drawn(stragglers, tmp_path)
    mine = {(row[0], row[1]): row[2:] for row in found.data["ranks"].rows()}
    assert mine[5, "slowest rank over the mean"] == (0.024, 0.6)
    assert mine[0, "waiting for the last rank"] == (0.036, 0.9)
    assert mine[0, "transfer"] == (0.012, 0.3)
    assert found.table.rows[0] == ["5", "40", "24.0 us", "36.0 us", "12.0 us"]


def test_an_excess_that_is_not_known_is_no_zero(tmp_path: Path) -> None:
    made = Made()
    frame = made.straggler().with_columns(
        excess_ns=pl.when(pl.col("layer_idx") > 1).then("excess_ns"),
        wait_ns=pl.when(pl.col("layer_idx") > 0).then("wait_ns"),
    )
    found = drawn(stragglers, tmp_path, made, moe_straggler=frame)
    assert found.data["ranks"].filter(layer_idx=0)["part"].to_list() == ["transfer"]
    assert "80 of 240 rows have no excess: not all their ranks are known." in found.caption
    assert found.table.rows[-1] == ["1", "40", "", "36.0 us", "12.0 us"] or found.table.rows[-1][2] == ""


def test_experts_against_the_mean(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "layer_idx": [0, 0, 0, 0, 2, 2, 2, 2],
            "expert_id": [0, 1, 2, 3] * 2,
            "activation_count": [40, 0, 40, 80, 0, 0, 0, 0],
            "percentage": [25.0, 0.0, 25.0, 50.0, None, None, None, None],
        }
    )
    found = drawn(expert_heatmap, tmp_path, moe_expert_activations=frame)
    assert rows(found.data["cells"], "layer_idx", "expert_id", "times_mean")[:4] == [
        (0, 0, 1.0), (0, 1, 0.0), (0, 2, 1.0), (0, 3, 2.0),
    ]  # fmt: skip
    assert (
        "The hottest is expert 3 of layer 0 with 2.00 times the mean. 5 of 8 (layer, expert) got no token." in found.alt
    )


def test_weights_by_range(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "layer_idx": [0, 0, 0, 1],
            "token_idx": 0,
            "expert_id": 0,
            "weight": [0.0, 0.039, 1.0, 0.5],
            "step": 0,
            "rank": 0,
        }
    )
    found = drawn(routing_weights, tmp_path, moe_routing_weights_hist=frame)
    assert rows(found.data["weights"], "layer_idx", "bin", "n", "pct", "a", "b") == [
        (0, 0, 2, 66.67, 0.0, 0.04), (0, 24, 1, 33.33, 0.96, 1.0), (1, 12, 1, 100.0, 0.48, 0.52),
    ]  # fmt: skip
    assert found.table.rows[0] == ["0", "3", "0.3463", "0", "0.039", "1"]


def test_pairs_and_what_independence_gives(tmp_path: Path) -> None:
    """Ten tokens of top-2: each expert's share is its pairs' over the tokens."""
    frame = pl.DataFrame(
        {
            "layer_idx": 0,
            "expert_id_1": [0, 0, 1],
            "expert_id_2": [1, 2, 2],
            "coselection_count": [6, 2, 2],
            "tokens": 10,
        }
    )
    made = Made(top_k=2)
    found = drawn(coselection, tmp_path, made, moe_expert_coselection=frame)
    assert rows(found.data["pairs"], "pair", "n", "pct", "lift") == [
        ("0 and 1", 6, 60.0, 0.9375), ("0 and 2", 2, 20.0, 0.625), ("1 and 2", 2, 20.0, 0.625),
    ]  # fmt: skip
    assert "The pair chosen together most often in any layer is 0 and 1: 60.0 %" in found.alt


# Large runs ----------------------------------------------------------------------------------------------------------


def test_many_steps_are_averaged_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imbalance_time, "MOST_COLUMNS", 2)
    frame = pl.DataFrame(
        {
            "layer_idx": [0] * 5,
            "timestamp_sec": [0.0, 0.1, 0.2, 0.3, None],
            "std_dev": 1.0,
            "max_min_ratio": None,
            "max_mean_ratio": [2.0, 4.0, 6.0, 3.0, None],
            "step": [3, 5, 9, 12, 14],
            "num_tokens": [1, 2, 6, 4, 5],
            "rank": 0,
        },
        schema_overrides={"max_min_ratio": pl.Float64},
    )
    found = drawn(imbalance_time, tmp_path, moe_load_imbalance=frame)
    assert rows(found.data["cells"], "step", "ratio", "worst", "tokens", "sec") == [
        (3, 3.0, 4.0, 1.5, 0.0), (9, 4.5, 6.0, 5.0, 0.2),
    ]  # fmt: skip
    assert "A column is the mean of 2 neighbouring steps." in found.caption
    assert found.table.rows == [["0", "3.50", "6.00", "6.00", "4"]]


def test_many_experts_are_averaged_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_heatmap, "MOST_CELLS", 40)
    made = Made()  # 96 cells: three neighbours a cell
    found = drawn(expert_heatmap, tmp_path, made)
    total = made.counts.sum(axis=1)
    cell = found.data["cells"].filter(layer_idx=1, expert_id=3)
    assert cell["activation_count"].item() == total[1, 3:6].sum()
    assert cell["times_mean"].item() == pytest.approx(total[1, 3:6].mean() / total[1].mean(), rel=1e-3)
    assert "A cell is the mean of 3 neighbouring experts, so that a hot one looks milder." in found.caption


def test_many_points_and_pairs_are_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_and_feature, "MOST_POINTS", 120)
    monkeypatch.setattr(time_and_feature, "LEAST_POINTS", 10)
    points = drawn(time_and_feature, tmp_path / "points")
    assert len(points.data["points"].filter(part="point")) <= 120
    assert re.search(r"\d+ of 480 points are drawn, every k-th\.", points.caption)
    monkeypatch.setattr(coselection, "MOST_PAIRS", 60)
    monkeypatch.setattr(coselection, "LEAST_EXPERTS", 4)
    pairs = drawn(coselection, tmp_path / "pairs").data["pairs"]
    experts = pairs.group_by("layer_idx").agg(pl.concat_list("a", "b").explode().n_unique())
    assert experts["a"].max() == 4
    assert pairs["layer_idx"].n_unique() == 6


def test_sixty_layers_of_256_experts_fit_into_a_page(tmp_path: Path) -> None:
    made = Made(layers=60, experts=256, steps=120, top_k=8)
    found = report(write(tmp_path, made.tables(), made.documents()))
    assert len(found.charts) == 11
    assert found.page.stat().st_size < 5_000_000


@pytest.mark.slow
def test_a_long_capture_keeps_the_page_small(tmp_path: Path) -> None:
    """48 layers of 128 experts, 600 steps on two ranks: 28,800 (step, layer), more than a chart may have rows."""
    made = Made(layers=48, experts=128, steps=600, top_k=8)
    page = report(write(tmp_path, made.tables(), made.documents(), parquet=True)).page.read_text()
    assert len(page.encode()) < 3_000_000
    data = re.search(r'id="page-data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    charts = json.loads(data[1])["charts"]
    rows = {name: sum(frame["length"] for frame in chart["data"].values()) for name, chart in charts.items()}
    assert len(rows) == 11
    assert all(number <= 24_000 for number in rows.values()), rows
    assert rows["time_and_feature"] <= 20_000
    assert rows["imbalance_time"] <= 160 * 49
    text = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert len(text) < 150_000
    tables = re.findall(r"<table>.*?</table>", text, re.DOTALL)
    assert len(tables) >= 11
    assert all(table.count("<tr>") <= 41 for table in tables)


# Specs and pictures --------------------------------------------------------------------------------------------------


def test_every_chart_is_described(tmp_path: Path) -> None:
    made = Made()
    source = Source(load(write(tmp_path, made.tables(), made.documents())))
    for name, module in chart_modules().items():
        found = module.build(source)
        assert isinstance(found, Drawing), name
        assert found.alt and found.caption.count(".csv") >= 1, name
        assert found.table.rows and all(len(row) == len(found.table.columns) for row in found.table.rows), name
        assert found.table.note.startswith(("All of it is in", "The first")), name
        spec = json.dumps(found.chart.to_dict())  # which altair compares with Vega-Lite's schema
        assert set(re.findall(r'"data": \{"name": "(\w+)"\}', spec)) == set(found.data), name


@pytest.mark.slow
def test_pictures_stand_beside_the_page(tmp_path: Path) -> None:
    made = Made()
    folder = write(tmp_path, made.tables(), made.documents())
    (tmp_path / "report-of-mine.svg").write_text("mine")
    found = report(folder, images=True)
    assert {image.name for image in found.images} == {
        f"report-{name}.{form}" for name in found.charts for form in ("svg", "png")
    }
    for image in found.images:
        content = image.read_bytes()
        assert content.startswith(b"\x89PNG\r\n" if image.suffix == ".png" else b"<svg"), image
        assert len(content) > 3000, image
    svg = (tmp_path / "report-top_kernels.svg").read_text()
    assert "fused_moe_kernel" in svg and "&lt;/script&gt;" in svg
    assert (tmp_path / "report-expert_heatmap.svg").read_text().count("<path") > 96

    for table in made.tables():
        if table != "moe_expert_activations":
            (tmp_path / "moe_expert_tracking" / f"{table}.csv").unlink()
    report(folder)
    assert (tmp_path / "report-coselection.svg").exists()  # only --images touches pictures
    report(folder, images=True)
    pictures = {"report-expert_heatmap.svg", "report-expert_heatmap.png", "report-of-mine.svg"}
    assert {path.name for path in tmp_path.glob("report-*")} == pictures
    assert (tmp_path / "report-of-mine.svg").read_text() == "mine"
