"""What `nvtxmoe merge` prints for people and as JSON."""

from __future__ import annotations

from pathlib import Path

from nvtxmoe_analysis.outputs.registry import tables
from tests.support.cli import RESULTS, run
from tests.support.sessions import counts, journal, meta, run_of, step

TABLE_FILES = tuple(f"{table.stem}.{table.forms[-1]}" for table in tables().values() if not table.gpu)
FILES = {*TABLE_FILES, "moe_summary.json", "moe_capture_validation.json"}
#: Of these every byte is the same, however a run was recorded.
TIMELESS = (*(name for name in TABLE_FILES if name != "moe_load_imbalance.csv"), "moe_summary.json")


def test_what_is_printed(tmp_path: Path) -> None:
    """The layer table without a column of GPU time."""
    journal(tmp_path, run_of())
    ran = run("merge", tmp_path)
    lines = [line.rstrip() for line in ran.out.splitlines()]
    assert lines == [
        "Is MoE the problem? not known",
        "  The results have no GPU time of steps.",
        "What can be won? not known",
        "  The results have no GPU time of steps.",
        "What next? record more",
        "  Record a longer run, with GPU time: `nvtxmoe profile` under nsys.",
        "  $ nvtxmoe profile --num-requests 100 -- vllm serve MODEL",
        "How sure? complete",
        "  The capture is complete: 17 checks passed. Not known: the results have no GPU",
        "  time of steps.",
        "1 rank, 3 steps, 2 MoE layers, 9 tokens",
        "Experts by layer, counted over 3 steps of all ranks:",
        "layer  experts  top-k  used  hottest expert  max/mean",
        "    0        4      2     4      1 (33.3 %)      1.33",
        "    1        4      2     4      2 (33.3 %)      1.33",
        "max/mean: the hottest expert over the mean expert.",
        "Capture complete: 17 checks passed.",
        f"Results in {tmp_path / RESULTS}:",
        *(f"  {name}" for name in TABLE_FILES),
        "  moe_summary.json",
        "  moe_capture_validation.json",
        f"  {tmp_path / 'findings.json'}",
    ]
    found = run("merge", tmp_path, "--json").json
    assert set(found) == {
        "verdict", "reasons", "warnings", "checks_passed", "checks_failed", "ranks", "steps_kept", "steps_captured",
        "recording", "tokens", "layers", "folder", "files", "failed_inputs", "answers", "findings",
    }  # fmt: skip
    assert [set(layer) for layer in found["layers"]] == [
        {"layer", "num_experts", "top_k", "used", "hottest", "hottest_pct", "max_mean"}
    ] * 2


def test_many_layers_are_shown_by_their_imbalance(tmp_path: Path) -> None:
    layers = [{"layer": n, "name": "", "num_experts": 4, "top_k": 2} for n in range(20)]
    uneven = {3, 7}
    cells = [counts(0, n, [3, 3, 0, 0] if n in uneven else [2, 2, 1, 1]) for n in range(20)]
    journal(tmp_path, [meta(layers=layers), step(0), *cells])
    out = run("merge", tmp_path).out
    assert "The 16 layers with the highest max/mean of 20; the files have all." in out
    lines = out.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("layer ")) + 1
    assert {int(line.split()[0]) for line in lines[first : first + 16]} >= uneven
