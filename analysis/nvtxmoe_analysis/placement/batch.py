"""What if a decode step had another number of tokens: the layers' time under today's placement, from the same model.

Steps of the next larger batch that was seen stand in, with tokens left out at random: an expert keeps as many of its c
assignments as a draw of N of the n tokens takes. A rank's time changes by speed x (slopes x change of the load + change
of the level), the level being what slopes do not explain, averaged by batch and interpolated. Batches beyond those seen
are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.arrays import Bools, Floats, Ints
from nvtxmoe_analysis.placement.blocks import jackknife
from nvtxmoe_analysis.placement.layout import Layout, Load
from nvtxmoe_analysis.placement.phase import Phase
from nvtxmoe_analysis.placement.predict import Predictor
from nvtxmoe_analysis.placement.run_data import DECODE, LayerData
from nvtxmoe_analysis.placement.valuing import Estimate

#: A batch with fewer steps is not built on.
LEAST_STEPS = 4
SEED = 0


@dataclass(frozen=True)
class AtBatch:
    """The layers' time at a batch.

    Attributes:
        tokens: the batch. from_tokens: the batch seen whose steps stand in.
        layers: of each layer, as its slowest rank's per step. whole: of all layers together.
        check_pct: mean error of predicting each batch seen from the others, in percent of its time; None with too few.
    """

    tokens: int
    from_tokens: int
    layers: list[Estimate]
    whole: Estimate
    check_pct: float | None


def at_batch(predictor: Predictor, tokens: int) -> AtBatch:
    """Predict decode at a batch.

    Raises:
        NvtxmoeError: the batch is beyond those seen, decode has no model, or today's placement is not known.
    """
    phase = predictor.phases[DECODE]
    if phase.reason is not None:
        raise NvtxmoeError(f"no model of decode: {phase.reason}")
    today = [layout for layout in predictor.today if layout is not None]
    if len(today) < len(predictor.today):
        raise NvtxmoeError("no time at another batch: today's placement is not known")
    layers = predictor.run.layers
    seen = _seen(layers)
    if not len(seen) or not seen[0] <= tokens <= seen[-1]:
        sizes = f"{seen[0]} to {seen[-1]}" if len(seen) else "none"
        raise NvtxmoeError(
            f"a batch of {tokens} tokens: decode was seen with {sizes} (of batches with {LEAST_STEPS} steps or more)",
            remedy="Name a batch in between, or capture one",
        )
    source, means, without = _predict(phase, layers, today, seen, tokens)
    estimates = [_estimate(mean, left) for mean, left in zip(means, without, strict=True)]
    return AtBatch(
        tokens,
        source,
        estimates,
        _estimate(float(means.sum()), without.sum(axis=0)),
        _check(phase, layers, today, seen),
    )


def _seen(layers: Sequence[LayerData]) -> Ints:
    """Return the batches of decode that have steps enough in every layer."""
    sizes_seen: set[int] | None = None
    for layer in layers:
        sizes, many = np.unique(layer.tokens[~layer.prefill], return_counts=True)
        enough = {int(size) for size in sizes[many >= LEAST_STEPS]}
        sizes_seen = enough if sizes_seen is None else sizes_seen & enough
    return np.array(sorted(sizes_seen or ()), dtype=np.int64)


def _predict(
    phase: Phase, layers: Sequence[LayerData], today: Sequence[Layout], seen: Ints, tokens: int
) -> tuple[int, Floats, Floats]:
    """Return the batch that stands in, each layer's time, and that without each block: [layers], [layers, blocks]."""
    source = int(seen[np.searchsorted(seen, tokens)])
    means, without = np.zeros(len(layers)), np.zeros((len(layers), phase.blocks.number))
    for at, (layer, layout) in enumerate(zip(layers, today, strict=True)):
        slopes, speed = phase.model.slopes[at], phase.model.speed
        decode = ~layer.prefill & np.isin(layer.tokens, seen)
        block = phase.blocks.of(layer.steps[decode])
        cost = phase.model.table(layer.load.of(decode)) @ slopes
        level = (layer.own_ns[decode] / speed - cost).mean(axis=1)
        stand_in = layer.tokens[decode] == source
        thinned = _thinned(layer, layout, decode, stand_in, tokens)
        change = phase.model.table(thinned) @ slopes - cost[stand_in]
        own_ns = layer.own_ns[decode][stand_in]
        for left in range(-1, phase.blocks.number):
            other_blocks = block != left
            moved = _level(layer.tokens[decode], level, other_blocks, seen, tokens) - _level(
                layer.tokens[decode], level, other_blocks, seen, source
            )
            times = (own_ns + speed * (change + moved)).max(axis=1)[other_blocks[stand_in]]
            mean = float(times.mean()) if len(times) else np.nan
            if left < 0:
                means[at] = mean
            else:
                without[at, left] = mean
    estimable = np.isfinite(without).all(axis=0)
    return source, means, without[:, estimable]


def _thinned(layer: LayerData, layout: Layout, decode: Bools, stand_in: Bools, tokens: int) -> Load:
    """Return the load of the steps that stand in, with ``tokens`` of their tokens left."""
    counts = layer.counts[decode][stand_in].astype(np.int64)
    number = layer.tokens[decode][stand_in][:, None]
    if (number > tokens).any():
        random = np.random.default_rng(SEED)
        counts = random.hypergeometric(np.minimum(counts, number), number - np.minimum(counts, number), tokens)
    return layout.load(counts, layer.block_m[decode][stand_in], layer.steps[decode][stand_in])


def _level(tokens: Ints, level: Floats, in_blocks: Bools, seen: Ints, batch_tokens: int) -> float:
    """Return the level at a batch, on the straight line between the means of its neighbours that were seen."""
    at = np.searchsorted(seen, tokens[in_blocks])
    many = np.bincount(at, minlength=len(seen))
    sums = np.bincount(at, weights=level[in_blocks], minlength=len(seen))
    with_steps = many > 0
    return float(np.interp(batch_tokens, seen[with_steps], sums[with_steps] / many[with_steps]))


def _estimate(mean: float, without: Floats) -> Estimate:
    return Estimate(mean, float(np.sqrt(jackknife(without))), float(max(1, without.shape[-1] - 1)))


def _check(phase: Phase, layers: Sequence[LayerData], today: Sequence[Layout], seen: Ints) -> float | None:
    """Return the mean error, in percent, of predicting each inner batch seen from the others; None without any."""
    errors = []
    for tokens in seen[1:-1]:
        others = seen[seen != tokens]
        _, means, _ = _predict(phase, layers, today, others, int(tokens))
        measured = sum(
            float(layer.own_ns[~layer.prefill & (layer.tokens == tokens)].max(axis=1).mean()) for layer in layers
        )
        errors.append(abs(float(means.sum()) / measured - 1))
    return 100 * float(np.mean(errors)) if errors else None
