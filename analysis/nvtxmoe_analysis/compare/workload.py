"""Whether the runs did the same work: kinds of step, tokens a step, and how much of it could be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe.formats.schema import RECORDINGS
from nvtxmoe_analysis.compare.plan import LEAST_CLASS_STEPS, Kind
from nvtxmoe_analysis.compare.runs import KINDS, UNKNOWN, Run
from nvtxmoe_analysis.compare.tables import ALL

#: Shares of steps, and distances of token numbers, above which the loads count as different.
MOST_APART = 0.1
#: Critical value of Kolmogorov and Smirnov's statistic at 5 %, times sqrt(n m / (n + m)).
CRITICAL = 1.358


def workloads(runs: tuple[Run, Run], kinds: Sequence[Kind]) -> list[dict[str, Any]]:
    """By kind of step, of each run: how many steps, how many of them are compared, tokens a step; and the distance of
    the distributions of tokens a step (0 to 1, the largest difference of cumulative shares).
    """
    planned = {kind.name: kind for kind in kinds}
    steps = [side.steps for side in runs]
    out = []
    for name in KINDS:
        of_kind = [frame.filter(pl.col("step_kind") == name) for frame in steps]
        if all(frame.is_empty() for frame in of_kind):
            continue
        kind = planned.get(name)
        tokens = [frame["num_tokens"].to_numpy() for frame in of_kind]
        row: dict[str, Any] = {"step_kind": name}
        for i, (letter, frame) in enumerate(zip("ab", of_kind, strict=True)):
            row[f"steps_{letter}"] = frame["step"].n_unique()
            row[f"compared_{letter}"] = kind.matched[i] if kind else 0
            row[f"tokens_{letter}"] = int(tokens[i].sum())
            row[f"median_tokens_{letter}"] = float(np.median(tokens[i])) if len(tokens[i]) else None
        row["distance"] = _distance(*tokens) if all(len(sizes) for sizes in tokens) else None
        out.append(row)
    return out


def _distance(tokens_a: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> float:
    at = np.union1d(tokens_a, other)
    below = [np.searchsorted(np.sort(tokens), at, side="right") / len(tokens) for tokens in (tokens_a, other)]
    return float(np.abs(below[0] - below[1]).max())


def notes(runs: tuple[Run, Run], kinds: Sequence[Kind], loads: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must know before believing a difference, one sentence each."""
    return [*_captures(runs), *_loads(loads), *_silences(kinds, loads)]


def drift_notes(metrics: pl.DataFrame, activations: pl.DataFrame) -> list[str]:
    """One sentence for each metric of all layers together whose significance a drift leaves undecided."""
    over_layers = pl.col("layer_idx").is_null() & pl.col("reason").str.contains(" drifts ", literal=True)
    kinds = set(metrics["step_kind"]) - {ALL}
    if len(kinds) == 1:  # all kinds together are this one
        over_layers &= pl.col("step_kind") != ALL
    rows = pl.concat([metrics.filter(over_layers).select("reason"), activations.filter(over_layers).select("reason")])
    return [f"Can't tell: {reason}. Capture more steps." for reason in rows["reason"].unique(maintain_order=True)]


def _captures(runs: tuple[Run, Run]) -> Iterator[str]:
    if _identical(*runs):
        yield "The results are identical: every count and time of A is B's. They are one result, or copies of one."
    for side in runs:
        if side.loaded.validation["verdict"] != "complete":
            yield f"The capture of {side.name} is incomplete: {side.folder}, moe_capture_validation.json."
    differing = []
    for key in ("model", "device", "vllm", "torch", "tp_size", "ep_size", "world_size"):
        values = [sorted(_models(side) if key == "model" else side.says(key)) for side in runs]
        if values[0] and values[1] and values[0] != values[1]:
            differing.append(f"{key} (A {', '.join(values[0])}, B {', '.join(values[1])})")
    ways = [_recording(side) for side in runs]
    if all(ways) and ways[0] != ways[1]:
        yield (
            f"The expert ids were taken in different ways: {ways[0]} in A, {ways[1]} in B. Recomputed ids may differ "
            "from the kernel's in ambiguous tokens (check ids_taken)."
        )
    if differing:
        yield f"The runs differ in {', '.join(differing)}."
    if len({side.steps["rank"].n_unique() for side in runs}) > 1:
        yield "The runs have different numbers of ranks: times are of one rank, the mean over ranks."
    filters = [{k: v for k, v in side.loaded.validation["selection"].items() if k in _FILTERS} for side in runs]
    if filters[0] != filters[1]:
        yield "The runs were analysed with different filters (selection in moe_capture_validation.json)."
    for side in runs:
        if side.times is None:
            yield f"{side.name} has no GPU time: only routing is compared."


