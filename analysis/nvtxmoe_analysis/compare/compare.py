"""``nvtxmoe compare`` as one call: from two folders to tables, a document and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nvtxmoe._version import __version__
from nvtxmoe_analysis.compare.expert_shift import compare_activations
from nvtxmoe_analysis.compare.gate import FAILED, SIGNIFICANT, UNDECIDED, Outcome, judge, parse
from nvtxmoe_analysis.compare.measures import METRICS, measure
from nvtxmoe_analysis.compare.plan import Kind, plan
from nvtxmoe_analysis.compare.runs import Run, open_runs
from nvtxmoe_analysis.compare.summary import summary
from nvtxmoe_analysis.compare.tables import ALL
from nvtxmoe_analysis.compare.workload import drift_notes, notes, workloads
from nvtxmoe_analysis.core.files import check_folder
from nvtxmoe_analysis.outputs.write import write_set

#: Folder in the output folder, and the files in it.
FOLDER = "moe_comparison"
STEM = "moe_comparison"
EXPERTS_LISTED = 20


@dataclass(frozen=True)
class Comparison:
    """What two runs differ in.

    Attributes:
        metrics, activations, experts: see ``tables``.
        workloads: see ``workload.workloads``.
        notes: what a reader must know before believing a difference.
        outcomes: of the gates.
    """

    runs: tuple[Run, Run]
    kinds: tuple[Kind, ...]
    metrics: pl.DataFrame
    activations: pl.DataFrame
    experts: pl.DataFrame
    workloads: list[dict[str, Any]]
    notes: list[str]
    outcomes: list[Outcome]
    options: dict[str, Any]

    @property
    def failed(self) -> bool:
        """Whether a gate failed."""
        return any(outcome.verdict == FAILED for outcome in self.outcomes)

    @property
    def undecided(self) -> list[Outcome]:
        """Gates that could not be decided."""
        return [outcome for outcome in self.outcomes if outcome.verdict == UNDECIDED]


def compare(
    folder_a: str | PathLike[str],
    folder_b: str | PathLike[str],
    *,
    fail_if: Sequence[str] = (),
    rule: str = SIGNIFICANT,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare run B with run A.

    Parameters:
        folder_a, folder_b: folders of results, see ``read.load``.
        fail_if: conditions, see ``gate.parse``.
        rule: how sure a difference must be to fail one, see ``gate.judge``.
        confidence: of intervals; a p-value below 1 - confidence is significant.
        seed: of the draws behind the noise of the divergence: the same seed gives the same figures.

    Raises:
        NvtxmoeError: a condition can't be read, a folder holds no results, or the runs can't be compared.
    """
    gates = [parse(text) for text in fail_if]
    runs = open_runs(folder_a, folder_b)
    random = np.random.default_rng(seed)
    kinds = plan(*runs)
    layers = sorted(runs[0].experts)
    metrics = pl.concat([measure(metric, runs, kinds, layers, confidence) for metric in METRICS.values()])
    activations, experts = compare_activations(runs, kinds, layers, confidence, random)
    loads = workloads(runs, kinds)
    return Comparison(
        runs=runs,
        kinds=tuple(kinds),
        metrics=metrics,
        activations=activations,
        experts=experts,
        workloads=loads,
        notes=[*notes(runs, kinds, loads), *drift_notes(metrics, activations)],
        outcomes=[judge(gate, metrics, activations, rule, 1.0 - confidence) for gate in gates],
        options={
            "nvtxmoe": __version__,
            "confidence": confidence,
            "seed": seed,
            "rule": rule,
        },
    )


def movers(rows: pl.DataFrame, value: str) -> pl.DataFrame:
    """Rows of single layers over all kinds of step, the largest movers first: significant ones, then by the size of
    their difference.
    """
    layer_rows = rows.filter(pl.col("layer_idx").is_not_null(), pl.col("step_kind") == ALL, pl.col(value).is_not_null())
    return layer_rows.sort(
        [pl.col("significant").fill_null(False), pl.col(value).abs(), pl.col("layer_idx")],
        descending=[True, True, False],
    )


def document(comparison: Comparison) -> dict[str, Any]:
    """The comparison as one JSON value; times in ns. Of single layers what all kinds of step together say."""
    over_layers = pl.col("layer_idx").is_null()
    first = comparison.experts.sort(
        [pl.col("significant").fill_null(False), pl.col("js_bits")], descending=True, maintain_order=True
    )
    return {
        "a": side_of(comparison.runs[0]),
        "b": side_of(comparison.runs[1]),
        "summary": summary(comparison),
        "failed": comparison.failed,
        "gates": [_outcome(outcome) for outcome in comparison.outcomes],
        "notes": comparison.notes,
        "workloads": comparison.workloads,
        "metrics": comparison.metrics.filter(over_layers).drop("layer_idx").to_dicts(),
        "activations": comparison.activations.filter(over_layers).drop("layer_idx").to_dicts(),
        "layers": {
            **{
                name: movers(comparison.metrics.filter(pl.col("metric") == name), "difference")
                .drop("metric", "step_kind")
                .to_dicts()
                for name, metric in METRICS.items()
                if metric.whole is not None
            },
            "js": movers(comparison.activations, "excess_bits").drop("step_kind").to_dicts(),
        },
        "experts": first.head(EXPERTS_LISTED).to_dicts(),
        "options": comparison.options,
    }


def side_of(side: Run) -> dict[str, Any]:
    """Return what a comparison's document has of a run."""
    steps = side.steps
    return {
        "folder": str(side.folder),
        "verdict": side.loaded.validation["verdict"],
        "gpu_time": side.times is not None,
        "steps": steps["step"].n_unique(),
        "ranks": steps["rank"].n_unique(),
        "layers": len(side.experts),
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    gate = asdict(outcome.gate)
    fields = {key: value for key, value in asdict(outcome).items() if key != "gate"}
    return {"expression": gate.pop("text"), **gate, **fields, "layers_failed": list(outcome.layers_failed)}


def write(comparison: Comparison, output: Path) -> list[Path]:
    """Write the comparison into ``output/moe_comparison``: three tables as CSV and the document.

    Raises:
        NvtxmoeError: the folder can't be written.
    """
    folder = output / FOLDER
    check_folder(folder)
    tables = {
        STEM: comparison.metrics,
        f"{STEM}_activations": comparison.activations,
        f"{STEM}_experts": comparison.experts,
    }
    return write_set(folder, tables, {STEM: document(comparison)})
