#!/usr/bin/env python3
"""Generate with the shape of Qwen3-30B-A3B on expert-parallel ranks, under skewed gates: the capture of `nvtxmoe demo`.

    nvtxmoe profile -o demo --no-analyze --log-interval 8 -- python scripts/gpu/demo_run.py
    nvtxmoe trim demo/report.nsys-rep nvtxmoe/data/demo --steps 1:

48 layers, 128 experts, top-8. Weights, gates and prompts are made up; the engine is vLLM's own, with CUDA graphs of
prefill and of decode. Needs two GPUs with about 40 GB each, and less than 60 steps go into the capture. The first is
left out: samples of its tokens would take 0.6 MB of the package.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.gpu.engine_settings import end_engine
from scripts.gpu.made_up_models import model_folder
from scripts.gpu.placement_run import SHAPE, SMALL_VOCABULARY, start

LAYERS, EXPERTS, TOP_K = 48, 128, 8
#: Tokens of a step of prefill at most, for which vLLM captures a graph too.
PREFILL_TOKENS = 512


def main() -> None:
    """Generate once to warm up, and once for the capture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="skewed", help="The gates' skew, of scripts/gpu/placed_experts.py.")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="A tiny shape and load, to try the script without a GPU.")
    options = parser.parse_args()
    llm = engine(options)
    llm.collective_rpc("make_gates", args=(options.case, options.seed))
    chance = random.Random(options.seed)
    generate(llm, options, chance, requests=options.requests, tokens=4)
    done = generate(llm, options, chance, requests=options.requests, tokens=options.max_tokens)
    print(json.dumps({"requests": len(done), "tokens": sum(len(output.outputs[0].token_ids) for output in done)}))
    end_engine(llm)


def engine(options: argparse.Namespace) -> Any:
    """Return the engine, with weights that vLLM makes up."""
    shape = {} if options.small else SHAPE
    model = model_folder("qwen3_moe", options.layers, EXPERTS, TOP_K, changes=shape)
    sizes = sorted({options.requests // 2, options.requests, PREFILL_TOKENS})
    return start(model, options, sizes, requests=options.requests, longest=512, batch_tokens=PREFILL_TOKENS)


def generate(llm: Any, options: argparse.Namespace, chance: random.Random, *, requests: int, tokens: int) -> list[Any]:
    """Send prompts of 16 to 256 random tokens together; requests end at different times, so the batch shrinks."""
    from vllm import SamplingParams  # noqa: PLC0415

    vocabulary = SMALL_VOCABULARY if options.small else SHAPE["vocab_size"]
    prompts = [
        {"prompt_token_ids": [chance.randrange(1, vocabulary) for _ in range(chance.choice([16, 64, 128, 256]))]}
        for _ in range(requests)
    ]
    params = [
        SamplingParams(max_tokens=max(1, tokens - number % 4 * tokens // 8), temperature=1.0, detokenize=False,
                       ignore_eos=True)
        for number in range(requests)
    ]  # fmt: skip
    return list(llm.generate(prompts, params, use_tqdm=False))


if __name__ == "__main__":
    main()