def _identical(a: Run, b: Run) -> bool:
    if not a.counts.equals(b.counts):
        return False
    return a.times is b.times if a.times is None or b.times is None else a.times.equals(b.times)


def _check(side: Run, name: str) -> dict[str, Any]:
    """Return the figures of a check of a run's capture; empty if it was not made."""
    checks = side.loaded.validation.get("checks", [])
    return next((check["figures"] for check in checks if check["name"] == name), {})


def _models(side: Run) -> set[str]:
    """Return the names of the models that a run's processes serve."""
    return set(map(str, _check(side, "one_model").get("models", [])))


def _recording(side: Run) -> str:
    """How a run's expert ids were taken: the figures of the check ids_taken, as text; empty where it does not tell."""
    evidence = _check(side, "ids_taken")
    ways = [(way, evidence[way]) for way in RECORDINGS if way in evidence]
    return ways[0][0] if len(ways) == 1 else ", ".join(f"{way} (layers {layers})" for way, layers in ways)


_FILTERS = ("first_step", "last_step", "skip_first", "only", "layers", "ranks")


def _loads(loads: Sequence[dict[str, Any]]) -> Iterator[str]:
    totals = [sum(row[f"steps_{letter}"] for row in loads) for letter in "ab"]
    for row in loads:
        name, steps = row["step_kind"], (row["steps_a"], row["steps_b"])
        if not all(steps):
            yield f"Only {'A' if steps[0] else 'B'} has {name} steps ({max(steps)}): they are not compared."
            continue
        shares = [number / total for number, total in zip(steps, totals, strict=True)]
        if abs(shares[0] - shares[1]) > MOST_APART:
            yield (
                f"The loads differ: {100 * shares[0]:.0f} % of A's steps are {name} steps and "
                f"{100 * shares[1]:.0f} % of B's."
            )
        chance = CRITICAL * sqrt((steps[0] + steps[1]) / (steps[0] * steps[1]))
        if row["distance"] > max(MOST_APART, chance):
            yield (
                f"The loads differ: {name} steps have {row['median_tokens_a']:,.0f} tokens in A and "
                f"{row['median_tokens_b']:,.0f} in B (medians). Times and imbalance are compared at equal numbers of "
                "tokens, kernel_time_per_token is not."
            )


def _silences(kinds: Sequence[Kind], loads: Sequence[dict[str, Any]]) -> Iterator[str]:
    for kind in kinds:
        if kind.silent is not None:
            left = "" if all(kind.silent for kind in kinds) else ", and they are left out of what is said of all steps"
            yield f"Nothing can be said about significance in {kind.name} steps: {kind.silent}{left}."
    for row in loads:
        for letter in "ab":
            steps, compared = row[f"steps_{letter}"], row[f"compared_{letter}"]
            if 0 < compared < steps * (1 - MOST_APART):
                yield (
                    f"{compared} of {letter.upper()}'s {steps} {row['step_kind']} steps are compared in times and "
                    "imbalance: the others have numbers of tokens that too few steps of a run have (at least "
                    f"{LEAST_CLASS_STEPS} between two powers of two)."
                )
    if any(row["step_kind"] == UNKNOWN for row in loads):
        yield "Kinds of step are not known: prefill and decode are not told apart."
