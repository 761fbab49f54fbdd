"""Which steps are compared with which.

Steps are compared with steps of their own kind and of about their number of tokens. Ranks and layers of a step count
as one observation, so that what they have in common is not taken for independent evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.compare.runs import KINDS, Run
from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.core.text import listed, number
from nvtxmoe_analysis.stats.long_run import LEAST_STEPS

T = TypeVar("T")

#: Steps that a class of token numbers must have in each run to be compared.
LEAST_CLASS_STEPS = 3


@dataclass(frozen=True)
class Kind:
    """The steps of one kind in both runs; pairs are (A, B).

    Attributes:
        numbers: distinct step numbers, rising.
        classes: of token numbers, as ``token_class`` has them, with enough steps in both runs; each with the mean
            number of tokens of its steps.
        matched: number of steps in these classes.
        tokens: tokens of all its steps on all ranks.
    """

    name: str
    numbers: tuple[Ints, Ints]
    classes: Mapping[int, float]
    matched: tuple[int, int]
    tokens: tuple[int, int]

    @property
    def steps(self) -> tuple[int, int]:
        """Number of distinct steps of each run."""
        return len(self.numbers[0]), len(self.numbers[1])

    @property
    def silent(self) -> str | None:
        """Reason why significance can't be told; None where there are enough steps."""
        for name, steps in zip("AB", self.steps, strict=True):
            if steps < LEAST_STEPS:
                return f"{name} has only {number(steps, f'{self.name} step')}"
        return None


def token_class() -> pl.Expr:
    """Octaves of the number of tokens: 1, 2 to 3, 4 to 7, 8 to 15, ... as 0, 1, 2, 3."""
    return pl.col("num_tokens").cast(pl.Float64).log(2.0).add(1e-9).floor().cast(pl.Int64).alias("token_class")


def plan(a: Run, b: Run) -> list[Kind]:
    """Return the kinds of step that both runs have.

    Raises:
        NvtxmoeError: there is none.
    """
    steps = [side.steps.with_columns(token_class()) for side in (a, b)]
    out = []
    for name in KINDS:
        of_kind = [frame.filter(pl.col("step_kind") == name) for frame in steps]
        if any(frame.is_empty() for frame in of_kind):
            continue
        classes = _classes(of_kind)
        compared = pl.col("token_class").is_in(list(classes))
        out.append(
            Kind(
                name=name,
                numbers=_pair(frame["step"].unique().sort().to_numpy() for frame in of_kind),
                classes=classes,
                matched=_pair(frame.filter(compared)["step"].n_unique() for frame in of_kind),
                tokens=_pair(int(frame["num_tokens"].sum()) for frame in of_kind),
            )
        )
    if not out:
        kinds = [listed(frame["step_kind"].unique().sort().to_list()) for frame in steps]
        raise NvtxmoeError(
            f"no kind of step is in both runs: A has {kinds[0]} steps, B has {kinds[1]} steps",
            where=b.folder,
            remedy="Compare runs that have steps of the same kind",
        )
    return out


def _pair(values: Iterable[T]) -> tuple[T, T]:
    first, other = values
    return first, other


def _classes(step_tables: list[pl.DataFrame]) -> dict[int, float]:
    """See ``Kind.classes``. Where each run has one number of tokens, but not the same, nothing tells what the number
    does, and the class is left out.
    """
    tokens = pl.col("num_tokens")
    of_each = [
        frame.group_by("token_class").agg(
            pl.col("step").n_unique().alias("steps"), tokens.min().alias("least"), tokens.max().alias("most")
        )
        for frame in step_tables
    ]
    both = (
        of_each[0]
        .join(of_each[1], on="token_class", suffix="_b")
        .filter(
            pl.min_horizontal("steps", "steps_b") >= LEAST_CLASS_STEPS,
            (pl.col("least") < pl.col("most"))
            | (pl.col("least_b") < pl.col("most_b"))
            | (pl.col("least") == pl.col("least_b")),
        )
    )
    means = pl.concat(step_tables).group_by("token_class").agg(tokens.mean())
    return dict(both.join(means, on="token_class").sort("token_class").select("token_class", "num_tokens").rows())
