"""No table of any command cuts a cell, at any width of the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from nvtxmoe.commands.doctor import show_findings
from nvtxmoe.doctor.diagnosis import NOTE, OK, PROBLEM, Finding
from nvtxmoe.printing.analysis import show_analysis
from nvtxmoe.printing.comparison import show_comparison
from nvtxmoe.printing.comparisons import show_comparisons
from nvtxmoe.printing.inspection import show_inspection
from nvtxmoe.printing.placement import show_placement
from nvtxmoe.printing.table import Column, table_lines
from nvtxmoe_analysis.compare import compare, many
from nvtxmoe_analysis.inspection.inspect import Contents, Inspected, Inspection, LayerInfo, Process
from tests.support.compare_runs import Load, make_results
from tests.support.shown_tables import Shown, shown_tables

WIDTHS = range(40, 201)
KERNEL = "void vllm::moe::" + "a_kernel_with_a_long_name_" * 9 + "<float, 128>(int)"
Show = Callable[[Console], Any]


def analysis(layers: int = 48) -> dict[str, Any]:
    """An overview of 8 ranks and 48 layers, with the largest numbers that may come."""
    times = dict.fromkeys(("kernel_time_ns", "copy_time_ns", "kernel_time_ns_per_step", "own_ns_per_step"), 9_876_543)
    operations = [
        {"total_ns": 98_765_432_109, "pct": 99.9, "phase": "collective", "kernel_name": KERNEL},
        {"total_ns": 1, "pct": 0.1, "phase": "", "kernel_name": "[CUDA memcpy Device-to-Device]"},
        {"total_ns": 1, "pct": 0.1, "phase": "other", "kernel_name": "grüße\x1b[31m_kernel"},
    ]
    return {
        "answers": [], "verdict": "complete", "reasons": [], "warnings": ["a note that is long " * 9],
        "checks_passed": 1,
        "ranks": 8, "steps_kept": 1, "steps_captured": 123_456, "tokens": 123_456_789, "recording": {},
        "in_layer_ns": 98_765_432_109, "in_layer_pct": 99.9, "kernels": operations, "outside": operations,
        "times_per_step_of": "mean of 123,456 steady decode steps on 8 ranks",
        "explained": ["each further active expert costs 2.20 us " * 5],
        "layers": [
            {
                "layer": layer, "num_experts": 256, "top_k": 8, "used": 256, "hottest": 255, "hottest_pct": 99.9,
                "max_mean": 255.99, **{name: (layer + 1) * value for name, value in times.items()},
            }
            for layer in range(layers)
        ],
        "folder": "results", "files": ["moe_summary.json"],
    }  # fmt: skip


def inspection() -> Inspection:
    processes = [
        Process(4_194_304 + rank, rank, 8, rank, 8, rank, 8, 0, 1, 1_234_567, 0, 1_234_566, 987_654_321, 987_654_321)
        for rank in range(8)
    ]
    layers = [LayerInfo(layer, None, 128 + layer % 3, 8) for layer in range(48)]
    contents = Contents(
        {"vllm": ["0.33.0"], "device": ["NVIDIA H200"]}, processes, layers, {"references": "0-47"}, 1_234_567,
        59_259_216, 1, 1, "binary", "present", 123_456_789_012,
    )  # fmt: skip
    one = Inspected(
        "run.sqlite", "sqlite", 12_345_678_901, "NVIDIA Nsight Systems", "2025.3.2.0", "3.20.3", ["NVIDIA H200"] * 8,
        {"kernel": 123_456_789, "memcpy": 12_345_678}, 123_456_789, "node", contents, [], [],
    )  # fmt: skip
    return Inspection([one], ["a reason that is long " * 9], ["a note"])


def placement() -> dict[str, Any]:
    part = {"predicted_ns": 987_654_321.0, "saved_ns": -123_456.7, "saved_low_ns": -98_765_432.1}
    part["saved_high_ns"] = 98_765_432.1
    names = ("today", "contiguous", "with redundant experts (EPLB)", "a placement of ours with a long name")
    phase = {
        "reason": None, "features": ["active experts"], "mean_slopes_ns": [2090.0], "steps": 477,
        "today": {"explained_pct": 98.0, "excess_measured_ns": 35_500.0},
    }  # fmt: skip
    return {
        "run": {"ranks": list(range(8)), "layers": list(range(48)), "cells": 4120, "cells_dropped": 0},
        "verdict": {
            "answer": "worth it", "sentence": "Worth it " * 20, "considered": ["a fact " * 30],
            "placement": "contiguous", "phases": {"decode": {"steps_valued": 238}, "prefill": {"steps_valued": 238}},
        },
        "phases": {"decode": phase, "prefill": phase},
        "placements": [
            {"name": name, "label": name, "reason": None, "tokens_max_mean": 255.999, "decode": part, "prefill": part}
            for name in names
        ],
        "batches": [], "files": [], "files_lacking": {},
    }  # fmt: skip


def findings() -> list[Finding]:
    return [
        Finding("vLLM", PROBLEM, "no vLLM in /a/path/" + "that/is/long/" * 12, "Install vLLM, or name the Python"),
        Finding("capture estimate", NOTE, "12.3 MB per step"),
        Finding("nvtx", OK, "0.2.11"),
    ]


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The documents of two results and of three, with large times."""
    folder = tmp_path_factory.mktemp("results")
    load = Load(steps=60, experts=16, layers=3, prefill=0.3)
    folders = [
        make_results(folder / "before", load, 1),
        make_results(folder / "after", replace(load, slow=dict.fromkeys(range(3), 1.25), moved={2: 0.2}), 2),
        make_results(folder / "a-result-with-a-long-name", replace(load, slow={1: 40_000.0}), 3),
    ]
    pair, several = compare.compare(*folders[:2]), many.compare_many(folders)
    return {**compare.document(pair), "files": []}, {**many.document(several), "files": []}


