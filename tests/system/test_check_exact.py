"""scripts/gpu/check_exact.py on a real vLLM without a GPU: the oracle, the drive and the comparison."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support import fakes
from tests.support.paths import ROOT
from tests.support.vllm_forks import Forks

pytestmark = pytest.mark.xdist_group("vllm")

#: What vLLM on a CPU does not take, or not by default; not a gigabyte of cache, which it fills with zeros.
ENGINE = {
    "attention_backend": None, "kv_cache_memory_bytes": None, "dtype": "float32", "max_num_batched_tokens": 128,
    "num_gpu_blocks_override": 64,
}  # fmt: skip
SMALL = [
    "--family", "olmoe", "--mode", "eager", "--requests", "4", "--longest", "40", "--layers", "2", "--experts", "8",
    "--top-k", "2",
]  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """One call of the script: its exit code and the result that it wrote."""

    code: int
    result: dict[str, Any]
    said: str


@pytest.fixture(scope="module")
def checked(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> list[Checked]:
    """A run of an engine, then one of an engine that cannot start."""
    folder = tmp_path_factory.mktemp("checked")
    site, script = ROOT / "nvtxmoe" / "site", str(ROOT / "scripts" / "gpu" / "check_exact.py")
    calls = [
        [script, *words, "--engine", json.dumps(engine), "--result", str(folder / str(number))]
        for number, (words, engine) in enumerate([(SMALL, ENGINE), ([], {**ENGINE, "max_model_len": -7})])
    ]
    env = fakes.environment(site, ROOT, NVTXMOE_ENABLE="1", NVTXMOE_MODE="moe",
                            NVTXMOE_LOG_INTERVAL="1", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")  # fmt: skip
    start = [str(site / "sitecustomize.py")]  # as at Python's own start: nvtxmoe's hooks are there before the oracle's
    codes, said = forks.call(folder, {**os.environ, **env}, [start, *calls], folder)
    found = []
    for number, code in enumerate(codes):
        (file,) = (folder / str(number)).glob("*.json")
        found.append(Checked(code, json.loads(file.read_text()), said))
    return found


def test_every_cell_and_token_of_a_run(checked: list[Checked]) -> None:
    found = checked[0].result
    assert checked[0].code == 0, checked[0].said
    assert found["exact"] is True
    assert found["cells"] == found["cells_equal"] == found["oracle_cells"] > 0
    assert found["tokens"] == found["tokens_equal"] == found["weights_equal"] > 0
    assert found["recording"] == {"references": [0, 1]}
    assert [kernel["layers"] for kernel in found["kernels"]] == [[0, 1]]
    assert found["experts_used"] > 4


def test_an_engine_that_cannot_start_is_a_result(checked: list[Checked]) -> None:
    assert checked[1].code == 1
    assert checked[1].result["exact"] is False
    assert "max_model_len" in checked[1].result["error"]
