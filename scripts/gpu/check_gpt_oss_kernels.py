#!/usr/bin/env python3
"""Compares gpt-oss's recomputed experts with those that a modular kernel of the same weights got, token by token.

    python scripts/gpu/check_gpt_oss_kernels.py OUT

Two engines run the same made-up MXFP4 model: one with the kernel that vLLM 0.33 chooses on Hopper, which routes inside
itself (recorded by recomputing), and one with ``moe_backend=triton_unfused``, whose router gives the ids (recorded by
reference). Every sampled token is forced, so that both get the same inputs. What enters the router of the first layer
is then the same in both engines: there all tokens must have the same experts, but for those that moe.meta calls
ambiguous. Later layers get the kernels' own results, which are rounded differently: how many tokens are equal there is
printed and decides nothing. Prints one line of JSON, also to OUT/gpt-oss-kernels.json, and exits with 1 where a token
of the first layer differs. Needs a GPU and vLLM 0.33.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from nvtxmoe.formats import schema  # noqa: E402
from nvtxmoe.formats.journal import EVENTS, Journal  # noqa: E402
from scripts.gpu.compare_journal import recording_of  # noqa: E402
from scripts.gpu.made_up_models import QUANTISATIONS, model_folder  # noqa: E402

#: The kernels, by the engine's moe_backend.
INSIDE, MODULAR = "auto", "triton_unfused"
LAYERS, EXPERTS, TOP_K = 3, 32, 4
FORCED_TOKEN = 5
#: (step, layer): experts of each token, sorted, [tokens, top_k].
Rows = dict[tuple[int, int], "np.ndarray[Any, Any]"]


def serve(backend: str, model: str) -> None:
    """Generate with one kernel."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    from scripts.gpu.oracle import draw_gates  # noqa: PLC0415

    llm = LLM(
        model=model, load_format="dummy", skip_tokenizer_init=True, max_model_len=1024, max_num_batched_tokens=256,
        max_num_seqs=32, kv_cache_memory_bytes=1 << 30, gpu_memory_utilization=0.15, attention_backend="TRITON_ATTN",
        enable_prefix_caching=False, enforce_eager=True, moe_backend=backend, seed=0, **QUANTISATIONS["mxfp4"].engine,
    )  # fmt: skip
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    draw_gates(runner.get_model(), "cuda")
    chance = random.Random(11)
    prompts = [
        {"prompt_token_ids": [chance.randrange(1, 250) for _ in range(chance.choice([3, 17, 90, 300]))]}
        for _ in range(16)
    ]
    params = SamplingParams(
        max_tokens=12, temperature=0, detokenize=False, ignore_eos=True, allowed_token_ids=[FORCED_TOKEN]
    )
    llm.generate(prompts, params, use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()


def recorded(backend: str, model: str, out: Path) -> tuple[Rows, dict[str, Any]]:
    """Run a process with one kernel, capture on; return what it recorded and its last moe.meta."""
    session = Path(tempfile.mkdtemp()) / "session"
    path = [str(ROOT / "nvtxmoe" / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "NVTXMOE_ENABLE": "1", "NVTXMOE_MODE": "moe",
        "NVTXMOE_LOG_INTERVAL": "1", "NVTXMOE_SESSION_DIR": str(session), "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1",
    }  # fmt: skip
    with (out / f"gpt-oss-kernels-{backend}.log").open("wb") as log:
        command = [sys.executable, __file__, str(out), "--serve", backend, "--model", model]
        subprocess.run(command, env=env, stdout=log, stderr=subprocess.STDOUT, check=True)
    (journal,) = session.glob("ranks/*.journal")
    return rows_of(journal)


def rows_of(journal: Path) -> tuple[Rows, dict[str, Any]]:
    """Experts of every token in a journal, and its last moe.meta."""
    rows: Rows = {}
    meta: dict[str, Any] = {}
    for part in Journal(journal).bulk():
        for place in range(len(part)):
            event, payload = EVENTS[int(part.event[place])], part.payloads(np.array([place])).tobytes()
            if event == "meta":
                meta = json.loads(payload)
            elif event == "topk":
                records = np.frombuffer(payload, schema.topk_dtype(TOP_K))
                rows[int(records["step"][0]), int(records["layer"][0])] = np.sort(records["experts"], axis=1)
    return rows, meta


def compared(inside: tuple[Rows, dict[str, Any]], modular: tuple[Rows, dict[str, Any]]) -> dict[str, Any]:
    """Tokens whose experts are the same in both, by layer, and whether the first layer is as it must be."""
    (first, first_meta), (second, second_meta) = inside, modular
    ways = [recording_of(meta.get("recording"), 0) for meta in (first_meta, second_meta)]
    equal = {layer: [0, 0] for layer in range(LAYERS)}
    for (step, layer), experts in first.items():
        other = second.get((step, layer))
        if other is not None and other.shape == experts.shape:
            equal[layer][0] += int((experts == other).all(axis=1).sum())
        equal[layer][1] += len(experts)
    ambiguous = int(first_meta.get("ambiguous_tokens", {}).get("0", 0))
    right, tokens = equal[0]
    return {
        "exact": set(first) == set(second) and ways == ["recomputed", "references"] and 0 < tokens <= right + ambiguous,
        "recording": ways, "cells": len(first), "cells_of_the_modular": len(second),
        "first_layer_tokens": tokens, "first_layer_equal": right, "first_layer_ambiguous": ambiguous,
        "equal_by_layer": equal,
    }  # fmt: skip


def main() -> int:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--serve", choices=[INSIDE, MODULAR], help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.serve is not None:
        serve(options.serve, options.model)
        return 0
    model = str(model_folder("gpt_oss", LAYERS, EXPERTS, TOP_K, quantisation="mxfp4"))
    with ThreadPoolExecutor(2) as both:
        inside, modular = both.map(lambda backend: recorded(backend, model, options.out), (INSIDE, MODULAR))
    comparison = compared(inside, modular)
    text = json.dumps(comparison)
    (options.out / "gpt-oss-kernels.json").write_text(text)
    print(text)
    return 0 if comparison["exact"] else 1


if __name__ == "__main__":
    sys.exit(main())
