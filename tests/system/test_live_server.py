"""Live metrics of a real vLLM server with two tensor-parallel workers, scraped by a real Prometheus."""

from __future__ import annotations

import csv
import json

import pytest

from tests.support.dashboard import names_in
from tests.support.vllm_server import EXPERTS, LAYERS, SCRAPED, Scraped, Served

# After the other runs of vLLM, not beside them: waiting workers keep a core busy.
pytestmark = pytest.mark.xdist_group("vllm")


@pytest.fixture
def scraped(served: Served) -> Scraped:
    return served.scraped


def test_sums_in_prometheus_are_the_standard_set(served: Served, scraped: Scraped) -> None:
    """Each expert of each layer, exactly; both workers see all tokens, which count once. Window 1 is all so far."""
    with (served.window(1) / "moe_expert_activations.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = {(row["layer_idx"], row["expert_id"]): float(row["activation_count"]) for row in rows}
    found = scraped.in_prometheus["nvtxmoe_expert_assignments_total"]
    assert len(found) == LAYERS * EXPERTS
    zero = dict.fromkeys(found, 0.0)
    assert found == zero | expected
    assert sum(found.values()) > 0
    by_layer = {(str(layer),): sum(v for k, v in expected.items() if k[0] == str(layer)) for layer in range(LAYERS)}
    assert scraped.in_prometheus["nvtxmoe_layer_assignments_total"] == by_layer


def test_steps_and_tokens_are_those_of_the_run(served: Served, scraped: Scraped) -> None:
    tokens = scraped.in_prometheus["nvtxmoe_tokens_total"]
    assert tokens == {
        ("0", "prefill"): sum(length for length, _ in SCRAPED),
        ("0", "decode"): sum(most - 1 for _, most in SCRAPED),
    }
    validation = json.loads((served.window(1) / "moe_capture_validation.json").read_text())
    steps = scraped.in_prometheus["nvtxmoe_steps_total"]
    assert set(steps) == {("0",), ("1",)}
    assert steps[("0",)] == steps[("1",)] > 0
    assert sum(steps.values()) == validation["selection"]["steps_captured"]  # of both ranks
    assert scraped.in_prometheus["nvtxmoe_ranks"] == {(): 2}
    assert set(scraped.in_prometheus["nvtxmoe_dropped_steps_total"].values()) == {0}


def test_top_shows_the_sums_of_the_series(scraped: Scraped) -> None:
    """Between requests: its cells are each expert's sum over the layer's mean, and rates are zero."""
    layers = {row["layer"]: row for row in scraped.seen["layers"]}
    assert set(layers) == set(range(LAYERS))
    by_expert = scraped.in_prometheus["nvtxmoe_expert_assignments_total"]
    for (layer,), total in scraped.in_prometheus["nvtxmoe_layer_assignments_total"].items():
        cells = [by_expert[layer, str(expert)] * EXPERTS / total for expert in range(EXPERTS)]
        assert layers[int(layer)]["heat"] == pytest.approx(cells)
        never_hit = scraped.in_prometheus["nvtxmoe_layer_experts_never_hit"][(layer,)]
        assert layers[int(layer)]["experts_never_hit"] == never_hit == cells.count(0.0)
    assert (scraped.seen["ranks"], set(scraped.seen["dropped_steps"].values())) == (2, {0})
    assert (scraped.seen["tokens_per_s"], scraped.seen["steps_per_s"]) == (0, 0)


def test_vllm_s_own_metrics_are_beside_them(scraped: Scraped) -> None:
    assert "\nvllm:num_requests_running{" in scraped.text
    assert "\n# TYPE nvtxmoe_tokens_total counter\n" in scraped.text
    assert scraped.text.count("# TYPE nvtxmoe_ranks ") == 1


def test_queries_of_the_dashboard_have_data(scraped: Scraped) -> None:
    """Those of what one machine without expert parallelism and without a layer model shows."""
    without = ("ep_rank", "eplb", "estimated")
    here = {query: number for query, number in scraped.asked.items() if not any(name in query for name in without)}
    assert len(here) > 12
    assert not [query for query, number in here.items() if not number]
    assert all(names_in(query) for query in here)


def test_nothing_went_wrong(served: Served) -> None:
    said = [line for line in served.stderr.splitlines() if "nvtxmoe[" in line]
    assert [line.partition("WARNING: ")[2][:31] for line in said] == ["NVTXMOE_METRICS_EXPERTS is on: "]
    assert "capture complete" in served.stderr
