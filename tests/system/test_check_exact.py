"""scripts/gpu/check_exact.py on a real vLLM without a GPU: the oracle, the drive and the comparison."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.support import fakes
from tests.support.paths import ROOT

#: What vLLM on a CPU does not take, or not by default.
ENGINE = {"attention_backend": None, "kv_cache_memory_bytes": None, "dtype": "float32", "max_num_batched_tokens": 128}


def test_every_cell_and_token_of_a_run(vllm_python: Path, tmp_path: Path) -> None:
    words = ["--family", "olmoe", "--mode", "eager", "--requests", "4", "--longest", "40", "--layers", "2"]
    small = ["--experts", "8", "--top-k", "2", "--engine", json.dumps(ENGINE), "--result", str(tmp_path / "results")]
    env = fakes.environment(ROOT / "nvtxmoe" / "site", ROOT, NVTXMOE_ENABLE="1", NVTXMOE_MODE="moe",
                            NVTXMOE_LOG_INTERVAL="1", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")  # fmt: skip
    done = subprocess.run(
        [vllm_python, ROOT / "scripts" / "gpu" / "check_exact.py", *words, *small],
        env={**os.environ, **env}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (file,) = (tmp_path / "results").glob("*.json")
    found = json.loads(file.read_text())
    assert found["exact"] is True
    assert found["cells"] == found["cells_equal"] == found["oracle_cells"] > 0
    assert found["tokens"] == found["tokens_equal"] == found["weights_equal"] > 0
    assert found["recording"] == {"references": [0, 1]}
    assert [kernel["layers"] for kernel in found["kernels"]] == [[0, 1]]
    assert found["experts_used"] > 4


def test_an_engine_that_cannot_start_is_a_result(vllm_python: Path, tmp_path: Path) -> None:
    engine = json.dumps({**ENGINE, "max_model_len": -7})
    done = subprocess.run(
        [vllm_python, ROOT / "scripts" / "gpu" / "check_exact.py", "--engine", engine, "--result", str(tmp_path / "r")],
        env={**os.environ, **fakes.environment(ROOT)}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (file,) = (tmp_path / "r").glob("*.json")
    found = json.loads(file.read_text())
    assert found["exact"] is False
    assert "max_model_len" in found["error"]
