"""Predict what placements cost: ``place`` compares the algorithms', ``predict`` values one from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.arrays import Floats, Ints
from nvtxmoe_analysis.outputs.read import Results
from nvtxmoe_analysis.placement.algorithms import Routing, algorithms
from nvtxmoe_analysis.placement.layout import Layout, Load
from nvtxmoe_analysis.placement.moving import Move, moved
from nvtxmoe_analysis.placement.phase import Phase, phase_of
from nvtxmoe_analysis.placement.run_data import PHASES, RunData, read_run
from nvtxmoe_analysis.placement.today import todays
from nvtxmoe_analysis.placement.valuing import Estimate, Sums

TODAY = "today"
#: vLLM's default step_interval of EPLB (vLLM 0.33, config/parallel.py, EPLBConfig).
REARRANGE_EVERY = 3000
#: A gain below so much of a step is not worth the trouble.
LEAST_GAIN_PCT = 1.0


@dataclass(frozen=True)
class Options:
    """Options of a prediction.

    Attributes:
        redundant: slots beyond one per expert; None: the fewest that divide between the ranks.
        rearrange_every: steps between two rearrangements. link_gbs: GB/s by which a rank gets weights; None: unknown.
        least_gain_pct: the gain that is worth it, in percent of a step's GPU time.
        fit_layers: layers that the fit may see; None: all.
    """

    redundant: int | None = None
    rearrange_every: int = REARRANGE_EVERY
    link_gbs: float | None = None
    least_gain_pct: float = LEAST_GAIN_PCT
    fit_layers: Sequence[int] | None = None


@dataclass(frozen=True)
class Valued:
    """A placement with its value.

    Attributes:
        layouts: by position of the layer; None where the layer's is not known.
        sums: by phase.
        rank_tokens: float64 [layers, ranks], tokens of each rank in the steps of the value.
        reason: why the algorithm has no placement; then it has no sums.
    """

    name: str
    label: str
    layouts: Sequence[Layout | None]
    sums: Mapping[str, Sums]
    move: Move
    rank_tokens: Floats
    reason: str | None = None


@dataclass(frozen=True)
class Prediction:
    """All placements of a run with their values."""

    run: RunData
    options: Options
    phases: Mapping[str, Phase]
    placements: Sequence[Valued] = field(default_factory=list)

    @property
    def valued_phases(self) -> list[Phase]:
        """The phases in which placements have a value."""
        return [phase for phase in self.phases.values() if phase.reason is None]

    def all_steps(self, estimates: Mapping[str, Estimate]) -> Estimate:
        """Return the mean over the steps of all phases that have a value."""
        shares = {phase.name: self.run.steps[phase.name] for phase in self.valued_phases}
        total = sum(shares.values())
        parts = [(shares[name] / total, estimates[name]) for name in shares]
        variances = [(share * estimate.error_ns) ** 2 for share, estimate in parts]
        below = sum(variance**2 / max(1.0, part.df) for variance, (_, part) in zip(variances, parts, strict=True))
        df = sum(variances) ** 2 / below if below > 0 and np.isfinite(below) else min(part.df for _, part in parts)
        mean = sum(share * part.mean_ns for share, part in parts)
        return Estimate(float(mean), float(np.sqrt(sum(variances))), float(df))

    def find(self, name: str) -> Valued:
        """Return a placement by its name."""
        return next(placement for placement in self.placements if placement.name == name)


class Predictor:
    """The models of a run, for any number of placements."""

    def __init__(self, results: Results, options: Options | None = None) -> None:
        """Read and fit.

        Raises:
            NvtxmoeError: the results lack what is needed, see ``run_data.read_run``, or options do not fit them.
        """
        self.options = options or Options()
        self.run = read_run(results)
        known = [layer.layer for layer in self.run.layers]
        unknown_layers = [layer for layer in self.options.fit_layers or () if layer not in known]
        if unknown_layers or (self.options.fit_layers is not None and not self.options.fit_layers):
            raise NvtxmoeError(
                f"no layer {unknown_layers[0] if unknown_layers else ''} among the results' layers to fit by"
            )
        self.phases = {name: phase_of(self.run, name, self.options.fit_layers) for name in PHASES}
        self.today = [todays(layer) for layer in self.run.layers]

    def place(self) -> Prediction:
        """Return the placements of all algorithms with their values."""
        return Prediction(self.run, self.options, self.phases, [self._algorithm(name) for name in algorithms()])

    def value(self, placements: Mapping[str, Mapping[int, Layout]]) -> Prediction:
        """Return today's placement and those from outside with their values.

        Parameters:
            placements: by name, then by number of the layer; absent layers stay as they are.

        Raises:
            NvtxmoeError: a layer is not in the results, or its placement is not one of its experts and ranks.
        """
        return Prediction(
            self.run,
            self.options,
            self.phases,
            [self._algorithm(TODAY), *(self._given_placement(name, by_layer) for name, by_layer in placements.items())],
        )

    def _given_placement(self, name: str, by_layer: Mapping[int, Layout]) -> Valued:
        known = {layer.layer: at for at, layer in enumerate(self.run.layers)}
        layouts: list[Layout | None] = list(self.today)
        for layer, layout in by_layer.items():
            where = f"{name}, layer {layer}"
            if layer not in known:
                raise NvtxmoeError("the results do not hold this layer", where=where)
            if layout.ranks != self.run.ranks:
                raise NvtxmoeError(f"a placement for {layout.ranks} ranks, the run has {self.run.ranks}", where=where)
            try:
                layout.check(self.run.layers[known[layer]].experts)
            except NvtxmoeError as error:
                raise NvtxmoeError(error.what, where=where) from error
            layouts[known[layer]] = layout
        return self._valued(name, name, layouts, {known[layer]: layout for layer, layout in by_layer.items()})

    def _algorithm(self, name: str) -> Valued:
        module = algorithms()[name]
        layouts = [module.place(self._routing(at)) for at in range(len(self.run.layers))]
        if name == TODAY:
            return self._valued(name, module.LABEL, layouts, {})
        if any(layout is None for layout in layouts):
            reason = f"{self._redundant(0)} redundant experts do not fit {self.run.ranks} ranks"
            nowhere = Move(None, None, None, reason)
            return Valued(name, module.LABEL, [], {}, nowhere, np.zeros((0, 0)), reason)
        return self._valued(
            name, module.LABEL, layouts, {at: layout for at, layout in enumerate(layouts) if layout is not None}
        )

    def _routing(self, at: int) -> Routing:
        """Return the steps of a layer by which placements are chosen: those of the fit."""
        layer = self.run.layers[at]
        chosen = np.logical_or.reduce([phase.fits[at] for phase in self.phases.values()])
        return Routing(
            layer.counts[chosen],
            layer.block_m[chosen],
            ~layer.prefill[chosen],
            self.run.ranks,
            self._redundant(at),
            self.today[at],
        )

    def _redundant(self, at: int) -> int:
        if self.options.redundant is not None:
            return self.options.redundant
        return self.run.ranks - self.run.layers[at].experts % self.run.ranks

    def _valued(
        self, name: str, label: str, layouts: Sequence[Layout | None], known_layouts: Mapping[int, Layout]
    ) -> Valued:
        layers = self.run.layers
        loads: dict[int, Load] = {
            at: layout.load(layers[at].counts, layers[at].block_m, layers[at].steps)
            for at, layout in known_layouts.items()
        }
        sums = {phase.name: phase.valuer.value(loads) for phase in self.phases.values() if phase.reason is None}
        valued = [self._value_steps(at) for at in range(len(layers))]
        tokens = [
            loads.get(at, layer.load).rows[valued[at]].sum(axis=0).astype(np.float64) for at, layer in enumerate(layers)
        ]
        known = [layout for layout in layouts if layout is not None]
        if len(known) == len(layouts):
            move = moved(self.today, known, [layer.expert_bytes for layer in layers])
        else:
            move = Move(None, None, None, "the placement of some layers is not known")
        return Valued(name, label, layouts, sums, move, np.stack(tokens))

    def _value_steps(self, at: int) -> Ints:
        return np.flatnonzero(np.logical_or.reduce([phase.values[at] for phase in self.phases.values()]))


def place(results: Results, options: Options | None = None) -> Prediction:
    """Return the placements of all algorithms with their values.

    Raises:
        NvtxmoeError: see ``Predictor``.
    """
    return Predictor(results, options).place()


def predict(results: Results, placement: Mapping[int, Layout], options: Options | None = None) -> Prediction:
    """Return the value of a placement from outside beside today's.

    Parameters:
        placement: by number of the layer.

    Raises:
        NvtxmoeError: see ``Predictor`` and ``Predictor.value``.
    """
    return Predictor(results, options).value({"given": placement})
