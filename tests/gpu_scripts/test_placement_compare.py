"""The comparison of placements on made-up results: planted changes, intervals, elapsed time, verdicts."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from scripts.gpu import placement_compare
from scripts.gpu.placement_measured import TODAY, block_means, changes, in_windows, layer_times, over_phases

LAYERS, STEPS, BLOCKS = (3, 4), 6, 4
#: What the placement "greedy" changes, by layer.
CHANGES_NS = {3: -5_000, 4: -2_000}
#: Between the layers.
GAP_NS = 3_000


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Results and windows: a step of prefill, then decode, today and "greedy" in turns, over a drift."""
    chance = random.Random(4)
    windows, timings, own = [], [], []
    step = clock = 0
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
                    change = CHANGES_NS[layer] if placement == "greedy" else 0
                    cold = 1_000_000 if at < 2 else 0
                    time = 100_000 + 500 * block + change + cold + chance.randint(-20, 20)
                    own.append((step, layer, time - 100, time))
                    # the first layer begins after what nobody measures, the second after a gap that counts
                    clock += 7_000 if layer == LAYERS[0] else GAP_NS
                    timings += [
                        (rank, step, layer, 64, prefill, clock + 10 * rank, clock + time + 10 * rank) for rank in (0, 1)
                    ]
                    clock += time
                step += 1
    columns = ["rank", "step", "layer_idx", "num_tokens", "prefill_tokens", "gpu_start_ns", "gpu_end_ns"]
    pl.DataFrame(timings, schema=columns, orient="row").write_csv(tmp_path / "moe_layer_timings.csv")
    columns = ["step", "layer_idx", "mean_own_ns", "max_own_ns"]
    pl.DataFrame(own, schema=columns, orient="row").write_csv(tmp_path / "moe_straggler.csv")
    return tmp_path, windows


def document(saved_ns: float = 1.1) -> dict[str, Any]:
    """What `nvtxmoe place --json` writes, in part.

    Parameters:
        saved_ns: the predicted saving over the planted one.
    """

    def told(saved: float) -> dict[str, float]:
        return {"saved_ns": saved, "saved_low_ns": saved - 100, "saved_high_ns": saved + 100}

    saved = {layer: -saved_ns * change for layer, change in CHANGES_NS.items()}
    layers = [{"layer_idx": layer, "decode": told(saved[layer]), "prefill": None} for layer in LAYERS]
    whole = told(sum(saved.values()))
    greedy = {"name": "greedy", "decode": whole, "all": whole, "tokens_max_mean": 1.1, "layers": layers}
    today = {"name": TODAY, "decode": told(0), "all": told(0), "tokens_max_mean": 1.5, "layers": layers}
    return {
        "options": {"fit_layers": [3], "least_gain_pct": 1.0},
        "phases": {"decode": {"steps": 10, "reason": None}, "prefill": {"steps": 2, "reason": "2 steps"}},
        "placements": [today, greedy],
        "verdict": {"answer": "worth it", "sentence": "Worth it.", "step_gpu_ns": 400_000.0},
    }


def decode(run: tuple[Path, list[dict[str, Any]]]) -> pl.DataFrame:
    results, windows = run
    return in_windows(layer_times(results), windows).filter(pl.col("phase") == "decode")


def test_the_planted_change(run: tuple[Path, list[dict[str, Any]]]) -> None:
    times = decode(run)
    assert max(times["own_ns"].to_list()) < 200_000  # without the cold steps
    found = changes(block_means(times, "own_ns", ["layer_idx"]), ["layer_idx"])
    assert found["layer_idx"].to_list() == list(LAYERS)
    for row in found.iter_rows(named=True):
        assert abs(row["change_ns"] - CHANGES_NS[row["layer_idx"]]) < 30
        assert row["low_ns"] < row["change_ns"] < row["high_ns"] < -1_900
        assert row["blocks"] == BLOCKS
    assert abs(changes(block_means(times, "own_ns"))["change_ns"].item() + 7_000) < 50


