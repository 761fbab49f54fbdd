"""Arguments of a vLLM engine for the scripts of this folder, made of their command lines."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scripts.gpu.made_up_models import FAMILIES, QUANTISATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

MODES: dict[str, dict[str, str | int]] = {
    "default": {},
    "full": {"cudagraph_mode": "FULL"},
    "full_uncompiled": {"cudagraph_mode": "FULL", "mode": 0},
    "full_decode": {"cudagraph_mode": "FULL_DECODE_ONLY", "mode": 0},
    "full_and_piecewise": {"cudagraph_mode": "FULL_AND_PIECEWISE"},
    "piecewise": {"cudagraph_mode": "PIECEWISE"},
    "eager": {},
}
#: Speculative decoding: tokens repeated from the prompt, or DeepSeek's draft layer.
DRAFTS = ("none", "ngram", "mtp")
#: The exchange between data-parallel ranks that needs no further package.
PLAIN_EXCHANGE, EXCHANGE_OF_DBO = "allgather_reducescatter", "deepep_low_latency"
#: Exchanges between data-parallel ranks that vLLM admits under DBO on CUDA, and the module that each needs.
EXCHANGES = {"nixl_ep": "nixl_ep", "deepep_low_latency": "deep_ep", "deepep_high_throughput": "deep_ep"}
#: Exchanges whose experts get room for the largest batch of every rank, whatever a step has.
ROOM_FOR_ALL = ("nixl_ep", "deepep_low_latency")
#: Elsewhere vLLM makes room for a micro-batch of its profile run, and a step that is not divided has to fit in it.
LARGEST_DIVIDED = 1024

#: A try-out without a GPU: no graphs, and experts on several ranks (scripts/gpu/cpu_try_out.py).
ON_CPU = {"enforce_eager": True, "worker_extension_cls": "scripts.gpu.cpu_try_out.PlacedExpertsOnCpu"}

#: Seconds in which an engine and its workers may end.
END_S = 120.0


def end_engine(llm: Any) -> None:
    """End the engine of an LLM, and wait for its workers: vLLM kills them after 5 s, which loses their last step."""
    llm.llm_engine.engine_core.shutdown(timeout=END_S)


def add_model_options(parser: ArgumentParser) -> None:
    """Options on what the made-up model is."""
    parser.add_argument("--family", choices=FAMILIES, default="qwen3_moe")
    parser.add_argument("--quantisation", choices=QUANTISATIONS, default="none")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--config", type=json.loads, default={}, metavar="JSON", help="Further keys of config.json.")
    parser.add_argument(
        "--engine", type=json.loads, default={}, metavar="JSON", help="Further arguments of the engine."
    )
    parser.add_argument("--attention", help="The attention back end. Default: one that runs the family.")
    parser.add_argument("--kv-mib", type=int, default=2048)


def attention(options: Namespace) -> str:
    """The attention back end: Triton's, which has no sizes or packages that it wants."""
    return options.attention or ("TRITON_MLA" if options.family == "deepseek_v3" else "TRITON_ATTN")


def check_engine(options: Namespace) -> dict[str, Any]:
    """Arguments of the engine of ``scripts/gpu/check_exact.py``, but for the model's folder."""
    ranks = options.tp * options.dp
    made: dict[str, Any] = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "enforce_eager": options.mode == "eager",
        "max_model_len": 1024,
        "max_num_batched_tokens": 256,
        "max_num_seqs": 64,
        "kv_cache_memory_bytes": options.kv_mib << 20,
        "gpu_memory_utilization": 0.15,
        "attention_backend": attention(options),
        "enable_prefix_caching": True,
        **QUANTISATIONS[options.quantisation].engine,
    }
    if options.oracle == "vllm":
        made["enable_return_routed_experts"] = True
    if ranks > 1:  # one engine per rank, all in step: the oracle is in each rank's process
        made |= {
            "distributed_executor_backend": "external_launcher",
            "tensor_parallel_size": options.tp,
            "data_parallel_size": options.dp,
            "enable_expert_parallel": True,
            "seed": 0,
        }
    if options.dp > 1:
        # With batches scheduled ahead, a rank whose requests end makes an empty batch. vLLM 0.33's model runner V2 then
        # returns before the ranks exchange their batch sizes, and the other rank waits for it.
        made["async_scheduling"] = False
    if options.pp > 1:  # workers of their own, each with an oracle
        made |= {
            "pipeline_parallel_size": options.pp,
            "distributed_executor_backend": "mp",
            "worker_cls": "scripts.gpu.oracle_worker.OracleWorker",
        }
    if options.eplb:
        made |= {
            "enable_eplb": True,
            "eplb_config": {"window_size": 8, "step_interval": 12, "num_redundant_experts": 2 * ranks},
        }
    if options.draft == "ngram":
        made["speculative_config"] = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
    if options.draft == "mtp":
        made["speculative_config"] = {"method": "mtp", "num_speculative_tokens": 1}
    sizes = [1, 2, 4, 8, 16, 32, 64]
    if options.exchange != PLAIN_EXCHANGE:
        made["all2all_backend"] = options.exchange
    if options.dbo:
        made |= {"enable_dbo": True, "dbo_decode_token_threshold": 4, "dbo_prefill_token_threshold": 8}
        if options.exchange not in ROOM_FOR_ALL:
            made["max_num_batched_tokens"] = LARGEST_DIVIDED
            sizes += [128, 256, 512]
        if options.exchange == PLAIN_EXCHANGE:
            made["all2all_backend"] = EXCHANGE_OF_DBO
    if MODES[options.mode]:
        made["compilation_config"] = {**MODES[options.mode], "cudagraph_capture_sizes": sizes}
    return {**made, **options.engine}


@contextmanager
def plain_exchange_under_dbo() -> Iterator[None]:
    """Let DBO run with the exchange that needs no package, until the context ends.

    vLLM 0.33 admits DBO on CUDA with DeepEP's and NIXL's exchange alone; on ROCm, with the same code, it admits the
    plain exchange too. The configuration is checked with DeepEP's name, and the ranks then take the plain exchange.
    Every layer asks the exchange again whether it supports DBO (``supports_dbo``), so the context has to last as long
    as the engine runs.
    """
    from vllm.config import VllmConfig  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.prepare_finalize.naive_dp_ep import (  # noqa: PLC0415
        MoEPrepareAndFinalizeNaiveDPEPModular as PlainExchange,
    )

    check, supports = VllmConfig.__post_init__, PlainExchange.supports_dbo

    def checked(config: Any, *args: Any, **kwargs: Any) -> None:
        check(config, *args, **kwargs)
        if config.parallel_config.all2all_backend == EXCHANGE_OF_DBO:
            config.parallel_config.all2all_backend = PLAIN_EXCHANGE

    VllmConfig.__post_init__ = checked
    PlainExchange.supports_dbo = lambda _: True
    try:
        yield
    finally:
        VllmConfig.__post_init__ = check
        PlainExchange.supports_dbo = supports
