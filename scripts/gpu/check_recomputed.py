#!/usr/bin/env python3
"""Compares recomputed experts with those that vLLM chose, on a GPU: a line of JSON per case, exit 1 if one differs.

    python scripts/gpu/check_recomputed.py                    # every case, each in a process of its own
    python scripts/gpu/check_recomputed.py --case routers     # one, in this process

- routers: vLLM's router classes on random logits, token by token; the kernel's counts against theirs.
- triton_kernels: the routing function of gpt-oss on Hopper, on bfloat16 logits with ties.
- qwen3_moe, deepseek_v3, olmoe: engines on made-up models, full and piecewise CUDA graphs; each layer is recorded by
  reference and recomputed, and the two recordings are compared.
- gpt_oss: an engine in MXFP4, whose kernel routes inside itself, against copies of what its routing function returned.
Ambiguous tokens may differ; they are counted. Needs a GPU and vLLM (0.32 or later).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.gpu.made_up_models import SIZES  # noqa: E402

ENGINES = ("qwen3_moe", "deepseek_v3", "olmoe", "gpt_oss")
CASES = ("routers", "triton_kernels", *ENGINES)
MLA = {"qk_nope_head_dim": 128, "v_head_dim": 128}
MXFP4 = {
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
        ],
    },
    "intermediate_size": 512,
}  # fmt: skip
LAYERS, EXPERTS, TOP_K = 4, 32, 4
TOKENS = 3000


def kernel_counts(logits: Any, top_k: int, router_rule: Any) -> tuple[Any, int]:
    """Counts [experts] of the counting kernel, and how many tokens it calls ambiguous."""
    import torch  # noqa: PLC0415

    from nvtxmoe.capture.recording.kernel_launch import best_recompute  # noqa: PLC0415
    from nvtxmoe.capture.recording.logits_launch import addresses, launch_of  # noqa: PLC0415
    from nvtxmoe.capture.recording.router_logits import RouterLogits, SameRuleLogits  # noqa: PLC0415

    recompute = best_recompute()
    assert recompute is not None, "no Triton here"
    group = SameRuleLogits((RouterLogits(0, logits.shape[1], top_k, logits, router_rule.rule, router_rule.bias),))
    launch, table = launch_of(group), addresses(group)
    out = torch.empty(launch.shape, dtype=torch.int32, pin_memory=True)
    for _ in range(2):  # the second launch is the prepared one
        out.zero_()
        recompute(launch, table, out, len(logits))
        torch.cuda.synchronize()
    total = out.numpy().sum(axis=(0, 1))
    return total[:-1], int(total[-1])


def compared(name: str, logits: Any, ids: Any, top_k: int, router_rule: Any, input_ids: Any = None) -> dict[str, Any]:
    """The experts of each token as sets, and the kernel's counts if no hash table routes."""
    import torch  # noqa: PLC0415

    from nvtxmoe.capture.recording.routing_rule import choose  # noqa: PLC0415

    recomputed = choose(logits, top_k, router_rule.rule, router_rule.bias, router_rule.table, input_ids)
    same = (recomputed.ids.sort(dim=1).values == ids.to(torch.int64).sort(dim=1).values).all(dim=1)
    clear = ~recomputed.ambiguous
    ambiguous = int((~clear).sum())
    line: dict[str, Any] = {
        "case": name,
        "tokens": len(logits),
        "equal": int(same.sum()),
        "ambiguous": ambiguous,
        "differing_clear": int((~same & clear).sum()),
    }
    exact = line["differing_clear"] == 0
    if router_rule.table is None:
        counts, unsure = kernel_counts(logits, top_k, router_rule)
        counts_of_kernel = np.bincount(ids.cpu().numpy().ravel(), minlength=logits.shape[1])
        line["kernel_differing_assignments"] = int(np.abs(counts - counts_of_kernel).sum())
        line["kernel_ambiguous"] = unsure
        exact = exact and line["kernel_differing_assignments"] <= 2 * max(unsure, ambiguous)
    return line | {"exact": exact}


