#!/usr/bin/env python3
"""What recording costs a real vLLM on a GPU: GPU and CPU time a step, recording toggled in alternating blocks.

    python scripts/bench/overhead.py                      # direct mode; off and on in turn in one process
    python scripts/bench/overhead.py --nsys /path/to/nsys # that, and then both modes in a process under nsys
    python scripts/bench/overhead.py --variant none|copies|vllm  # another way to record, to compare with none

The model has the shape of Qwen3-30B-A3B (48 layers, 128 experts, top-8, hidden 2048, expert width 768) with random
weights, decoding 32 requests under full CUDA graphs. GPU time is that between an event just before the graph's replay
and one after everything that the step enqueued up to the end of ``execute_model``: forward, logits, and the counting.
Counting is measured with the launch that was tried out at the start, and with that by Triton.
Prints JSON lines: medians of blocks, and the median of paired differences with a bootstrapped 95 % interval. CPU time
is that of the recorder's calls and, apart, of the hooks with all that they call, on the serving thread: the mean and
the quartiles of blocks. That of nvtxmoe's thread that sends counts is per recorded step. The rows `parts` time what
these calls consist of, which makes the sum larger.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SHAPE = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BATCH = 32
MOST_ROWS = 16384  # of a forward: the engine tries its largest batch first


class Clock:
    """GPU time of each step's window, and CPU time spent in the recorder."""

    def __init__(self) -> None:
        self.windows: list[tuple[Any, Any]] = []
        self.cpu_ns: Counter[str] = Counter()
        self._begin: Any = None

    def install(self) -> None:
        """Wrap the graph's replay innermost and the worker's step outermost."""
        import torch  # noqa: PLC0415
        from vllm.v1.worker.gpu_worker import Worker  # noqa: PLC0415

        replay, execute = torch.cuda.CUDAGraph.replay, Worker.execute_model

        def replayed(graph: Any) -> Any:
            if self._begin is None:
                self._begin = torch.cuda.Event(enable_timing=True)
                self._begin.record()
            return replay(graph)

        def executed(worker: Any, scheduled: Any) -> Any:
            self._begin = None
            result = execute(worker, scheduled)
            if self._begin is not None:
                end = torch.cuda.Event(enable_timing=True)
                end.record()
                self.windows.append((self._begin, end))
            return result

        torch.cuda.CUDAGraph.replay, Worker.execute_model = replayed, executed

    def timed(self, owner: Any, name: str, part: str | None = None) -> Callable[[], None]:
        """Add the time of a function to ``cpu_ns`` under a name, and return what ends that."""
        original, own_attribute = getattr(owner, name), name in vars(owner)

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter_ns()
            try:
                return original(*args, **kwargs)
            finally:
                self.cpu_ns[part or name] += time.perf_counter_ns() - began

        setattr(owner, name, call)
        return lambda: setattr(owner, name, original) if own_attribute else delattr(owner, name)

    def timed_launches(self, counter: Any) -> Callable[[], None]:
        """Time launches into memory that was launched into before; the first ones are not timed."""
        quickest = counter._quickest

        def timed_quickest(*args: Any) -> Callable[[int], None]:
            call = quickest(*args)

            def launch(num_tokens: int) -> None:
                began = time.perf_counter_ns()
                call(num_tokens)
                self.cpu_ns["part launch"] += time.perf_counter_ns() - began

            return launch

        def end() -> None:
            counter._quickest = quickest
            counter.launch_by_driver(counter._by_driver)  # makes the plans anew

        counter._quickest = timed_quickest
        counter.launch_by_driver(counter._by_driver)
        return end

    def take_us(self) -> float:
        """Median window since the last call."""
        import torch  # noqa: PLC0415

        torch.cuda.synchronize()
        times = [begin.elapsed_time(end) * 1000 for begin, end in self.windows]
        self.windows.clear()
        return float(statistics.median(times))


