"""The snapshots of a run's processes put together: what all ranks of this machine show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nvtxmoe.capture.live.imbalance_time import BOUNDS, ImbalanceTime
from nvtxmoe.capture.live.last_steps import KINDS, MOST_STEPS
from nvtxmoe.capture.live.snapshot import Snapshot

#: As SGLang adds above and below the line of its balancedness.
EPSILON = 1e-5
#: Of data-parallel ranks only steps count that began so long before each of them gave its last sign of life.
SLACK_NS = 1_000_000_000

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass
class RunView:
    """Values of one scrape. Rows of arrays are layers.

    Attributes:
        ranks: snapshots of processes that run, by rank.
        layers, experts: their numbers, and how many experts each has, int64 [layers].
        counts: assignments since the run began, of processes that are over too, int64 [layers, experts].
        rank_loads: the same of the experts of each rank, int64 [layers, ep_size]; None where it is not known.
        recent_counts: assignments of the last minute, int64 [layers, experts].
        max_over_mean, active: means over the steps of the last minute, NaN without a step, [layers].
        layer_balancedness: mean over the last steps, NaN where it is not known, [layers].
        balancedness: the same, mean over layers; None where it is not known.
        lost_s: estimate of the seconds of a step, in the order of ``imbalance_time.BOUNDS``; None: no estimate.
        layer_lost_s: the same by layer, the estimate itself; NaN: none.
        covered: share of the last steps' layers that the estimate is of.
        collect_s: time that putting this together took.
    """

    ranks: list[Snapshot]
    layers: Ints
    experts: Ints
    counts: Ints
    rank_loads: Ints | None
    recent_counts: Ints
    max_over_mean: Floats
    active: Floats
    layer_balancedness: Floats
    balancedness: float | None = None
    lost_s: tuple[float, ...] | None = None
    layer_lost_s: Floats = field(default_factory=lambda: np.zeros(0))
    covered: float = 0.0
    collect_s: float = 0.0


def run_view(snapshots: Sequence[Snapshot], model: ImbalanceTime | None = None) -> RunView:
    """Put snapshots together. Ranks that see the same tokens count once, data-parallel ranks are added."""
    counting = [snapshot for snapshot in snapshots if "layers" in snapshot.arrays]
    alive = [snapshot for snapshot in counting if snapshot.alive]
    by_layer: dict[int, int] = {}
    for snapshot in counting:
        by_layer.update(zip(snapshot.arrays["layers"].tolist(), snapshot.arrays["experts"].tolist(), strict=True))
    layers = np.array(sorted(by_layer), dtype=np.int64)
    experts = np.array([by_layer[layer] for layer in layers.tolist()], dtype=np.int64)
    shape = len(layers), int(experts.max(initial=0))
    steps = _added(alive, "recent_steps", layers, (shape[0],))
    with np.errstate(divide="ignore", invalid="ignore"):
        max_over_mean = _added(alive, "recent_max_over_mean", layers, (shape[0],)) / steps
        active = _added(alive, "recent_active", layers, (shape[0],)) / steps
    view = RunView(
        ranks=sorted(
            (snapshot for snapshot in snapshots if snapshot.alive), key=lambda snapshot: int(snapshot.header["rank"])
        ),
        layers=layers,
        experts=experts,
        counts=_added(counting, "counts", layers, shape).astype(np.int64),
        rank_loads=_rank_loads(counting, layers),
        recent_counts=_added(alive, "recent_counts", layers, shape).astype(np.int64),
        max_over_mean=max_over_mean,
        active=active,
        layer_balancedness=np.full(shape[0], np.nan),
        layer_lost_s=np.full(shape[0], np.nan),
    )
    _add_last_steps(view, alive, model)
    return view


def _added(snapshots: Sequence[Snapshot], name: str, layers: Ints, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Arrays of one name added up by layer; narrower ones have fewer experts."""
    total = np.zeros(shape, dtype=np.float64 if name == "recent_max_over_mean" else np.int64)
    for snapshot in snapshots:
        at, values = np.searchsorted(layers, snapshot.arrays["layers"]), snapshot.arrays[name]
        if values.ndim == 1:
            total[at] += values
        else:
            total[at, : values.shape[1]] += values
    return total


def _rank_loads(counting: Sequence[Snapshot], layers: Ints) -> Ints | None:
    sizes = {int(snapshot.header["ep_size"]) for snapshot in counting}
    placed = all(all(snapshot.header["placed"]) for snapshot in counting)
    if len(sizes) != 1 or not placed or sizes == {1}:
        return None
    return _added(counting, "rank_loads", layers, (len(layers), *sizes)).astype(np.int64)


@dataclass(frozen=True)
class _Joined:
    """The last steps of ranks that share experts: ``loads`` is [steps, layers, ranks, features]."""

    layers: Ints
    experts: Ints
    kinds: Ints
    loads: npt.NDArray[Any]
    shared: bool


