"""Bars of the waterfall in words."""

from __future__ import annotations

from collections.abc import Mapping

#: Bars in their order, as the page names them.
LABELS: Mapping[str, str] = {
    "ideal": "least work of the experts",
    "further_experts": "experts beyond the fewest",
    "padding": "padding of tiles",
    "rest": "experts, not explained",
    "other_work": "other kernels and copies",
    "uneven_ranks": "waiting: uneven ranks",
    "unequal_speed": "waiting: unequal GPUs",
    "waiting": "waiting: late launches, earlier work",
    "transfer": "transfer in collectives",
    "collectives_not_split": "collectives, not split",
}
TOTAL = "total"
#: Columns that the page reads.
COLUMNS = ("group", "step", "step_kind", "bar", "time_ns", "low_ns", "high_ns", "how", "reason")
