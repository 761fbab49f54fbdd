"""The steady steps of each kind, and the words for them: what every time per step in findings and headlines is of.

A run begins with steps that no user waits for twice: launched eagerly while others replay CUDA graphs, or many times
slower than later ones. They stay in the tables and out of times per step. Every sentence names its steps in the words
of ``Steady``, so that a number has the same basis wherever people read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from nvtxmoe_analysis.report.results import Source

CORRELATION = "layer_correlation"
STEP = ("rank", "step")
COLUMNS = ("step_kind", "launched_by", "num_tokens", "step_gpu_ns", "kernel_time_ns")
#: Kinds of steps, the one that matters most first.
KINDS = ("decode", "prefill", "mixed", "none")
#: Kinds of steps that have tokens.
NAMED_KINDS = ("decode", "prefill", "mixed")
#: A kind of step is told by so many steps, and what is usual of a batch size by so many of it.
LEAST_STEPS = 5
#: A step that takes so many times the usual is an outlier.
OUTLYING = 5
STEADY, START_UP, EAGER, OUTLIER = "steady", "start-up", "eager", "outlier"


@dataclass(frozen=True)
class Steady:
    """The steady steps.

    Attributes:
        kind: of step; ``unknown`` if the results do not have kinds.
        numbers: of the steps.
        rank_steps: (rank, step) of them.
        eager: True if they were launched eagerly.
        left_out: steps of that kind that are not steady, by reason: START_UP (eager or outlying, before the first
            steady one), EAGER (later ones), OUTLIER (OUTLYING times slower than other steps of about that batch).
    """

    kind: str
    numbers: frozenset[int]
    rank_steps: int
    eager: bool
    left_out: Mapping[str, frozenset[int]]

    @property
    def noun(self) -> str:
        """``steady decode step``."""
        return "steady step" if self.kind in ("unknown", "none") else f"steady {self.kind} step"

    @property
    def nouns(self) -> str:
        """``34 steady decode steps``."""
        many = len(self.numbers)
        return f"{many:,} {self.noun}{'' if many == 1 else 's'}"

    @property
    def sets(self) -> Mapping[str, frozenset[int]]:
        """The steady steps (STEADY) and those left out (START_UP, EAGER, OUTLIER), by name."""
        return {STEADY: self.numbers, **self.left_out}

    @property
    def in_words(self) -> str:
        """``82 (rank, step) of 41 steady decode steps``."""
        return f"{self.rank_steps:,} (rank, step) of {self.nouns}"

    @property
    def basis(self) -> str:
        """``mean of 34 steady decode steps on 2 ranks``: what a time per step is of."""
        ranks, remainder = divmod(self.rank_steps, len(self.numbers))
        if remainder:  # not every rank ran every step
            return f"mean of {self.in_words}"
        return f"mean of {self.nouns} on {ranks:,} rank{'' if ranks == 1 else 's'}"

    @property
    def without(self) -> str:
        """The steps left out in words; empty if none is."""
        return ", ".join(
            f"{len(steps):,} {reason} step{'' if len(steps) == 1 else 's'}"
            for reason, steps in self.left_out.items()
            if steps
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the steps as ranges, JSON-ready."""
        return {
            "step_kind": self.kind,
            "launched_by": "eager" if self.eager else "graph",
            "steps": len(self.numbers),
            "rank_steps": self.rank_steps,
            "ranges": ranges(self.numbers),
            "left_out": {reason: ranges(steps) for reason, steps in self.left_out.items()},
        }


def ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Return numbers as ``[first, last]`` of consecutive ones."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return spans


def steady(source: Source) -> Steady | None:
    """Return the steady steps of the kind that headlines are of; None if none has a number and a known GPU time, or
    none is like another."""
    steps = _steps_of(source)
    return None if steps is None else _steady(source, steps, _kind(steps))


def steady_others(source: Source) -> list[Steady]:
    """Return the steady steps of every other one of NAMED_KINDS that has any, the most GPU time first."""
    steps = _steps_of(source)
    if steps is None:
        return []
    by_kind = steps.group_by("kind").agg(pl.col("time").sum()).sort(["time", "kind"], descending=[True, False])
    others = [kind for kind in by_kind["kind"].to_list() if kind in NAMED_KINDS and kind != _kind(steps)]
    return [of_kind for kind in others if (of_kind := _steady(source, steps, kind)) is not None]


