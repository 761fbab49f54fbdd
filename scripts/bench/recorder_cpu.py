#!/usr/bin/env python3
"""CPU time per step of the recorder without a GPU: everything but the launch, the event and nsys itself.

    python scripts/bench/recorder_cpu.py [--layers 48] [--experts 128] [--pairs 15]
    python scripts/bench/recorder_cpu.py --against TREE   # TREE: another checkout, measured in turn in one process

Steps replay a stand-in for a CUDA graph whose layers were recorded, as in scripts/bench/overhead.py. The counting
kernel and CUDA events do nothing, and their memory is ordinary. The mode nsys needs nvtx 0.2.15 or newer, whose domain
is made to believe that a tool listens, so that payloads are copied as under nsys. In the mode closed no window is open
(NVTXMOE_WINDOW=closed). `calls` are the recorder's four
calls; `hooks` are nvtxmoe's hooks around a stand-in worker with 32 decoding requests, with these calls inside.

Between steps a real engine runs for milliseconds and the recorder's code and data leave the CPU's caches. `cold` rows
imitate that: 64 MB are written between steps. `warm` rows sleep for a millisecond. Prints JSON: per part the mean, the
median and the quartiles of blocks, in microseconds per step, of CPU time of the serving thread; `other_threads` is the
CPU time of all other threads, nvtxmoe's own above all.
With --against, blocks of both trees take turns, and `ratio` has the quartiles of this tree's block over the other's.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

TOKENS, TOP_K = 32, 8
THRASHED_BYTES = 64 << 20
STEPS_A_BLOCK = 16
PARTS = ("begin_step", "replayed", "forward_done", "end_step")
MODULES = {
    "counter": "recording.cuda_counter", "recorder": "recording.recorder", "graphs": "recording.cuda_graphs",
    "tensors": "recording.routing_tensors", "identity": "run_identity", "journal": "sinks.journal",
    "nvtx": "sinks.nvtx", "emitter": "sinks.nvtx_emitter", "hooks": "hooks", "layer_hooks": "vllm.layer_hooks",
    "worker_hooks": "vllm.worker_hooks", "windows": "recording.windows",
}  # fmt: skip


class Event:
    """A CUDA event that is done at once."""

    def record(self, stream: Any = None) -> None:
        """Nothing runs."""

    def query(self) -> bool:
        """Return True."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""


def modules_of(tree: Path) -> SimpleNamespace:
    """Import the capture package of a checkout, beside those of other checkouts."""
    for name in [name for name in sys.modules if name.split(".")[0] == "nvtxmoe"]:
        del sys.modules[name]
    sys.path.insert(0, str(tree))
    try:
        modules = {
            key: importlib.import_module(f"nvtxmoe.capture.{name}")
            for key, name in MODULES.items()
            if (tree / "nvtxmoe" / "capture" / f"{name.replace('.', '/')}.py").is_file()
        }
    finally:
        sys.path.remove(str(tree))
    return SimpleNamespace(**modules)


def without_gpu() -> None:
    """Put ordinary memory in the place of pinned memory, and stand-ins for events."""
    import torch  # noqa: PLC0415

    empty = torch.empty

    def ordinary(*shape: Any, pin_memory: bool = False, **more: Any) -> Any:
        assert pin_memory
        return empty(*shape, **more)

    torch.empty, torch.cuda.Event = ordinary, Event


def listening_domain() -> None:
    """Make nvtx believe that a tool listens."""
    import nvtx  # noqa: PLC0415

    lib = importlib.import_module("nvtx._lib.lib")  # it has no types
    domain = object.__new__(lib.Domain)
    domain.handle = lib.DomainHandle("nvtxmoe")
    lib.Domain.__init__(domain, "nvtxmoe")
    nvtx.get_domain = lambda _: domain


