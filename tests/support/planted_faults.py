"""Captures of vLLM-like decode runs with one known problem each, built kernel by kernel.

Every run begins with steps that are launched eagerly and twenty times slower: start-up, which no finding may be of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.collective_simulation import REDUCE
from tests.support.export_builder import Export, Process

ATTENTION, MATMUL = "flash_fwd_kernel", "fused_moe_kernel"
START_UP, SLOWER = 2, 20
#: Between the beginning of a step's launch and its first kernel, ns.
LAUNCH_NS = 20_000

#: Sizes of an expert whose weights are 3.1 MB, and the GPU that reads 4.8 TB/s.
SIZES = {
    "expert_bytes": 3 * 1024 * 512 * 2, "hidden_size": 1024, "intermediate_size": 512, "gated": True,
    "activation_dtype": "bfloat16", "input_dtype": "bfloat16",
}  # fmt: skip


@dataclass(frozen=True)
class Load:
    """What a rank's experts have to do in a layer of a step."""

    step: int
    layer: int
    rank: int
    assignments: int
    active: int
    tile_rows: int


@dataclass(frozen=True)
class Planted:
    """A run.

    Attributes:
        tokens: of each step, as many as it has steps after start-up.
        popularity: relative chance of each expert.
        held: experts of each rank; None: all ranks hold all.
        matmul_ns: the time of the experts' products, from the load.
        attention_ns: before each layer, by layer and rank. late_ns: of a rank's step.
        transfer_ns: of each collective; there is one per layer if there are several ranks.
        prefill: tokens of a step that are prefill.
        eager: steps that do not replay a CUDA graph. gap_ns: between their kernels.
        cut: the last step has no counts.
    """

    tokens: Sequence[int] = tuple(90 + step % 7 for step in range(24))
    ranks: int = 2
    layers: int = 3
    popularity: Sequence[float] = (1.0,) * 16
    held: Sequence[Sequence[int]] | None = None
    matmul_ns: Callable[[Load], float] = lambda load: 14_000 + 100 * ((load.step * 7 + load.layer * 3) % 5)
    attention_ns: Callable[[int, int], int] = lambda layer, rank: 8_000
    late_ns: Callable[[int, int], int] = lambda step, rank: 0
    transfer_ns: int = 1_000
    prefill: Callable[[int], int] = lambda step: 0
    eager: Callable[[int], bool] = lambda step: False
    gap_ns: int = 0
    cut: bool = False
    device: str = "a device"
    layer_meta: dict[str, Any] = field(default_factory=dict)
    block_m: int = 16
    top_k: int = 2

    def write(self, path: Path) -> Path:
        """Write the export."""
        return _Builder(self).export().save(path)


