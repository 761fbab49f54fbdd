"""A real vLLM server in direct mode that Ctrl-C ends, with vLLM's default shutdown, which kills the workers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.support.vllm_server import LAYERS, REQUESTS, TOP_K, serve_until_ctrl_c, tokens_of

pytestmark = pytest.mark.xdist_group("vllm")


def test_its_last_line_is_the_verdict_of_the_file(vllm_python: Path, tmp_path: Path) -> None:
    ended = serve_until_ctrl_c(vllm_python, tmp_path)
    results = ended.session / "moe_expert_tracking"
    validation = json.loads((results / "moe_capture_validation.json").read_text())
    with (results / "moe_expert_activations.csv").open() as file:
        activations = sum(int(row["activation_count"]) for row in csv.DictReader(file))
    last = [line for line in ended.stderr.splitlines() if line.startswith("nvtxmoe: ")][-1]
    assert last.lower().startswith(f"nvtxmoe: capture {validation['verdict']}: "), last
    assert str(results) in last
    if validation["verdict"] == "complete":
        assert activations == LAYERS * TOP_K * tokens_of(REQUESTS)
    else:  # a worker was killed before it had written: the file names what is missing, the line what to do
        assert activations < LAYERS * TOP_K * tokens_of(REQUESTS)
        assert "--shutdown-timeout" in last