def routers() -> list[dict[str, Any]]:
    """vLLM's router classes, called as its runner calls them."""
    import torch  # noqa: PLC0415
    from vllm.config import VllmConfig, set_current_vllm_config  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.router.fused_topk_bias_router import FusedTopKBiasRouter  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.router.fused_topk_router import FusedTopKRouter  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.router.grouped_topk_router import GroupedTopKRouter  # noqa: PLC0415

    from nvtxmoe.capture.vllm.router_rules import rule_of  # noqa: PLC0415

    def bias(experts: int) -> Any:
        return torch.nn.Parameter(torch.randn(experts, device="cuda") * 0.2, requires_grad=False)

    def table(top_k: int, experts: int) -> Any:
        return torch.stack([torch.randperm(experts, device="cuda")[:top_k] for _ in range(100)]).to(torch.int32)

    torch.manual_seed(0)
    makes: dict[str, tuple[int, Any]] = {
        "softmax": (128, lambda: FusedTopKRouter(8, 128)),
        "softmax, as it is": (64, lambda: FusedTopKRouter(8, 64, renormalize=False)),
        "sigmoid": (128, lambda: FusedTopKRouter(8, 128, scoring_func="sigmoid")),
        "softmax and bias": (128, lambda: FusedTopKBiasRouter(8, 128, bias(128), scoring_func="softmax")),
        "sigmoid and bias": (256, lambda: FusedTopKBiasRouter(8, 256, bias(256), routed_scaling_factor=2.5)),
        "sqrtsoftplus and bias": (
            256, lambda: FusedTopKBiasRouter(6, 256, bias(256), scoring_func="sqrtsoftplus"),
        ),
        "hash table": (
            256,
            lambda: FusedTopKBiasRouter(6, 256, scoring_func="sqrtsoftplus", hash_indices_table=table(6, 256)),
        ),
        "groups of softmax": (160, lambda: GroupedTopKRouter(6, 160, 8, 3, renormalize=False)),
        "groups of sigmoid and bias": (
            256,
            lambda: GroupedTopKRouter(
                8, 256, 8, 4, scoring_func="sigmoid", e_score_correction_bias=bias(256), routed_scaling_factor=2.5
            ),
        ),
    }  # fmt: skip
    lines = []
    for name, (experts, make) in makes.items():
        for dtype in (torch.float32, torch.bfloat16):
            case = f"router: {name}, {str(dtype).removeprefix('torch.')}"
            try:
                with set_current_vllm_config(VllmConfig()):
                    router = make()
                    logits = (2 * torch.randn(TOKENS, experts, device="cuda")).to(dtype)
                    tokens = torch.randint(0, 100, (TOKENS,), device="cuda", dtype=torch.int32)
                    hidden = torch.zeros(TOKENS, 8, device="cuda", dtype=torch.bfloat16)
                    _, ids = router._compute_routing(hidden, logits.clone(), torch.int32, input_ids=tokens)
                line = compared(case, logits, ids, router.top_k, rule_of(router, experts), tokens)
                if name.startswith("groups") and dtype != torch.float32:
                    line["exact"] = None  # vLLM may round the scores to bfloat16: equal ones go either way
                lines.append(line)
            except Exception as error:
                lines.append({"case": case, "exact": None, "not run": f"{type(error).__name__}: {error}"[:300]})
    return lines


def triton_kernels() -> list[dict[str, Any]]:
    """What gpt-oss's kernel calls on Hopper."""
    import torch  # noqa: PLC0415
    from vllm.utils.import_utils import has_triton_kernels  # noqa: PLC0415

    from nvtxmoe.capture.recording.routing_rule import RoutingRule  # noqa: PLC0415
    from nvtxmoe.capture.vllm.router_rules import RouterRule  # noqa: PLC0415

    assert has_triton_kernels(), "vLLM finds no triton_kernels"
    from triton_kernels.topk import topk  # noqa: PLC0415

    lines = []
    torch.manual_seed(1)
    for experts in (32, 128):
        for spread in (2.0, 0.01):  # the second has many equal logits
            logits = (1 + spread * torch.randn(TOKENS, experts, device="cuda")).to(torch.bfloat16)
            result = topk(logits, TOP_K, apply_softmax=True)
            ids = (result[1] if isinstance(result, tuple) else result.indx).to(torch.int64)
            rule = RouterRule(RoutingRule(exact=True))
            line = compared(f"triton_kernels: {experts} experts, spread {spread}", logits, ids, TOP_K, rule)
            lines.append(line | {"ties_to_the_same_expert": line["equal"] == line["tokens"]})
    return lines


