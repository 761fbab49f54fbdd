"""Layer and phase ranges that steps lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.export_builder import Export, Process
from tests.support.written_results import written

GOOD = [2, 2, 0, 0]


def whole(skip: tuple[int, int, str] | None = None) -> tuple[Export, Process]:
    """Three eager steps of two layers with two phases; without one range: (step, layer, name)."""
    export = Export()
    worker = Process(export, layers=2)
    worker.send_meta()
    for step in range(3):
        with worker.step(step):
            for layer in range(2):
                with worker.layer(layer):
                    for phase in ("route", "experts"):
                        if skip == (step, layer, phase):
                            worker.kernel()
                        else:
                            with worker.phase(phase, layer):
                                worker.kernel()
        for layer in range(2):
            worker.counts(step, layer, GOOD)
    if skip is not None and skip[2] == "layer":
        drop_layer(export, *skip[:2])
    return export, worker


def drop_layer(export: Export, step: int, layer: int) -> None:
    rows: list[dict[str, Any]] = export.rows["NVTX_EVENTS"]
    name = export.string(f"moe.layer.{layer}")
    mine = [row for row in rows if row["textId"] == name]
    rows.remove(sorted(mine, key=lambda row: int(row["start"]))[step])


def test_nothing_is_missing(tmp_path: Path) -> None:
    export, _ = whole()
    found = written(tmp_path, export)
    status, _, figures = found.check("ranges_whole")
    assert (status, figures) == ("pass", {"layers": 0, "phases": 0, "bare_phases": 0})


@pytest.mark.parametrize(
    ("skip", "figures"),
    [
        ((1, 0, "route"), {"layers": 0, "phases": 1, "bare_phases": 0}),
        ((2, 1, "experts"), {"layers": 0, "phases": 1, "bare_phases": 0}),
        ((1, 1, "layer"), {"layers": 0, "phases": 0, "bare_phases": 2}),
    ],
)
def test_a_range_is_missing(tmp_path: Path, skip: tuple[int, int, str], figures: dict[str, int]) -> None:
    export, _ = whole(skip)
    found = written(tmp_path, export)
    assert found.check("ranges_whole")[0] == "fail"
    assert found.check("ranges_whole")[2] == figures
    assert found.verdict == "incomplete"
