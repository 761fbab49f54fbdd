"""Steps whose experts have lost their kernels are not complete."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from nvtxmoe.cli import run


@pytest.mark.parametrize("options", [[], ["--only", "decode"]])
def test_experts_whose_kernels_are_gone_in_every_replay(golden_vllm: Path, tmp_path: Path, options: list[str]) -> None:
    """Other kernels of the layers are there, and the eager steps have all of theirs."""
    path = tmp_path / "damaged.sqlite"
    path.write_bytes(golden_vllm.read_bytes())
    with sqlite3.connect(path) as database:
        gone = database.execute(
            "DELETE FROM CUPTI_ACTIVITY_KIND_KERNEL WHERE graphNodeId IS NOT NULL AND demangledName IN "
            "(SELECT id FROM StringIds WHERE value LIKE '%fused_moe%' OR value LIKE '%act_and_mul%' "
            "OR value LIKE '%moe_align%' OR value LIKE '%moe_sum%')"
        )
        assert gone.rowcount > 100
    assert run(["analyze", str(path), "-o", str(tmp_path / "results"), *options]) == 0
    validation = json.loads((tmp_path / "results" / "moe_expert_tracking" / "moe_capture_validation.json").read_text())
    assert validation["verdict"] == "incomplete"
    assert any("no kernel of their experts" in reason for reason in validation["reasons"])
