"""The matrix of ``scripts/gpu/check_all.py``: what is compared with an oracle, in the order of importance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from scripts.gpu.engine_settings import EXCHANGES, ON_CPU


@dataclass(frozen=True)
class Case:
    """One run of ``scripts/gpu/check_exact.py``.

    Attributes:
        name: of its files.
        model: the model, for the table.
        setting: quantisation, parallelism and drafts, for the table.
        words: arguments of check_exact.py.
        gpus: that it needs; more than one are ranks of torchrun, except for pipeline stages.
        least_s: a run takes at least so long: it is not begun when less is left.
        limit_s: time after which it is ended.
        env: variables of its own.
        module: of a package that vLLM does not bring; the case is not run without it.
    """

    name: str
    model: str
    setting: str
    words: tuple[str, ...]
    gpus: int = 1
    least_s: float = 50.0
    limit_s: float = 150.0
    env: Mapping[str, str] = field(default_factory=dict)
    module: str | None = None

    @property
    def torchrun(self) -> bool:
        """Ranks are started by torchrun."""
        return self.gpus > 1 and "--pp" not in self.words

    @property
    def results(self) -> int:
        """Processes that are compared."""
        return self.gpus


GPT_OSS = ("--family", "gpt_oss", "--quantisation", "mxfp4")
DEEPSEEK = ("--family", "deepseek_v3")
GRAPHS = ("--mode", "full_and_piecewise")
QUICK = ("--mode", "full_uncompiled")
#: The plain exchange sets no number of multiprocessors aside for itself.
NO_COMM_SMS = {"VLLM_DBO_COMM_SMS": "0"}
#: Layers whose ids are the router's are recorded a second time, recomputed from its logits.
AGAIN = {"NVTXMOE_DEVELOPER_RECOMPUTE": "1"}
#: The default of some architectures, with any model.
BREAKABLE = {"VLLM_USE_BREAKABLE_CUDAGRAPH": "1"}
TP, DP = ("--tp", "2"), ("--dp", "2", "--oracle", "vllm")
#: The model of the cases for any number of ranks.
MANY_EXPERTS = ("--layers", "16", "--experts", "128", "--top-k", "8")
#: A try-out without a GPU: what vLLM takes on a CPU.
CPU_ENGINE = {**ON_CPU, "attention_backend": None, "kv_cache_memory_bytes": None, "dtype": "float32",
              "max_num_batched_tokens": 128}  # fmt: skip
SMALL = ("--layers", "2", "--experts", "16", "--top-k", "2", "--requests", "4", "--longest", "40", "--mode", "eager",
         "--engine", json.dumps(CPU_ENGINE))  # fmt: skip


def _backend(name: str) -> tuple[str, str]:
    return "--engine", f'{{"moe_backend": "{name}"}}'


def _two(name: str, model: str, setting: str, *words: str, env: Mapping[str, str] | None = None) -> Case:
    return Case(name, model, setting, words, gpus=2, least_s=80.0, limit_s=260.0, env=env or {})


def _micro_batches(name: str, exchange: str, runner: int, mode: str = "full_decode") -> Case:
    """Micro-batches with an exchange that vLLM admits under DBO; hidden sizes below 2048 have no kernel in it."""
    return Case(
        name,
        "Qwen3-MoE",
        f"bf16, data and expert parallel by {exchange}, DBO",
        ("--dp", "2", "--dbo", "--exchange", exchange, "--config", '{"hidden_size": 2048}', "--mode", mode),
        gpus=2,
        least_s=80.0,
        limit_s=200.0,
        env={"VLLM_USE_V2_MODEL_RUNNER": str(runner - 1)},
        module=EXCHANGES[exchange],
    )


def rank_cases(ranks: int, *, small: bool = False) -> tuple[Case, ...]:
    """Return the expert-parallel cases for a number of ranks, one GPU each: 128 experts in 16 layers.

    Parameters:
        ranks: at least 2; 128 experts have to divide between them.
        small: a tiny model, eager, that runs without a GPU; without EPLB, which a CPU does not have.

    Raises:
        ValueError: the experts do not divide between the ranks.
    """
    if ranks < 2 or 128 % ranks:
        raise ValueError(f"{ranks} ranks: give 2, 4, 8 or another power of two up to 128")
    number = str(ranks)
    shape, graphs, quick = (SMALL, (), ()) if small else (MANY_EXPERTS, GRAPHS, QUICK)
    cases = [
        ("tp", "tensor", "", ("--tp", number, *graphs)),
        ("dp", "data", "", ("--dp", number, *(() if small else ("--oracle", "vllm")), *quick)),
        ("tp", "tensor", "-eplb", ("--tp", number, "--eplb", *graphs)),
        ("dp", "data", "-eplb", ("--dp", number, "--eplb", *quick)),
    ]
    return tuple(
        Case(
            f"{kind}{ranks}-ep{eplb}-many-experts",
            "Qwen3-MoE",
            f"bf16, {parallelism} and expert parallel{', EPLB' if eplb else ''}",
            (*shape, *words),
            gpus=ranks,
            least_s=80.0,
            limit_s=480.0,
        )
        for kind, parallelism, eplb, words in cases
        if not (small and eplb)
    )


CASES: tuple[Case, ...] = (
    Case("gpt-oss-mxfp4", "gpt-oss", "MXFP4, vLLM's choice of kernel", (*GPT_OSS, *GRAPHS)),
    Case("qwen3-bf16", "Qwen3-MoE", "bf16", GRAPHS),
    Case("qwen3-fp8", "Qwen3-MoE", "fp8 per tensor, at load", ("--quantisation", "fp8", *GRAPHS)),
    _two("tp2-ep", "Qwen3-MoE", "bf16, tensor and expert parallel", *TP, *GRAPHS),
    _two("dp2-ep", "Qwen3-MoE", "bf16, data and expert parallel", *DP, *QUICK),
    _two("pp2", "Qwen3-MoE", "bf16, pipeline parallel", "--pp", "2", *GRAPHS),
    _two("tp2-ep-eplb", "Qwen3-MoE", "bf16, tensor and expert parallel, EPLB", *TP, "--eplb", *GRAPHS),
    Case("sink-stand-in", "Qwen3-MoE", "bf16, stand-in kernel with vLLM's sink", ("--stand-in", *GRAPHS)),
    Case("deepseek-mtp", "DeepSeek-V3", "bf16, MTP with one token", (*DEEPSEEK, "--draft", "mtp", *GRAPHS)),
    Case("qwen3-vllm-oracle", "Qwen3-MoE", "bf16", ("--oracle", "vllm", *GRAPHS)),
    Case("qwen3-fp8-block", "Qwen3-MoE", "fp8 in blocks of 128", ("--quantisation", "fp8_block", *QUICK)),
    Case("qwen3-int4", "Qwen3-MoE", "int4 (GPTQ), vLLM's choice", ("--quantisation", "int4", *QUICK)),
    Case("qwen3-ngram", "Qwen3-MoE", "bf16, n-gram drafts of 3 tokens", ("--draft", "ngram", *GRAPHS)),
    Case("gpt-oss-marlin", "gpt-oss", "MXFP4, Marlin", (*GPT_OSS, *_backend("marlin"), *QUICK)),
    _two("dbo-v1", "Qwen3-MoE", "bf16, data and expert parallel, DBO", "--dp", "2", "--dbo", "--mode", "full_decode",
         env={**NO_COMM_SMS, "VLLM_USE_V2_MODEL_RUNNER": "0"}),
    _micro_batches("dbo-nixl-v1", "nixl_ep", 1),
    _micro_batches("dbo-nixl-v2", "nixl_ep", 2),
    _micro_batches("dbo-deepep-ht-v1", "deepep_high_throughput", 1, "eager"),
    _micro_batches("dbo-deepep-ll-v1", "deepep_low_latency", 1),
    _micro_batches("dbo-deepep-ll-v2", "deepep_low_latency", 2),
    _two("gpt-oss-tp2-ep", "gpt-oss", "MXFP4, tensor and expert parallel", *GPT_OSS, *TP, *GRAPHS),
    Case("qwen3-nvfp4", "Qwen3-MoE", "nvfp4 (ModelOpt), vLLM's choice", ("--quantisation", "nvfp4", *QUICK)),
    Case("qwen2", "Qwen2-MoE", "bf16, dense first layer, shared expert", ("--family", "qwen2_moe", *GRAPHS),
         env=AGAIN),
    Case("deepseek", "DeepSeek-V3", "bf16, grouped routing", (*DEEPSEEK, *GRAPHS), env=AGAIN),
    Case("olmoe", "OLMoE", "bf16", ("--family", "olmoe", "--mode", "piecewise"), env=AGAIN),
    _two("dp2-ep-eplb", "Qwen3-MoE", "bf16, data and expert parallel, EPLB", "--dp", "2", "--eplb", *QUICK),
    Case("sink-vllm-oracle", "Qwen3-MoE", "bf16, stand-in kernel, vLLM's sink bound first",
         ("--stand-in", "--oracle", "vllm", *QUICK)),
    Case("qwen3-int4-marlin", "Qwen3-MoE", "int4 (GPTQ), Marlin",
         ("--quantisation", "int4", *_backend("marlin"), *QUICK)),
    Case("gpt-oss-eager", "gpt-oss", "MXFP4, no graphs", (*GPT_OSS, "--mode", "eager")),
    Case("gpt-oss-unfused", "gpt-oss", "MXFP4, modular Triton", (*GPT_OSS, *_backend("triton_unfused"), *QUICK)),
    Case("gpt-oss-again", "gpt-oss", "MXFP4, modular Triton, ids recomputed beside",
         (*GPT_OSS, *_backend("triton_unfused"), *QUICK), env=AGAIN),
    Case("qwen3-breakable", "Qwen3-MoE", "bf16, breakable CUDA graphs", GRAPHS, env=BREAKABLE),
    Case("gpt-oss-breakable", "gpt-oss", "MXFP4, breakable CUDA graphs", (*GPT_OSS, *GRAPHS), env=BREAKABLE),
    Case("qwen3-fp8-block-load", "Qwen3-MoE", "fp8 in blocks of 128, at load",
         ("--quantisation", "fp8_per_block", *QUICK)),
    Case("qwen3-mxfp8", "Qwen3-MoE", "mxfp8, at load", ("--quantisation", "mxfp8", *QUICK)),
    Case("qwen3-int8", "Qwen3-MoE", "int8 weights, at load", ("--quantisation", "int8", *QUICK)),
    _two("dbo-v2", "Qwen3-MoE", "bf16, data and expert parallel, DBO, model runner V2", "--dp", "2", "--dbo", *QUICK,
         env={**NO_COMM_SMS, "VLLM_USE_V2_MODEL_RUNNER": "1"}),
    Case("mixtral", "Mixtral", "bf16", ("--family", "mixtral", *QUICK), env=AGAIN),
    Case("gpt-oss-bf16", "gpt-oss", "bf16", ("--family", "gpt_oss", *QUICK)),
    Case("qwen3-eager", "Qwen3-MoE", "bf16, no graphs", ("--mode", "eager")),
    Case("qwen3-recomputed", "Qwen3-MoE", "bf16", QUICK, env=AGAIN),
    Case("qwen3-v1", "Qwen3-MoE", "bf16, model runner V1", GRAPHS, env={"VLLM_USE_V2_MODEL_RUNNER": "0"}),
    Case("qwen3-pairs", "Qwen3-MoE", "bf16, pairs", QUICK, env={"NVTXMOE_EMIT": "counts,topk,pairs"}),
)  # fmt: skip