def test_the_interval_is_students_over_blocks() -> None:
    today, greedy = [100.0, 104.0, 98.0], [90.0, 95.0, 91.0]
    rows = [("a", name, "decode", block, ns) for name, times in ((TODAY, today), ("greedy", greedy))
            for block, ns in enumerate(times)]  # fmt: skip
    means = pl.DataFrame(rows, schema=["case", "placement", "phase", "block", "ns"], orient="row")
    row = changes(means).row(0, named=True)
    error = statistics.stdev([-10, -9, -7]) / 3**0.5
    assert row["change_ns"] == pytest.approx(-26 / 3)
    assert row["high_ns"] - row["change_ns"] == pytest.approx(4.302653 * error, rel=1e-5)  # Student's t, 2 degrees
    assert row["change_ns"] - row["low_ns"] == pytest.approx(4.302653 * error, rel=1e-5)


def test_elapsed_time_is_from_the_first_layers_start_to_the_last_ones_end(
    run: tuple[Path, list[dict[str, Any]]],
) -> None:
    sums = decode(run).group_by("step").agg(pl.col("own_ns").sum(), pl.col("elapsed_ns").sum())
    assert (sums["elapsed_ns"] - sums["own_ns"]).unique().to_list() == [GAP_NS]


def test_phases_weigh_as_their_steps() -> None:
    rows = [("a", "greedy", phase, block, ns) for phase, block, ns in
            (("decode", 0, 10.0), ("prefill", 0, 100.0), ("decode", 1, 20.0))]  # fmt: skip
    means = pl.DataFrame(rows, schema=["case", "placement", "phase", "block", "ns"], orient="row")
    shares = pl.DataFrame({"case": ["a", "a"], "phase": ["decode", "prefill"], "share": [0.75, 0.25]})
    found = over_phases(means, shares)
    assert found.rows() == [("a", "greedy", 0, 32.5, "all")]  # block 1 has no prefill


@pytest.mark.parametrize(
    ("step_gpu_ns", "answer"), [(400_000.0, "worth it"), (700_000.0, "cannot tell"), (900_000.0, "not worth it")]
)
def test_the_measured_verdict(run: tuple[Path, list[dict[str, Any]]], step_gpu_ns: float, answer: str) -> None:
    """7.0 us are saved, and the least gain is 4, 7 or 9 us."""
    results, windows = run
    predicted = document()
    predicted["verdict"]["step_gpu_ns"] = step_gpu_ns
    found = placement_compare.compare(layer_times(results), windows, {"a": predicted})
    assert found.verdicts.rows() == [("a", "worth it", answer)]


def test_the_tables(run: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results, windows = run
    (tmp_path / "windows.json").write_text(json.dumps(windows))
    (tmp_path / "place.json").write_text(json.dumps(document()))
    words = [str(results), str(tmp_path / "windows.json"), "--predicted", f"a={tmp_path / 'place.json'}"]
    monkeypatch.setattr("sys.argv", ["placement_compare.py", *words, "-o", str(tmp_path / "out")])
    placement_compare.main()
    text = (tmp_path / "out" / "proof.md").read_text()
    cells = row_of(text, "| greedy | decode |")
    assert cells[4] == "-7.7 (-7.8 to -7.6)"
    assert cells[5].startswith("-7.0 (")
    assert cells[6].startswith("-7.0 (")
    assert cells[7].startswith("0.2 us, ")  # only layer 4 is not in the fit
    assert abs(float(cells[7].split()[2]) - 10.0) < 2
    cells = row_of(text, "| greedy | 1.500 to 1.100 |")
    assert cells[3] == "7.7 (7.6 to 7.8)"
    assert cells[4].startswith("7.0 (")
    assert cells[5:] == ["4.0", "worth it", "worth it"]
    assert "- a: Worth it." in text
    layers = pl.read_csv(tmp_path / "out" / "layers.csv")
    assert layers.filter(pl.col("phase") == "decode")["in_fit"].to_list() == [True, False]


def row_of(text: str, part: str) -> list[str]:
    """The cells of the row that has the part."""
    row = next(line for line in text.splitlines() if part in line)
    return [cell.strip() for cell in row.strip("|").split("|")]