def model_folder(family: str) -> Path:
    """The configuration of a made-up model."""
    from scripts.make_tiny_model import write_model  # noqa: PLC0415

    folder: Path = write_model(Path(tempfile.mkdtemp()), family, layers=LAYERS, experts=EXPERTS, top_k=TOP_K)
    config = json.loads((folder / "config.json").read_text())
    config.update({key: value for key, value in SIZES.items() if key in config})
    config.update({"deepseek_v3": MLA, "gpt_oss": MXFP4}.get(family, {}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class RoutingCopies:
    """Ids per step and layer [tokens, top_k]: copies inside the graph of what gpt-oss's routing function gave."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self._id_copies: list[Any] = []
        self._calls = 0

    def install(self) -> None:
        """Wrap the function, and the worker's steps."""
        import torch  # noqa: PLC0415
        from vllm.utils.import_utils import has_triton_kernels  # noqa: PLC0415
        from vllm.v1.worker.gpu_worker import Worker  # noqa: PLC0415

        assert has_triton_kernels()
        import triton_kernels.topk as module  # noqa: PLC0415

        choose, execute, warm_up = module.topk, Worker.execute_model, Worker.compile_or_warm_up_model

        def topk(logits: Any, top_k: int, *args: Any, **kwargs: Any) -> Any:
            result = choose(logits, top_k, *args, **kwargs)
            ids = result[1] if isinstance(result, tuple) else result.indx
            if not self._id_copies:
                self._id_copies = [torch.zeros(4096, top_k, dtype=torch.int16, device="cuda") for _ in range(LAYERS)]
            self._id_copies[self._calls % LAYERS][: len(ids)].copy_(ids)
            self._calls += 1
            return result

        def executed(worker: Any, scheduled: Any) -> Any:
            result = execute(worker, scheduled)
            tokens = scheduled.total_num_scheduled_tokens
            if tokens:
                torch.cuda.synchronize()
                self.steps.append([copied[:tokens].cpu().numpy().astype(np.int64) for copied in self._id_copies])
            return result

        def warmed_up(worker: Any, *args: Any, **kwargs: Any) -> Any:
            result = warm_up(worker, *args, **kwargs)
            self.steps.clear()
            return result

        module.topk = topk
        Worker.execute_model, Worker.compile_or_warm_up_model = executed, warmed_up


def engine(family: str, mode: str) -> list[dict[str, Any]]:
    """An engine in this process, and what its journal holds."""
    sessions = Path(tempfile.mkdtemp())
    os.environ.update(
        NVTXMOE_ENABLE="1", NVTXMOE_MODE="moe", NVTXMOE_LOG_INTERVAL="1", NVTXMOE_OUTPUT_DIR=str(sessions),
        NVTXMOE_DEVELOPER_RECOMPUTE="0" if family == "gpt_oss" else "1", VLLM_ENABLE_V1_MULTIPROCESSING="0",
        HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1",
    )  # fmt: skip
    from nvtxmoe.capture.startup.start import start  # noqa: PLC0415

    start()
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    copies = RoutingCopies()
    if family == "gpt_oss":
        copies.install()
    graphs: dict[str, Any] = {"enforce_eager": True}
    if mode != "eager":
        graphs = {"compilation_config": {"cudagraph_mode": mode.upper(), "cudagraph_capture_sizes": [1, 2, 4, 8, 16]}}
    attention = {"deepseek_v3": "TRITON_MLA"}.get(family, "TRITON_ATTN")
    llm = LLM(
        model=str(model_folder(family)), load_format="dummy", skip_tokenizer_init=True, max_model_len=512,
        max_num_batched_tokens=2048, max_num_seqs=16, gpu_memory_utilization=0.3, enable_prefix_caching=False,
        attention_backend=attention, **graphs,
    )  # fmt: skip
    chance = np.random.default_rng(2)
    prompts = [{"prompt_token_ids": chance.integers(1, 250, size).tolist()} for size in (2, 5, 17, 40, 90, 300, 411)]
    params = SamplingParams(max_tokens=20, temperature=0, detokenize=False, ignore_eos=True)
    llm.generate(prompts, params, use_tqdm=False)
    del llm
    from nvtxmoe.capture.hooks import failures  # noqa: PLC0415

    line = {"case": f"engine: {family}, {mode}", "failed_hooks": failures()}
    (journal,) = sessions.rglob("*.journal")
    return [line | (against_copies(journal, copies) if family == "gpt_oss" else against_references(journal))]


def read(journal: Path) -> tuple[dict[str, Any], dict[tuple[int, int], Any], dict[tuple[int, int], Any]]:
    """moe.meta, and counts and sampled experts by (step, layer)."""
    from nvtxmoe.formats import schema  # noqa: PLC0415
    from nvtxmoe.formats.journal import EVENTS, Journal  # noqa: PLC0415

    meta: dict[str, Any] = {}
    counts: dict[tuple[int, int], Any] = {}
    tokens: dict[tuple[int, int], Any] = {}
    for part in Journal(journal).bulk():
        for at in range(len(part)):
            event, payload = EVENTS[int(part.event[at])], part.payloads(np.array([at])).tobytes()
            if event == "meta":
                meta = json.loads(payload)
            elif event == "counts":
                row = np.frombuffer(payload, schema.counts_dtype(EXPERTS))[0]
                counts[int(row["step"]), int(row["layer"])] = row["counts"].copy()
            elif event == "topk":
                rows = np.frombuffer(payload, schema.topk_dtype(TOP_K))
                tokens[int(rows["step"][0]), int(rows["layer"][0])] = np.sort(rows["experts"].astype(np.int64), axis=1)
    return meta, counts, tokens


def against_references(journal: Path) -> dict[str, Any]:
    """The second recording of each layer against the first."""
    from nvtxmoe.capture.vllm.recomputed_beside import FIRST  # noqa: PLC0415

    _, _, tokens = content = read(journal)
    reference_ids = {key: ids for key, ids in tokens.items() if key[1] < FIRST}
    return _line(content, reference_ids, {(step, layer): (step, layer + FIRST) for step, layer in reference_ids})


def against_copies(journal: Path, copies: RoutingCopies) -> dict[str, Any]:
    """Recomputed layers against copies of what the kernel's routing function returned."""
    content = read(journal)
    layers = [layer["layer"] for layer in content[0]["layers"]]
    reference_ids = {
        (step, layer): np.sort(ids, axis=1)
        for step, by_layer in enumerate(copies.steps)
        for layer, ids in zip(layers, by_layer, strict=True)
    }
    return _line(content, reference_ids, {key: key for key in reference_ids}) | {"hidden": content[0].get("capture")}


def _line(content: Any, reference_ids: Any, cell_of: Any) -> dict[str, Any]:
    meta, counts, tokens = content
    missing = [key for key in reference_ids if cell_of[key] not in tokens or cell_of[key] not in counts]
    cells = {key: ids for key, ids in reference_ids.items() if key not in missing}
    total = sum(len(ids) for ids in cells.values())
    equal = sum(int((ids == tokens[cell_of[key]]).all(axis=1).sum()) for key, ids in cells.items())
    differing = [
        key
        for key, ids in cells.items()
        if not np.array_equal(np.bincount(ids.ravel(), minlength=EXPERTS), counts[cell_of[key]])
    ]
    ambiguous = sum(meta.get("ambiguous_tokens", {}).values())
    return {
        "recording": meta.get("recording"),
        "cells": len(cells),
        "cells_missing": len(missing),
        "cells_with_other_counts": len(differing),
        "tokens": total,
        "equal": equal,
        "ambiguous": ambiguous,
        "exact": bool(cells) and not missing and total - equal <= ambiguous and len(differing) <= ambiguous,
    }


def run_case(case: str, mode: str) -> int:
    """Print the lines of a case; 1 if one differs."""
    lines = (
        {"routers": routers, "triton_kernels": triton_kernels}[case]() if case not in ENGINES else engine(case, mode)
    )
    for line in lines:
        print("RESULT " + json.dumps(line), flush=True)
    return int(any(line["exact"] is False for line in lines))


def main() -> int:
    """Run a case here, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--mode", choices=("full_and_piecewise", "full", "piecewise", "eager"))
    parser.add_argument("--timeout-s", type=float, default=240.0, help="of a case")
    arguments = parser.parse_args()
    if arguments.case:
        try:
            return run_case(arguments.case, arguments.mode or "full_and_piecewise")
        except Exception:
            traceback.print_exc()
            return 2
    status = 0
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, *(["--mode", arguments.mode] if arguments.mode else [])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=arguments.timeout_s)
            lines = [text for text in done.stdout.splitlines() if text.startswith("RESULT ")]
            code, errors = done.returncode, done.stderr[-1500:]
        except subprocess.TimeoutExpired as error:
            lines, code, errors = [], 124, str(error)
        print(
            "\n".join(lines) or f"RESULT {json.dumps({'case': case, 'exact': None, 'exit': code})}\n{errors}",
            flush=True,
        )
        status = max(status, int(code != 0))
    return status


if __name__ == "__main__":
    sys.exit(main())
