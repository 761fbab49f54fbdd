"""Several results against one baseline: each pair as ``compare`` has it, p-values adjusted over all results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.compare.compare import FOLDER as COMPARISON
from nvtxmoe_analysis.compare.compare import STEM, Comparison, compare, side_of
from nvtxmoe_analysis.compare.compare import document as document_of
from nvtxmoe_analysis.compare.gate import SIGNIFICANT, Outcome, judge, parse
from nvtxmoe_analysis.compare.measures import METRICS
from nvtxmoe_analysis.core.files import check_folder
from nvtxmoe_analysis.core.text import listed
from nvtxmoe_analysis.outputs.spec import FOLDER as RESULTS
from nvtxmoe_analysis.outputs.write import write_set
from nvtxmoe_analysis.stats.multiple_testing import holm

#: Column that names the result in the tables of several comparisons.
RESULT = "result"


@dataclass(frozen=True)
class Comparisons:
    """Differences of several results from one baseline.

    Attributes:
        baseline: its name.
        results: by name, each result compared with the baseline, which is side A.
    """

    baseline: str
    results: Mapping[str, Comparison]

    @property
    def failed(self) -> bool:
        """Whether a gate failed in any result."""
        return any(comparison.failed for comparison in self.results.values())

    @property
    def undecided(self) -> list[Outcome]:
        """Gates that could not be decided, of all results."""
        return [outcome for comparison in self.results.values() for outcome in comparison.undecided]


def compare_many(
    folders: Sequence[str | PathLike[str]],
    *,
    baseline: str | None = None,
    fail_if: Sequence[str] = (),
    rule: str = SIGNIFICANT,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparisons:
    """Compare each result with the baseline.

    Estimates, intervals and p-values of a pair are those of ``compare``. ``p_adjusted`` is Holm's over the results too
    (and over layers or experts as before), and ``significant`` and the gates go by it.

    Parameters:
        folders: two or more folders of results, see ``read.load``.
        baseline: the name or path of one of them; None: the first.
        fail_if, rule, confidence, seed: see ``compare``.

    Raises:
        NvtxmoeError: a folder is given twice, no result has the baseline's name, or see ``compare``.
    """
    gates = [parse(text) for text in fail_if]
    base, *others = baseline_first(folders, baseline)
    baseline, *names = names_of([base, *others])
    pairs = [compare(base, other, rule=rule, confidence=confidence, seed=seed) for other in others]
    alpha = 1.0 - confidence
    over_layers = pl.col("layer_idx").is_null().alias("whole")
    metrics = across([pair.metrics for pair in pairs], ("metric", "step_kind", over_layers), alpha)
    activations = across([pair.activations for pair in pairs], ("step_kind", over_layers), alpha)
    experts = across([pair.experts for pair in pairs], (), alpha)
    results = {}
    for i, (name, pair) in enumerate(zip(names, pairs, strict=True)):
        outcomes = [judge(gate, metrics[i], activations[i], rule, alpha) for gate in gates]
        results[name] = replace(
            pair, metrics=metrics[i], activations=activations[i], experts=experts[i], outcomes=outcomes
        )
    return Comparisons(baseline, results)


def as_comparisons(comparison: Comparison) -> Comparisons:
    """Return one comparison as the only one of a baseline."""
    baseline, name = names_of([side.folder for side in comparison.runs], same_names="AB")
    return Comparisons(baseline, {name: comparison})


def baseline_first(folders: Sequence[str | PathLike[str]], baseline: str | None) -> list[Path]:
    """Return the folders in their order, but the baseline first.

    Parameters:
        baseline: its name or path; None: the first.

    Raises:
        NvtxmoeError: one folder is given twice, or none has the baseline's name.
    """
    paths = [Path(folder) for folder in folders]
    folder_of_file: dict[Path, Path] = {}
    for path in paths:
        place = _named(path)
        if place in folder_of_file and len(paths) > 2:
            raise NvtxmoeError(
                "given twice: p-values are adjusted for the number of results, and a copy would count as one more",
                where=path,
                remedy="Name each result once",
            )
        folder_of_file[place] = path
    if baseline is None:
        return paths
    names = names_of(paths, same_names="AB")
    for i, (name, path) in enumerate(zip(names, paths, strict=True)):
        if baseline == name or _named(Path(baseline)) == _named(path):
            return [path, *paths[:i], *paths[i + 1 :]]
    raise NvtxmoeError(
        f"--baseline {baseline}: no result has this name", remedy=f"Give one of the results: {', '.join(names)}"
    )


def names_of(folders: Sequence[Path], same_names: Sequence[str] = ()) -> list[str]:
    """Return short names of folders: as many of the last parts of their paths as tell them apart.

    Parameters:
        same_names: the names if two are one folder.
    """
    parts = [_named(folder).parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(same_names)


def _named(folder: Path) -> Path:
    """Return the absolute path of a result, without the folder in it that holds the files."""
    path = folder.resolve()
    return path.parent if path.name == RESULTS else path


def across(tables: Sequence[pl.DataFrame], family: Sequence[str | pl.Expr], alpha: float) -> list[pl.DataFrame]:
    """Return the tables of several comparisons with p-values adjusted by Holm's method over all of them.

    Parameters:
        tables: with ``p_value``, ``p_adjusted`` and ``significant``.
        family: what the rows have in common that are adjusted together; nothing: all rows.
        alpha: below it a p-value is significant.
    """
    rows = pl.concat([table.with_columns(_table=pl.lit(i)) for i, table in enumerate(tables)]).with_row_index("_row")
    p_values = rows["p_value"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    adjusted = np.full(len(rows), np.nan)
    for group in rows.group_by(*family or [pl.lit(0)]).agg("_row")["_row"]:
        members = group.to_numpy()
        adjusted[members] = holm(p_values[members][None])[0]
    finished = rows.with_columns(p_adjusted=pl.Series(adjusted).fill_nan(None)).with_columns(
        significant=pl.col("p_adjusted") < alpha
    )
    return [finished.filter(_table=i).select(table.columns) for i, table in enumerate(tables)]


def document(comparisons: Comparisons) -> dict[str, Any]:
    """Return the comparisons as one JSON value: each as ``compare.document`` has it, under the name of its result."""
    first = next(iter(comparisons.results.values()))
    return {
        "baseline": {"name": comparisons.baseline, **side_of(first.runs[0])},
        "failed": comparisons.failed,
        "not_in_all": not_in_all(comparisons),
        "results": [{"name": name, **document_of(pair)} for name, pair in comparisons.results.items()],
        "options": first.options,
    }


def not_in_all(comparisons: Comparisons) -> list[str]:
    """Return which metrics have no row for which results, a sentence per group of results."""
    metrics: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for metric in METRICS:
        lacking_results = tuple(
            name
            for name, comparison in comparisons.results.items()
            if comparison.metrics.filter(metric=metric).drop_nulls("value_b").is_empty()
        )
        if lacking_results:
            metrics[lacking_results].append(metric)
    return [
        f"No row of {listed(names)} for "
        f"{'any result' if len(results) == len(comparisons.results) else listed(results)}: "
        "the result or the baseline does not have it. The notes say why."
        for results, names in metrics.items()
    ]


def write(compared: Comparisons, output: Path) -> list[Path]:
    """Write the comparisons into ``output/moe_comparison``: the files of ``compare.write``, the name of the result in
    the first column.

    Raises:
        NvtxmoeError: the folder can't be written.
    """
    folder = output / COMPARISON
    check_folder(folder)
    tables = {
        stem: pl.concat([
            getattr(pair, what).select(pl.lit(name).alias(RESULT), pl.all()) for name, pair in compared.results.items()
        ])
        for stem, what in ((STEM, "metrics"), (f"{STEM}_activations", "activations"), (f"{STEM}_experts", "experts"))
    }  # fmt: skip
    return write_set(folder, tables, {STEM: document(compared)})
