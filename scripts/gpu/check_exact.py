#!/usr/bin/env python3
"""Compares what capture recorded of a real vLLM on a GPU with an oracle in the same run, token by token.

    export NVTXMOE_ENABLE=1 NVTXMOE_MODE=moe NVTXMOE_LOG_INTERVAL=1
    python scripts/gpu/check_exact.py --mode full
    torchrun --nproc-per-node 2 scripts/gpu/check_exact.py --tp 2 --eplb   # each rank compares its own

The oracle is vLLM's own routed-experts capturer (``--oracle vllm``), or copies of the ids and weights that this script
has the router make inside the graph (``--oracle copies``). It shares nothing with nvtxmoe's hooks. Prints one line of
JSON; exits with 1 when anything differs. Needs a GPU and vLLM; the model is made up (scripts/make_tiny_model.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

#: Sizes that fused kernels like, in the place of the tiny ones.
SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "moe_intermediate_size": 256,
    "intermediate_size": 1024,
    "torch_dtype": "bfloat16",
    "head_dim": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
#: Shared experts with a gate of their own, and a dense first layer.
QWEN2 = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "shared_expert_intermediate_size": 256,
    "mlp_only_layers": [0],
}
MODES: dict[str, dict[str, str]] = {
    "full": {"cudagraph_mode": "FULL"},
    "full_and_piecewise": {"cudagraph_mode": "FULL_AND_PIECEWISE"},
    "piecewise": {"cudagraph_mode": "PIECEWISE"},
    "eager": {},
}


def model_folder(family: str, layers: int, experts: int, top_k: int) -> Path:
    """A configuration of a family in GPU-friendly sizes."""
    from scripts.make_tiny_model import write_model  # noqa: PLC0415

    base = "qwen3_moe" if family == "qwen2_moe" else family
    folder: Path = write_model(Path(tempfile.mkdtemp()), base, layers=layers, experts=experts, top_k=top_k)
    config = json.loads((folder / "config.json").read_text())
    if family == "qwen2_moe":
        config.update(QWEN2)
    sizes = SIZES if family != "mixtral" else {**SIZES, "intermediate_size": SIZES["moe_intermediate_size"]}
    config.update({key: value for key, value in sizes.items() if key in config})
    if family == "deepseek_v3":  # what the attention back ends of Hopper take
        config.update(qk_nope_head_dim=128, v_head_dim=128)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Oracle:
    """Ids of every step, [tokens, layers, top_k], from buffers that the forward itself fills."""

    def __init__(self, kind: str, most_tokens: int) -> None:
        self.kind = kind
        self.most_tokens = most_tokens
        self.steps: list[np.ndarray[Any, Any]] = []
        self.weights: list[np.ndarray[Any, Any]] = []
        self.replays: list[int] = []
        self.layers: list[int] = []
        self.physical: list[np.ndarray[Any, Any]] = []
        self._ids: dict[int, Any] = {}
        self._physical: dict[int, Any] = {}
        self._weights: dict[int, Any] = {}
        self.idle = 0
        self._replayed = 0

    def install(self) -> None:
        """Wrap the worker outermost, and count replays."""
        import torch  # noqa: PLC0415
        from vllm.v1.worker.gpu_worker import Worker  # noqa: PLC0415

        load, execute, replay = Worker.load_model, Worker.execute_model, torch.cuda.CUDAGraph.replay
        warm_up, dummy = Worker.compile_or_warm_up_model, Worker.execute_dummy_batch

        def loaded(worker: Any, *args: Any, **kwargs: Any) -> Any:
            result = load(worker, *args, **kwargs)
            self._loaded(worker)
            return result

        def executed(worker: Any, scheduled: Any) -> Any:
            self._replayed = 0
            result = execute(worker, scheduled)
            tokens = scheduled.total_num_scheduled_tokens
            if tokens:
                torch.cuda.synchronize()
                self._step(worker, tokens)
            return result

        def replayed(graph: Any) -> Any:
            self._replayed += 1
            return replay(graph)

        def warmed_up(worker: Any) -> Any:
            result = warm_up(worker)
            for kept in (self.steps, self.physical, self.weights, self.replays):
                kept.clear()  # model runner V2 runs steps of its own
            self.idle = 0
            return result

        Worker.load_model, Worker.execute_model, torch.cuda.CUDAGraph.replay = loaded, executed, replayed

        def idled(worker: Any, *args: Any, **kwargs: Any) -> Any:
            self.steps.append(np.zeros((0, len(self.layers), 1), dtype=np.int64))  # it takes a number
            self.idle += 1
            return dummy(worker, *args, **kwargs)

        Worker.compile_or_warm_up_model, Worker.execute_dummy_batch = warmed_up, idled

    def _loaded(self, worker: Any) -> None:
        import torch  # noqa: PLC0415
        from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter  # noqa: PLC0415
        from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner  # noqa: PLC0415

        context = worker.vllm_config.compilation_config.static_forward_context
        runners = sorted((r for r in context.values() if isinstance(r, MoERunner)), key=lambda r: r.layer_id)
        self.layers = [runner.layer_id for runner in runners]
        generator = torch.Generator(device="cuda").manual_seed(7)
        for name, parameter in worker.model_runner.get_model().named_parameters():
            if name.endswith("gate.weight"):  # dummy weights give every layer the same gate
                parameter.data.normal_(0, 0.5, generator=generator)
        if self.kind == "vllm":
            return
        of_router = {id(runner.router): runner.layer_id for runner in runners}
        for runner in runners:
            shape = (self.most_tokens, runner.router.top_k)
            self._ids[runner.layer_id] = torch.zeros(shape, dtype=torch.int32, device="cuda")
            self._physical[runner.layer_id] = torch.zeros(shape, dtype=torch.int32, device="cuda")
            self._weights[runner.layer_id] = torch.zeros(shape, dtype=torch.float32, device="cuda")
            self._keep_logical(runner.router, self._ids[runner.layer_id])
        select = BaseRouter._select_experts

        def selected(router: Any, *args: Any, **kwargs: Any) -> Any:
            weights, ids = select(router, *args, **kwargs)
            layer = of_router[id(router)]
            self._physical[layer][: len(ids)].copy_(ids)
            self._weights[layer][: len(ids)].copy_(weights)
            return weights, ids

        BaseRouter._select_experts = selected

    def _keep_logical(self, router: Any, kept: Any) -> None:
        compute = router._compute_routing

        def computed(*args: Any, **kwargs: Any) -> Any:
            weights, ids = compute(*args, **kwargs)
            kept[: len(ids)].copy_(ids)
            return weights, ids

        router._compute_routing = computed

    def _step(self, worker: Any, tokens: int) -> None:
        self.replays.append(self._replayed)
        if self.kind == "vllm":
            buffer = worker.model_runner.routed_experts_capturer.get_device_buffer()
            self.steps.append(buffer[:tokens, self.layers].cpu().numpy().astype(np.int64))
            return
        for ids, steps in ((self._ids, self.steps), (self._physical, self.physical)):
            columns = [ids[layer][:tokens].cpu().numpy() for layer in self.layers]
            steps.append(np.stack(columns, axis=1).astype(np.int64))
        self.weights.append(np.stack([self._weights[layer][:tokens].cpu().numpy() for layer in self.layers], axis=1))


def drive(llm: Any, requests: int, longest: int, shared_prefix: bool, dp_rank: int | None) -> dict[str, list[int]]:
    """Staggered arrivals of prompts of very different lengths; token ids by request.

    Data-parallel ranks get other prompts at the same steps: they must call the engine equally often.
    """
    from vllm import SamplingParams  # noqa: PLC0415

    chance = random.Random(3 + (dp_rank or 0))
    arrivals = chance if dp_rank is None else random.Random(4)
    prefix = [chance.randrange(1, 250) for _ in range(64)] if shared_prefix else []
    waiting = []
    for number in range(requests):
        tokens = [chance.randrange(1, 250) for _ in range(chance.choice([2, 3, 5, 17, 40, 90, longest]))]
        params = SamplingParams(max_tokens=chance.randrange(4, 24), temperature=0, detokenize=False, ignore_eos=True)
        waiting.append((f"r{number}", (prefix if number % 2 else []) + tokens, params))
    engine, out = llm.llm_engine, {}
    while waiting or engine.has_unfinished_requests():
        for _ in range(arrivals.randrange(0, 4)):
            if waiting:
                name, tokens, params = waiting.pop(0)
                engine.add_request(name, {"prompt_token_ids": tokens}, params)
        for done in engine.step():
            if done.finished:
                out[done.request_id] = list(done.outputs[0].token_ids)
    return out


def compare(journal: Path, oracle: Oracle) -> dict[str, Any]:
    """Counts of every cell and experts of every token."""
    from nvtxmoe.formats import schema  # noqa: PLC0415
    from nvtxmoe.formats.journal import EVENTS, Journal  # noqa: PLC0415

    layer_at = {layer: at for at, layer in enumerate(oracle.layers)}
    found = {"steps": 0, "cells": 0, "cells_equal": 0, "tokens": 0, "tokens_equal": 0, "weights": 0, "weights_equal": 0}
    found |= {"physical": 0, "physical_equal": 0, "mapped": 0, "pairs": 0, "pairs_equal": 0}
    meta: dict[str, Any] = {}
    record = Journal(journal)
    for event, payload in (
        (EVENTS[int(part.event[at])], part.payloads(np.array([at])).tobytes())
        for part in record.bulk()
        for at in range(len(part))
    ):
        if event == "meta":
            meta = json.loads(payload)
            shape = {layer["layer"]: (layer["num_experts"], layer["top_k"]) for layer in meta["layers"]}
            slots = {layer["layer"]: layer.get("num_physical_experts", 0) for layer in meta["layers"]}
        elif event == "step":
            row = np.frombuffer(payload, schema.STEP_DTYPE)[0]
            found["steps"] += int(row["num_tokens"] == len(oracle.steps[int(row["step"])]))
        elif event == "counts":
            layer = int(np.frombuffer(payload[8:12], "<i4")[0])
            row = np.frombuffer(payload, schema.counts_dtype(shape[layer][0]))[0]
            wanted = np.bincount(oracle.steps[int(row["step"])][:, layer_at[layer]].ravel(), minlength=shape[layer][0])
            found["cells"] += 1
            found["cells_equal"] += int(np.array_equal(wanted, row["counts"]))
        elif event == "pairs":
            layer = int(np.frombuffer(payload[16:20], "<i4")[0])
            row = np.frombuffer(payload, schema.pairs_dtype(shape[layer][0]))[0]
            span = oracle.steps[int(row["first_step"]) : int(row["last_step"]) + 1]
            square = np.zeros((shape[layer][0],) * 2, dtype=np.int64)
            for chosen in (step[:, layer_at[layer]] for step in span):
                for one, other in itertools.combinations(range(chosen.shape[1]), 2):
                    np.add.at(square, (chosen[:, one], chosen[:, other]), 1)
            square += square.T
            found["pairs"] += 1
            found["pairs_equal"] += int(np.array_equal(square[np.triu_indices(len(square), 1)], row["pairs"]))
        elif event == "physical":
            layer = int(np.frombuffer(payload[8:12], "<i4")[0])
            row = np.frombuffer(payload, schema.counts_dtype(slots[layer]))[0]
            chosen = oracle.physical[int(row["step"])][:, layer_at[layer]]
            found["physical"] += 1
            wanted = np.bincount(chosen.ravel(), minlength=slots[layer])
            found["physical_equal"] += int(np.array_equal(wanted, row["counts"]))
            found["mapped"] += int((chosen != oracle.steps[int(row["step"])][:, layer_at[layer]]).any())
        elif event == "topk":
            layer = int(np.frombuffer(payload[8:12], "<i4")[0])
            rows = np.frombuffer(payload, schema.topk_dtype(shape[layer][1]))
            step = int(rows["step"][0])
            same = (rows["experts"] == oracle.steps[step][:, layer_at[layer]]).all(axis=1)
            found["tokens"] += len(rows)
            found["tokens_equal"] += int(same.sum())
            if oracle.weights:
                found["weights"] += len(rows)
                found["weights_equal"] += int(
                    (rows["weights"] == oracle.weights[step][:, layer_at[layer]]).all(1).sum()
                )
    return {
        **found,
        "oracle_steps": len(oracle.steps) - oracle.idle,
        "oracle_cells": (len(oracle.steps) - oracle.idle) * len(oracle.layers),
        "idle": oracle.idle,
        "replayed_steps": sum(n > 0 for n in oracle.replays),
        "replays": sum(oracle.replays),
        "held_bytes": meta.get("held_bytes"),
        "capture": meta.get("capture"),
        "ended": json.loads(record.ended) if record.ended else None,
    }


def main() -> int:
    """Run one configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=MODES, default="full")
    parser.add_argument("--oracle", choices=["vllm", "copies"], default="copies")
    parser.add_argument("--family", default="qwen3_moe")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--requests", type=int, default=33)
    parser.add_argument("--longest", type=int, default=300)
    parser.add_argument("--attention", default="TRITON_ATTN")
    parser.add_argument("--kv-mib", type=int, default=2048)
    parser.add_argument("--tp", type=int, default=1, help="Ranks, started by torchrun; experts are shared out.")
    parser.add_argument("--dp", type=int, default=1, help="Likewise, data-parallel ranks.")
    parser.add_argument("--eplb", action="store_true")
    options = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    session = Path(tempfile.mkdtemp()) / "session"
    os.environ["NVTXMOE_SESSION_DIR"] = str(session)
    from vllm import LLM  # noqa: PLC0415

    oracle = Oracle(options.oracle, most_tokens=2048)
    oracle.install()
    extra: dict[str, Any] = {"enable_return_routed_experts": True} if options.oracle == "vllm" else {}
    if options.tp * options.dp > 1:  # one engine a rank, all in step: the oracle is in each rank's process
        extra |= {
            "distributed_executor_backend": "external_launcher",
            "tensor_parallel_size": options.tp,
            "data_parallel_size": options.dp,
            "enable_expert_parallel": True,
            "seed": 0,
        }
    if options.eplb:
        extra |= {
            "enable_eplb": True,
            "eplb_config": {
                "window_size": 8,
                "step_interval": 12,
                "num_redundant_experts": 2 * options.tp * options.dp,
            },
        }
    if MODES[options.mode]:
        extra["compilation_config"] = {**MODES[options.mode], "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64]}
    llm = LLM(
        model=str(model_folder(options.family, options.layers, options.experts, options.top_k)),
        load_format="dummy", skip_tokenizer_init=True, enforce_eager=options.mode == "eager", max_model_len=1024,
        max_num_batched_tokens=256, max_num_seqs=64, kv_cache_memory_bytes=options.kv_mib << 20,
        gpu_memory_utilization=0.3, attention_backend=options.attention, enable_prefix_caching=True, **extra,
    )  # fmt: skip
    dp_rank = int(os.environ["RANK"]) // options.tp if options.dp > 1 else None
    drive(llm, options.requests, options.longest, shared_prefix=True, dp_rank=dp_rank)
    llm.llm_engine.engine_core.shutdown()
    found = compare(next(session.glob(f"ranks/*-{os.getpid()}.journal")), oracle)
    cells = found["oracle_cells"]
    good = found["cells"] == found["cells_equal"] == cells and found["steps"] == found["oracle_steps"]
    good = good and found["tokens"] == found["tokens_equal"] and found["weights"] == found["weights_equal"]
    good = good and found["physical"] == found["physical_equal"] == (cells if options.eplb else 0)
    good = good and found["pairs"] == found["pairs_equal"]
    good = good and found["tokens"] == sum(len(step) for step in oracle.steps) * len(oracle.layers)
    print(json.dumps({"exact": good, **vars(options), **found}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
