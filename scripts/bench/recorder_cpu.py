#!/usr/bin/env python3
"""CPU time per step of the recorder without a GPU: everything but the launch, the event and nsys itself.

    python scripts/bench/recorder_cpu.py [--layers 48] [--experts 128] [--steps 600]

Steps replay a stand-in for a CUDA graph whose layers were recorded, as in scripts/bench/overhead.py. The counting
kernel and CUDA events do nothing, and their memory is ordinary. The mode nsys needs nvtx 0.2.15 or newer, whose domain
is made to believe that a tool listens, so that payloads are copied as under nsys.

Between steps a real engine runs for milliseconds and the recorder's code and data leave the CPU's caches. `cold` rows
imitate that: 64 MB are written between steps. Prints JSON: per part of the step the mean, the median and the quartiles
over steps, in microseconds, of CPU time of the thread. In direct mode every 16th step sends the counts of 16 steps: the
mean has its share.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TOKENS, TOP_K = 32, 8
THRASHED_BYTES = 64 << 20
PARTS = ("begin_step", "replayed", "forward_done", "end_step")


class Event:
    """A CUDA event that is done at once."""

    def record(self, stream: Any = None) -> None:
        """Nothing runs."""

    def query(self) -> bool:
        """Return True."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""


class Graph:
    """Stands for a torch.cuda.CUDAGraph."""


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
    import importlib  # noqa: PLC0415

    import nvtx  # noqa: PLC0415

    lib = importlib.import_module("nvtx._lib.lib")  # it has no types
    domain = object.__new__(lib.Domain)
    domain.handle = lib.DomainHandle("nvtxmoe")
    lib.Domain.__init__(domain, "nvtxmoe")
    nvtx.get_domain = lambda _: domain


def recorder(mode: str, layers: int, experts: int) -> Any:
    """A recorder of ``layers`` layers that counts on the stand-in device."""
    from nvtxmoe.capture.recording.cuda_counter import CudaCounter  # noqa: PLC0415
    from nvtxmoe.capture.recording.recorder import Recorder  # noqa: PLC0415
    from nvtxmoe.capture.run_identity import Identity, LayerInfo  # noqa: PLC0415
    from nvtxmoe.capture.sinks.journal import JournalSink  # noqa: PLC0415
    from nvtxmoe.capture.sinks.nvtx import NvtxSink  # noqa: PLC0415
    from nvtxmoe.capture.sinks.nvtx_emitter import BinaryEmitter  # noqa: PLC0415

    def sinks(_: Any) -> list[Any]:
        if mode == "nsys":
            return [NvtxSink(BinaryEmitter())]
        return [JournalSink(Path(tempfile.mkdtemp()), 0, 3600.0)]

    made = Recorder(sinks, sample_every=0)
    made.model_loaded(Identity(layers=tuple(LayerInfo(n, f"layers.{n}", experts, TOP_K) for n in range(layers))))
    made._counter = CudaCounter(lambda *_: None)
    return made


def captured(made: Any, layers: int, experts: int) -> Graph:
    """A graph with all layers in it."""
    import torch  # noqa: PLC0415

    from nvtxmoe.capture.recording.routing_tensors import RoutingTensors  # noqa: PLC0415

    graph = Graph()
    made.graphs.begin(graph)
    for layer in range(layers):
        ids = torch.randint(0, experts, (TOKENS, TOP_K), dtype=torch.int32)
        made.routed(RoutingTensors(layer, experts, ids, ids.float()))
    made.graphs.end(graph)
    return graph


def measure(mode: str, options: argparse.Namespace, cold: bool) -> dict[str, Any]:
    """Times of the parts in one mode."""
    import numpy as np  # noqa: PLC0415

    made = recorder(mode, options.layers, options.experts)
    graph = captured(made, options.layers, options.experts)
    big = np.zeros(THRASHED_BYTES // 8, np.int64)
    times_ns: dict[str, list[int]] = defaultdict(list)
    now = time.thread_time_ns
    for step in range(options.steps + 32):
        if cold:
            big += 1
            json.dumps(list(map(str, range(100))))  # an engine's Python runs just before
        at = [now()]
        made.begin_step(TOKENS, TOKENS, 0, TOKENS)
        at.append(now())
        made.replayed(id(graph))
        at.append(now())
        made.forward_done()
        at.append(now())
        made.end_step()
        at.append(now())
        if step >= 32:
            for name, begun, ended in zip(PARTS, at, at[1:], strict=False):
                times_ns[name].append(ended - begun)
            times_ns["step"].append(at[-1] - at[0])
    made.close()
    return {
        "mode": mode, "cold": cold, "steps": options.steps,
        **{name: summary(ns) for name, ns in times_ns.items()},
    }  # fmt: skip


def summary(times_ns: list[int]) -> dict[str, float]:
    """Mean, median and quartiles in microseconds."""
    low, middle, high = statistics.quantiles(times_ns, n=4)
    found = {"mean": statistics.fmean(times_ns), "median": middle, "q1": low, "q3": high}
    return {name: round(ns / 1000, 1) for name, ns in found.items()}


def main() -> None:
    """Measure both modes, warm and cold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--mode", choices=["moe", "nsys"], action="append", help="Both by default.")
    options = parser.parse_args()
    import numpy as np  # noqa: PLC0415
    import nvtx  # noqa: PLC0415, F401
    import torch  # noqa: PLC0415

    from nvtxmoe.capture.sinks.nvtx_emitter import nvtx_version  # noqa: PLC0415

    without_gpu()
    listening_domain()
    gc.collect()
    print(json.dumps({
        "layers": options.layers, "experts": options.experts, "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__,
        "nvtx": ".".join(map(str, nvtx_version())),
    }))  # fmt: skip
    for mode in options.mode or ("moe", "nsys"):
        for cold in (False, True):
            print(json.dumps(measure(mode, options, cold)), flush=True)


if __name__ == "__main__":
    main()
