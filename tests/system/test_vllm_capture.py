"""A real vLLM on random weights: what nvtxmoe records against router logits that it has no part in."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from nvtxmoe.formats import schema
from tests.support.journal_reader import Captured
from tests.support.router_oracle import Step, layer_totals
from tests.support.vllm_runs import EXPERTS, FAMILIES, LAYERS, SAMPLE_EVERY, SEVERAL, TOP_K, Runs

CASES = (*FAMILIES, "worker", "tp2")


def both(*names: str) -> list[object]:
    """Cases with the marks of their two runs."""
    return [pytest.param(name, id=name, marks=pytest.mark.vllm_runs(f"{name} off", f"{name} on")) for name in names]


def assert_equal(captured: Captured, expected: list[Step], rank: int, sample_every: int) -> None:
    """Every step and every (step, layer, expert), and the sampled tokens."""
    assert [int(step["step"]) for step in captured.steps] == list(range(len(expected)))
    assert {int(step["rank"]) for step in captured.steps} == {rank}
    assert [int(step["num_tokens"]) for step in captured.steps] == [step.num_tokens for step in expected]
    assert [int(step["num_reqs"]) for step in captured.steps] == [len(step.lengths) for step in expected]
    cells = {(number, layer): cell for number, step in enumerate(expected) for layer, cell in step.cells.items()}
    assert {key: row["counts"].tolist() for key, row in captured.counts.items()} == {
        key: cell.counts for key, cell in cells.items()
    }
    for (number, layer), row in captured.counts.items():
        assert (int(row["rank"]), int(row["top_k"])) == (rank, TOP_K), (number, layer)
        assert int(row["num_tokens"]) == expected[number].num_tokens
    assert set(captured.topk) == {key for key in cells if key[0] % sample_every == 0}
    for key, rows in captured.topk.items():
        assert rows["token"].tolist() == list(range(expected[key[0]].num_tokens))
        ours, theirs = np.argsort(rows["experts"]), np.argsort(cells[key].experts)
        experts = np.take_along_axis(rows["experts"], ours, 1)
        assert experts.tolist() == np.take_along_axis(cells[key].experts, theirs, 1).tolist(), key
        weights = np.take_along_axis(rows["weights"], ours, 1)
        assert np.allclose(weights, np.take_along_axis(cells[key].weights, theirs, 1), rtol=1e-4, atol=1e-6), key


def assert_healthy(captured: Captured) -> None:
    """The process ended in order, with nothing lost and no hook off."""
    assert captured.end is not None
    assert captured.end["lost"] == {}
    assert captured.end["failures"] == {}
    assert captured.end["steps"] == len(captured.steps)
    assert "capture" not in captured.meta


@pytest.mark.parametrize("name", both(*FAMILIES, "worker", "tp2"))
def test_the_oracle_is_worth_comparing_with(vllm_runs: Runs, name: str) -> None:
    """Layers route differently, every layer uses many experts, and the model says different things."""
    off = vllm_runs[f"{name} off"]
    steps = off.expected()
    totals = layer_totals(steps)
    assert list(totals) == list(range(1 if name == "deepseek_v3" else 0, LAYERS))
    assert len({tuple(counts) for counts in totals.values()}) == len(totals)
    assert all(sum(count > 0 for count in counts) > EXPERTS // 2 for counts in totals.values())
    assert len({token for answer in off.tokens for token in answer}) >= 4
    if off.run.mode == "inproc":
        assert max(len(step.lengths) for step in steps) == 3
        mixed = [step for step in steps if 1 in step.lengths and max(step.lengths) > 1]
        assert len(mixed) >= 2
        assert sum(step.num_tokens for step in steps) == sum(length + most - 1 for length, most in SEVERAL)


@pytest.mark.parametrize("name", both(*FAMILIES, "worker", "tp2"))
def test_every_count_is_the_oracles(vllm_runs: Runs, name: str) -> None:
    off, ranks = vllm_runs[f"{name} off"], vllm_runs[f"{name} on"].captured()
    assert sorted(ranks) == ([0, 1] if name == "tp2" else [0])
    for rank, captured in ranks.items():
        assert_equal(captured, off.expected(rank), rank, SAMPLE_EVERY)
        assert_healthy(captured)


@pytest.mark.parametrize("name", both(*FAMILIES, "worker", "tp2"))
def test_prefill_and_decode_tokens(vllm_runs: Runs, name: str) -> None:
    """Query lengths tell them apart: of these prompts no chunk is a single token, and the totals prove it."""
    on, expected = vllm_runs[f"{name} on"], vllm_runs[f"{name} off"].expected()
    decoded = sum(len(answer) - 1 for answer in on.tokens)
    assert sum(step.lengths.count(1) for step in expected) == decoded
    for captured in on.captured().values():
        assert [(int(s["prefill_tokens"]), int(s["decode_tokens"])) for s in captured.steps] == [
            (step.num_tokens - step.lengths.count(1), step.lengths.count(1)) for step in expected
        ]


@pytest.mark.parametrize("name", both(*FAMILIES, "worker", "tp2"))
def test_the_answers_do_not_change(vllm_runs: Runs, name: str) -> None:
    off, on = vllm_runs[f"{name} off"], vllm_runs[f"{name} on"]
    assert off.tokens == off.said["tokens_watched"]
    assert on.tokens == off.tokens
    assert off.warnings() == on.warnings() == []
    assert not off.base.exists()


@pytest.mark.parametrize("name", both(*FAMILIES, "worker", "tp2"))
def test_meta_says_what_runs(vllm_runs: Runs, name: str) -> None:
    on = vllm_runs[f"{name} on"]
    for rank, captured in on.captured().items():
        meta = captured.meta
        size = 2 if name == "tp2" else 1
        assert (meta["schema"], meta["vllm"], meta["rank"], meta["world_size"]) == (schema.SCHEMA, "0.32.0", rank, size)
        assert (meta["tp_rank"], meta["tp_size"], meta["sample_every"]) == (rank, size, SAMPLE_EVERY)
        layers = meta["layers"]
        assert [layer["layer"] for layer in layers] == sorted({layer for _, layer in captured.counts})
        assert {(layer["num_experts"], layer["top_k"]) for layer in layers} == {(EXPERTS, TOP_K)}
        assert all(f"layers.{layer['layer']}." in layer["name"] for layer in layers)


@pytest.mark.parametrize("name", both(*FAMILIES, "worker", "tp2"))
def test_the_session_is_merged_at_the_end(vllm_runs: Runs, name: str) -> None:
    """Totals of the merged files: tensor-parallel ranks see the same tokens, which count once."""
    folder = vllm_runs[f"{name} on"].session / "moe_expert_tracking"
    wanted = layer_totals(vllm_runs[f"{name} off"].expected())
    found: dict[int, list[int]] = {}
    with (folder / "moe_expert_activations.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault(int(row["layer_idx"]), []).append(int(row["activation_count"]))
    assert found == wanted
    summary = json.loads((folder / "moe_summary.json").read_text())
    assert {key: value["total_activations"] for key, value in summary.items()} == {
        f"layer_{layer}": sum(counts) for layer, counts in wanted.items()
    }
    assert (folder / "moe_capture_validation.json").is_file()
