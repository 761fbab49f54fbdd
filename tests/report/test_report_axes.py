"""Axes and outliers of charts: titles with units, ticks that can be read, zero or a sign, outliers that are marked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nvtxmoe_analysis.outputs.read import load
from nvtxmoe_analysis.report.chart import Drawing
from nvtxmoe_analysis.report.chart_tools import log_ticks
from nvtxmoe_analysis.report.charts import chart_modules, layer_phases, time_and_feature
from nvtxmoe_analysis.report.results import Source
from tests.support.report_results import Made, write


def drawn(module: Any, folder: Path, made: Made, **tables: pl.DataFrame) -> Drawing:
    """The chart of a made run, some of whose tables are replaced."""
    found = module.build(Source(load(write(folder, {**made.tables(), **tables}, made.documents()))))
    assert isinstance(found, Drawing), found
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Drawing]:
    """Every chart of a made run."""
    made = Made()
    source = Source(load(write(tmp_path_factory.mktemp("plain"), made.tables(), made.documents())))
    charts = {name: module.build(source) for name, module in chart_modules().items()}
    return {name: chart for name, chart in charts.items() if isinstance(chart, Drawing)}


def axes(spec: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every x and y of a specification that has an axis."""
    if isinstance(spec, dict):
        for channel, definition in spec.get("encoding", {}).items():
            if channel in ("x", "y") and "field" in definition and definition.get("axis", {}) is not None:
                yield channel, definition
        for value in spec.values():
            yield from axes(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from axes(value)


def title_of(definition: dict[str, Any]) -> str:
    """The title of an axis, on one line."""
    title = (definition.get("axis") or {}).get("title", definition.get("title"))
    return " ".join(title) if isinstance(title, list) else str(title or "")


def slow(frame: pl.DataFrame, factor: int, layer: int, steps: list[int]) -> pl.DataFrame:
    """Rows of rank 0 that take ``factor`` times as long."""
    cells = (pl.col("layer_idx") == layer) & pl.col("step").is_in(steps) & (pl.col("rank") == 0)
    names = ("own_ns", "kernel_time_ns", "experts_ns")
    return frame.with_columns(pl.when(cells).then(factor * pl.col(name)).otherwise(name).alias(name) for name in names)


@pytest.mark.parametrize("name", chart_modules())
def test_every_axis_has_a_title_and_every_quantity_a_unit(name: str, plain: Mapping[str, Drawing]) -> None:
    found = list(axes(plain[name].chart.to_dict()))
    assert {channel for channel, _ in found} == {"x", "y"}
    for channel, definition in found:
        if (name, channel) == ("time_and_feature", "x"):
            continue  # the title follows the chosen layer: see below
        if "title" not in definition and "axis" not in definition:
            continue  # a further mark on the axis of the first
        title = title_of(definition)
        assert title, (name, definition)
        if definition["type"] == "quantitative":
            assert re.search(r"\(.+\)$", title), (name, title)


def test_the_feature_of_the_chosen_layer_has_its_unit(plain: Mapping[str, Drawing]) -> None:
    """Decode steps have 4 to 16 active experts; all prefill steps have as many assignments."""
    words = plain["time_and_feature"].data["words"]
    assert words.filter(layer=3).select("axis", "zero").rows() == [
        ("active_experts (experts per step)", 0),
        ("local_activations (assignments per step), axis not from 0", None),
    ]


def test_an_axis_that_does_not_begin_at_zero_says_so(tmp_path: Path) -> None:
    made = Made()
    frame = made.correlation().with_columns(pl.col("active_experts") + 100)
    words = drawn(time_and_feature, tmp_path, made, moe_layer_correlation=frame).data["words"]
    decode = words.filter(layer=3, kind="decode")
    assert decode["axis"].to_list() == ["active_experts (experts per step), axis not from 0"]
    assert decode["zero"].to_list() == [None]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1, 8192, [1, 10, 100, 1000, 10000]), (4, 512, [2, 10, 100, 1000]), (31, 540, [20, 100, 1000]),
        (16, 64, [10, 100]), (7, 7, [5, 10]), (1, 1, [1, 2]), (0.5, 3, [0.5, 1, 5]),
        (1, 2304, [1, 10, 100, 1000, 5000]),
    ],
)  # fmt: skip
def test_ticks_of_a_logarithmic_axis(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(ticks)


def test_the_tokens_of_steps_have_ticks_that_can_be_read(plain: Mapping[str, Drawing]) -> None:
    made, spec = Made(), plain["imbalance_time"].chart.to_dict()
    (tokens,) = [definition for channel, definition in axes(spec) if definition["field"] == "tokens"]
    ticks = tokens["axis"]["values"]
    assert tokens["scale"] == {"type": "log", "domain": [ticks[0], ticks[-1]]}
    assert ticks[0] <= made.tokens.min() and made.tokens.max() <= ticks[-1]
    assert 3 <= len(ticks) <= 5
    assert "(log)" in title_of(tokens)


def test_outliers_are_marked_and_do_not_squeeze_the_others(tmp_path: Path, plain: Mapping[str, Drawing]) -> None:
    made = Made()
    steps = [step for step in range(made.steps) if made.tokens[step] != 512][:2]
    frame = slow(made.correlation(), 200, 3, steps)
    found = drawn(time_and_feature, tmp_path, made, moe_layer_correlation=frame)
    rows = frame.filter(pl.col("layer_idx") == 3, pl.col("rank") == 0, pl.col("step").is_in(steps)).sort("step")
    outliers = found.data["outliers"].sort("step")
    assert outliers.select("layer", "kind", "step", "rank").rows() == [(3, "decode", step, 0) for step in steps]
    assert outliers["took"].to_list() == pytest.approx((rows["own_ns"] / 1e3).to_list(), rel=1e-4)
    others = found.data["points"].filter(layer=3, kind="decode", part="point")
    assert len(others) == 2 * 36 - 2
    assert outliers["us"].to_list() == pytest.approx([1.1 * others["us"].max()] * 2, rel=1e-4)  # type: ignore[operator]
    assert "Triangles: outliers, 2 (rank, step) in which a layer took over 5 times its usual" in found.caption
    assert '"outlier"' in found.chart.to_json() and "triangle-up" in found.chart.to_json()
    without = plain["time_and_feature"]
    assert "outliers" not in without.data and "utlier" not in without.caption
    assert '"outlier"' not in without.chart.to_json()


def test_a_layers_bar_shows_its_time_without_outliers(tmp_path: Path, plain: Mapping[str, Drawing]) -> None:
    made = Made()
    frame = slow(made.correlation(), 200, 0, [3])
    found = drawn(layer_phases, tmp_path, made, moe_layer_correlation=frame)
    layer = frame.filter(layer_idx=0)
    rest = int(layer.filter(~((pl.col("step") == 3) & (pl.col("rank") == 0)))["kernel_time_ns"].sum())
    assert found.data["steady"].rows() == [(0, pytest.approx(rest / 1e6, rel=1e-5), 1)]
    assert "Diamonds: the layer without its outliers, 1 (rank, step)" in found.caption
    assert "without outliers" in found.chart.to_json()
    assert set(plain["layer_phases"].data) == {"phases"}
