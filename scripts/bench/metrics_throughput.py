#!/usr/bin/env python3
"""Tokens per second with live metrics and without, in pairs of neighbouring batches of one vLLM process.

    .venv-vllm/bin/python scripts/bench/metrics_throughput.py [--pairs 10] [--layers 8] [--experts 64]
    python scripts/bench/metrics_throughput.py --gpu --layers 48 --experts 128 --batch 32 --tokens 128

vLLM runs a model of random weights in this process, with NVTXMOE_MODE=live. For a batch without metrics all hooks of
nvtxmoe are off: the wrappers call vLLM's functions at once. Batches are equal; the order in a pair alternates. The
change is the mean of the logarithms of the pairs' ratios, with the interval of 95 % of Student's t over pairs, for the
time on the clock and for the CPU time of all threads of the process, which other programs disturb less. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

ON, OFF = "metrics", "off"


def engine(options: argparse.Namespace) -> Any:
    """Return a vLLM with nvtxmoe in mode live."""
    from scripts.make_tiny_model import write_model  # noqa: PLC0415
    from tests.programs.run_vllm import ENVIRONMENT, set_weights  # noqa: PLC0415

    os.environ.update(
        ENVIRONMENT
        | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "NVTXMOE_ENABLE": "1", "NVTXMOE_MODE": "live", "VLLM_PLUGINS": ""}
    )
    from nvtxmoe.capture.startup.start import start  # noqa: PLC0415

    start()
    folder = Path(tempfile.mkdtemp())
    if options.gpu:
        return engine_on_gpu(options, folder)
    model = write_model(folder / "random-weights", "qwen3_moe", layers=options.layers, experts=options.experts, top_k=4)
    from vllm import LLM  # noqa: PLC0415

    llm = LLM(
        str(model), dtype="float32", load_format="dummy", skip_tokenizer_init=True, enforce_eager=True, seed=0,
        max_model_len=128, max_num_seqs=options.batch, num_gpu_blocks_override=256, enable_prefix_caching=False,
    )  # fmt: skip
    llm.collective_rpc(set_weights, args=(0,))  # dummy weights are the same in all layers
    return llm


def engine_on_gpu(options: argparse.Namespace, folder: Path) -> Any:
    """Return a vLLM with CUDA graphs, of the shape of scripts/bench/overhead.py."""
    from scripts.bench.overhead import SHAPE  # noqa: PLC0415

    shape = {**SHAPE, "num_hidden_layers": options.layers, "num_experts": options.experts}
    (folder / "config.json").write_text(json.dumps(shape))
    from vllm import LLM  # noqa: PLC0415

    return LLM(
        str(folder), load_format="dummy", skip_tokenizer_init=True, seed=0, max_model_len=1024,
        max_num_seqs=options.batch, gpu_memory_utilization=0.9, attention_backend="TRITON_ATTN",
        enable_prefix_caching=False, compilation_config={"cudagraph_capture_sizes": [options.batch]},
    )  # fmt: skip


def batch(llm: Any, options: argparse.Namespace) -> tuple[float, float]:
    """Return the tokens per second of a batch: on the clock, and of CPU time."""
    from vllm import SamplingParams  # noqa: PLC0415

    prompts = [{"prompt_token_ids": [(31 * n + 7 * at) % 256 for at in range(16)]} for n in range(options.batch)]
    params = SamplingParams(max_tokens=options.tokens, temperature=0, detokenize=False, ignore_eos=True)
    clock, cpu = time.perf_counter(), time.process_time()
    done = llm.generate(prompts, params, use_tqdm=False)
    tokens = sum(len(output.outputs[0].token_ids) for output in done)
    return tokens / (time.perf_counter() - clock), tokens / (time.process_time() - cpu)


def switch(on: bool) -> None:
    """Switch all hooks on or off."""
    from nvtxmoe.capture.hooks import REGISTRY  # noqa: PLC0415

    for hook in REGISTRY.values():
        hook.failure = None if on else "off for a batch"


def change(pairs: list[dict[str, tuple[float, float]]], which: int) -> dict[str, Any]:
    """Return the change by metrics in percent, and its interval."""
    from scripts.bench.throughput import STUDENT  # noqa: PLC0415

    logs = [math.log(pair[ON][which] / pair[OFF][which]) for pair in pairs]
    half = STUDENT[min(len(logs) - 1, len(STUDENT)) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    mean = statistics.fmean(logs)
    ends = [round(100 * math.expm1(mean + sign * half), 2) for sign in (-1, 1)]
    return {"change_pct": round(100 * math.expm1(mean), 2), "change_pct_ci95": ends}


def rates(pairs: list[dict[str, tuple[float, float]]], which: int) -> dict[str, list[float]]:
    """Return the tokens per second of each batch."""
    return {kind: [round(pair[kind][which], 1) for pair in pairs] for kind in (ON, OFF)}


def main() -> None:
    """Run the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="Requests at a time.")
    parser.add_argument("--tokens", type=int, default=32, help="Tokens of an answer.")
    parser.add_argument("--gpu", action="store_true", help="A larger model with CUDA graphs.")
    options = parser.parse_args()
    if options.pairs < 2:
        parser.error("--pairs is at least 2")
    llm = engine(options)
    batch(llm, options)  # warm-up
    pairs: list[dict[str, tuple[float, float]]] = []
    for number in range(options.pairs):
        pair = {}
        for kind in ((ON, OFF), (OFF, ON))[number % 2]:
            switch(kind == ON)
            pair[kind] = batch(llm, options)
        pairs.append(pair)
    switch(True)
    print(json.dumps({
        **{name: getattr(options, name) for name in ("pairs", "layers", "experts", "batch", "tokens")},
        "clock": {**change(pairs, 0), **rates(pairs, 0)}, "cpu": {**change(pairs, 1), **rates(pairs, 1)},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
