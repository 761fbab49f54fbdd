#!/usr/bin/env python3
"""A small mixture of experts in an engine process of its own, under CUDA graphs, that ends as vLLM does.

    nvtxmoe profile -o out -- python scripts/gpu/graph_program.py --steps 200

The main process starts the engine, lets it run, then sends SIGTERM, waits for five seconds and kills: what is not
written by then is lost. The engine records with ``nvtxmoe.MoEExpertProfiler``.
Options make it end in other ways: at once by SIGKILL (``--killed``), or only after Ctrl-C (``--forever``).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
LAYERS, EXPERTS, TOP_K, HIDDEN = 4, 16, 2, 256
SIZES = (8, 32)


def engine(options: argparse.Namespace, out: Any) -> None:
    """Capture two graphs, replay them, run eagerly now and then."""

    def stop(*_: Any) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as vLLM's engine: the main process decides
    import torch  # noqa: PLC0415  in the engine only

    from nvtxmoe.profiler import MoEExpertProfiler  # noqa: PLC0415

    session = os.environ.get("NVTXMOE_SESSION_DIR") or tempfile.mkdtemp()
    profiler = MoEExpertProfiler(session, log_interval=20, nvtx=True)
    torch.manual_seed(options.seed)
    gates = [torch.randn(HIDDEN, EXPERTS, device="cuda") for _ in range(LAYERS)]
    experts = [torch.randn(EXPERTS, HIDDEN, HIDDEN, device="cuda") / HIDDEN for _ in range(LAYERS)]

    def forward(x: torch.Tensor) -> torch.Tensor:
        for number in range(LAYERS):
            with profiler.layer(number):
                scores = (x @ gates[number]).softmax(-1)
                with profiler.phase(number, "route"):
                    weights, ids = scores.topk(TOP_K)
                profiler.record_expert_selection(number, ids, weights, EXPERTS, TOP_K)
                with profiler.phase(number, "experts"):
                    y = torch.einsum("th,ehk->tek", x, experts[number])
                    y = y.gather(1, ids[..., None].expand(-1, -1, HIDDEN))
                with profiler.phase(number, "combine"):
                    x = x + (y * weights[..., None]).sum(1)
        return x

    inputs = {size: torch.randn(size, HIDDEN, device="cuda") for size in SIZES}
    graphs = {}
    with torch.inference_mode():
        with torch.cuda.stream(torch.cuda.Stream()), profiler.step(1):
            forward(inputs[SIZES[0]])
        torch.cuda.synchronize()
        for size in SIZES:
            graphs[size] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[size]):
                forward(inputs[size])
        done, rng = 1, torch.Generator().manual_seed(options.seed)
        try:
            while options.forever or done < options.steps:
                tokens = int(torch.randint(1, max(SIZES) + 1, (), generator=rng))
                size = next(s for s in SIZES if s >= tokens)
                inputs[size].normal_()
                with profiler.step(tokens):
                    if done % 7 == 0:
                        forward(inputs[size])
                    else:
                        graphs[size].replay()
                done += 1
                if done % 20 == 0:
                    out.send(("alive", done))
            out.send(("done", done))
            while True:
                time.sleep(0.05)
        finally:
            profiler.close()


def main() -> int:
    """Start the engine and end it as vLLM does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--killed", action="store_true", help="SIGKILL, without SIGTERM: events are lost")
    parser.add_argument("--forever", action="store_true", help="run until Ctrl-C")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=engine, args=(options, sender), daemon=False)
    process.start()
    steps, state = 0, "alive"
    try:
        while state != "done" and process.is_alive():
            if receiver.poll(0.2):
                state, steps = receiver.recv()
                if options.forever:
                    print(json.dumps({"steps_so_far": steps}), flush=True)
    except KeyboardInterrupt:
        pass
    began = time.monotonic()
    (process.kill if options.killed else process.terminate)()
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()
    ended_s = time.monotonic() - began
    print(json.dumps({"steps": steps, "exitcode": process.exitcode, "ended_s": round(ended_s, 2)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