@pytest.fixture
def shows(comparisons: tuple[dict[str, Any], dict[str, Any]]) -> Mapping[str, tuple[Show, int]]:
    """By command, what prints its tables, and how many it has."""
    return {
        "analyze": (lambda console: show_analysis(console, analysis()), 3),
        "inspect": (lambda console: show_inspection(console, inspection()), 2),
        "place": (lambda console: show_placement(console, placement()), 2),
        "doctor": (lambda console: show_findings(console, findings(), False, False), 1),
        "compare": (lambda console: show_comparison(console, comparisons[0]), 5),
        "compare of several": (lambda console: show_comparisons(console, comparisons[1]), 1),
    }


@pytest.mark.parametrize("name", ["analyze", "inspect", "place", "doctor", "compare", "compare of several"])
def test_each_cell_is_whole_at_every_width(
    name: str, shows: Mapping[str, tuple[Show, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    show, number = shows[name]
    found = shown_tables(monkeypatch, 80, show)
    assert len(found) == number
    for one in found:
        one.check()
        for width in WIDTHS:
            one.at(width).check()


def test_everything_has_room_in_a_wide_terminal(
    shows: Mapping[str, tuple[Show, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for show, _ in shows.values():
        assert not any(one.left_out for one in shown_tables(monkeypatch, 200, show))


def test_a_narrower_terminal_never_shows_more(
    shows: Mapping[str, tuple[Show, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for show, _ in shows.values():
        for one in shown_tables(monkeypatch, 200, show):
            left_out = [one.at(width).left_out for width in (200, 120, 80)]
            assert left_out[0] <= left_out[1] <= left_out[2]


def test_eighty_columns_keep_what_matters(
    shows: Mapping[str, tuple[Show, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = shown_tables(monkeypatch, 80, shows["analyze"][0])[0]
    assert not layers.is_records
    assert {"layer", "hottest expert", "max/mean", "own time (ms)"} <= {
        c.title for c in layers.columns
    } - layers.left_out
    metrics = shown_tables(monkeypatch, 80, shows["compare"][0])[0]
    assert {"change", "95 % interval", "differs"} <= {column.title for column in metrics.columns} - metrics.left_out


# The table itself -----------------------------------------------------------------------------------------------------

WORDS = st.text(alphabet="ab ü漢%.,-", max_size=24)


@st.composite
def tables(draw: st.DrawFn) -> Shown:
    number = draw(st.integers(1, 6))
    columns = [
        Column(
            f"column {i}" if draw(st.booleans()) else f"c{i}",
            draw(st.booleans()),
            draw(st.integers(0, 4)),
            wraps=i == number - 1 and draw(st.booleans()),
        )
        for i in range(number)
    ]
    rows = draw(st.lists(st.one_of(st.tuples(*[WORDS] * number), st.just("a heading")), max_size=5))
    width, header = draw(st.integers(20, 120)), draw(st.booleans())
    lines = table_lines(Console(width=width), columns, rows, width, elsewhere="see there", header=header)
    return Shown(columns, rows, width, [line.plain for line in lines], header)


@settings(max_examples=100, deadline=None)
@given(tables())
def test_any_table(shown: Shown) -> None:
    shown.check()


def test_records_have_every_cell_and_their_titles() -> None:
    columns = [Column("layer"), Column("a long title", drop=1), Column("kernel", False, wraps=True)]
    lines = table_lines(Console(width=20), columns, [("12345678901234567890", "7 us", "k" * 30)], 20, elsewhere="x")
    assert [line.plain for line in lines] == [
        "layer", "  123456789012345678", "  90", "  a long title  7", "    us", "  kernel", "    " + "k" * 16,
        "    " + "k" * 14,
    ]  # fmt: skip


def test_styles_stay_with_their_cells() -> None:
    line = table_lines(Console(width=40), [Column("a"), Column("b")], [("1", Text("yes", "bold"))], 40, elsewhere="")[1]
    assert line.plain == "1  yes"
    assert [(span.start, span.end) for span in line.spans if span.style == "bold"] == [(3, 6)]
