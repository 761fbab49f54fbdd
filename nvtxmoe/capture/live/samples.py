"""Samples of each series in a view of the run: labels with a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nvtxmoe.capture.live.imbalance_time import BOUNDS
from nvtxmoe.capture.live.run_view import RunView

#: Layers times ranks up to which their assignments have a series each.
MOST_LAYER_RANKS = 192
#: Threads of one process that nvtxmoe starts: they send, write and add up.
MOST_THREADS = 4


@dataclass(frozen=True)
class Options:
    """Choices of the user.

    Attributes:
        top_k: experts a layer that are shown as hottest, and as coldest.
        experts: whether each expert of each layer has a series.
    """

    top_k: int = 3
    experts: bool = False

    def shows_layer_ranks(self, layers: int, ep_size: int) -> bool:
        """Whether each rank of each layer has a series."""
        return ep_size > 1 and (layers * ep_size <= MOST_LAYER_RANKS or self.experts)


Sample = tuple[tuple[str, ...], float]
Samples = Callable[[RunView, Options], Iterator[Sample]]


def rank_samples(*names: str) -> Samples:
    """Return numbers of a snapshot, by rank."""

    def samples(view: RunView, _: Options) -> Iterator[Sample]:
        for rank in view.ranks:
            for name in names:
                yield (str(rank.header["rank"]),), float(rank.header[name])

    return samples


def assignments(view: RunView, _: Options) -> Iterator[Sample]:
    """Yield what routers chose, by rank."""
    for rank in view.ranks:
        if rank.header["counts_layers"]:
            yield (str(rank.header["rank"]),), float(rank.header["assignments"])


def tokens(view: RunView, _: Options) -> Iterator[Sample]:
    """Yield tokens, by rank and kind."""
    for rank in view.ranks:
        if rank.header["counts_tokens"]:
            for kind in ("prefill", "decode"):
                yield (str(rank.header["rank"]), kind), float(rank.header[f"{kind}_tokens"])


def dropped(view: RunView, _: Options) -> Iterator[Sample]:
    """Yield steps without counts, by rank and who lost them."""
    for rank in view.ranks:
        dropped_rows = int(rank.header["dropped"])
        yield (str(rank.header["rank"]), "metrics"), float(dropped_rows)
        yield (str(rank.header["rank"]), "recorder"), float(max(0, int(rank.header["missing"]) - dropped_rows))


def threads(view: RunView, _: Options) -> Iterator[Sample]:
    """Yield the processor time of our threads, by rank and thread."""
    for rank in view.ranks:
        for name, seconds in sorted(rank.header["thread_cpu_s"].items())[:MOST_THREADS]:
            yield (str(rank.header["rank"]), name), float(seconds)


def info(view: RunView, _: Options) -> Iterator[Sample]:
    """Yield versions and model."""
    for rank in view.ranks[:1]:
        extra = rank.header["extra"]
        yield (extra["nvtxmoe"], extra["vllm"], extra["model"]), 1.0


def by_layer(values: Callable[[RunView], npt.NDArray[Any]]) -> Samples:
    """Return values of layers, without those that are not known."""

    def samples(view: RunView, _: Options) -> Iterator[Sample]:
        for layer, value in zip(view.layers.tolist(), values(view).tolist(), strict=True):
            if not np.isnan(value):
                yield (str(layer),), float(value)

    return samples


def never_hit(view: RunView) -> npt.NDArray[Any]:
    """Count the experts of each layer without any token."""
    never: npt.NDArray[Any] = view.experts - np.count_nonzero(view.counts, axis=1)
    return never


def ends(hottest: bool) -> Samples:
    """Return the hottest or coldest experts of each layer: in a layer, equal loads are ordered by expert."""

    def samples(view: RunView, options: Options) -> Iterator[Sample]:
        counts, width = view.recent_counts, view.recent_counts.shape[1]
        top_k = min(options.top_k, width)
        if not top_k:
            return
        # One number for load and expert: argpartition keeps no order.
        keys = (-counts if hottest else counts) * width + np.arange(width)
        keys[np.arange(width) >= view.experts[:, None]] = np.iinfo(np.int64).max
        experts = np.argpartition(keys, top_k - 1, axis=1)[:, :top_k]
        experts = np.take_along_axis(experts, np.argsort(np.take_along_axis(keys, experts, 1), axis=1), 1)
        loads, totals = np.take_along_axis(counts, experts, 1), counts.sum(axis=1)
        for place in np.flatnonzero(totals).tolist():
            layer, total, num_experts = str(view.layers[place]), int(totals[place]), int(view.experts[place])
            for expert, load in zip(
                experts[place, :num_experts].tolist(), loads[place, :num_experts].tolist(), strict=True
            ):
                yield (layer, str(expert)), load / total

    return samples


def ep_ranks(view: RunView, _: Options) -> Iterator[Sample]:
    """Yield what the experts of each rank got."""
    if view.rank_loads is not None:
        for rank, value in enumerate(view.rank_loads.sum(axis=0).tolist()):
            yield (str(rank),), float(value)


def layer_ep_ranks(view: RunView, options: Options) -> Iterator[Sample]:
    """Yield the same by layer, where that is not too many."""
    loads = view.rank_loads
    if loads is None or not options.shows_layer_ranks(*loads.shape):
        return
    for layer, row in zip(view.layers.tolist(), loads.tolist(), strict=True):
        for rank, value in enumerate(row):
            yield (str(layer), str(rank)), float(value)


def experts(view: RunView, options: Options) -> Iterator[Sample]:
    """Yield assignments of each expert, on request."""
    if not options.experts:
        return
    for place, layer in enumerate(view.layers.tolist()):
        for expert, value in enumerate(view.counts[place, : int(view.experts[place])].tolist()):
            yield (str(layer), str(expert)), float(value)


def single(value: Callable[[RunView], float | None]) -> Samples:
    """Return a value without labels, unless it is not known."""

    def samples(view: RunView, _: Options) -> Iterator[Sample]:
        sample = value(view)
        if sample is not None:
            yield (), float(sample)

    return samples


def lost(view: RunView, _: Options) -> Iterator[Sample]:
    """Yield the estimate of the time lost, by bound."""
    if view.lost_s is not None:
        for bound, value in zip(BOUNDS, view.lost_s, strict=True):
            yield (bound,), value
