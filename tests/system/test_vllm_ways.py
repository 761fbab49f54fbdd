"""Ways into a real vLLM, everything that can be emitted, and compiled models."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from tests.support.router_oracle import Step
from tests.support.vllm_runs import EXPERTS, SAMPLE_EVERY, Runs
from tests.system.test_vllm_capture import assert_equal, assert_healthy

OFF = "qwen3_moe off"


def pair_counts(steps: list[Step], layer: int) -> list[int]:
    """How often two experts were chosen for one token: the upper triangle by rows."""
    table = np.zeros((EXPERTS, EXPERTS), np.int64)
    for step in steps:
        for chosen in step.cells[layer].experts.tolist():
            for one, other in combinations(sorted(chosen), 2):
                table[one, other] += 1
    counts: list[int] = table[np.triu_indices(EXPERTS, 1)].tolist()
    return counts


@pytest.mark.vllm_runs(OFF, "everything by site")
def test_everything_through_pythonpath_alone(vllm_runs: Runs) -> None:
    """No entry point is called, every step is sampled, pairs are counted: the answers are the same."""
    off, on = vllm_runs[OFF], vllm_runs["everything by site"]
    expected, ranks = off.expected(), on.captured()
    assert list(ranks) == [0]
    assert on.tokens == off.tokens
    assert_equal(ranks[0], expected, 0, 1)
    assert_healthy(ranks[0])
    assert ranks[0].physical == {}  # nothing maps experts here
    for layer in expected[0].cells:
        payloads = [row for row in ranks[0].pairs if row["layer"] == layer]
        spans = [(int(row["first_step"]), int(row["last_step"])) for row in payloads]
        assert [first for first, _ in spans] == [0, *(last + 1 for _, last in spans[:-1])]
        assert spans[-1][1] == len(expected) - 1
        assert sum(int(row["num_tokens"]) for row in payloads) == sum(step.num_tokens for step in expected)
        assert np.sum([row["pairs"] for row in payloads], axis=0).tolist() == pair_counts(expected, layer)


@pytest.mark.vllm_runs(OFF, "metrics without a folder")
def test_live_metrics_that_cannot_be_published_change_nothing(vllm_runs: Runs) -> None:
    """One warning, the same tokens, and the journal is whole."""
    off, on = vllm_runs[OFF], vllm_runs["metrics without a folder"]
    assert on.tokens == off.tokens
    assert_equal(on.captured()[0], off.expected(), 0, SAMPLE_EVERY)
    assert_healthy(on.captured()[0])
    (warning,) = on.warnings()
    assert "no live metrics: " in warning


@pytest.mark.vllm_runs(OFF, "under nsys")
def test_both_ways_at_once_count_once(vllm_runs: Runs) -> None:
    off, on = vllm_runs[OFF], vllm_runs["under nsys"]
    assert on.run.way == "both"
    ranks = on.captured()
    assert list(ranks) == [0]
    assert_equal(ranks[0], off.expected(), 0, SAMPLE_EVERY)
    assert_healthy(ranks[0])
    assert on.tokens == off.tokens


@pytest.mark.vllm_runs(OFF, "compiled on")
def test_a_compiled_model(vllm_runs: Runs) -> None:
    """torch.compile on a CPU (Dynamo; its code generator would need a C++ compiler).

    vLLM calls the layers as plain Python there, where hooks would break the compiler or see nothing.
    """
    off, on = vllm_runs[OFF], vllm_runs["compiled on"]
    assert on.tokens == off.tokens
    ranks = on.captured()
    assert_equal(ranks[0], off.expected(), 0, SAMPLE_EVERY)
    assert_healthy(ranks[0])
    assert on.warnings() == []