def record_copies() -> None:
    """The prototype's way: copy ids and weights in every layer, inside the graph."""
    import torch  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter  # noqa: PLC0415

    select, buffers = BaseRouter._select_experts, {}

    def selected(router: Any, *args: Any, **kwargs: Any) -> Any:
        weights, ids = select(router, *args, **kwargs)
        if id(router) not in buffers:
            buffers[id(router)] = (
                torch.zeros(MOST_ROWS, ids.shape[1], dtype=ids.dtype, device="cuda"),
                torch.zeros(MOST_ROWS, ids.shape[1], device="cuda"),
            )
        for buffer, value in zip(buffers[id(router)], (ids, weights), strict=True):
            buffer[: len(value)].copy_(value)
        return weights, ids

    BaseRouter._select_experts = selected


def switch(on: bool) -> None:
    """Turn every hook of nvtxmoe on or off."""
    from nvtxmoe.capture.hooks import REGISTRY  # noqa: PLC0415

    for hook in REGISTRY.values():
        hook.failure = None if on else "off for the measurement"


def paired(on: list[float], off: list[float]) -> dict[str, Any]:
    """Median of paired differences, with a bootstrapped interval of 95 %."""
    differences = [a - b for a, b in zip(on, off, strict=True)]
    base = statistics.median(off)
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(differences, k=len(differences))) for _ in range(2000))
    low, middle, high = medians[50], statistics.median(differences), medians[-51]
    return {
        "off_us": round(base, 2), "on_us": round(statistics.median(on), 2), "added_us": round(middle, 2),
        "added_us_ci95": [round(low, 2), round(high, 2)], "added_pct": round(100 * middle / base, 3),
        "added_pct_ci95": [round(100 * low / base, 3), round(100 * high / base, 3)], "pairs": len(differences),
        "off_us_range": [round(min(off), 2), round(max(off), 2)],
    }  # fmt: skip


def main() -> None:
    """Run one variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=["ours", "none", "copies", "vllm"], default="ours")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--blocks", type=int, default=150)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only-counts", action="store_true", help="Neither sampled tokens nor pairs.")
    parser.add_argument("--nsys", help="Run a second time under this nsys.")
    options = parser.parse_args()
    if options.nsys:
        sys.exit(bare_and_under(options.nsys))
    faulthandler.register(signal.SIGTERM, all_threads=True, chain=True)  # where it stood when its time was up
    os.environ.setdefault("NVTXMOE_MODE", "both")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["NVTXMOE_SESSION_DIR"] = str(Path(tempfile.mkdtemp()) / "session")
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps({**SHAPE, "num_hidden_layers": options.layers}))
    if options.variant == "ours":
        from nvtxmoe.capture.startup.start import start  # noqa: PLC0415

        os.environ.setdefault("NVTXMOE_ENABLE", "1")
        start()  # where nvtxmoe is not installed as vLLM's plugin; else it does nothing more
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    clock = Clock()
    clock.install()
    if options.variant == "copies":
        record_copies()
    llm = LLM(
        model=str(folder), load_format="dummy", skip_tokenizer_init=True, max_model_len=8192, max_num_seqs=BATCH,
        gpu_memory_utilization=0.9, attention_backend="TRITON_ATTN", enable_prefix_caching=False,
        compilation_config={"cudagraph_mode": "FULL", "cudagraph_capture_sizes": [BATCH]},
        enable_return_routed_experts=options.variant == "vllm",
    )  # fmt: skip
    params = SamplingParams(max_tokens=8000, temperature=0, detokenize=False, ignore_eos=True)
    for number in range(BATCH):
        llm.llm_engine.add_request(f"r{number}", {"prompt_token_ids": [number + 3] * 16}, params)

    def steps(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            llm.llm_engine.step()
        return (time.perf_counter() - began) / count * 1e6

    steps(60)
    clock.take_us()
    print(json.dumps({"variant": options.variant, **versions()}), flush=True)
    if options.variant != "ours":
        blocks = [(steps(options.steps), clock.take_us()) for _ in range(options.blocks)]
        windows = [window for _, window in blocks]
        print(json.dumps({
            "way": options.variant, "gpu_us": round(statistics.median(windows), 2),
            "range": [round(min(windows), 2), round(max(windows), 2)],
            "wall_us": round(statistics.median(wall for wall, _ in blocks), 1),
        }), flush=True)  # fmt: skip
        return
    measure(options, clock, steps)


#: As where the launch by the driver was wrong when it was tried out.
BY_TRITON = "counts, launched by Triton"
#: Calls of the recorder, whose sum is ``cpu_us_a_step``.
CALLS = ("begin_step", "replayed", "forward_done", "end_step")
#: Hooks of vLLM's worker and of PyTorch's graphs: with all that runs because of them.
HOOKS = (("step", "enter"), ("step", "leave"), ("sample", "leave"), ("graph_replay", "enter"))


def spread(blocks: list[Counter[str]], names: Iterable[str], steps: int) -> dict[str, list[float]]:
    """Quartile, median and quartile of microseconds per step over blocks, by part."""
    out = {}
    for name in names:
        quartiles = statistics.quantiles([block[name] / steps / 1000 for block in blocks], n=4)
        out[name] = [round(us, 1) for us in quartiles]
    return out


def sinks_by_mode(recorder: Any) -> dict[str, list[Any]]:
    """The recorder's sinks by mode; that of nsys only where it listens, since nvtx does nothing without it."""
    from nvtxmoe.capture.startup.start import UNDER_NSYS  # noqa: PLC0415

    nsys = any(os.environ.get(name) for name in UNDER_NSYS)
    by_mode = {"moe" if sink.encoding == "journal" else "nsys": [sink] for sink in recorder.recorded.sinks}
    return {mode: sinks for mode, sinks in by_mode.items() if mode == "moe" or nsys}


