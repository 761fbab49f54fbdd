"""A real vLLM whose layers are recorded twice: ids that its routers gave, and ids recomputed from their logits."""

from __future__ import annotations

import numpy as np
import pytest

from nvtxmoe.capture.vllm.recomputed_beside import FIRST
from tests.support.vllm_runs import RECOMPUTED_FAMILIES, TOP_K, Runs

FAMILIES = [
    pytest.param(name, id=name, marks=pytest.mark.vllm_runs(f"{name} recomputed")) for name in RECOMPUTED_FAMILIES
]


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputed_counts_and_tokens_are_the_routers(vllm_runs: Runs, name: str) -> None:
    done = vllm_runs[f"{name} recomputed"]
    captured = done.captured()[0]
    cells = sorted(key for key in captured.counts if key[1] < FIRST)
    assert len(cells) > 2 * len(captured.steps) - 1
    assert sorted(captured.counts) == sorted([*cells, *((step, layer + FIRST) for step, layer in cells)])
    for step, layer in cells:
        ours, theirs = captured.counts[step, layer + FIRST], captured.counts[step, layer]
        assert ours["counts"].tolist() == theirs["counts"].tolist(), (step, layer)
        assert int(ours["counts"].sum()) == int(ours["num_tokens"]) * TOP_K
        ours, theirs = captured.topk[step, layer + FIRST], captured.topk[step, layer]
        places, others = np.argsort(ours["experts"]), np.argsort(theirs["experts"])
        experts = np.take_along_axis(ours["experts"], places, 1)
        assert experts.tolist() == np.take_along_axis(theirs["experts"], others, 1).tolist(), (step, layer)
        weights = np.take_along_axis(ours["weights"], places, 1)
        assert np.allclose(weights, np.take_along_axis(theirs["weights"], others, 1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_meta_says_which_layers_are_recomputed(vllm_runs: Runs, name: str) -> None:
    captured = vllm_runs[f"{name} recomputed"].captured()[0]
    first = 1 if name == "deepseek_v3" else 0
    meta = captured.meta
    assert meta["recording"] == {"recomputed": f"{FIRST + first}-{FIRST + 2}", "references": f"{first}-2"}
    assert meta["recomputed_tokens"] == (3 - first) * sum(int(step["num_tokens"]) for step in captured.steps)
    assert meta["ambiguous_tokens"] == {}
    assert captured.end is not None
    assert (captured.end["lost"], captured.end["failures"]) == ({}, {})