class Subject:
    """A recorder of one checkout with its hooks around a stand-in worker, and a captured graph."""

    def __init__(
        self,
        tree: Path,
        mode: str,
        layers: int,
        experts: int,
        *,
        histogram: Callable[..., None] = lambda *_: None,
        interval_s: float = 3600.0,
    ) -> None:
        import torch  # noqa: PLC0415

        code = modules_of(tree)
        identity = code.identity

        class Graph:
            """Stands for a torch.cuda.CUDAGraph."""

            def capture_begin(self) -> None:
                """Begin."""

            def capture_end(self) -> None:
                """End."""

            def replay(self) -> None:
                """Nothing runs."""

        class Worker:
            """Stands for vLLM's."""

            def __init__(self, graph: Graph) -> None:
                self.graph = graph

            def execute_model(self, _: Any) -> None:
                """Replay."""
                self.graph.replay()

            def sample_tokens(self) -> None:
                """Nothing runs."""

        def sinks(_: Any) -> Any:
            if mode == "closed":
                return code.windows.Windows((), (), lambda _: ())
            if mode == "nsys":
                return [code.nvtx.NvtxSink(code.emitter.BinaryEmitter())]
            return [code.journal.JournalSink(Path(tempfile.mkdtemp()), 0, interval_s)]

        self.recorder = code.recorder.Recorder(sinks, sample_every=0)
        infos = tuple(identity.LayerInfo(n, f"layers.{n}", experts, TOP_K) for n in range(layers))
        self.recorder.model_loaded(identity.Identity(layers=infos))
        self.recorder._counter = code.counter.CudaCounter(histogram)
        graph_class = torch.cuda.CUDAGraph
        torch.cuda.CUDAGraph = Graph
        code.graphs.hook_graphs(self.recorder.graphs, self.recorder.replayed)
        torch.cuda.CUDAGraph = graph_class
        capture = code.layer_hooks.Capture(self.recorder, None)
        code.hooks.wrap(Worker, "execute_model", code.worker_hooks.step_hook(capture))
        code.hooks.wrap(Worker, "sample_tokens", code.worker_hooks.sample_hook(capture))
        self.graph = Graph()
        self.graph.capture_begin()
        for layer in range(layers):
            ids = torch.randint(0, experts, (TOKENS, TOP_K), dtype=torch.int32)
            self.recorder.routed(code.tensors.RoutingTensors(layer, experts, ids, ids.float()))
        self.graph.capture_end()
        self.worker = Worker(self.graph)
        self.worker.execute_model(scheduled(0, new=True))
        self.worker.sample_tokens()

    def block(self, big: Any) -> dict[str, float]:
        """Microseconds per step of a block of steps: with hooks, then the recorder's calls alone."""
        times_ns: dict[str, int] = defaultdict(int)
        now, made, worker = time.thread_time_ns, self.recorder, self.worker
        others = 0
        for step in range(2 * STEPS_A_BLOCK):
            output = scheduled(step)
            between_steps(big)
            process, at = time.process_time_ns(), [now()]
            if step < STEPS_A_BLOCK:
                worker.execute_model(output)
                worker.sample_tokens()
                times_ns["hooks"] += now() - at[0]
            else:
                made.begin_step(TOKENS, TOKENS, 0, TOKENS)
                at.append(now())
                made.replayed(id(self.graph))
                at.append(now())
                made.forward_done()
                at.append(now())
                made.end_step()
                at.append(now())
                for name, begin_ns, ended in zip(PARTS, at, at[1:], strict=False):
                    times_ns[name] += ended - begin_ns
                times_ns["calls"] += at[-1] - at[0]
            time.sleep(0.002)  # other threads run now
            others += max(0, time.process_time_ns() - process - (now() - at[0]))
        parts_us = {name: ns / STEPS_A_BLOCK / 1000 for name, ns in times_ns.items()}
        return {**parts_us, "other_threads": others / 2 / STEPS_A_BLOCK / 1000}


def between_steps(big: Any) -> None:
    """What an engine does: 64 MB of memory and some Python, or a pause."""
    if big is None:
        time.sleep(0.001)
    else:
        big += 1
        json.dumps(list(map(str, range(100))))


def scheduled(step: int, new: bool = False) -> Any:
    """A SchedulerOutput of 32 requests of 16 prompt tokens, all of which decode unless new."""
    names = [f"r{number}" for number in range(TOKENS)]
    requests = [SimpleNamespace(req_id=name, num_computed_tokens=0, prompt_token_ids=[1] * 16) for name in names]
    cached = SimpleNamespace(req_ids=[] if new else names, num_computed_tokens=[] if new else [16 + step] * TOKENS)
    return SimpleNamespace(
        finished_req_ids=set(), scheduled_new_reqs=requests if new else [], scheduled_cached_reqs=cached,
        num_scheduled_tokens=dict.fromkeys(names, 1), total_num_scheduled_tokens=TOKENS,
    )  # fmt: skip


def measure(mode: str, options: argparse.Namespace, cold: bool) -> dict[str, Any]:
    """Times of the parts in one mode, of each tree."""
    import numpy as np  # noqa: PLC0415

    trees = {"this": ROOT} if options.against is None else {"this": ROOT, "against": options.against}
    subjects = {name: Subject(tree, mode, options.layers, options.experts) for name, tree in trees.items()}
    big = np.zeros(THRASHED_BYTES // 8, np.int64) if cold else None
    blocks: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for number in range(options.pairs + 1):
        order = list(subjects) if number % 2 else list(reversed(subjects))
        for name in order:
            block = subjects[name].block(big)
            if number:  # the first is the warm-up
                blocks[name].append(block)
    for subject in subjects.values():
        subject.recorder.close()
    measures: dict[str, Any] = {"mode": mode, "cold": cold, "blocks": options.pairs, "steps_a_block": STEPS_A_BLOCK}
    for name, measured in blocks.items():
        measures[name] = {part: summary([block[part] for block in measured]) for part in measured[0]}
    if options.against is not None:
        measures["ratio"] = {
            part: [round(q, 3) for q in statistics.quantiles(
                [this[part] / other[part] for this, other in zip(blocks["this"], blocks["against"], strict=True)], n=4
            )]
            for part in ("calls", "hooks")
        }  # fmt: skip
    return measures


def summary(times_us: list[float]) -> dict[str, float]:
    """Mean, median and quartiles."""
    low, middle, high = statistics.quantiles(times_us, n=4)
    statistics_us = {"mean": statistics.fmean(times_us), "median": middle, "q1": low, "q3": high}
    return {name: round(us, 1) for name, us in statistics_us.items()}


def main() -> None:
    """Measure the modes, warm and cold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=15, help="Blocks of 16 steps, per tree.")
    parser.add_argument("--mode", choices=["moe", "nsys", "closed"], action="append", help="By default all.")
    parser.add_argument("--against", type=Path, metavar="TREE", help="Another checkout.")
    options = parser.parse_args()
    from importlib.metadata import version  # noqa: PLC0415

    import torch  # noqa: PLC0415, F401

    without_gpu()
    listening_domain()
    gc.collect()
    print(json.dumps({
        "layers": options.layers, "experts": options.experts, "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(), **{name: version(name) for name in ("numpy", "torch", "nvtx")},
    }))  # fmt: skip
    for mode in options.mode or ("moe", "nsys", *(() if options.against else ("closed",))):
        for cold in (False, True):
            print(json.dumps(measure(mode, options, cold)), flush=True)


if __name__ == "__main__":
    main()
