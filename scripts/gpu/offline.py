#!/usr/bin/env python3
"""Offline generation by a real vLLM of a made-up model, engine and workers in processes of their own: for captures.

    nvtxmoe profile -o out -- python scripts/gpu/offline.py [--tp 2 --expert-parallel | --dp 2]
    nvtxmoe profile -o out -- python scripts/gpu/offline.py --family gpt_oss --quantisation mxfp4
    torchrun --nproc-per-node 2 --no-python COMMAND python scripts/gpu/offline.py --tp 2 --external

With --external torchrun starts the ranks: COMMAND, an nsys with %q{RANK} in its report's name, wraps each alone.
Prompts of 2 to 300 tokens arrive together; prefill is chunked. Prints the number of requests and generated tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.gpu.engine_settings import ON_CPU, add_model_options, attention, end_engine
from scripts.gpu.made_up_models import QUANTISATIONS, model_folder


def start_ranks(number: int) -> int:
    """Run this script once a data-parallel rank, as vLLM wants it: by variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(number):
        settings = {"RANK": rank, "RANK_LOCAL": rank, "SIZE": number, "MASTER_IP": "127.0.0.1", "MASTER_PORT": port}
        env = {**os.environ, **{f"VLLM_DP_{name}": str(value) for name, value in settings.items()}}
        ranks.append(subprocess.Popen([sys.executable, *sys.argv, "--dp-rank", str(rank)], env=env))
    return max(rank.wait() for rank in ranks)


def main() -> None:
    """Generate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--dp", type=int, default=1, help="Data-parallel ranks, each with prompts of its own.")
    parser.add_argument("--dp-rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--expert-parallel", action="store_true")
    parser.add_argument("--external", action="store_true", help="The ranks are started by torchrun.")
    parser.add_argument("--eplb", action="store_true")
    parser.add_argument("--gates", help="Skew of the gates: a case of scripts/gpu/placed_experts.py. Default: vLLM's.")
    parser.add_argument("--small", action="store_true", help="Eager, to try the script without a GPU.")
    options = parser.parse_args()
    if options.dp > 1 and options.dp_rank is None:
        sys.exit(start_ranks(options.dp))
    if options.external:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    extra: dict[str, Any] = {"distributed_executor_backend": "external_launcher", "seed": 0} if options.external else {}
    if options.eplb:
        extra |= {
            "enable_eplb": True,
            "eplb_config": {"window_size": 8, "step_interval": 12, "num_redundant_experts": options.tp * 2},
        }
    model = model_folder(
        options.family, options.layers, options.experts, options.top_k,
        quantisation=options.quantisation, changes=options.config,
    )  # fmt: skip
    settings: dict[str, Any] = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_model_len": 1024,
        "max_num_batched_tokens": 256,
        "max_num_seqs": 32,
        "tensor_parallel_size": options.tp,
        "enable_expert_parallel": options.expert_parallel,
    }
    if options.gates:
        settings["worker_extension_cls"] = "scripts.gpu.placed_experts.PlacedExperts"
    if options.small:
        settings |= ON_CPU
    else:
        settings |= {
            "kv_cache_memory_bytes": options.kv_mib << 20,
            "gpu_memory_utilization": 0.3,
            "attention_backend": attention(options),
            "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32]},
        }
    settings |= {**QUANTISATIONS[options.quantisation].engine, **extra, **options.engine}
    llm = LLM(model=str(model), **settings)
    if options.gates:
        llm.collective_rpc("make_gates", args=(options.gates, 1))
    chance = random.Random(5 + (options.dp_rank or 0))
    lengths = [17, 60] if options.small else [2, 5, 17, 60, 300]  # vLLM for CPUs dies of shorter ones in bf16
    prompts = [
        {"prompt_token_ids": [chance.randrange(1, 250) for _ in range(chance.choice(lengths))]}
        for _ in range(options.requests // (1 + (options.dp_rank or 0)))  # the first rank works longest
    ]
    params = SamplingParams(max_tokens=options.max_tokens, temperature=0, detokenize=False, ignore_eos=True)
    done = llm.generate(prompts, params, use_tqdm=False)
    print(
        json.dumps({"requests": len(done), "tokens": sum(len(output.outputs[0].token_ids) for output in done)}),
        flush=True,
    )
    end_engine(llm)


if __name__ == "__main__":
    main()
