"""A real vLLM server in direct mode that Ctrl-C ends, with vLLM's default shutdown, which kills the workers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.support.vllm_forks import Forks
from tests.support.vllm_server import LAYERS, REQUESTS, TOP_K, serve_until_ctrl_c, tokens_of

pytestmark = pytest.mark.xdist_group("vllm")


def test_its_last_line_is_the_verdict_of_the_file(forks: Forks, tmp_path: Path) -> None:
    ended = serve_until_ctrl_c(forks, tmp_path)
    results = ended.session / "moe_expert_tracking"
    validation = json.loads((results / "moe_capture_validation.json").read_text())
    with (results / "moe_expert_activations.csv").open() as file:
        activations = sum(int(row["activation_count"]) for row in csv.DictReader(file))
    assert validation["verdict"] == "incomplete"
    last = [line for line in ended.stderr.splitlines() if line.startswith("nvtxmoe: ")][-1]
    assert last.lower().startswith(f"nvtxmoe: capture {validation['verdict']}: "), last
    assert str(results) in last
    assert activations == LAYERS * TOP_K * tokens_of(REQUESTS)  # what was written stays
    # The file names what is missing, the line what to do.
    assert len(ended.journals) == 2
    assert all(name in validation["reasons"][0] for name in ended.journals)
    assert "--shutdown-timeout" in last
