"""scripts/gpu/placement_compare.py on made-up results: the planted change, its interval, and the layers of the fit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from scripts.gpu import placement_compare
from scripts.gpu.placement_compare import measured, step_times

LAYERS, STEPS, BLOCKS = (3, 4), 6, 4
#: What the placement "greedy" changes, by layer.
CHANGES_NS = {3: -5_000, 4: -2_000}


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Results and windows: a step of prefill, then decode, today and "greedy" in turns, over a drift."""
    chance = random.Random(4)
    windows, timings, own = [], [], []
    step = 0
    for block in range(BLOCKS):
        for placement in ("today", "greedy"):
            windows.append(
                {
                    "case": "a",
                    "placement": placement,
                    "block": block,
                    "phase": "decode",
                    "steps": [step, step + STEPS - 1],
                }
            )
            for at in range(STEPS):
                for layer in LAYERS:
                    prefill = 64 if at == 0 else 0
                    timings.append((0, step, layer, 64, prefill, 64 - prefill))
                    change = CHANGES_NS[layer] if placement == "greedy" else 0
                    cold = 1_000_000 if at < 2 else 0
                    time = 100_000 + 500 * block + change + cold + chance.randint(-20, 20)
                    own.append((step, layer, time - 100, time))
                step += 1
    columns = ["rank", "step", "layer_idx", "num_tokens", "prefill_tokens", "decode_tokens"]
    pl.DataFrame(timings, schema=columns, orient="row").write_csv(tmp_path / "moe_layer_timings.csv")
    columns = ["step", "layer_idx", "mean_own_ns", "max_own_ns"]
    pl.DataFrame(own, schema=columns, orient="row").write_csv(tmp_path / "moe_straggler.csv")
    return tmp_path, windows


def document() -> dict[str, Any]:
    """What `nvtxmoe place --json` writes, in part."""

    def told(saved: float) -> dict[str, float]:
        return {"saved_ns": saved, "saved_low_ns": saved - 100, "saved_high_ns": saved + 100}

    layers = [{"layer_idx": layer, "decode": told(-1.1 * CHANGES_NS[layer]), "prefill": None} for layer in LAYERS]
    greedy = {"name": "greedy", "decode": told(7_700), "tokens_max_mean": 1.1, "layers": layers}
    today = {"name": "today", "decode": told(0), "tokens_max_mean": 1.5, "layers": layers}
    return {
        "options": {"fit_layers": [3]},
        "phases": {"decode": {}, "prefill": {}},
        "placements": [today, greedy],
        "verdict": {"sentence": "Worth it."},
    }


def test_the_planted_change(run: tuple[Path, list[dict[str, Any]]]) -> None:
    times = step_times(*run)
    assert max(times.filter(pl.col("phase") == "decode")["own_ns"].to_list()) < 200_000  # without the cold steps
    found = measured(times.filter(pl.col("phase") == "decode"), ["layer_idx"])
    assert found["layer_idx"].to_list() == list(LAYERS)
    for row in found.iter_rows(named=True):
        assert abs(row["measured_ns"] - CHANGES_NS[row["layer_idx"]]) < 30
        assert row["low_ns"] < row["measured_ns"] < row["high_ns"] < -1_900
        assert row["blocks"] == BLOCKS
    sums = measured(times.filter(pl.col("phase") == "decode"), [])
    assert abs(sums["measured_ns"].item() + 7_000) < 50


def test_the_table(run: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results, windows = run
    (tmp_path / "windows.json").write_text(json.dumps(windows))
    (tmp_path / "place.json").write_text(json.dumps(document()))
    words = [str(results), str(tmp_path / "windows.json"), "--predicted", f"a={tmp_path / 'place.json'}"]
    monkeypatch.setattr("sys.argv", ["placement_compare.py", *words, "-o", str(tmp_path / "out")])
    placement_compare.main()
    text = (tmp_path / "out" / "proof.md").read_text()
    row = next(line for line in text.splitlines() if "| greedy | decode |" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[4] == "-7.7 (-7.8 to -7.6)"
    assert cells[5].startswith("-7.0 (")
    assert cells[6].endswith("% of 1")  # only layer 4 is not in the fit
    assert abs(float(cells[6].split()[0]) - 10.0) < 2
    assert cells[7] == "1.5, 1.1"
    assert "- a: Worth it." in text
    layers = pl.read_csv(tmp_path / "out" / "layers.csv")
    assert layers.filter(pl.col("phase") == "decode")["in_fit"].to_list() == [True, False]