def measure(options: argparse.Namespace, clock: Clock, steps: Callable[[int], float]) -> None:
    """Ours against nothing in each mode: counts, with samples, with pairs, and the parts of counts."""
    from nvtxmoe.capture.hooks import REGISTRY  # noqa: PLC0415
    from nvtxmoe.capture.recording.pair_counter import PairCounts  # noqa: PLC0415
    from nvtxmoe.capture.recording.windows import EveryStep  # noqa: PLC0415

    capture = REGISTRY["step"].enter.__closure__  # the hooks' state, to reach the recorder
    recorder = next(cell.cell_contents.recorder for cell in capture or () if hasattr(cell.cell_contents, "recorder"))
    for name in ("begin_step", "forward_done", "end_step"):
        clock.timed(recorder, name)
    clock.timed(recorder._routing, "replayed")
    for name, moment in HOOKS:
        clock.timed(REGISTRY[name], moment, f"hook {name}.{moment}")
    tried_out = recorder._counter._by_driver
    print(json.dumps({"launches_by_driver": tried_out}), flush=True)
    ways: dict[str, tuple[int, bool, bool]] = {
        "counts": (0, False, tried_out),
        "parts": (0, False, tried_out),
        BY_TRITON: (0, False, False),
        "parts, launched by Triton": (0, False, False),
        "counts, and sampled tokens in every step": (1, False, tried_out),
        "counts, and exact pairs": (0, True, tried_out),
    }
    if options.only_counts:
        ways = {way: setting for way, setting in ways.items() if setting[:2] == (0, False)}
    modes = sinks_by_mode(recorder)
    for way, (every, pairs, by_driver) in ways.items():
        for mode, sinks in modes.items():
            recorder.settle()  # what is under way belongs to the sinks before
            recorder.recorded, recorder._steps_a_send = EveryStep(sinks), sinks[0].steps_a_send
            recorder._sample_every = every
            recorder._emit = frozenset({"counts", "topk", "physical"})
            recorder._pairs = PairCounts() if pairs else None
            recorder._counter.launch_by_driver(by_driver)
            undo = timed_parts(clock, recorder, sinks[0]) if way.startswith("parts") else []
            steps(options.steps)  # plans are made anew
            blocks = options.blocks if way in ("counts", BY_TRITON) else max(4, options.blocks // 5)
            measured = {"mode": mode, "way": way, **in_blocks(clock, steps, blocks, options.steps, recorder)}
            for end in undo:
                end()
            print(json.dumps(measured), flush=True)
    print(
        json.dumps({"held_bytes": recorder.graphs.held_bytes, "lost": dict(recorder.lost), "hidden": recorder.hidden})
    )


def timed_parts(clock: Clock, recorder: Any, sink: Any) -> list[Callable[[], None]]:
    """Time what the recorder's calls consist of; return what ends that."""
    counter = recorder._counter
    inner = [(recorder._routing, "begin"), (recorder._routing, "end"), (counter, "submit")]
    inner += [(counter._streams, "record"), (sink, "step_begins"), (sink, "step_ends")]
    undo = [clock.timed(owner, name, f"part {name}") for owner, name in inner]
    undo.append(clock.timed_launches(counter))
    # In the thread that sends: not a part of the calls.
    apart_functions = [(recorder, "_arrived"), (recorder._events, "send"), (sink, "payloads")]
    return undo + [clock.timed(owner, name, f"sending thread {name}") for owner, name in apart_functions]


def sending_ns(recorder: Any) -> int:
    """CPU time of the thread that sends counts."""
    thread = recorder._sending.thread
    return time.clock_gettime_ns(time.pthread_getcpuclockid(thread.ident)) if thread.is_alive() else 0


def in_blocks(
    clock: Clock, steps: Callable[[int], float], blocks: int, steps_a_block: int, recorder: Any
) -> dict[str, Any]:
    """Measure with recording off and on in turn."""
    gpu: dict[bool, list[float]] = {True: [], False: []}
    wall: dict[bool, list[float]] = {True: [], False: []}
    parts: list[Counter[str]] = []
    began_ns, began_at = sending_ns(recorder), recorder.steps
    for block in range(2 * blocks):
        on = bool(block % 2) ^ bool(block // 2 % 2)  # off on on off: drift cancels
        switch(on)
        steps(1)
        clock.take_us()
        clock.cpu_ns.clear()
        wall[on].append(steps(steps_a_block))
        gpu[on].append(clock.take_us())
        if on:
            parts.append(Counter(clock.cpu_ns))
    switch(True)
    names = sorted({name for part in parts for name in part})
    for part in parts:
        part["calls"] = sum(part[name] for name in CALLS)
        part["hooks"] = sum(ns for name, ns in part.items() if name.startswith("hook "))
    mean_us = {
        name: round(statistics.fmean(part[name] for part in parts) / steps_a_block / 1000, 1)
        for name in ("calls", "hooks", *names)
    }
    return {
        **paired(gpu[True], gpu[False]), "cpu_us_a_step": mean_us["calls"],
        "cpu_us_a_step_with_hooks": mean_us["hooks"], "cpu_us_by_part": mean_us,
        "cpu_us_quartiles_of_blocks": spread(parts, ("calls", "hooks", *names), steps_a_block),
        "cpu_us_a_step_of_sending_thread": round(
            (sending_ns(recorder) - began_ns) / max(1, recorder.steps - began_at) / 1000, 1
        ),
        "wall": paired(wall[True], wall[False]), "steps_a_block": steps_a_block,
    }  # fmt: skip


def versions() -> dict[str, Any]:
    """What was measured, and on what."""
    import importlib.metadata  # noqa: PLC0415
    import platform  # noqa: PLC0415

    import torch  # noqa: PLC0415

    versions = {"device": torch.cuda.get_device_name(), "python": platform.python_version(), "cpus": os.cpu_count()}
    for name in ("vllm", "torch", "triton", "nvtx", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        **versions,
        "under_nsys": "NSYS_PROFILING_SESSION_ID" in os.environ or "NVTX_INJECTION64_PATH" in os.environ,
    }


def bare_and_under(nsys: str) -> int:
    """Run this script once without nsys and once under it, and return the larger exit status."""
    arguments = [sys.executable, *sys.argv]
    at = arguments.index("--nsys") if "--nsys" in arguments else None
    arguments = (
        [word for word in arguments if not word.startswith("--nsys=")]
        if at is None
        else arguments[:at] + arguments[at + 2 :]
    )
    report = str(Path(tempfile.mkdtemp()) / "report")
    under = [nsys, "profile", "-t", "cuda,nvtx", "--cuda-graph-trace=node", "-s", "none", "--cpuctxsw=none"]
    status = 0
    for command in (arguments, [*under, "-o", report, *arguments]):
        status = max(status, abs(subprocess.run(command, check=False).returncode))
    print(json.dumps({"report": f"{report}.nsys-rep"}))
    return status


if __name__ == "__main__":
    main()
