"""The series that Prometheus gets: their names, kinds, labels, help texts and bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nvtxmoe.capture.live import samples as made
from nvtxmoe.capture.live.imbalance_time import BOUNDS
from nvtxmoe.capture.live.samples import Options, Samples

PREFIX = "nvtxmoe_"
GAUGE, COUNTER = "gauge", "counter"


@dataclass(frozen=True)
class Shape:
    """What the number of series depends on; ``ranks`` are those of this machine."""

    layers: int
    experts: int
    ranks: int
    ep_size: int
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Series:
    """One name.

    Attributes:
        name: without the prefix, and without ``_total`` of counters.
        what: the help text.
        bound: how many series, in words; ``most`` is the number.
        of: the samples in a view.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    what: str
    bound: str
    most: Callable[[Shape], int]
    of: Samples

    @property
    def full_name(self) -> str:
        """As a query has it."""
        return PREFIX + self.name + ("_total" if self.kind == COUNTER else "")


def _once(_: Shape) -> int:
    return 1


def _ranks(shape: Shape) -> int:
    return shape.ranks


def _layers(shape: Shape) -> int:
    return shape.layers


_RANK, _LAYER = ("rank",), ("layer",)
_MINUTE = "of the last minute in which steps ran"
_STEPS = "mean of the last 64 steps"

SERIES = (
    Series("info", GAUGE, ("version", "vllm", "model"), "Always 1: what is recorded.", "1", _once, made.info),
    Series(
        "ranks", GAUGE, (), "Processes of this machine that record.", "1", _once,
        made.single(lambda v: len(v.ranks)),
    ),
    Series(
        "steps", COUNTER, _RANK, "Steps whose counts have arrived.", "ranks", _ranks,
        made.rank_samples("steps"),
    ),
    Series(
        "tokens", COUNTER, ("rank", "kind"),
        "Tokens of these steps. Ranks that see the same tokens count once, under the lowest of them.",
        "2 x ranks", lambda s: 2 * s.ranks, made.tokens,
    ),
    Series(
        "assignments", COUNTER, _RANK,
        "Assignments (token, expert) that a rank's router chose. Ranks that see the same tokens count once.",
        "ranks", _ranks, made.assignments,
    ),
    Series(
        "dropped_steps", COUNTER, ("rank", "by"),
        "Steps without counts: the recorder lost them, or the metrics could not follow.",
        "2 x ranks", lambda s: 2 * s.ranks, made.dropped,
    ),
    Series(
        "hidden_layers", GAUGE, _RANK, "Layers whose routing can't be recorded.", "ranks", _ranks,
        made.rank_samples("hidden"),
    ),
    Series(
        "failed_hooks", GAUGE, _RANK, "Hooks that failed and are off.", "ranks", _ranks,
        made.rank_samples("failed"),
    ),
    Series(
        "thread_cpu_seconds", COUNTER, ("rank", "thread"),
        "Processor time of the threads of nvtxmoe in a worker: its own cost beside the serving thread.",
        f"{made.MOST_THREADS} x ranks", lambda s: made.MOST_THREADS * s.ranks, made.threads,
    ),
    Series(
        "layer_assignments", COUNTER, _LAYER, "Assignments of a layer.", "layers", _layers,
        made.by_layer(lambda v: v.counts.sum(axis=1)),
    ),
    Series(
        "layer_expert_max_over_mean", GAUGE, _LAYER,
        f"Largest over mean load of the experts, mean of the steps {_MINUTE}. 1 is even.",
        "layers", _layers, made.by_layer(lambda v: v.max_over_mean),
    ),
    Series(
        "layer_active_experts", GAUGE, _LAYER, f"Experts with any token, mean of the steps {_MINUTE}.",
        "layers", _layers, made.by_layer(lambda v: v.active),
    ),
    Series(
        "layer_experts_never_hit", GAUGE, _LAYER, "Experts without any token since the run began.",
        "layers", _layers, made.by_layer(made.never_hit),
    ),
    Series(
        "hottest_expert_share", GAUGE, ("layer", "expert"),
        f"Share of a layer's assignments that its most loaded experts got, {_MINUTE}.",
        "top_k x layers", lambda s: min(s.options.top_k, s.experts) * s.layers, made.ends(hottest=True),
    ),
    Series(
        "coldest_expert_share", GAUGE, ("layer", "expert"),
        f"Share of a layer's assignments that its least loaded experts got, {_MINUTE}.",
        "top_k x layers", lambda s: min(s.options.top_k, s.experts) * s.layers, made.ends(hottest=False),
    ),
    Series(
        "eplb_balancedness", GAUGE, (),
        f"Mean over largest load of the expert-parallel ranks, mean over layers (SGLang's definition), {_STEPS}."
        " 1 is even.",
        "1", _once, made.single(lambda v: v.balancedness),
    ),
    Series(
        "layer_eplb_balancedness", GAUGE, _LAYER,
        f"Mean over largest load of the expert-parallel ranks in a layer, {_STEPS}. 1 is even.",
        "layers", _layers, made.by_layer(lambda v: v.layer_balancedness),
    ),
    Series(
        "ep_rank_assignments", COUNTER, ("ep_rank",), "Assignments that the experts of each rank got.", "ep_size",
        lambda s: s.ep_size if s.ep_size > 1 else 0, made.ep_ranks,
    ),
    Series(
        "layer_ep_rank_assignments", COUNTER, ("layer", "ep_rank"),
        "Assignments that the experts of each rank got in each layer.",
        f"layers x ep_size, where that is up to {made.MOST_LAYER_RANKS} or NVTXMOE_METRICS_EXPERTS is on",
        lambda s: s.layers * s.ep_size if s.options.shows_layer_ranks(s.layers, s.ep_size) else 0,
        made.layer_ep_ranks,
    ),
    Series(
        "expert_assignments", COUNTER, ("layer", "expert"), "Assignments of each expert of each layer.",
        "layers x experts, with NVTXMOE_METRICS_EXPERTS", lambda s: s.layers * s.experts if s.options.experts else 0,
        made.experts,
    ),
    Series(
        "estimated_imbalance_lost_seconds", GAUGE, ("bound",),
        f"ESTIMATE by the layer model of an earlier analysis: seconds that a step loses to imbalance, {_STEPS}.",
        "3, with NVTXMOE_METRICS_MODEL", lambda _: len(BOUNDS), made.lost,
    ),
    Series(
        "estimated_layer_imbalance_lost_seconds", GAUGE, _LAYER,
        f"ESTIMATE: seconds that a step loses to imbalance in a layer, {_STEPS}.",
        "layers, with NVTXMOE_METRICS_MODEL", _layers, made.by_layer(lambda v: v.layer_lost_s),
    ),
    Series(
        "estimated_imbalance_coverage_ratio", GAUGE, (),
        "Share of the last steps' layers that the model gives an estimate of.", "1, with NVTXMOE_METRICS_MODEL",
        _once, made.single(lambda v: v.covered if v.lost_s is not None else None),
    ),
    Series(
        "collect_seconds", GAUGE, (), "Time that reading the ranks' values took for this scrape.", "1", _once,
        made.single(lambda v: v.collect_s),
    ),
)  # fmt: skip


def most_series(shape: Shape) -> int:
    """How many series there are at most."""
    return sum(series.most(shape) for series in SERIES)
