"""Windows of a real vLLM server with two tensor-parallel workers, opened and closed by the command."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pytest

from tests.support.vllm_server import LAYERS, OTHERS, REQUESTS, SCRAPED, TOP_K, Served, tokens_of

# After the other runs of vLLM, not beside them: waiting workers keep a core busy.
pytestmark = pytest.mark.xdist_group("vllm")


def counts(served: Served, number: int) -> dict[tuple[int, int], int]:
    """Activations of a window by (layer, expert)."""
    with (served.window(number) / "moe_expert_activations.csv").open() as file:
        return {
            (int(row["layer_idx"]), int(row["expert_id"])): int(row["activation_count"]) for row in csv.DictReader(file)
        }


def by_layer(found: dict[tuple[int, int], int]) -> Counter[int]:
    sums: Counter[int] = Counter()
    for (layer, _), number in found.items():
        sums[layer] += number
    return sums


def test_a_window_s_standard_set_is_what_was_sent_in_it(served: Served) -> None:
    """Each token once, of two workers, and nothing of the requests before and after."""
    for number, (ended, sent) in enumerate(zip(served.ended, (SCRAPED, REQUESTS, REQUESTS), strict=True), 1):
        assert by_layer(counts(served, number)) == dict.fromkeys(range(LAYERS), TOP_K * tokens_of(sent))
        assert ended["tokens"] == ended["window"]["tokens"] == tokens_of(sent)
        assert (ended["window"]["number"], ended["window"]["ranks"], ended["silent"]) == (number, [0, 1], {})
    assert counts(served, 2) == counts(served, 3)


def test_windows_are_complete(served: Served) -> None:
    for number, ended in enumerate(served.ended, 1):
        assert (ended["verdict"], ended["reasons"]) == ("complete", [])
        validation = json.loads((served.window(number) / "moe_capture_validation.json").read_text())
        checks = {check["name"]: check for check in validation["checks"]}
        bounds = [[ended["window"]["first_step"], ended["window"]["last_step"]]]
        assert checks["steps_consecutive"]["figures"]["windows"] == bounds
        assert checks["ranks_in_step"]["status"] == checks["journals_agree"]["status"] == "pass"
    first, second, third = (ended["window"] for ended in served.ended)
    assert first["first_step"] == 0
    assert second["first_step"] > first["last_step"] + 1
    assert third["first_step"] > second["last_step"] + 1


def test_a_window_that_is_open_at_the_end_ends_with_the_server(served: Served) -> None:
    assert by_layer(counts(served, 4)) == dict.fromkeys(range(LAYERS), TOP_K * tokens_of(OTHERS))
    assert f"tokens in {served.session / 'windows' / '4'}" in served.stderr
    assert "capture complete: " in served.stderr
    assert not (served.session / "control").exists()


def test_answers_are_the_same_in_and_out_of_windows(served: Served) -> None:
    outside, *inside = served.answers
    assert inside == [outside, outside]
    assert [len(tokens) for tokens in outside] == [most for _, most in REQUESTS]


def test_nothing_went_wrong(served: Served) -> None:
    said = [line.partition("WARNING: ")[2] for line in served.stderr.splitlines() if "nvtxmoe[" in line]
    assert [line[:31] for line in said] == ["NVTXMOE_METRICS_EXPERTS is on: "]
    assert f"nvtxmoe: windows are opened and closed with: nvtxmoe window start {served.session}" in served.stderr
