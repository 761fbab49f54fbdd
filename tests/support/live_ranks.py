"""Ranks that publish live metrics: made-up counts through the real sink, one file a rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nvtxmoe.capture.live.imbalance_time import ImbalanceTime
from nvtxmoe.capture.live.run_view import RunView, run_view
from nvtxmoe.capture.live.samples import Options
from nvtxmoe.capture.live.series import SERIES
from nvtxmoe.capture.live.snapshot import SUFFIX, read_all
from nvtxmoe.capture.run_identity import Identity, LayerInfo, Step, meta_text
from nvtxmoe.capture.sinks.metrics import MetricsSink
from nvtxmoe.formats import schema


@dataclass(frozen=True)
class Model:
    """A model and how its ranks share it.

    Attributes:
        layers: per stage of the pipeline.
        physical: physical experts per layer, with EPLB; None without.
        first_layer: the number of the first MoE layer.
    """

    layers: int = 3
    experts: int = 8
    top_k: int = 2
    tp_size: int = 1
    dp_size: int = 1
    pp_size: int = 1
    expert_parallel: bool = False
    physical: int | None = None
    first_layer: int = 1

    @property
    def ranks(self) -> int:
        """How many."""
        return self.tp_size * self.pp_size * self.dp_size

    def first_layer_of(self, rank: int) -> int:
        """The first one of its stage."""
        return self.first_layer + rank // self.tp_size % self.pp_size * self.layers

    def identity(self, rank: int) -> Identity:
        """Who a rank is: experts are shared in contiguous blocks, as vLLM does."""
        size = self.ranks if self.expert_parallel else 1
        blocks = np.array_split(np.arange(self.physical or self.experts), size)
        local = tuple(blocks[rank if self.expert_parallel else 0].tolist())
        layers = tuple(
            LayerInfo(layer, f"layers.{layer}", self.experts, self.top_k, local, num_physical=self.physical)
            for layer in range(self.first_layer_of(rank), self.first_layer_of(rank) + self.layers)
        )
        many = self.dp_size > 1
        return Identity(
            rank=rank, world_size=self.ranks, tp_rank=rank % self.tp_size, tp_size=self.tp_size,
            ep_rank=rank if self.expert_parallel else 0, ep_size=size,
            dp_rank=rank // (self.tp_size * self.pp_size) if many else None, dp_size=self.dp_size if many else None,
            layers=layers, extra={"vllm": "0.33.0", "model": "made-up", "eplb": self.physical is not None},
        )  # fmt: skip


class Rank:
    """A rank of this process with a sink of its own, whose thread never runs: ``publish`` does its work."""

    def __init__(self, folder: Path, model: Model, rank: int = 0, options: Options = Options()) -> None:  # noqa: B008
        self.model, self.rank = model, rank
        self.sink = MetricsSink(folder, rank, options, runs=False)
        self.sink.path = folder / f"rank{rank}-made-up{SUFFIX}"
        self.tell()

    def tell(self, capture: Mapping[str, Any] | None = None, identity: Identity | None = None) -> None:
        """Send moe.meta."""
        identity = identity or self.model.identity(self.rank)
        self.sink.meta(
            meta_text(
                identity, sample_every=0, emit=frozenset({"counts"}), encoding="live",
                held_bytes=0, capture=capture,
            )
        )  # fmt: skip

    def begin(self, number: int, tokens: int = 4, prefill: int = 0) -> None:
        """A step begins."""
        self.sink.step_begins(Step(number, self.rank, tokens, 1, prefill, tokens - prefill))

    def counts(
        self, number: int, counts: npt.NDArray[Any], layers: Iterable[int] | None = None, event: str = schema.COUNTS
    ) -> None:
        """Counts of a step arrive, [layers, experts]."""
        first = self.model.first_layer_of(self.rank)
        rows = np.zeros(len(counts), schema.counts_dtype(counts.shape[1]))
        rows["step"], rows["rank"], rows["top_k"], rows["counts"] = number, self.rank, self.model.top_k, counts
        rows["layer"] = list(range(first, first + len(counts))) if layers is None else list(layers)
        self.sink.payloads(event, rows)

    def step(self, number: int, counts: npt.NDArray[Any], tokens: int = 4, prefill: int = 0) -> None:
        """A whole step."""
        self.begin(number, tokens, prefill)
        self.counts(number, counts)
        self.sink.step_ends()

    def publish(self) -> None:
        """What the sink's thread does."""
        self.sink.work(publish=True)
        assert self.sink.failure is None, self.sink.failure


def view_of(folder: Path, model: ImbalanceTime | None = None) -> RunView:
    """What a scrape sees."""
    return run_view(read_all(folder), model)


def scraped(view: RunView, options: Options = Options()) -> dict[str, dict[tuple[str, ...], float]]:  # noqa: B008
    """All samples by full name and labels."""
    found = {one.full_name: list(one.of(view, options)) for one in SERIES}
    for name, samples in found.items():
        assert len(dict(samples)) == len(samples), name
    return {name: dict(samples) for name, samples in found.items() if samples}


def number_of_series(found: Mapping[str, Sequence[Any] | Mapping[Any, Any]]) -> int:
    """How many series."""
    return sum(map(len, found.values()))