class _Builder:
    def __init__(self, planted: Planted) -> None:
        self.planted = planted
        self.random = np.random.default_rng(1)
        self.made = Export()
        self.workers = [self._worker(rank) for rank in range(planted.ranks)]

    def export(self) -> Export:
        """Build the whole run."""
        planted = self.planted
        steps = START_UP + len(planted.tokens)
        for step in range(steps):
            tokens = planted.tokens[max(0, step - START_UP)]
            counts = [self._counts(tokens) for _ in range(planted.layers)]
            self._step(step, tokens, counts)
            if planted.cut and step == steps - 1:
                continue
            for worker in self.workers:
                for layer, of_layer in enumerate(counts):
                    worker.counts(step, layer, of_layer, tokens=tokens)
        return self.made

    def _worker(self, rank: int) -> Process:
        planted = self.planted
        size = planted.ranks if planted.held is not None else 1
        meta = {"ep_rank": rank if size > 1 else 0, "ep_size": size, "device": planted.device}
        worker = Process(
            self.made, pid=100 + rank, rank=rank, world_size=planted.ranks, tp_size=planted.ranks,
            layers=planted.layers, experts=len(planted.popularity), top_k=planted.top_k, meta=meta,
        )  # fmt: skip
        for layer in worker.meta["layers"]:
            held = None if planted.held is None else list(planted.held[rank])
            layer.update({"block_m": planted.block_m, "local_experts": held, **planted.layer_meta})
        worker.send_meta()
        self._capture_graph(worker)
        return worker

    def _slots(self) -> list[tuple[str, int]]:
        """Kernels of a step: kind and layer."""
        kinds = ("attention", "experts", "collective") if self.planted.ranks > 1 else ("attention", "experts")
        return [(kind, layer) for layer in range(self.planted.layers) for kind in kinds]

    def _capture_graph(self, worker: Process) -> None:
        for node, (kind, layer) in enumerate(self._slots(), 1):
            if kind == "attention":
                worker.create_node(node)
            elif kind == "collective":
                with worker.phase("collective", layer):
                    worker.create_node(node)
            else:
                with worker.layer(layer), worker.phase("experts", layer):
                    worker.create_node(node)
        for node in range(1, len(self._slots()) + 1):
            worker.clone_node(1000 + node, node)

    def _counts(self, tokens: int) -> list[int]:
        """Each token chooses different experts by their popularity."""
        drawn = np.log(np.maximum(self.planted.popularity, 1e-30)) + self.random.gumbel(
            size=(tokens, len(self.planted.popularity))
        )
        chosen = np.argpartition(-drawn, self.planted.top_k, axis=1)[:, : self.planted.top_k]
        return np.bincount(chosen.ravel(), minlength=len(self.planted.popularity)).tolist()  # type: ignore[no-any-return]

    def _load(self, step: int, layer: int, rank: int, counts: Sequence[int]) -> Load:
        held = range(len(counts)) if self.planted.held is None else self.planted.held[rank]
        mine = np.array([counts[expert] for expert in held])
        tiles = int((-(-mine // self.planted.block_m)).sum())
        return Load(step, layer, rank, int(mine.sum()), int((mine > 0).sum()), tiles * self.planted.block_m)

    def _step(self, step: int, tokens: int, counts: Sequence[Sequence[int]]) -> None:
        planted = self.planted
        start_up = step < START_UP
        slower = SLOWER if start_up else 1
        eager = start_up or planted.eager(step)
        self.made.tick(1_000)
        open_steps = [worker.step(step, tokens, planted.prefill(step)) for worker in self.workers]
        for opened in open_steps:
            opened.__enter__()
        launches = [None if eager else worker.call("cudaGraphLaunch_v10000") for worker in self.workers]
        begun = self.made.now + LAUNCH_NS
        now = [begun + planted.late_ns(step, rank) for rank in range(planted.ranks)]
        for node, (kind, layer) in enumerate(self._slots(), 1):
            for rank in range(planted.ranks):
                now[rank] += planted.gap_ns if eager and node > 1 else 0
            last = max(now)
            for rank, worker in enumerate(self.workers):
                if kind == "collective":
                    ns, name = last + slower * planted.transfer_ns - now[rank], REDUCE
                elif kind == "attention":
                    ns, name = slower * planted.attention_ns(layer, rank), ATTENTION
                else:
                    load = self._load(step, layer, rank, counts[layer])
                    ns, name = slower * round(planted.matmul_ns(load)), MATMUL
                self._kernel(worker, kind, layer, ns, name, now[rank], launches[rank], node)
                now[rank] += ns
        self.made.now = max(*now, self.made.now) + 1_000
        for opened in open_steps:
            opened.__exit__(None, None, None)

    def _kernel(
        self, worker: Process, kind: str, layer: int, ns: int, name: str, start: int, launch: int | None, node: int
    ) -> None:
        if launch is not None:
            worker.kernel(ns, name, correlation=launch, node=1000 + node, start=start)
        elif kind == "attention":
            worker.kernel(ns, name, start=start)
        elif kind == "collective":
            with worker.phase("collective", layer):
                worker.kernel(ns, name, start=start)
        else:
            with worker.layer(layer), worker.phase("experts", layer):
                worker.kernel(ns, name, start=start)


def small(steps: int = 24) -> tuple[int, ...]:
    """Batches of few tokens, which vary."""
    return tuple(2 + step * 5 % 7 for step in range(steps))


def hot(skew: float, experts: int = 16) -> tuple[float, ...]:
    """Popularities that fall from expert to expert."""
    return tuple(float(np.exp(-skew * expert)) for expert in range(experts))


#: Id of the finding that must come first, by the name of the run.
FAULTS: dict[str, tuple[str, Planted]] = {
    "healthy": ("healthy", Planted()),
    "healthy, with sizes of experts": ("healthy", Planted(device="NVIDIA H200", layer_meta=SIZES)),
    "slow rank": ("slow-rank", Planted(matmul_ns=lambda load: 14_000 * (1.0, 1.4)[load.rank] + 50 * (load.step % 5))),
    "hot experts": (
        "uneven-ranks",
        Planted(
            popularity=hot(0.25), held=(range(8), range(8, 16)), matmul_ns=lambda load: 4_000 + 150 * load.assignments
        ),
    ),
    "eager decode": ("eager-decode", Planted(eager=lambda step: True, gap_ns=30_000)),
    "graphs missed": ("eager-decode", Planted(eager=lambda step: step % 3 == 0, gap_ns=30_000)),
    "late launches": ("launch-skew", Planted(late_ns=lambda step, rank: 40_000 * rank)),
    "late launches in mixed steps": (
        "other-steps",
        Planted(prefill=lambda step: 60 * (step % 3 == 2), late_ns=lambda step, rank: 40_000 * rank * (step % 3 == 2)),
    ),
    "uneven attention": ("collective-wait", Planted(attention_ns=lambda layer, rank: 8_000 + 12_000 * rank)),
    "slow links": ("transfer-bound", Planted(transfer_ns=15_000)),
    "padding of tiles": (
        "tile-padding",
        Planted(
            ranks=1, tokens=tuple(8 + step * 11 % 48 for step in range(24)), popularity=hot(0.3),
            matmul_ns=lambda load: 2_000 + 60 * load.tile_rows, top_k=4,
        ),
    ),
    "many active experts": (
        "active-experts",
        Planted(ranks=1, tokens=small(), matmul_ns=lambda load: 4_000 + 2_500 * load.active),
    ),
    "far from peak": (
        "far-from-peak",
        Planted(device="NVIDIA H200", layer_meta=SIZES, matmul_ns=lambda load: 60_000 + 100 * (load.step % 5)),
    ),
    "attention takes all": ("moe-not-the-problem", Planted(attention_ns=lambda layer, rank: 300_000)),
    "attention takes most": ("outside-moe-layers", Planted(attention_ns=lambda layer, rank: 20_000)),
    "experts never hit": ("silent-experts", Planted(popularity=(1.0,) * 12 + (0.0,) * 4)),
    "last step lost": ("incomplete-capture", Planted(cut=True)),
}  # fmt: skip
