"""A prediction as a JSON document, and as files of placements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.file_set import replace_set, staging
from nvtxmoe_analysis.core.files import cannot_write, check_folder
from nvtxmoe_analysis.placement.batch import AtBatch
from nvtxmoe_analysis.placement.formats import Placement, forms
from nvtxmoe_analysis.placement.phase import Phase
from nvtxmoe_analysis.placement.predict import Prediction, Valued
from nvtxmoe_analysis.placement.valuing import Estimate
from nvtxmoe_analysis.placement.verdict import net, verdict
from nvtxmoe_analysis.placement.vllm_eplb import imbalance

FOLDER = "moe_placement"


def document(prediction: Prediction, batches: Sequence[AtBatch] = ()) -> dict[str, Any]:
    """Return the prediction, JSON-ready: see docs/explanation/placement.md. Times are nanoseconds per step.

    Parameters:
        batches: decode at other batches.
    """
    run = prediction.run
    return {
        "verdict": verdict_document(prediction),
        "options": {
            "redundant": prediction.options.redundant,
            "rearrange_every": prediction.options.rearrange_every,
            "link_gbs": prediction.options.link_gbs,
            "least_gain_pct": prediction.options.least_gain_pct,
            "fit_layers": None if prediction.options.fit_layers is None else list(prediction.options.fit_layers),
        },
        "run": {
            "ranks": list(run.layers[0].ranks),
            "layers": [layer.layer for layer in run.layers],
            "cells": run.cells,
            "cells_dropped": run.dropped,
            "eplb": run.eplb,
            "monolithic": run.monolithic,
        },
        "phases": {name: _phase(prediction, phase) for name, phase in prediction.phases.items()},
        "placements": [_placement(prediction, placement) for placement in prediction.placements],
        "batches": [_batch(prediction, batch) for batch in batches],
    }


def verdict_document(prediction: Prediction) -> dict[str, Any]:
    """Return the part ``verdict`` of the document, without what each layer takes. Times are nanoseconds per step."""
    answer = verdict(prediction)
    return {
        "answer": answer.answer,
        "sentence": answer.sentence,
        "placement": answer.placement,
        "saves_at_most_ns": _rounded(answer.at_most_ns),
        "step_gpu_ns": _rounded(answer.step_ns),
        **_named("net_saved", answer.saves),
        "considered": answer.considered,
        "phases": {
            name: {
                **_named("net_saved", phase.saves),
                "saves_at_most_ns": _rounded(phase.at_most_ns),
                "step_gpu_ns": _rounded(phase.step_ns),
                "steps_valued": phase.steps,
                **_named("eplb_net_saved", phase.eplb),
            }
            for name, phase in answer.phases.items()
        },
    }


def _batch(prediction: Prediction, batch: AtBatch) -> dict[str, Any]:
    layers = zip(prediction.run.layers, batch.layers, strict=True)
    return {
        "tokens": batch.tokens,
        "from_tokens": batch.from_tokens,
        **_named("predicted", batch.whole),
        "check_error_pct": None if batch.check_pct is None else round(batch.check_pct, 2),
        "layers": [{"layer_idx": layer.layer, **_named("predicted", estimate)} for layer, estimate in layers],
    }


def _phase(prediction: Prediction, phase: Phase) -> dict[str, Any]:
    model, calibration = phase.model, phase.calibration
    today_fields = None
    if calibration is not None:
        today_fields = {
            "excess_predicted_ns": _rounded(calibration.predicted_ns),
            **_named("excess_measured", calibration.measured),
            "explained_pct": None if calibration.explained is None else round(100 * calibration.explained, 2),
        }
    layers = [layer.layer for layer in prediction.run.layers]
    return {
        "reason": phase.reason,
        "steps": phase.steps,
        "steps_captured": prediction.run.steps[phase.name],
        "step_gpu_ns": _rounded(prediction.run.step_ns[phase.name]),
        "blocks": phase.blocks.number,
        "features": list(model.features),
        "slopes_ns": {
            str(layer): [_rounded(value) for value in slopes]
            for layer, slopes in zip(layers, model.slopes, strict=False)
        },
        "mean_slopes_ns": [_rounded(value) for value in model.pooled],
        "time_of_ranks": [round(float(value), 6) for value in model.speed],
        "today": today_fields,
    }


def _placement(prediction: Prediction, placement: Valued) -> dict[str, Any]:
    options = prediction.options
    all_steps = {
        name: {**_named("saved", sums.saved()), **_named("predicted", sums.predicted())}
        for name, sums in placement.sums.items()
    }
    steps: dict[str, Any] = {}
    if placement.sums:
        steps["all"] = {
            **_named("saved", prediction.all_steps({name: sums.saved() for name, sums in placement.sums.items()})),
            **_named("net_saved", net(prediction, placement)),
        }
    return {
        "name": placement.name,
        "label": placement.label,
        "reason": placement.reason,
        **all_steps,
        **steps,
        "outside_pct": {name: round(100 * sums.outside, 2) for name, sums in placement.sums.items()},
        "tokens_max_mean": _max_mean(placement),
        "vllm_imbalance": round(imbalance(placement.rank_tokens), 6) if len(placement.rank_tokens) else None,
        "moving": {
            "experts": placement.move.experts,
            "bytes": placement.move.moved_bytes,
            "busiest_rank_bytes": placement.move.busiest_bytes,
            "ns_per_step": _rounded(placement.move.ns_per_step(options.link_gbs, options.rearrange_every)),
            "reason": placement.move.reason,
        },
        "layers": [_layer(prediction, placement, at) for at in range(len(prediction.run.layers))]
        if placement.sums
        else [],
    }


def _layer(prediction: Prediction, placement: Valued, at: int) -> dict[str, Any]:
    layout = placement.layouts[at]
    values = {
        name: {**_named("predicted", sums.predicted(at)), **_named("saved", sums.saved(at))}
        for name, sums in placement.sums.items()
    }
    return {
        "layer_idx": prediction.run.layers[at].layer,
        "order": None if layout is None else layout.order.tolist(),
        "slots_per_rank": None if layout is None else layout.sizes.tolist(),
        **{name: values.get(name) for name in prediction.phases},
    }


def _max_mean(placement: Valued) -> float | None:
    """Return the mean over layers of the largest rank's tokens over the mean rank's."""
    tokens = placement.rank_tokens
    if not len(tokens) or not (tokens.sum(axis=1) > 0).all():
        return None
    return round(float((tokens.max(axis=1) / tokens.mean(axis=1)).mean()), 6)


def _named(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    if estimate is None:
        return {f"{name}_ns": None, f"{name}_low_ns": None, f"{name}_high_ns": None}
    low, high = estimate.interval()
    return {
        f"{name}_ns": _rounded(estimate.mean_ns),
        f"{name}_low_ns": _rounded(low),
        f"{name}_high_ns": _rounded(high),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 1)


def write(prediction: Prediction, folder: Path, text: str) -> tuple[list[Path], Mapping[str, str]]:
    """Write the document (``placement.json``) and each placement in each form into ``folder``/moe_placement.

    Returns:
        The files, and why a file of a placement in a form is not among them, by its name.

    Raises:
        NvtxmoeError: the folder can't be written.
    """
    target = folder / FOLDER
    check_folder(target)
    contents, omitted = files(prediction)
    contents["placement.json"] = text
    try:
        target.mkdir(parents=True, exist_ok=True)
        with staging(target) as stage:
            for name, content in contents.items():
                (stage / name).write_text(content, encoding="utf-8")
            replace_set(target, stage, list(contents), sorted(set(omitted)))
    except OSError as error:
        raise cannot_write(error, target, "placements", "Make room, or make the folder writable") from error
    return [target / name for name in contents], omitted


def files(prediction: Prediction) -> tuple[dict[str, str], Mapping[str, str]]:
    """Return the text of each file by its name, and why a file is lacking."""
    contents: dict[str, str] = {}
    omitted: dict[str, str] = {}
    for placement in prediction.placements:
        for form in forms().values():
            name = f"{placement.name}{form.SUFFIX}"
            if placement.reason is not None or any(layout is None for layout in placement.layouts):
                omitted[name] = placement.reason or "the placement of some layers is not known"
                continue
            layers = zip(prediction.run.layers, placement.layouts, strict=True)
            placed = {layer.layer: layout for layer, layout in layers if layout is not None}
            experts = {layer.layer: layer.experts for layer in prediction.run.layers}
            try:
                contents[name] = form.dump(Placement(placement.name, placed, experts))
            except NvtxmoeError as error:
                omitted[name] = error.what
    return contents, omitted
