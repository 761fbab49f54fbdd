#!/usr/bin/env python3
"""Run one made-up model on expert-parallel ranks with its experts in given places, in blocks that alternate.

    nvtxmoe profile -o skewed -- python scripts/gpu/placement_run.py skewed.json --case skewed
    nvtxmoe place skewed/moe_expert_tracking --json > place.json
    nvtxmoe profile -o after -- python scripts/gpu/placement_run.py after.json --predicted skewed=place.json

The first run has today's placement alone. The second runs every case in blocks: today's placement and all others that
`nvtxmoe place` proposed, in another order in every block. Both write which steps of the capture belong to what.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.gpu.engine_settings import ON_CPU, end_engine
from scripts.gpu.made_up_models import model_folder

#: The shape of Qwen3-30B-A3B, but for the number of layers and the vocabulary.
SHAPE = {
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "head_dim": 128,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32_000,
    "max_position_embeddings": 4096,
}
TODAY = "today"
PREFILL_TOKENS, PREFILL_REQUESTS = 2048, 16
#: Tokens of the tiny model that are bytes.
SMALL_VOCABULARY = 250
#: Cases without prefill but for the prompts of decode.
DECODE_ONLY = ("tokens",)
#: Requests, tokens of each prompt and tokens to generate: one step of prefill, then decode of one batch size.
DECODE = ((128, 16, 40), (32, 16, 40))


def main() -> None:
    """Run the load and write the windows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("windows", type=Path, help="File for the steps of every window.")
    parser.add_argument("--case", default="skewed", help="Without --predicted: the gates' skew.")
    parser.add_argument("--predicted", nargs="+", metavar="CASE=FILE", default=[])
    parser.add_argument("--names", nargs="+", help="Only these placements.")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="A tiny shape and load, to try the script without a GPU.")
    options = parser.parse_args()
    plan = cases(options)
    llm = engine(options)
    windows: list[dict[str, Any]] = []
    chance = random.Random(options.seed)
    for case, placements in plan.items():
        llm.collective_rpc("make_gates", args=(case, options.seed))
        load(llm, options, chance, case)  # kernels are compiled, memory is touched
        for block in range(options.blocks):
            names = list(placements)
            chance.shuffle(names)
            for name in names:
                llm.collective_rpc("place_experts", args=(placements[name],))
                for phase, first, last in load(llm, options, chance, case):
                    windows.append(
                        {"case": case, "placement": name, "block": block, "phase": phase, "steps": [first, last]}
                    )
        llm.collective_rpc("place_experts", args=(placements[TODAY],))
    options.windows.write_text(json.dumps(windows, indent=0), encoding="utf-8")
    print(json.dumps({"windows": len(windows), "steps": windows[-1]["steps"][1] + 1}), flush=True)
    end_engine(llm)


def cases(options: argparse.Namespace) -> dict[str, dict[str, list[list[int]]]]:
    """Placements by case, today's among them."""
    today = [list(range(options.experts))] * options.layers
    orders_by_case: dict[str, dict[str, list[list[int]]]] = {}
    for case, file in (argument.split("=", 1) for argument in options.predicted):
        document = json.loads(Path(file).read_text(encoding="utf-8"))
        orders_by_case[case] = {TODAY: today}
        for placement in document["placements"]:
            orders = [layer["order"] for layer in placement["layers"]]
            complete = len(orders) == options.layers and all(len(order or ()) == options.experts for order in orders)
            if complete and orders != today and (options.names is None or placement["name"] in options.names):
                orders_by_case[case][placement["name"]] = orders
    return orders_by_case or {options.case: {TODAY: today}}


def engine(options: argparse.Namespace) -> Any:
    """The engine, with weights that vLLM makes up."""
    shape = {} if options.small else SHAPE
    model = model_folder("qwen3_moe", options.layers, options.experts, options.top_k, changes=shape)
    sizes = sorted({requests for requests, _, _ in decode_load(options)})
    lengths = (256, 256) if options.small else (2304, PREFILL_TOKENS)
    return start(model, options, sizes, requests=max(sizes), longest=lengths[0], batch_tokens=lengths[1])


def start(
    model: Path, options: argparse.Namespace, sizes: list[int], *, requests: int, longest: int, batch_tokens: int
) -> Any:
    """Start vLLM with made-up weights and experts that can be moved.

    Parameters:
        sizes: batch sizes for which vLLM captures CUDA graphs.
        requests, longest, batch_tokens: at most so many at a time; tokens of one; tokens per step.
    """
    from vllm import LLM  # noqa: PLC0415  slow

    settings: dict[str, Any] = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_model_len": longest,
        "max_num_batched_tokens": batch_tokens,
        "max_num_seqs": requests,
        "enable_prefix_caching": False,
        "tensor_parallel_size": options.tp,
        "enable_expert_parallel": options.tp > 1,
        "worker_extension_cls": "scripts.gpu.placed_experts.PlacedExperts",
        "seed": 0,
    }
    if options.small:
        settings |= ON_CPU
    else:
        settings |= {
            "gpu_memory_utilization": 0.5,
            "attention_backend": "TRITON_ATTN",
            "compilation_config": {"cudagraph_capture_sizes": sizes},
        }
    return LLM(model=str(model), **settings)


def decode_load(options: argparse.Namespace) -> tuple[tuple[int, int, int], ...]:
    """Requests, prompt tokens and generated tokens of every batch that decodes."""
    return ((8, 4, 6), (2, 4, 6)) if options.small else DECODE


def load(llm: Any, options: argparse.Namespace, chance: random.Random, case: str) -> list[tuple[str, int, int]]:
    """Run prefill and decode once; of a case in DECODE_ONLY decode alone.

    Returns:
        Phase, first and last step of every part, as the recorder numbers them. The first step of decode is prefill.
    """
    tokens, requests = (128, 4) if options.small else (PREFILL_TOKENS, PREFILL_REQUESTS)
    vocabulary = SMALL_VOCABULARY if options.small else SHAPE["vocab_size"]
    parts = []
    if case not in DECODE_ONLY:
        first = step(llm)
        generate(llm, requests, tokens, 1, chance, vocabulary)
        parts.append(("prefill", first, step(llm) - 1))
    for batch, prompt, generated in decode_load(options):
        first = step(llm)
        generate(llm, batch, prompt, generated, chance, vocabulary)
        parts.append(("decode", first, step(llm) - 1))
    return parts


def step(llm: Any) -> int:
    """Steps recorded so far. All ranks have the same."""
    return int(min(llm.collective_rpc("recorded_steps")))


def generate(llm: Any, requests: int, tokens: int, generated: int, chance: random.Random, vocabulary: int) -> None:
    """Send random prompts together; every request generates the same number of random tokens."""
    from vllm import SamplingParams  # noqa: PLC0415

    prompts = [{"prompt_token_ids": [chance.randrange(1, vocabulary) for _ in range(tokens)]} for _ in range(requests)]
    # logits of made-up weights are small, so all tokens are about as likely
    params = SamplingParams(max_tokens=generated, temperature=1.0, detokenize=False, ignore_eos=True)
    llm.generate(prompts, params, use_tqdm=False)


if __name__ == "__main__":
    main()