def named_sets(main: Steady | None, others: Iterable[Steady]) -> Mapping[str, frozenset[int]]:
    """Return every set of steps that a number can be of, by its name: those of ``Steady.sets``, and ``steady KIND`` of
    each other kind."""
    if main is None:
        return {}
    return {**main.sets, **{f"{STEADY} {steps.kind}": steps.numbers for steps in others}}


def _steps_of(source: Source) -> pl.DataFrame | None:
    """Return ``_steps`` of results; None if there is none."""
    frame = source.frame(CORRELATION, COLUMNS)
    if frame is None:
        return None
    steps = source.once("steps", lambda: _steps(frame))
    return None if steps.is_empty() else steps


def _steady(source: Source, steps: pl.DataFrame, kind: str) -> Steady | None:
    """Return the steady steps of a kind; None if no step of it has a number, or none is like another."""
    return source.once(f"steady {kind} steps", lambda: _of_kind(steps, kind))


def _of_kind(steps: pl.DataFrame, kind: str) -> Steady | None:
    of_kind = steps.filter(kind=kind)
    graphs = 2 * int(of_kind["graph"].sum()) >= len(of_kind)
    of_kind = of_kind.with_columns(
        eager=pl.lit(graphs) & ~pl.col("graph"),
        outlier=_outlying(of_kind.with_columns(slow_way=pl.lit(graphs) & ~pl.col("graph"))),
    )
    regular = of_kind.filter(~pl.col("eager") & ~pl.col("outlier") & pl.col("step").is_not_null())
    if regular.is_empty():
        return None
    first = min(regular["step"].to_list())
    reasons = {
        START_UP: (pl.col("eager") | pl.col("outlier")) & (pl.col("step") < first),
        EAGER: pl.col("eager") & (pl.col("step") > first),
        OUTLIER: pl.col("outlier") & ~pl.col("eager") & (pl.col("step") > first),
    }
    left_out = {reason: frozenset(of_kind.filter(which)["step"].to_list()) for reason, which in reasons.items()}
    return Steady(kind, frozenset(regular["step"].to_list()), int(regular["ranks"].sum()), not graphs, left_out)


def _steps(frame: pl.DataFrame) -> pl.DataFrame:
    """Return each step number with its kind, ways of launch, tokens and time: the largest of its ranks."""
    graph = pl.col("launched_by").is_in(["graph", "mixed"])
    of_rank = (
        frame.filter(pl.col("kernel_time_ns") > 0)
        .group_by(STEP)
        .agg(
            kind=pl.col("step_kind").first().fill_null("unknown"),
            graph=graph.any(),
            tokens=pl.col("num_tokens").first(),
            time=pl.col("step_gpu_ns").first(),
        )
        .drop_nulls("time")
    )
    several = pl.col("kind").n_unique() > 1
    return (
        of_rank.group_by("step")
        .agg(
            kind=pl.when(several).then(pl.lit("mixed")).otherwise(pl.col("kind").first()),
            graph=pl.col("graph").all(),
            tokens=pl.col("tokens").max(),
            time=pl.col("time").max(),
            ranks=pl.len(),
        )
        .sort("step")
    )


def _kind(steps: pl.DataFrame) -> str:
    """Return decode if there are a few such steps, else the kind with most."""
    many = dict(steps.group_by("kind").len().iter_rows())
    if many.get(KINDS[0], 0) >= LEAST_STEPS:
        return KINDS[0]
    order = {kind: -at for at, kind in enumerate(KINDS)}
    return str(max(many, key=lambda kind: (many[kind], order.get(kind, -len(KINDS)))))


def _outlying(steps: pl.DataFrame) -> pl.Series:
    """Return which steps take OUTLYING times the median of steps of about that batch (between powers of two), or, of a
    batch that few steps have, the largest such median. Steps launched another way do not count to the usual."""
    sized = steps.with_columns(size=pl.col("tokens").clip(1).log(2).floor())
    regular = sized.filter(~pl.col("slow_way"))
    usual = regular.group_by("size").agg(usual=pl.col("time").median(), many=pl.len())
    known = usual.filter(pl.col("many") >= LEAST_STEPS)
    usual_of_all = known["usual"].max() if len(known) else regular["time"].median()
    joined = sized.join(known.select("size", "usual"), on="size", how="left", maintain_order="left")
    return joined.select(pl.col("time") > OUTLYING * pl.col("usual").fill_null(usual_of_all)).to_series()