def _add_last_steps(view: RunView, alive: Sequence[Snapshot], model: ImbalanceTime | None) -> None:
    """Balance over ranks, and the estimate: stages of a pipeline have other layers, engines the same ones."""
    stages: dict[bytes, list[Snapshot]] = {}
    for snapshot in alive:
        stages.setdefault(snapshot.arrays["layers"].tobytes(), []).append(snapshot)
    utilizations, lost, cells = [], [], [0, 0]
    for members in stages.values():
        joined = [stage for stage in _joined(members) if len(stage.kinds)]
        if not joined:
            continue
        at = np.searchsorted(view.layers, joined[0].layers)
        if joined[0].loads.shape[2] > 1:
            by_step = np.concatenate([_utilization(stage.loads[..., 0]) for stage in joined])
            view.layer_balancedness[at] = by_step.mean(axis=0)
            utilizations.append((by_step.mean(), len(at)))
        if model is not None:
            of_stage = _lost(model, joined)
            known = ~np.isnan(of_stage[1])
            cells[0] += int(known.sum())
            cells[1] += known.size
            if known.any():
                mean = _mean(of_stage)
                view.layer_lost_s[at] = mean[1] / 1e9
                lost.append(np.nansum(of_stage, axis=2).mean(axis=1) / 1e9)
    if utilizations:
        values, weights = zip(*utilizations, strict=True)
        view.balancedness = float(np.average(values, weights=weights))
    if lost:
        view.lost_s = tuple(np.sum(lost, axis=0).tolist())
    view.covered = cells[0] / cells[1] if cells[1] else 0.0


def _lost(model: ImbalanceTime, joined: Sequence[_Joined]) -> Floats:
    """[bounds, steps, layers]."""
    return np.concatenate(
        [
            model.lost_ns(
                stage.layers.tolist(), stage.kinds, stage.loads, stage.experts.astype(np.float64), stage.shared
            )
            for stage in joined
        ],
        axis=1,
    )


def _mean(lost: Floats) -> Floats:
    """Over steps that have an estimate, [bounds, layers]; NaN where none has."""
    known = ~np.isnan(lost)
    number = known.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: Floats = np.nansum(lost, axis=1) / np.where(number > 0, number, np.nan)
    assert mean.shape[0] == len(BOUNDS)
    return mean


def _utilization(loads: npt.NDArray[Any]) -> Floats:
    """Mean over largest of ranks as SGLang has it: [steps, layers, ranks] -> [steps, layers]. 1 without a load."""
    utilization: Floats = (loads.mean(axis=2) + EPSILON) / (loads.max(axis=2) + EPSILON)
    return utilization


def _joined(members: Sequence[Snapshot]) -> list[_Joined]:
    """The last steps of each group of ranks that share experts; none where a rank of a group is not here."""
    first = members[0].header
    if not all(all(snapshot.header["placed"]) for snapshot in members):
        return []
    sharing = int(first["dp_size"]) if int(first["ep_size"]) > int(first["tp_size"]) else 1
    if sharing == 1:
        return [
            _Joined(
                snapshot.arrays["layers"],
                snapshot.arrays["experts"],
                snapshot.arrays["last_kinds"],
                snapshot.arrays["last_loads"],
                False,
            )
            for snapshot in members
        ]
    return [_added_steps(members)] if len(members) == sharing else []


def _added_steps(members: Sequence[Snapshot]) -> _Joined:
    """Steps of data-parallel ranks, which run in lockstep: a rank without a step was idle in it."""
    horizon_ns = min(snapshot.published_ns for snapshot in members) - SLACK_NS
    numbered = [snapshot.arrays["last_numbers"] for snapshot in members]
    oldest = max((int(numbers[0]) for numbers in numbered if len(numbers) == MOST_STEPS), default=0)
    kinds: dict[int, int] = {}
    for snapshot in members:
        numbers, begin_times_ns, kind = (
            snapshot.arrays[f"last_{name}"].tolist() for name in ("numbers", "begun_ns", "kinds")
        )
        for number, begun_ns, code in zip(numbers, begin_times_ns, kind, strict=True):
            if number >= oldest and begun_ns <= horizon_ns:
                kinds[number] = code if kinds.get(number, code) == code else KINDS.index("mixed")
    steps = np.array(sorted(kinds), dtype=np.int64)
    loads = np.zeros((len(steps), *members[0].arrays["last_loads"].shape[1:]), dtype=np.int64)
    for snapshot in members:
        numbers = snapshot.arrays["last_numbers"]
        shared_steps = np.isin(numbers, steps)
        loads[np.searchsorted(steps, numbers[shared_steps])] += snapshot.arrays["last_loads"][shared_steps]
    arrays = members[0].arrays
    codes = np.array([kinds[number] for number in steps.tolist()], dtype=np.int64)
    return _Joined(arrays["layers"], arrays["experts"], codes, loads, True)
