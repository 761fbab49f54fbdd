"""The comparison of gpt-oss's two kernels, on journals as capture writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvtxmoe.formats import schema
from nvtxmoe.formats.journal import JournalWriter, record
from scripts.gpu.check_gpt_oss_kernels import LAYERS, TOP_K, compared, rows_of


def journal(path: Path, way: str, experts: dict[int, list[list[int]]], ambiguous: dict[str, int] | None = None) -> Path:
    """A journal with one step."""
    meta = {"recording": way, "layers": [], "ambiguous_tokens": ambiguous or {}}
    records = [record("meta", 1, json.dumps(meta).encode())]
    for layer, chosen in experts.items():
        rows = np.zeros(len(chosen), schema.topk_dtype(TOP_K))
        rows["layer"], rows["experts"], rows["token"] = layer, chosen, np.arange(len(chosen))
        records.append(record("topk", 1, rows.tobytes()))
    writer = JournalWriter(path)
    writer.append(b"".join(records))
    writer.close()
    return path


ONE = {layer: [[0, 1, 2, 3], [4, 5, 6, 7]] for layer in range(LAYERS)}
SHUFFLED = {layer: [[3, 2, 1, 0], [7, 4, 5, 6]] for layer in range(LAYERS)}
OTHER = {**SHUFFLED, 0: [[3, 2, 1, 8], [7, 4, 5, 6]]}
LATER = {**SHUFFLED, 2: [[3, 2, 1, 8], [7, 4, 5, 6]]}


@pytest.mark.parametrize(
    ("second", "ambiguous", "exact", "equal"),
    [
        (SHUFFLED, {}, True, 2),
        (OTHER, {}, False, 1),
        (OTHER, {"0": 1}, True, 1),
        (OTHER, {"1": 1}, False, 1),
        (LATER, {}, True, 2),
        ({0: SHUFFLED[0]}, {}, False, 2),
    ],
)
def test_the_first_layer_decides(
    tmp_path: Path, second: dict[int, Any], ambiguous: dict[str, int], exact: bool, equal: int
) -> None:
    inside = rows_of(journal(tmp_path / "a.journal", "recomputed", ONE, ambiguous))
    found = compared(inside, rows_of(journal(tmp_path / "b.journal", "references", second)))
    assert (found["exact"], found["first_layer_equal"], found["first_layer_tokens"]) == (exact, equal, 2)


def test_both_ways_of_recording_must_be_there(tmp_path: Path) -> None:
    inside = rows_of(journal(tmp_path / "a.journal", "recomputed", ONE))
    assert not compared(inside, rows_of(journal(tmp_path / "b.journal", "recomputed", SHUFFLED)))["exact"]
