"""Marks of counts that changed after capture, and layers that moe.meta does not name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvtxmoe.formats.checksum import broken, seal, sealed_dtype, without_checksum
from nvtxmoe.formats.schema import counts_dtype
from tests.support.constructed_runs import GOOD
from tests.support.export_builder import Export, Process
from tests.support.sessions import journal, run_of
from tests.support.written_results import Written, written

STEPS, LAYERS = 3, 3
#: Counts of each layer; each sums to three tokens of top-2.
OF_LAYERS = ([3, 2, 1, 0], [0, 3, 3, 0], [1, 2, 2, 1])
Change = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def rows_of(step: int) -> np.ndarray[Any, Any]:
    rows = np.array(
        [(step, layer, 0, 3, 2, counts, 0) for layer, counts in enumerate(OF_LAYERS)], dtype=sealed_dtype(4)
    )
    seal(rows)
    return rows


def captured(change: Change | None = None, **meta: Any) -> Export:
    """Steps whose counts are in one sealed mark each; that of step 1 is changed afterwards."""
    export = Export()
    worker = Process(export, layers=LAYERS, meta={"num_layers": LAYERS, "model_layers": LAYERS, **meta})
    worker.send_meta()
    for step in range(STEPS):
        with worker.step(step):
            for layer in range(LAYERS):
                with worker.layer(layer):
                    worker.kernel()
        rows = rows_of(step)
        worker.mark("counts", change(rows) if change is not None and step == 1 else rows)
    return export


def exchanged(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows["layer"] = rows["layer"][[0, 2, 1]]
    return rows


def moved(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows["counts"][1] = [3, 0, 3, 0]
    return rows


def exchanged_counts(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows["counts"] = rows["counts"][[1, 0, 2]]
    return rows


def no_checksum(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows["checksum"] = 0
    return rows


CHANGES: dict[str, Change] = {
    "layers exchanged": exchanged,
    "counts moved between experts": moved,
    "counts of layers exchanged": exchanged_counts,
    "first layer gone": lambda rows: rows[1:],
    "last layer gone": lambda rows: rows[:-1],
    "a layer twice": lambda rows: rows[[0, 1, 2, 2]],
    "rows in another order": lambda rows: rows[::-1].copy(),
    "checksum gone": no_checksum,
}


def test_sound_marks(tmp_path: Path) -> None:
    found = written(tmp_path, captured())
    assert found.check("checksums_agree") == (
        "pass",
        "3 marks of counts agree with their checksums.",
        {"marks": 3, "checked": 3, "broken": 0},
    )
    assert found.verdict == "complete"


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_marks_that_changed_after_capture(tmp_path: Path, change: Change) -> None:
    """The step is not sampled: nothing else tells that its counts are others. They are in no table."""
    found = written(tmp_path, captured(change))
    assert found.check("checksums_agree") == (
        "fail",
        "1 of 3 marks of counts changed after capture: their checksums differ, and their counts are in no table.",
        {"marks": 3, "checked": 3, "broken": 1},
    )
    assert found.verdict == "incomplete"
    steps = found.frame("moe_step_activations")["step"].unique().sort().to_list()
    assert steps == [0, 2]


@pytest.mark.parametrize("change", [exchanged, moved])
def test_captures_without_checksums_are_not_checkable(tmp_path: Path, change: Change) -> None:
    def plain(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        dtype = counts_dtype(4)
        return np.array([row.tolist()[:-1] for row in change(rows)], dtype=dtype)

    export = Export()
    worker = Process(export, layers=LAYERS)
    worker.send_meta()
    with worker.step(0):
        for layer in range(LAYERS):
            with worker.layer(layer):
                worker.kernel()
    worker.mark("counts", plain(rows_of(0)))
    found = written(tmp_path, export)
    assert found.check("checksums_agree") == (
        "not_applicable",
        "The marks of counts have no checksum (captured by an older nvtxmoe, or in the word form).",
        {"marks": 1, "checked": 0, "broken": 0},
    )
    assert found.verdict == "complete"


def test_any_single_byte_that_differs_is_seen() -> None:
    rows = rows_of(7)
    for at in range(rows.nbytes):
        changed = rows.copy()
        changed.view(np.uint8).reshape(-1)[at] ^= 1 << (at % 8)
        assert broken(np.stack([rows, changed]))[:].tolist() == [False, True]  # type: ignore[index]


def test_rows_without_their_checksum() -> None:
    rows = rows_of(7)
    plain = np.array([row.tolist()[:-1] for row in rows], dtype=counts_dtype(4))
    assert without_checksum(rows).tobytes() == without_checksum(plain).tobytes() == plain.tobytes()
    unsealed = plain.copy()
    seal(unsealed)
    assert unsealed.tobytes() == plain.tobytes()


# Layers ----------------------------------------------------------------------------------------------------------


def without_layer(meta: dict[str, Any], layer: int) -> None:
    meta["layers"] = [entry for entry in meta["layers"] if entry["layer"] != layer]


def lost_layer(told: dict[str, Any], *, ranges: bool = True) -> Export:
    """Layer 1 is neither in moe.meta nor in the counts."""
    export = Export()
    worker = Process(export, layers=2, meta=told)
    without_layer(worker.meta, 1)
    worker.send_meta()
    with worker.step(0):
        for layer in range(2 if ranges else 1):
            with worker.layer(layer):
                worker.kernel()
    worker.counts(0, 0, GOOD)
    return export


def test_a_layer_gone_from_counts_and_meta(tmp_path: Path) -> None:
    told = {"num_layers": 2, "model_layers": 2}
    for name, ranges in (("ranges", True), ("bare", False)):
        (tmp_path / name).mkdir()
        found = written(tmp_path / name, lost_layer(told, ranges=ranges))
        assert found.check("layers_named")[:2] == (
            "fail",
            "Layers are missing from moe.meta: it names 1 of 2 layers (rank 0).",
        )
        assert found.verdict == "incomplete"


def verdict_of(found: Written) -> tuple[str, str]:
    return found.check("layers_named")[0], found.verdict


def test_a_range_of_a_layer_that_is_not_named(tmp_path: Path) -> None:
    """NVTXMOE_LAYERS leaves a layer out whose ranges stay: model_layers tells it from one that is lost."""
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    lost = written(folders[0], lost_layer({"num_layers": 1, "model_layers": 1}))
    assert verdict_of(lost) == ("fail", "incomplete")
    assert "layer 1 has ranges and is not named" in lost.check("layers_named")[1]
    chosen = written(folders[1], lost_layer({"num_layers": 1, "model_layers": 2}))
    assert verdict_of(chosen) == ("pass", "complete")
    old = written(folders[2], lost_layer({}))
    assert verdict_of(old) == ("warn", "complete")
    assert "does not contain whether NVTXMOE_LAYERS left them out" in old.check("layers_named")[1]


def test_more_layers_than_the_model_has(tmp_path: Path) -> None:
    found = written(tmp_path, captured(model_layers=2))
    assert "it names 3 layers of a model with 2" in found.check("layers_named")[1]
    assert found.verdict == "incomplete"


def test_layers_of_a_journal(tmp_path: Path) -> None:
    sound = written(tmp_path, journal(tmp_path / "s", run_of(num_layers=2, model_layers=2)))
    assert verdict_of(sound) == ("pass", "complete")
    (tmp_path / "b").mkdir()
    lost = written(tmp_path / "b", journal(tmp_path / "t", run_of(num_layers=3, model_layers=3)))
    assert verdict_of(lost) == ("fail", "incomplete")
